"""What a tuning run tells: a line for every part while it goes on, and its report.

    report.json    what `of` returns
    report.md      test scores, why this pipeline, what is neither beaten nor cheaper
    report.png     the incumbent over time; score against cost

The report is made of the run's record alone, so a run that was killed, or still goes on, has one as well.

>>> report = of(read("mine_tuned"))
>>> report["over_time"][-1]
{'seconds': 512.3, 'score': 0.84, 'pipeline': 'lora 16 generated adamw 1e-03'}
>>> write("report", report)
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from hyperflax.errors import DataError
from hyperflax.tune.record import Record
from hyperflax.tuner.history import History
from hyperflax.tuner.pipeline import AS_GENERATED, Pipeline
from hyperflax.tuner.reporting import save_png, write_report


def name(pipeline: Pipeline) -> str:
    """Returns a pipeline in a few words."""
    if pipeline.method == AS_GENERATED:
        return "as generated"
    size = "/".join(str(size) for size in (pipeline.rank, pipeline.length, pipeline.bottleneck) if size is not None)
    parts = [pipeline.kind, size, pipeline.init, pipeline.optimizer, f"{pipeline.learning_rate:.0e}"]
    return " ".join(part for part in parts if part)


def line(record: Record) -> str:
    """Returns what the last part gave, beside the best so far."""
    history, pool = record.history, record.pool
    last, best = history.observations[-1], history.incumbent
    told = f"{last.score:.2f}" if last.score is not None else last.status
    at_best = f"best {best.score:.2f} ({name(pool[best.pipeline])})" if best else "nothing yet"
    part = f"part {last.fidelity}/{history.fidelities}"
    return f"{record.elapsed:5.0f} of {record.budget:.0f} s  {name(pool[last.pipeline])}, {part}: {told}   {at_best}"


def incumbents(history: History) -> list[tuple[float, float, int]]:
    """Returns (seconds of trials, score, pipeline) of every part that was the best so far, in order."""
    found, spent = [], 0.0
    for seen in history.observations:
        spent += seen.seconds
        if (best := seen.best) and (not found or best.score > found[-1][1]):
            found.append((spent, best.score, seen.pipeline))
    return found


def pareto(history: History) -> list[int]:
    """Returns the pipelines than which none is both better and cheaper, the cheapest first."""
    best = {number: score for number in range(history.size) if (score := history.best_of(number)) is not None}
    front: list[int] = []
    for pipeline in sorted(best, key=lambda number: (_seconds(history, number), -best[number])):
        if not front or best[pipeline] > best[front[-1]]:
            front.append(pipeline)
    return front


def of(record: Record) -> dict[str, Any]:
    """Returns the report of a run, json.

    Returns:
      `dataset`, `dataset_hash`, `optimiser`, `budget`; `incumbent` with its `pipeline`, `validation_score`,
      `test_score`, `parts` (0 where no part betters the start, which is kept then), `seconds`, and `expected` (None for
      a search at random): `score`, `std` and `seconds` of a whole run, `rank` among the pool's `of`; `test`, test
      scores by condition, empty while the run has not ended; `over_time`, every new incumbent; `tried`, a row for every
      pipeline that was begun, the incumbent first and then by score, `pareto` where none is both better and cheaper;
      `parts`, `pipelines`; in seconds `elapsed`, of which `spent` on training and scoring and `choosing` by the tuner;
      the rest compiles and writes.

    Raises:
      DataError: no part has a score.
    """
    history, pool = record.history, record.pool
    best = history.incumbent
    if best is None:
        parts = len(history.observations)
        raise DataError(f"run on '{record.name}': expected a part with a score, got none in {parts} parts")
    front = set(pareto(history))
    scores = {seen.pipeline: history.best_of(seen.pipeline) for seen in history.observations}
    begun = sorted(scores, key=lambda number: (number != best.pipeline, -(scores[number] or 0.0)))
    tried = [
        {
            "pipeline": name(pool[number]),
            "score": scores[number],
            "seconds": _seconds(history, number),
            "parts": len(history.curve(number)),
            "status": next(seen.status for seen in reversed(history.observations) if seen.pipeline == number),
            "pareto": number in front,
        }
        for number in begun
    ]
    return {
        "dataset": record.name,
        "dataset_hash": record.dataset,
        "optimiser": record.optimiser,
        "budget": record.budget,
        "incumbent": {
            "pipeline": pool[best.pipeline].to_json(),
            "validation_score": best.score,
            "test_score": record.test.get("tuned"),
            "parts": best.fidelity,
            "seconds": _seconds(history, best.pipeline),
            "expected": _expected(record, best.pipeline),
        },
        "test": dict(record.test),
        "over_time": [
            {"seconds": seconds, "score": score, "pipeline": name(pool[number])}
            for seconds, score, number in incumbents(history)
        ],
        "tried": tried,
        "parts": len(history.observations),
        "pipelines": len(begun),
        "spent": history.spent,
        "choosing": record.choosing,
        "elapsed": record.elapsed,
    }


def write(folder: pathlib.Path | str, report: Mapping[str, Any]) -> None:
    """Writes report.json, report.md and report.png."""
    write_report(folder, report, markdown(report), _draw)


def markdown(report: Mapping[str, Any]) -> str:
    """Returns the report as a page."""
    best = report["incumbent"]
    scores = "\n".join(f"| {key} | {value:.3f} |" for key, value in report["test"].items())
    test = f"""| test split | exact match |
