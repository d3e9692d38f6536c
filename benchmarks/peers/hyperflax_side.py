"""hyperflax's programs: the ways that its own commands and its service take."""

from __future__ import annotations

import functools
import itertools
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks.peers import materials
from benchmarks.peers.case import MATRIX, Entry
from benchmarks.peers.materials import FACTORED, START, base_directory, spec_of, tokens
from hyperflax.checkpoints.huggingface import read_huggingface
from hyperflax.data.episode_config import EpisodeConfig
from hyperflax.data.vocabularies import Bytes
from hyperflax.hypermodel import Hypermodel, HypermodelConfig
from hyperflax.hypernets.hyper_t5 import HyperT5Config
from hyperflax.hypernets.table import Table, table_params
from hyperflax.models.beam import Beam
from hyperflax.models.decoding import decode as decode_rows
from hyperflax.models.sampling import Greedy
from hyperflax.models.t5 import T5
from hyperflax.objectives.episode import HypermodelObjective
from hyperflax.objectives.language_model import T5Objective
from hyperflax.serving.engine import Engine, EngineConfig
from hyperflax.training.optimizers import Optimizer, adafactor, adamw
from hyperflax.training.state import create_state
from hyperflax.training.step import make_train_step
from hyperflax.types import Batch, PyTree, T5Config

Call = Callable[[], Any]

NEVER = -1  # an end-of-sequence token that does not come: every call decodes equally much
RESIDENT = 256  # adapters on the device at once, where not all are
STEPS = 16  # tokens between two looks of the engine
CHUNK = 20  # inputs that are answered at once


@functools.lru_cache(maxsize=1)
def base(directory: pathlib.Path, shape: T5Config) -> PyTree:
    """Returns the frozen parameters, on the device."""
    params, config = read_huggingface(directory)
    if config != shape:
        raise ValueError(f"{directory}: expected {shape}, got {config}")
    return jax.tree.map(jnp.asarray, params)


def frozen(entry: Entry, shape: T5Config, folder: pathlib.Path) -> PyTree:
    return base(base_directory(folder, entry.layers), entry.t5(shape))


def matmul(entry: Entry, shape: T5Config, folder: pathlib.Path) -> Call:
    """A product of two square matrices in float32: the rate that the machine reaches."""
    del entry, shape, folder
    matrix = jnp.asarray(np.random.default_rng(0).standard_normal((MATRIX, MATRIX), np.float32))
    product = jax.jit(jnp.matmul)
    return lambda: jax.block_until_ready(product(matrix, matrix))


# Training


def train_full(entry: Entry, shape: T5Config, folder: pathlib.Path) -> Call:
    """The step of `hyperflax train` on a plain T5."""
    params = jax.tree.map(jnp.copy, frozen(entry, shape, folder))  # the step donates them
    optimizer = adafactor(1e-3, min_dim_size_to_factor=FACTORED)
    return _training(T5Objective(T5(entry.t5(shape))), optimizer, params, None, tokens(entry, shape))


def train_lora(entry: Entry, shape: T5Config, folder: pathlib.Path) -> Call:
    """The step of `hyperflax finetune`: the adapter is a table of one row."""
    spec = spec_of(entry, shape)
    params = table_params(jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], materials.adapter(entry, shape, START)))
    objective = HypermodelObjective(T5(entry.t5(shape)), Table(spec, shared=True))
    batch = {name: array[None] for name, array in tokens(entry, shape).items()}
    batch["task_index"] = np.zeros(1, np.int32)
    return _training(objective, adamw(1e-3, clip_norm=None), params, frozen(entry, shape, folder), batch)


def _training(objective: Any, optimizer: Optimizer, params: PyTree, base_params: PyTree, batch: Batch) -> Call:
    """Returns a call that takes one step and gives the mean loss before it."""
    step = jax.jit(make_train_step(objective, optimizer), donate_argnums=0)
    state, key = [create_state(params, optimizer)], jax.random.key(0)
    batch = jax.tree.map(jnp.asarray, batch)

    def call() -> list[float]:
        state[0], metrics = step(state[0], base_params, batch, key)
        jax.block_until_ready(state[0])
        total, weight = metrics["loss"]
        return [float(total / weight)]

    return call


