"""Speed of a training step and of decoding, beside T5X's own on the same machine, in the same run.

    python benchmarks/speed.py                                  # hyperflax alone
    HYPERFLAX_T5X=/path/to/t5x python benchmarks/speed.py       # both, alternating, with ratios

The shape is T5.1.1-small's: 76,961,152 parameters, batch 8, 256 source and 64 target tokens. T5X's network, decoding
and losses are imported from the checkout without its package's other imports; its embedding is measured with a gather
instead of the one-hot product that it ships with, unless `--one-hot`. The optimizer is hyperflax's Adafactor for both.
Both sides get the same parameters and batch. Calls alternate between the two and the smallest time of each counts,
since other work on the machine only ever adds to it. Beside wall time stand the seconds of CPU time, of all threads,
which other work disturbs much less.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import pathlib
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hyperflax.models.beam import Beam
from hyperflax.models.decoding import decode
from hyperflax.models.sampling import Greedy
from hyperflax.models.t5 import T5
from hyperflax.objectives.token_loss import token_loss
from hyperflax.training.optimizers import adafactor
from hyperflax.types import T5Config

SMALL = T5Config(
    vocab_size=32128, emb_dim=512, num_heads=6, head_dim=64, mlp_dim=1024, num_encoder_layers=8, num_decoder_layers=8
)
EOS = 1


def main(argv: list[str] | None = None) -> None:
    """Prints one line per case and, at the end, the results as json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--source", type=int, default=256)
    parser.add_argument("--target", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each side")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="compute dtype")
    parser.add_argument("--one-hot", action="store_true", help="T5X's embedding as shipped")
    parser.add_argument("--only", nargs="*", choices=("train", "greedy", "beam1", "beam4"), help="leave out the others")
    args = parser.parse_args(argv)

    config = SMALL.replace(dtype=args.dtype)
    rng = np.random.default_rng(0)
    batch = {
        "encoder_input_tokens": rng.integers(2, 32000, (args.batch, args.source)).astype(np.int32),
        "decoder_target_tokens": rng.integers(2, 32000, (args.batch, args.target)).astype(np.int32),
    }
    batch["decoder_input_tokens"] = np.pad(batch["decoder_target_tokens"], ((0, 0), (1, 0)))[:, :-1]
    tokens = (batch["encoder_input_tokens"], batch["decoder_input_tokens"], batch["decoder_target_tokens"])
    params = jax.jit(T5(config).init)(jax.random.key(0), *tokens)["params"]
    print(f"{sum(x.size for x in jax.tree.leaves(params)):,} parameters, {jax.devices()[0].device_kind}, {args.dtype}")

    sides: dict[str, dict[str, Callable[[], Any]]] = {"hyperflax": ours(config, params, batch, args.target)}
    if checkout := os.environ.get("HYPERFLAX_T5X"):
        sides["t5x"] = theirs(pathlib.Path(checkout), config, params, batch, args.one_hot)
    results: dict[str, Any] = {}
    for case in args.only or ("train", "greedy", "beam1", "beam4"):
        calls = alternate({side: cases[case] for side, cases in sides.items()}, args.repeats)
        results[case] = times = {
            side: dict(zip(("wall", "cpu"), map(min, zip(*pairs, strict=True)), strict=True))
            for side, pairs in calls.items()
        }
        line = "   ".join(f"{side} {t['wall']:.3f} s (cpu {t['cpu']:.3f} s)" for side, t in times.items())
        if "t5x" in times:
            wall, cpu = (times["t5x"][kind] / times["hyperflax"][kind] for kind in ("wall", "cpu"))
            line += f"   t5x / hyperflax {wall:.2f} (cpu {cpu:.2f})"
        print(f"{case:8s} {line}", flush=True)
    print(json.dumps(results))


def alternate(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Compiles each, then times them in turn: wall and CPU seconds of every call of each."""
    for call in calls.values():
        jax.block_until_ready(call())
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in calls}
    for _ in range(repeats):
        for side, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(call())
            times[side].append((time.perf_counter() - wall, time.process_time() - cpu))
    return times


def train_step(loss: Callable[[Any, Any], jax.Array], params: Any, batch: Any) -> Callable[[], Any]:
    """Loss, gradient and Adafactor update, with donated state."""
    optimizer = adafactor(1e-3)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, opt_state: Any, batch: Any) -> tuple[Any, Any]:
        updates, opt_state = optimizer.update(jax.grad(loss)(params, batch), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    state = [jax.tree.map(jnp.array, params), optimizer.init(params)]

    def call() -> Any:
        state[:] = step(*state, batch)
        return state[0]

    return call


def ours(config: T5Config, params: Any, batch: Any, length: int) -> dict[str, Callable[[], Any]]:
    """hyperflax's cases. No token is the end of a sequence, so that every call decodes `length` tokens."""
    model = T5(config)

    def loss(params: Any, batch: Any) -> jax.Array:
        logits = model.apply({"params": params}, **batch)
        return token_loss(logits, batch["decoder_target_tokens"], z_loss=1e-4).loss_sum

    run = functools.partial(decode, model, params, batch["encoder_input_tokens"], max_length=length, eos_id=-1)
    return {
        "train": train_step(loss, params, batch),
        "greedy": lambda: run(method=Greedy()),
        "beam1": lambda: run(method=Beam(1)),
        "beam4": lambda: run(method=Beam(4)),
    }


def theirs(
    checkout: pathlib.Path, config: T5Config, params: Any, batch: Any, one_hot: bool
) -> dict[str, Callable[[], Any]]:
    """The same cases by T5X's modules, wired as its EncoderDecoderModel does."""
    package = types.ModuleType("t5x")
    package.__path__ = [str(checkout / "t5x")]  # not its __init__, which imports TensorFlow, seqio and clu
    sys.modules["t5x"] = package
    layers, network, decoding, losses = (
        importlib.import_module(f"t5x.{name}")
        for name in ("examples.t5.layers", "examples.t5.network", "decoding", "losses")
    )
    if not one_hot:
        shipped = layers.Embed
        vars(layers)["Embed"] = lambda **options: shipped(**{**options, "one_hot": False})
    names = ("vocab_size", "emb_dim", "num_heads", "num_encoder_layers", "num_decoder_layers", "head_dim", "mlp_dim")
    shape = {name: getattr(config, name) for name in names}
    model = network.Transformer(
        network.T5Config(**shape, dtype=config.dtype, mlp_activations=config.mlp_activations, dropout_rate=0.0)
    )
    tokens = (batch["encoder_input_tokens"], batch["decoder_input_tokens"], batch["decoder_target_tokens"])

    def loss(params: Any, batch: Any) -> jax.Array:
        logits = model.apply({"params": params}, **batch, enable_dropout=False)
        return losses.compute_weighted_cross_entropy(logits, batch["decoder_target_tokens"], z_loss=1e-4)[0]

    @functools.partial(jax.jit, static_argnames=("search", "decodes"))
    def run(params: Any, source: jax.Array, search: Callable[..., Any], decodes: int) -> Any:
        variables = {"params": params}
        encoded = model.apply(variables, source, enable_dropout=False, method="encode")
        ones = [jnp.ones_like(x) for x in tokens]
        start = model.apply(variables, *ones, mutable=["cache"], decode=True, enable_dropout=False)[1]["cache"]
        encoded, raw = (decoding.flat_batch_beam_expand(x, decodes) for x in (encoded, source))

        def step(state: Any) -> tuple[jax.Array, Any]:
            ids = state.cur_token
            options = {"decode": True, "max_decode_length": tokens[1].shape[1], "enable_dropout": False}
            logits, new = model.apply(
                {"params": params, "cache": state.cache},
                encoded,
                raw,
                ids,
                ids,
                **options,
                mutable=["cache"],
                method="decode",
            )
            return jnp.squeeze(logits, axis=1), new["cache"]

        return search(jnp.zeros_like(tokens[1]), start, step, eos_id=-1, num_decodes=decodes)

    source = tokens[0]
    return {
        "train": train_step(loss, params, batch),
        "greedy": lambda: run(params, source, decoding.temperature_sample, 1),
        "beam1": lambda: run(params, source, decoding.beam_search, 1),
        "beam4": lambda: run(params, source, decoding.beam_search, 4),
    }


if __name__ == "__main__":
    main()