|---|---|
{scores}

The test split took no part in choosing. The validation score of the chosen pipeline, {best["validation_score"]:.3f},
did, and errs on the high side."""
    if not report["test"]:
        test = "The run has not ended; test scores come with its end."
    front = "\n".join(
        f"| {one['pipeline']} | {one['score']:.3f} | {one['seconds']:.1f} | {one['parts']} |"
        for one in sorted(report["tried"], key=lambda one: one["seconds"])
        if one["pareto"]
    )
    values = "\n".join(f"| {key} | {value} |" for key, value in best["pipeline"].items())
    return f"""# Tuning for {report["dataset"]}

{report["pipelines"]} pipelines, {report["parts"]} parts in {report["elapsed"]:.0f} seconds of {report["budget"]:.0f}: \
{report["spent"]:.0f} training and scoring, {report["choosing"]:.1f} choosing ({report["optimiser"]}, \
{report["choosing"] / max(report["elapsed"], 1e-9):.1%}), the rest compiling and writing.

{test}

## Why this pipeline

{_why(report)}

| | |
|---|---|
{values}

## Nothing both better and cheaper

| pipeline | validation | seconds | parts |
|---|---|---|---|
{front}

![Incumbent over time, and score against cost](report.png)
"""


def _why(report: Mapping[str, Any]) -> str:
    best, tried = report["incumbent"], report["tried"]
    expected = best["expected"]
    before = (
        "Pipelines were tried in random order, and nothing was expected of any."
        if expected is None
        else f"Before anything was run, a whole run of it was expected to score {expected['score']:.2f} +- "
        f"{expected['std']:.2f} in {expected['seconds']:.0f} seconds: number {expected['rank']} of {expected['of']}."
    )
    score = f"{best['validation_score']:.3f} on held-out examples"
    where = (
        f"reached {score} after part {best['parts']}"
        if best["parts"]
        else f"began with {score}, which none of its parts bettered"
    )
    found = f"It {where}, the best score of all, and took {best['seconds']:.1f} seconds in all."
    others = [one for one in tried[1:4] if one["score"] is not None]
    beside = "; ".join(f"{one['pipeline']}: {one['score']:.3f} in {one['seconds']:.1f} seconds" for one in others)
    return " ".join([before, found, *([f"Next came {beside}."] if beside else [])])


def _expected(record: Record, number: int) -> dict[str, Any] | None:
    if not record.expected:
        return None
    one = record.expected[number]
    rank = 1 + sum(other.score > one.score for other in record.expected)
    told = {"score": one.score, "std": one.std, "seconds": one.seconds}
    return {**told, "rank": rank, "of": len(record.expected)}


def _seconds(history: History, pipeline: int) -> float:
    return sum(seen.seconds for seen in history.observations if seen.pipeline == pipeline)


def _draw(report: Mapping[str, Any], path: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    over_time, against = figure.subplots(1, 2)
    steps = [(one["seconds"], one["score"]) for one in report["over_time"]]
    steps.append((report["spent"], steps[-1][1]))
    over_time.step(*zip(*steps, strict=True), where="post")
    over_time.set(xlabel="seconds of trials", ylabel="best validation score so far", xlim=(0, None), ylim=(0, 1.02))
    scored = sorted((one for one in report["tried"] if one["score"] is not None), key=lambda one: one["seconds"])
    front = [one for one in scored if one["pareto"]]
    against.scatter([one["seconds"] for one in scored], [one["score"] for one in scored], s=14, color="0.6")
    against.plot([one["seconds"] for one in front], [one["score"] for one in front], marker="o")
    against.set(xlabel="seconds of the pipeline", ylabel="its best validation score", ylim=(0, 1.02))
    save_png(figure, path)
