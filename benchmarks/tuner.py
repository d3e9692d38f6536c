"""Seconds of the tuner itself: learning from a table, and recommending a pipeline for a new data set.

    python -m benchmarks.tuner [--model strings] [--runs 600] [--datasets 30] [--repeats 3] [--only fit recommend]

The table is made up: pipelines drawn from the model's space, scores and seconds by a simple law with noise, so no run
is needed and figures are of the tuner alone. `fit` is `Recommender.fit` on it. `recommend` is the command in a fresh
process, each time for a data set of another size: at first without any compiled program, then with those that earlier
calls left on disk. The last line is a further data set in a process that has answered one before, as a service would.
Seconds are wall-clock seconds, and in brackets those of all CPU cores together, which other processes disturb less.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

import hyperflax
from hyperflax.tune.bench import Bench
from hyperflax.tune.run import recommend
from hyperflax.tuner import datasets
from hyperflax.tuner.encoding import columns, encode
from hyperflax.tuner.pipeline import FIDELITIES
from hyperflax.tuner.recommender import Recommender
from hyperflax.tuner.recorded import Recorded

SIZES = (110, 112, 114, 116, 118)
"""Lines of the data sets that pipelines are recommended for; they share programs, as most data sets of such a size."""


def made_up(bench: Bench, features: list[str], runs: int, sets: int) -> Recorded:
    """Returns runs [run] on data sets of which each has its own best learning rate and its own level."""
    draw = np.random.default_rng(0)
    dataset = np.sort(np.arange(runs) % sets)
    pipelines = encode(bench.space.sample(runs, seed=0))
    meta = draw.normal(size=(sets, len(features))).astype(np.float32)
    rate = pipelines[:, columns().index("learning_rate")]
    level = 0.6 - (rate - 0.5 - 0.1 * meta[dataset, 0]) ** 2 + 0.1 * draw.normal(size=sets)[dataset]
    rise = 1.0 - 0.7 ** np.arange(1, FIDELITIES + 1)
    scores = np.clip(level[:, None] * rise + 0.02 * draw.normal(size=(runs, FIDELITIES)), 0.0, 1.0)
    seconds = np.exp(pipelines[:, columns().index("epochs")] + 0.1 * draw.normal(size=runs))
    return Recorded(
        datasets=tuple(f"set {number}" for number in range(sets)),
        groups=tuple("made up" for _ in range(sets)),
        dataset=dataset,
        columns=columns(),
        pipelines=pipelines,
        scores=scores.astype(np.float32),
        cost=np.repeat(seconds[:, None], FIDELITIES, axis=1).astype(np.float32),
        final=scores[:, -1].astype(np.float32),
        features=tuple(features),
        meta=meta,
        start=np.zeros(sets, np.float32),
    )


def write_data(path: pathlib.Path, lines: int, seed: int) -> pathlib.Path:
    """Writes names and their initials."""
    draw = np.random.default_rng(seed)
    words = ["".join(draw.choice(list("abcdefghij"), 5)) for _ in range(2 * lines)]
    rows = [
        {"input": f"{a} {b}", "target": f"{a[0]}{b[0]}".upper()} for a, b in zip(words[::2], words[1::2], strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def timed(call) -> tuple[float, float]:
    """Returns seconds on the wall and of all cores, of a call and of the processes that it waits for."""
    wall, cores = time.perf_counter(), _cores()
    call()
    return time.perf_counter() - wall, _cores() - cores


def _cores() -> float:
    return sum(
        used.ru_utime + used.ru_stime
        for used in (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def show(what: str, seconds: tuple[float, float]) -> None:
    print(f"{what:60} {seconds[0]:7.2f} s ({seconds[1]:.2f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="strings")
    parser.add_argument("--runs", type=int, default=600)
    parser.add_argument("--datasets", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=("fit", "recommend"), default=("fit", "recommend"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(pathlib.Path(folder), arguments)


def measure(folder: pathlib.Path, arguments: argparse.Namespace) -> None:
    bench = Bench(hyperflax.load(arguments.model))
    sets = [datasets.read(write_data(folder / f"{size}.jsonl", size, size)) for size in SIZES]
    features = sorted(bench.facts(sets[0]).meta)
    recorded = made_up(bench, features, arguments.runs, arguments.datasets)
    learnt: list[Recommender] = []

    def fit(**given) -> None:
        learnt.append(Recommender.fit(recorded, bench.space.sample(48, seed=1), seed=0, **given))

    if "fit" in arguments.only:
        show(f"fit on {arguments.runs} runs of {arguments.datasets} data sets", timed(fit))
    else:
        from hyperflax.tuner.surrogates import DeepKernelGP, MLPCost

        fit(performance=DeepKernelGP(steps=2), cost=MLPCost(steps=2))
    if "recommend" not in arguments.only:
        return
    learnt[0].save(folder / "tuner")
    command = [sys.executable, "-m", "hyperflax", "tune", "recommend", "--model", arguments.model]
    command += ["--tuner", str(folder / "tuner"), "--data"]
    cache = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder / "programs")}

    def call(size: int) -> tuple[float, float]:
        path = str(folder / f"{size}.jsonl")
        return timed(lambda: subprocess.run([*command, path], check=True, stdout=subprocess.DEVNULL, env=cache))

    show("recommend, nothing compiled", call(SIZES[0]))
    again = [call(SIZES[1 + number % (len(SIZES) - 1)]) for number in range(arguments.repeats)]
    show(f"recommend, programs on disk (median of {len(again)})", statistics.median_low(again))
    recommend(bench, sets[0], learnt[0])
    show("recommend, in a process that has answered before", timed(lambda: recommend(bench, sets[1], learnt[0])))


if __name__ == "__main__":
    main()
