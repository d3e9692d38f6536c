"""MFU of the training step on this machine's accelerators, in bfloat16: a T5 1.1 itself, or a HyperT5 for a frozen one.

    python -m benchmarks.mfu [--model t5 hyper_t5] [--size large xl] [--rows N N] [--inputs 512] [--targets 128]

The step is the one that training runs (`hyperflax.compile.programs`), with Adafactor, on random tokens without
padding; parameters are drawn for the measurement. Operations are the model's own (`hyperflax.models.flops`), so MFU
counts neither rematerialised nor element-wise work; the peak is the vendor's for dense bfloat16 (`training/clock.py`).
A line of json for each case: milliseconds of every round, their median's operations per second and share of the peak;
before them the rate of one large matrix product, which no step can exceed. Memory is the compiler's plan for a device.
Compiling takes longest: `--layers 4` cuts both stacks, to compare two versions of the step.

`t5` has `--rows` rows of inputs and targets. `hyper_t5` has `--rows` tasks of four examples: a quarter of the inputs
and targets each, and a support of `--inputs` tokens in one row; LoRA on query and value.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import functools
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hyperflax.adapters.kinds import build_spec
from hyperflax.adapters.lora import LoRA
from hyperflax.compile.programs import Program, training_program
from hyperflax.data.episode_config import EpisodeConfig
from hyperflax.data.vocabularies import Bytes
from hyperflax.errors import HyperflaxError
from hyperflax.hypermodel import HypermodelConfig
from hyperflax.hypernets.hyper_t5 import HyperT5Config
from hyperflax.json_files import write_json
from hyperflax.train import HypernetworkOf, PlainT5, Trainable
from hyperflax.training import make_optimizer
from hyperflax.training.clock import peak_flops
from hyperflax.training.partitioning import Partitioner
from hyperflax.training.state import TrainState, create_state
from hyperflax.types import Batch, T5Config
from hyperflax.versions import versions

# T5 1.1, as gin_configs/models/t5_1_1_*.gin: width, heads, layers of either stack, feed-forward width.
SIZES = {
    "small": (512, 6, 8, 1024),
    "base": (768, 12, 12, 2048),
    "large": (1024, 16, 24, 2816),
    "xl": (2048, 32, 24, 5120),
    "tiny": (64, 2, 2, 128),  # for tests
}
SYSTEMS = ("t5", "hyper_t5")
OPTIMIZER = make_optimizer("adafactor", 1e-3)
EXAMPLES = 4


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured; see the module."""

    model: str
    size: str
    rows: int
    inputs: int
    targets: int
    remat: bool = False
    layers: int | None = None

    @property
    def shape(self) -> T5Config:
        width, heads, layers, hidden = SIZES[self.size]
        layers = self.layers or layers
        return T5Config(
            vocab_size=32128,
            emb_dim=width,
            num_heads=heads,
            num_encoder_layers=layers,
            num_decoder_layers=layers,
            mlp_dim=hidden,
            dtype="bfloat16",
            remat=self.remat,
        )

    def trainable(self) -> Trainable:
        if self.model == "t5":
            return PlainT5(self.shape, Bytes())
        spec = build_spec(LoRA(rank=8, sites=("*/query", "*/value")), self.shape)
        config = HypermodelConfig(
            base=self.shape,
            spec=spec,
            hypernetwork=HyperT5Config(t5=self.shape),
            episodes=EpisodeConfig(
                shots=EXAMPLES,
                examples=EXAMPLES,
                support_length=self.inputs,
                inputs_length=self.inputs // EXAMPLES,
                targets_length=self.targets // EXAMPLES,
            ),
            vocabulary=Bytes(),
        )
        return HypernetworkOf(config, base_checkpoint="")

    def batch(self) -> Batch:
        random = np.random.default_rng(0)

        def tokens(*shape: int) -> np.ndarray:
            return random.integers(2, self.shape.vocab_size, shape).astype(np.int32)

        lead, parts = ((self.rows,), 1) if self.model == "t5" else ((self.rows, EXAMPLES), EXAMPLES)
        targets = tokens(*lead, self.targets // parts)
        batch = {
            "encoder_input_tokens": tokens(*lead, self.inputs // parts),
            "decoder_input_tokens": np.pad(targets, [(0, 0)] * len(lead) + [(1, 0)])[..., :-1],
            "decoder_target_tokens": targets,
            "decoder_loss_weights": np.ones(targets.shape, np.float32),
        }
        if self.model == "hyper_t5":
            batch["support_tokens"] = tokens(self.rows, 1, self.inputs)
            batch["task_index"] = np.arange(self.rows, dtype=np.int32)
        return batch


def arguments_of(program: Program, batch: Batch, partitioner: Partitioner) -> tuple[TrainState, Any, Batch, jax.Array]:
    """Returns what the step is called with, on the devices."""
    state, frozen = program.arguments[:2]
    params = jax.tree.map(_drawn, state.params)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    made = jax.jit(functools.partial(create_state, optimizer=OPTIMIZER), out_shardings=shardings)(params)
    key = jax.device_put(jax.random.key(1), partitioner.replicated)
    return made, jax.tree.map(_drawn, frozen), partitioner.place_batch(batch), key


class Compiled(NamedTuple):
    """A case's step, and the seconds that its compilation took beside the others'."""

    program: Program
    step: jax.stages.Compiled
    seconds: float


def compile_all(cases: Sequence[Case], partitioner: Partitioner) -> list[Compiled]:
    """Compiles the cases' steps beside each other: that takes longest, and most of it runs on one core."""
    programs = [training_program(case.trainable(), case.batch(), OPTIMIZER, partitioner=partitioner) for case in cases]
    lowered = [program.lower() for program in programs]

    def one(program: Program, lowered: jax.stages.Lowered) -> Compiled:
        begin = time.perf_counter()
        return Compiled(program, lowered.compile(), time.perf_counter() - begin)

    with concurrent.futures.ThreadPoolExecutor(len(cases)) as pool:
        return list(pool.map(one, programs, lowered))


def measure(case: Case, compiled: Compiled, rounds: int, steps: int, partitioner: Partitioner) -> dict[str, Any]:
    """Returns the figures of a case's step.

    Raises:
      HyperflaxError: a step had no finite gradient, so what was timed is not training.
    """
    program = compiled.program
    state, frozen, batch, key = arguments_of(program, case.batch(), partitioner)
    seconds, skipped = [], []
    for _ in range(rounds + 1):  # the first warms up
        begin = time.perf_counter()
        for _ in range(steps):
            state, metrics = compiled.step(state, frozen, batch, key)
            skipped.append(metrics["skipped_steps"][0])
        jax.block_until_ready(state)
        seconds.append((time.perf_counter() - begin) / steps)
    if sum(float(value) for value in skipped):
        raise HyperflaxError(f"benchmarks.mfu: {case}: a step had no finite gradient")
    rate = program.model_flops / statistics.median(seconds[1:])
    devices = jax.devices()
    peak = peak_flops(devices[0].device_kind)
    return {
        "compiled_in_seconds": round(compiled.seconds, 1),
        "milliseconds": [_shortened(1e3 * value) for value in seconds[1:]],
        "model_tflop": _shortened(program.model_flops / 1e12),
        "tflop_per_second": _shortened(rate / 1e12),
        "mfu": None if peak is None else _shortened(rate / peak / len(devices)),
        "memory_gib": _shortened(_planned_bytes(compiled.step) / 2**30),
    }


def matmul_rate(size: int, repeats: int = 20) -> float:
    """Returns operations per second of a bfloat16 matrix product on one device, on random values."""
    a, b = (jax.random.normal(key, (size, size), jnp.bfloat16) for key in jax.random.split(jax.random.key(0)))
    product = jax.jit(jnp.matmul)
    out = jax.block_until_ready(product(a, b))
    begin = time.perf_counter()
    for _ in range(repeats):
        out = product(a, b)
    jax.block_until_ready(out)
    return 2 * size**3 * repeats / (time.perf_counter() - begin)


def _planned_bytes(step: jax.stages.Compiled) -> int:
    """Returns what a step takes of a device; the most that the device has held would be that of all cases so far."""
    plan: Any = step.memory_analysis()
    outputs = plan.output_size_in_bytes - plan.alias_size_in_bytes
    return plan.argument_size_in_bytes + plan.temp_size_in_bytes + outputs


def _shortened(value: float) -> float:
    """Returns four significant digits."""
    return float(f"{value:.4g}")


def _drawn(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Returns parameters of a shape: small random weights, and norms of one."""
    if leaf.ndim < 2:
        return jax.device_put(jnp.ones(leaf.shape, leaf.dtype), leaf.sharding)
    values = 0.02 * jax.random.normal(jax.random.key(leaf.size % 2**31), leaf.shape, leaf.dtype)
    return jax.device_put(values, leaf.sharding)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mfu", description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=SYSTEMS, default=["t5"], help="what is trained (default: t5)")
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["large"], help="of the T5 1.1 (default: large)")
    parser.add_argument(
        "--rows",
        type=int,
        nargs="+",
        default=[40],
        metavar="N",
        help="rows, or tasks, a step: one number, or one for each size (default: 40)",
    )
    parser.add_argument("--inputs", type=int, default=512, metavar="N", help="input tokens a row (default: 512)")
    parser.add_argument("--targets", type=int, default=128, metavar="N", help="target tokens a row (default: 128)")
    parser.add_argument("--matmul", type=int, default=8192, metavar="N", help="size of the matrices (default: 8192)")
    parser.add_argument("--layers", type=int, metavar="N", help="of either stack, instead of the size's own")
    parser.add_argument("--remat", action="store_true", help="recompute activations, to save memory")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="timed rounds (default: 3)")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="steps a round (default: 10)")
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE", help="json of everything")
    arguments = parser.parse_args(argv)
    rows = arguments.rows * len(arguments.size) if len(arguments.rows) == 1 else arguments.rows
    if len(rows) != len(arguments.size):
        parser.error(f"--rows: expected one number or {len(arguments.size)}, as many as sizes, got {len(rows)}")
    cases = [
        Case(model, size, number, arguments.inputs, arguments.targets, arguments.remat, arguments.layers)
        for model in arguments.model
        for size, number in zip(arguments.size, rows, strict=True)
    ]
    partitioner = Partitioner()
    found: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "matmul_tflop_per_second": _shortened(matmul_rate(arguments.matmul) / 1e12),
        "versions": versions(),
    }
    print(json.dumps(found), flush=True)
    found["cases"] = []
    for case, compiled in zip(cases, compile_all(cases, partitioner), strict=True):
        figures = measure(case, compiled, arguments.rounds, arguments.steps, partitioner)
        found["cases"].append({**dataclasses.asdict(case), **figures})
        print(json.dumps(found["cases"][-1]), flush=True)
        if arguments.out:
            write_json(arguments.out, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