# Decoding


def decode(entry: Entry, shape: T5Config, folder: pathlib.Path) -> Call:
    """One batch, bare or with one adapter for all of it."""
    params, source = frozen(entry, shape, folder), jnp.asarray(tokens(entry, shape)["encoder_input_tokens"])
    adapters = jax.tree.map(jnp.asarray, materials.adapter(entry, shape, 0)) if entry.adapter else None
    method = Beam(entry.beams) if entry.beams > 1 else Greedy()
    run = functools.partial(decode_rows, T5(entry.t5(shape)), params, source, adapters=adapters, method=method)
    return lambda: np.asarray(run(max_length=entry.target, eos_id=NEVER).tokens)


def decode_mixed(entry: Entry, shape: T5Config, folder: pathlib.Path) -> Call:
    """A batch through the service's engine, admission included, each row with the next adapter."""
    return _mixed(entry, shape, folder, max(min(entry.adapters, RESIDENT), entry.rows))[1]


def decode_resident(entry: Entry, shape: T5Config, folder: pathlib.Path) -> Call:
    """The same with all adapters on the device from the start, however many."""
    engine, call = _mixed(entry, shape, folder, entry.adapters)
    for start in range(0, entry.adapters, entry.rows):
        engine.pool.slots_of(range(start, min(start + entry.rows, entry.adapters)))
    return call


def _mixed(entry: Entry, shape: T5Config, folder: pathlib.Path, resident: int) -> tuple[Engine, Call]:
    spec, source = spec_of(entry, shape), tokens(entry, shape)["encoder_input_tokens"]
    config = EngineConfig(
        sources=(entry.source,),
        max_length=entry.target,
        rows=entry.rows,
        steps=STEPS,
        resident=resident,
        eos_id=NEVER,
    )
    engine = Engine(T5(entry.t5(shape)), frozen(entry, shape, folder), spec, config)
    for number in range(entry.adapters):
        engine.add(number, materials.adapter(entry, shape, number), spec)
    upcoming = itertools.cycle(range(entry.adapters))

    def call() -> np.ndarray:
        requests = [engine.submit(row, next(upcoming)) for row in source]
        engine.run()
        return np.array([request.tokens for request in requests])

    return engine, call


# Hypernetworks


@functools.lru_cache(maxsize=1)
def hypermodel(adapter: str, shape: T5Config, folder: pathlib.Path) -> Hypermodel:
    """Returns a HyperT5 of the base's own shape on the base model."""
    entry = Entry("hyperflax", "generate", adapter=adapter, layers=shape.num_encoder_layers)
    episodes = EpisodeConfig(shots=16, support_layout="joint", support_length=1024, inputs_length=32, targets_length=32)
    config = HypermodelConfig(
        base=shape,
        spec=spec_of(entry, shape),
        hypernetwork=HyperT5Config(t5=shape),
        episodes=episodes,
        vocabulary=Bytes(),
    )
    _, network = config.build()
    shapes = jax.eval_shape(network.init, jax.random.key(0), {"support_tokens": jnp.zeros((1, 4), jnp.int32)})
    params = materials.like(nn.unbox(shapes["params"]))
    return Hypermodel(config, base(base_directory(folder, shape.num_encoder_layers), shape), params)


def generate(entry: Entry, shape: T5Config, folder: pathlib.Path) -> Call:
    """Support to adapter, every time another support: one that was read before would not be encoded again."""
    model = hypermodel(entry.adapter, entry.t5(shape), folder)
    supports = _supports(entry, shape)
    return lambda: jax.block_until_ready(model.generate({"support_tokens": next(supports)}))


