"""From which adapter fine-tuning gets further: one that was generated, one that many tasks share, or a random one.

    python -m benchmarks.initialisation --model strings --shared shared/lora --data data/*/* --out runs/initialisation

All three starts train one and the same LoRA on data sets that the hypermodel has not seen, with the same examples in
the same order. The learning rate is each start's own: the one with the highest mean held-out score at the end on all
*other* data sets. Whatever is told is a mean over data sets with its 95% interval; differences are paired by data set.

    out/runs/*.parquet                      every run, a row of `hyperflax tune collect`'s format; done ones are kept
    out/report.json, report.md, report.png  what `report` returns, as a table and as learning curves

"Steps" are the first mark, of eight, at which the held-out loss is at most what the random start ends with. Where it
never is, nine eighths: the random start always gets there, and a start that does not must count as later than any that
does. How often that is stands beside it. The generated adapter is made of the same training examples that are tuned on.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

import hyperflax
from hyperflax.cli.exit_codes import exit_code
from hyperflax.errors import DataError
from hyperflax.evaluation.intervals import bootstrap_mean
from hyperflax.tune.bench import Bench
from hyperflax.tune.collect import check_unseen
from hyperflax.tune.shared import Shared
from hyperflax.tune.trial import Group
from hyperflax.tuner import datasets, table
from hyperflax.tuner.pipeline import FIDELITIES, GENERATED, RANDOM, SHARED, Pipeline, default_pipeline
from hyperflax.tuner.reporting import save_png, write_report

STARTS = (GENERATED, SHARED, RANDOM)
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)


def pipelines(start: str, sites: str, rank: int, epochs: int) -> list[Pipeline]:
    """Returns one for each learning rate; a start that is an adapter brings its own alpha."""
    alpha = 1.0 if start == RANDOM else None
    values = {"init": start, "sites": sites, "rank": rank, "alpha_per_rank": alpha, "epochs": epochs}
    return [dataclasses.replace(default_pipeline(), learning_rate=rate, **values) for rate in RATES]


def report(runs: Sequence[table.Run]) -> dict[str, Any]:
    """Returns json.

    Returns:
      `datasets`, their number; `rates`, by start how many data sets chose each; `curves`, by start the held-out `score`
      before the first step and after each eighth, and the `loss` after each, with `mean`, `low` and `high`; `figures`,
      by start the `test` score of the best part, the `end`, the held-out score after all steps, and the `steps`, as a
      share of all; `never`, by start for how many data sets its loss never got there; `differences`, of generated minus
      each other start, in the same figures.

    Raises:
      DataError: fewer than two data sets have a run from every start: no other one is there to choose a rate on.
    """
    found: dict[tuple[str, str], dict[float, table.Run]] = {}
    for run in runs:
        rate = run.pipeline.learning_rate
        if rate is None or run.status != table.COMPLETED:
            continue
        found.setdefault((run.dataset, str(run.pipeline.init)), {})[rate] = run
    names = sorted({name for name, _ in found if all((name, start) in found for start in STARTS)})
    if len(names) < 2:
        raise DataError(f"runs: expected two data sets or more with completed runs from all of {STARTS}, got {names}")
    chosen = {start: {name: _chosen(found, names, name, start) for name in names} for start in STARTS}
    values = {start: _figures(chosen[start], chosen[RANDOM]) for start in STARTS}
    return {
        "datasets": len(names),
        "rates": {start: _counts(chosen[start]) for start in STARTS},
        "curves": {start: _curves(list(chosen[start].values())) for start in STARTS},
        "figures": {start: {name: _interval(of) for name, of in values[start].items()} for start in STARTS},
        "never": {start: int((values[start]["steps"] > 1).sum()) for start in STARTS},
        "differences": {
            start: {name: _interval(values[GENERATED][name] - of) for name, of in values[start].items()}
            for start in (SHARED, RANDOM)
        },
    }


def _chosen(
    found: Mapping[tuple[str, str], Mapping[float, table.Run]], names: Sequence[str], name: str, start: str
) -> table.Run:
    """A data set's run with the rate that is best on the other data sets, of those with which it did not break down."""
    others = [found[other, start] for other in names if other != name]
    rates = found[name, start]
    mean = {rate: np.mean([of[rate].curve[-1] if rate in of else 0.0 for of in others]) for rate in rates}
    return rates[max(mean, key=lambda rate: (mean[rate], -rate))]


