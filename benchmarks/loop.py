"""What the host costs a training run: the loop around the compiled steps, and the batches from a token cache.

    python -m benchmarks.loop [--steps 60] [--rounds 5] [--out FILE.json]

The hypermodel "strings" trains on its held-out tasks, read from a token cache. Rounds of `train` as it is, with its log
of every ten steps, TensorBoard and prefetched batches, take turns with the same compiled step called again and again
with one batch that is there already. Their difference over the steps is the loop's overhead. Batches are timed apart,
one thread and nothing else at work: how many times as fast they come as a step takes them. Ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax

import hyperflax
from hyperflax.data.cache import write_cache
from hyperflax.data.cache_source import CachedSource
from hyperflax.data.episodes import Episodes
from hyperflax.data.examples import stream_of
from hyperflax.json_files import write_json
from hyperflax.objectives import HypermodelObjective
from hyperflax.training import make_optimizer, train
from hyperflax.training.partitioning import Partitioner
from hyperflax.training.step import make_train_step
from hyperflax.versions import versions
from hyperflax_tasks.strings import episodes as strings

TASKS, EXAMPLES, LOG_PERIOD = 8, 4, 10


def measure(steps: int, rounds: int, folder: pathlib.Path) -> dict[str, Any]:
    """Returns seconds a step of every round, with the loop and without, and seconds a batch."""
    model = hyperflax.load("strings")
    write_cache(stream_of(strings.source(split="held_out")), folder / "cache", model.config.vocabulary)
    config = model.config.episodes.replace(tasks_per_batch=TASKS, examples=EXAMPLES, too_long="skip", too_few="skip")
    batches = Episodes(CachedSource(folder / "cache"), config)
    objective, optimizer = HypermodelObjective(*model.config.build()), make_optimizer("adamw", 1e-4)
    partitioner, batch = Partitioner(), batches.batch(0)
    state = partitioner.create_state(objective, optimizer, jax.random.key(0), batch, model.hypernetwork_params)
    step = partitioner.compile(make_train_step(objective, optimizer), state)
    frozen, placed, key = partitioner.place_frozen(model.base_params), partitioner.place_batch(batch), jax.random.key(1)
    state, _ = jax.block_until_ready(step(state, frozen, placed, key))  # compiled
    with_loop: list[float] = []
    without: list[float] = []
    begun = 0.0

    def bare_steps(params: Any, _frozen: Any, at: int) -> dict[str, float]:
        """An evaluator that evaluates nothing: it ends a round of the loop and makes one without."""
        nonlocal state, begun
        jax.block_until_ready(params)
        begin = time.perf_counter()
        for _ in range(steps):
            state, _ = step(state, frozen, placed, key)
        jax.block_until_ready(state)
        end = time.perf_counter()
        if at > steps:  # the first round compiles
            with_loop.append((begin - begun) / steps)
            without.append((end - begin) / steps)
        begun = end
        return {}

    train(
        objective=objective,
        optimizer=optimizer,
        batches=batches,
        frozen=model.base_params,
        initial_params=model.hypernetwork_params,
        model_dir=folder / "run",
        total_steps=steps * (rounds + 1),
        log_period=LOG_PERIOD,
        save_period=0,
        eval_period=steps,
        evaluator=bare_steps,
        progress=False,
    )
    begin = time.perf_counter()
    for number in range(steps):
        batches.batch(number)
    return {"loop": with_loop, "bare": without, "batch": (time.perf_counter() - begin) / steps}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE.json")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(arguments.steps, arguments.rounds, pathlib.Path(folder))
    overheads = [one / other - 1 for one, other in zip(found["loop"], found["bare"], strict=True)]
    bare, loop = (statistics.median(found[name]) for name in ("bare", "loop"))
    print(f"a step takes {bare:.4f} s, with the loop {loop:.4f} s")
    feeding = loop / found["batch"]
    print(f"overhead of the loop: {statistics.median(overheads):.2%} ({min(overheads):.2%} to {max(overheads):.2%})")
    print(f"a batch takes {found['batch']:.4f} s of one thread: {feeding:.0f} times as fast as a step takes one")
    if arguments.out:
        device = jax.devices()[0].device_kind
        write_json(arguments.out, {**found, "overhead": overheads, "feeding": feeding, "device": device} | versions())
    return 0


if __name__ == "__main__":
    sys.exit(main())
