"""T5X's programs: its network, decoding and losses, wired as its EncoderDecoderModel does.

They are imported from the checkout that `HYPERFLAX_T5X` names, without the package's own imports (TensorFlow, seqio,
clu). T5X ships with a one-hot product for its embedding; `t5x_gather` is the same with a gather. Its training step has
hyperflax's Adafactor, which takes the same steps as its own.
"""

from __future__ import annotations

import functools
import importlib
import os
import pathlib
import sys
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.peers.case import Entry
from benchmarks.peers.materials import FACTORED, base_directory, tokens
from hyperflax.checkpoints.huggingface import read_huggingface
from hyperflax.training.optimizers import adafactor
from hyperflax.types import T5Config

Call = Callable[[], Any]

SCORED = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")  # the order of T5X's arguments
NEVER = -1  # an end-of-sequence token that does not come


@functools.cache
def t5x(module: str) -> Any:
    """Returns a module of the checkout, by its name below the package."""
    if "t5x" not in sys.modules:
        package = types.ModuleType("t5x")
        package.__path__ = [str(pathlib.Path(os.environ["HYPERFLAX_T5X"]) / "t5x")]
        sys.modules["t5x"] = package
    return importlib.import_module(f"t5x.{module}")


def network(entry: Entry, shape: T5Config, folder: pathlib.Path) -> tuple[Any, Any]:
    """Returns the module and its parameters."""
    if entry.side == "t5x_gather":
        _use_gather()
    config = entry.t5(shape)
    names = ("vocab_size", "emb_dim", "num_heads", "num_encoder_layers", "num_decoder_layers", "head_dim", "mlp_dim")
    sizes = {name: getattr(config, name) for name in (*names, "dtype", "mlp_activations", "dropout_rate")}
    module = t5x("examples.t5.network")
    params, _ = read_huggingface(base_directory(folder, entry.layers))
    return module.Transformer(module.T5Config(**sizes)), jax.tree.map(jnp.asarray, params)


@functools.cache
def _use_gather() -> None:
    """Changes the checkout's layers, once: each side has a process of its own."""
    layers = t5x("examples.t5.layers")
    shipped = layers.Embed
    layers.Embed = lambda **options: shipped(**{**options, "one_hot": False})


def train_full(entry: Entry, shape: T5Config, folder: pathlib.Path) -> Call:
    """Loss, gradient and update, with donated state."""
    model, params = network(entry, shape, folder)
    batch = jax.tree.map(jnp.asarray, tokens(entry, shape))
    optimizer, losses = adafactor(1e-3, min_dim_size_to_factor=FACTORED), t5x("losses")

    def loss(params: Any, batch: Any) -> jax.Array:
        logits = model.apply({"params": params}, **batch, enable_dropout=False)
        targets = batch["decoder_target_tokens"]
        return losses.compute_weighted_cross_entropy(logits, targets, z_loss=0.0)[0] / targets.size

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, opt_state: Any, batch: Any) -> tuple[Any, Any, jax.Array]:
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    state = [params, optimizer.init(params)]

    def call() -> list[float]:
        state[0], state[1], value = step(*state, batch)
        jax.block_until_ready(state)
        return [float(value)]

    return call


def decode(entry: Entry, shape: T5Config, folder: pathlib.Path) -> Call:
    """Greedy decoding is sampling from the single best token."""
    model, params = network(entry, shape, folder)
    batch = jax.tree.map(jnp.asarray, tokens(entry, shape))
    decoding, beams = t5x("decoding"), entry.beams
    search = decoding.beam_search if beams > 1 else decoding.temperature_sample

    @jax.jit
    def run(params: Any, source: jax.Array) -> jax.Array:
        variables = {"params": params}
        encoded = model.apply(variables, source, enable_dropout=False, method="encode")
        ones = [jnp.ones_like(batch[name]) for name in SCORED]
        start = model.apply(variables, *ones, mutable=["cache"], decode=True, enable_dropout=False)[1]["cache"]
        encoded, raw = (decoding.flat_batch_beam_expand(x, beams) for x in (encoded, source))

        def step(state: Any) -> tuple[jax.Array, Any]:
            ids = state.cur_token
            options = {"decode": True, "max_decode_length": entry.target, "enable_dropout": False}
            logits, new = model.apply(
                {"params": params, "cache": state.cache},
                *(encoded, raw, ids, ids),
                **options,
                mutable=["cache"],
                method="decode",
            )
            return jnp.squeeze(logits, axis=1), new["cache"]

        prompt = jnp.zeros((entry.rows, entry.target), jnp.int32)
        return search(prompt, start, step, eos_id=NEVER, num_decodes=beams)[0]

    return lambda: np.asarray(run(params, batch["encoder_input_tokens"])[:, -1])