def _figures(chosen: Mapping[str, table.Run], random: Mapping[str, table.Run]) -> dict[str, np.ndarray]:
    steps = []
    for name, run in chosen.items():
        below = [part for part, loss in enumerate(run.losses, start=1) if loss <= random[name].losses[-1]]
        steps.append(min(below, default=FIDELITIES + 1) / FIDELITIES)
    return {
        "test": np.array([run.test_score for run in chosen.values()]),
        "end": np.array([run.curve[-1] for run in chosen.values()]),
        "steps": np.array(steps),
    }


def _counts(chosen: Mapping[str, table.Run]) -> dict[str, int]:
    rates = [run.pipeline.learning_rate for run in chosen.values()]
    return {f"{rate:g}": rates.count(rate) for rate in RATES if rate in rates}


def _curves(runs: Sequence[table.Run]) -> dict[str, list[dict[str, float]]]:
    scores = np.array([[run.start_score, *run.curve] for run in runs])
    losses = np.array([run.losses for run in runs])
    return {
        "score": [_interval(column) for column in scores.T],
        "loss": [_interval(column) for column in losses.T],
    }


def _interval(values: np.ndarray) -> dict[str, float]:
    found = bootstrap_mean(values, bounds=(min(0.0, float(values.min())), max(1.0, float(values.max()))))
    return {"mean": found.mean, "low": found.low, "high": found.high}


def markdown(told: Mapping[str, Any]) -> str:
    """Returns the report as a page."""

    def cells(of: Mapping[str, Mapping[str, float]], sign: str = "") -> str:
        texts = [f"{one['mean']:{sign}.3f} [{one['low']:{sign}.3f}, {one['high']:{sign}.3f}]" for one in of.values()]
        return " | ".join(texts)

    starts = "\n".join(f"| {start} | {cells(of)} |" for start, of in told["figures"].items())
    differences = "\n".join(
        f"| generated minus {start} | {cells(of, '+')} |" for start, of in told["differences"].items()
    )
    rates = "; ".join(
        f"{start}: {', '.join(f'{rate} ({count})' for rate, count in of.items())}"
        for start, of in told["rates"].items()
    )
    never = ", ".join(f"{start} on {count}" for start, count in told["never"].items() if count) or "none"
    return f"""| start | test, best part | held-out, end | steps to the random start's loss |
|---|---|---|---|
{starts}
{differences}

{told["datasets"]} data sets, of which it never got to that loss: {never}. Learning rates chosen (for so many data
sets): {rates}.
"""


def draw(told: Mapping[str, Any], path: pathlib.Path) -> None:
    """Draws held-out score and loss over the share of the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, name, first in zip(figure.subplots(1, 2), ("score", "loss"), (0, 1), strict=True):
        places = np.arange(first, FIDELITIES + 1) / FIDELITIES
        for start, curves in told["curves"].items():
            mean, low, high = ([one[key] for one in curves[name]] for key in ("mean", "low", "high"))
            (line,) = axes.plot(places, mean, label=start)
            axes.fill_between(places, low, high, alpha=0.15, color=line.get_color())
        axes.set(xlabel="share of the steps", ylabel=f"held-out {'exact match' if name == 'score' else 'loss (nats)'}")
        axes.set_ylim(0, None)
    figure.axes[0].legend(frameon=False)
    save_png(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="strings")
    parser.add_argument("--shared", required=True, metavar="DIR", help="a LoRA that many tasks share")
    parser.add_argument("--data", required=True, nargs="+", metavar="DIR", help="data sets: folders or jsonl files")
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR")
    parser.add_argument("--sites", default="all", help="of the LoRA that is trained (default all)")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--report", action="store_true", help="run nothing, report what is there")
    arguments = parser.parse_args()
    if not arguments.report:
        model = hyperflax.load(arguments.model)
        bench = Bench(model, {SHARED: Shared.load(arguments.shared, model)})
        sets = [datasets.read(path) for path in arguments.data]
        check_unseen(model, sets)
        for start in STARTS:
            wanted = pipelines(start, arguments.sites, arguments.rank, arguments.epochs)
            for data in tqdm(sets, unit="data set", desc=start):
                file = arguments.out / "runs" / f"{start}-{data.hash}.parquet"
                if not file.is_file():
                    table.write(file, Group(bench, data, wanted, [0] * len(wanted)).finish())
            bench.forget_programs()
    told = report(table.read(arguments.out / "runs"))
    write_report(arguments.out, told, markdown(told), draw)
    print(markdown(told), end="")


if __name__ == "__main__":
    sys.exit(exit_code("benchmarks.initialisation", main))