def forward(entry: Entry, shape: T5Config, folder: pathlib.Path) -> Call:
    """Encoder over the same support and decoder over as many positions as there are slots: no heads, no adapter."""
    model = hypermodel(entry.adapter, entry.t5(shape), folder)
    trunk, params = T5(model.config.hypernetwork.t5), model.hypernetwork_params
    support = jnp.asarray(materials.support(entry, shape))

    @jax.jit
    def run(params: PyTree, support: jax.Array) -> jax.Array:
        variables = {"params": params["t5"]}
        encoded = trunk.apply(variables, support, method="encode")
        slots = params["slots"][None]
        return trunk.apply(variables, slots, encoded, support, bidirectional=False, method="decode_embeddings")

    return lambda: jax.block_until_ready(run(params, support))


def adapt_and_answer(entry: Entry, shape: T5Config, folder: pathlib.Path) -> Call:
    """Generates the adapter and decodes all inputs with it."""
    model = hypermodel(entry.adapter, entry.t5(shape), folder)
    supports, answer = _supports(entry, shape), _answering(entry, model)
    source = tokens(entry, shape)["encoder_input_tokens"]
    return lambda: answer(
        source, jax.tree.map(lambda leaf: leaf[0], model.generate({"support_tokens": next(supports)}))
    )


_SHOWN = itertools.count(2)  # of all entries together, which share a model


def _supports(entry: Entry, shape: T5Config) -> Iterator[np.ndarray]:
    """Supports [1, 1, length], all different: the first token counts them."""
    support = materials.support(entry, shape)[None]
    for number in _SHOWN:
        support = support.copy()
        support[..., 0] = number % shape.vocab_size
        yield support


def answer_in_context(entry: Entry, shape: T5Config, folder: pathlib.Path) -> Call:
    """Decodes all inputs with the support before each, by the same decoder in the same batches."""
    model = hypermodel("lora8", entry.t5(shape), folder)
    source = tokens(entry, shape)["encoder_input_tokens"]
    shown = np.repeat(materials.support(entry, shape), entry.rows, axis=0)
    answer = _answering(entry, model)
    return lambda: answer(np.concatenate([shown, source], axis=1), None)


def _answering(entry: Entry, model: Hypermodel) -> Callable[[np.ndarray, PyTree | None], None]:
    def answer(source: np.ndarray, adapter: PyTree | None) -> None:
        for start in range(0, entry.rows, CHUNK):
            part = jnp.asarray(source[start : start + CHUNK])
            run = functools.partial(decode_rows, model.model, model.base_params, part, adapters=adapter)
            jax.block_until_ready(run(max_length=entry.target, eos_id=NEVER))

    return answer


# Processes


def start(entry: Entry, shape: T5Config, folder: pathlib.Path) -> Call:
    """A fresh Python process, from its start to its end."""
    if not entry.command.startswith("predict"):
        arguments = {"python": ["-c", ""], "import": ["-c", "import hyperflax"], "help": ["-m", "hyperflax", "--help"]}
        return lambda: _process(arguments[entry.command])
    directory, inputs = folder / "hypermodel", folder / "input.jsonl"
    if not directory.exists():
        hypermodel("lora8", entry.t5(shape), folder).save(directory)
        inputs.write_text('{"input": "ada lovelace"}\n', "utf-8")
    arguments = ["-m", "hyperflax", "predict", "--model", str(directory), "--inputs", str(inputs)]
    if entry.command == "predict_warm":
        return lambda: _process(arguments, folder / "compiled")

    def cold() -> None:
        with tempfile.TemporaryDirectory() as compiled:
            _process(arguments, pathlib.Path(compiled))

    return cold


def _process(arguments: list[str], compiled: pathlib.Path | None = None) -> None:
    """Runs a process with JAX's cache of compiled programs in a folder, if one is named."""
    cache = {} if compiled is None else {"JAX_COMPILATION_CACHE_DIR": str(compiled)}
    cache |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env={**os.environ, **cache})
