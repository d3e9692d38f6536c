"""What a tuning run tells: a line for every part, a page and a picture at the end.

>>> print(line(history, pool, budget=600))
   31 s  lora 8 generated adamw 2e-03, part 3/8: 0.53   best 0.61 (lora 16 generated adamw 1e-03)
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hyperflax.files import atomic_file
from hyperflax.tuner.history import History
from hyperflax.tuner.pipeline import AS_GENERATED, Pipeline


def name(pipeline: Pipeline) -> str:
    """Returns a pipeline in a few words."""
    if pipeline.method == AS_GENERATED:
        return "as generated"
    size = "/".join(str(size) for size in (pipeline.rank, pipeline.length, pipeline.bottleneck) if size is not None)
    parts = [pipeline.kind, size, pipeline.init, pipeline.optimizer, f"{pipeline.learning_rate:.0e}"]
    return " ".join(part for part in parts if part)


def line(history: History, pool: Sequence[Pipeline], budget: float) -> str:
    """Returns what the last part gave, beside the best so far."""
    last, best = history.observations[-1], history.incumbent
    told = f"{last.score:.2f}" if last.score is not None else last.status
    at_best = f"best {best.score:.2f} ({name(pool[best.pipeline])})" if best else "nothing yet"
    part = f"part {last.fidelity}/{history.fidelities}"
    return f"{history.spent:5.0f} of {budget:.0f} s  {name(pool[last.pipeline])}, {part}: {told}   {at_best}"


def incumbents(history: History) -> tuple[np.ndarray, np.ndarray]:
    """Returns (seconds, best score so far) after every part that had a score."""
    seconds, scores, spent, best = [], [], 0.0, -np.inf
    for seen in history.observations:
        spent += seen.seconds
        if seen.score is not None:
            best = max(best, seen.score)
            seconds.append(spent)
            scores.append(best)
    return np.array(seconds), np.array(scores)


def pareto(history: History) -> list[int]:
    """Returns the pipelines than which none is both better and cheaper, the cheapest first."""
    best, cost = {}, {}
    for seen in history.observations:
        cost[seen.pipeline] = cost.get(seen.pipeline, 0.0) + seen.seconds
        if seen.score is not None:
            best[seen.pipeline] = max(best.get(seen.pipeline, 0.0), seen.score)
    front: list[int] = []
    for pipeline in sorted(best, key=lambda number: (cost[number], -best[number])):
        if not front or best[pipeline] > best[front[-1]]:
            front.append(pipeline)
    return front


def write(folder: pathlib.Path, report: Mapping[str, Any], history: History, pool: Sequence[Pipeline]) -> None:
    """Writes report.md and report.png."""
    score = report["incumbent"]["validation_score"]
    test = "\n".join(f"| {key} | {value:.3f} |" for key, value in report["test"].items())
    front = "\n".join(
        f"| {name(pool[number])} | {max(history.curve(number)):.3f} | {_seconds(history, number):.1f} |"
        for number in pareto(history)
    )
    values = "\n".join(f"| {key} | {value} |" for key, value in report["incumbent"]["pipeline"].items())
    text = f"""# Tuning for {report["dataset"]}

{report["pipelines"]} pipelines, {report["parts"]} parts, {report["spent"]:.0f} of {report["budget"]:.0f} seconds;
choosing took {report["choosing"]:.1f} seconds, {report["choosing"] / max(report["elapsed"], 1e-9):.1%} of the run.

| test split | exact match |
|---|---|
{test}

The test split took no part in choosing. The validation score of the chosen pipeline, {score:.3f}, did, and errs
on the high side.

## The pipeline

| | |
|---|---|
{values}

## Nothing both better and cheaper

| pipeline | validation | seconds |
|---|---|---|
{front}

![Incumbent over time, and score against cost](report.png)
"""
    with atomic_file(folder / "report.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    _draw(folder / "report.png", history)


def _seconds(history: History, pipeline: int) -> float:
    return sum(seen.seconds for seen in history.observations if seen.pipeline == pipeline)


def _draw(path: pathlib.Path, history: History) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    over_time, against = figure.subplots(1, 2)
    seconds, scores = incumbents(history)
    over_time.step([0, *seconds], [0, *scores], where="post")
    over_time.set(xlabel="seconds of trials", ylabel="best validation score so far", ylim=(0, 1.02))
    begun = [number for number in range(history.size) if history.curve(number)]
    front = pareto(history)
    against.scatter([_seconds(history, n) for n in begun], [max(history.curve(n)) for n in begun], s=14, color="0.6")
    against.plot([_seconds(history, n) for n in front], [max(history.curve(n)) for n in front], marker="o")
    against.set(xlabel="seconds of the pipeline", ylabel="its best validation score", ylim=(0, 1.02))
    with atomic_file(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)
