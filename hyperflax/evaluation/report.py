"""The report: one schema for every evaluation, built, checked, written and read here.

```
{"metric": "exact_match",
 "n_tasks": 100,
 "conditions": {"bare": {"mean": 0.01, "low": 0.0, "high": 0.02}, "generated": {...}, "shuffled_support": {...}},
 "differences": [{"a": "generated", "b": "bare", "mean": 0.80, "low": 0.76, "high": 0.84}, ...],
 "per_task": [{"task": "initials", "scores": {"bare": 0.0, ...}, "n_examples": 64, "category": "names"}, ...],
 "run": {"command": "...", "config": {...}, "versions": {...}, "device": "...", "seconds": 42.0}}
```

Scores go from 0 to 1. A condition's mean is the mean over tasks, each counting once however many examples it has, and
`low` and `high` bound its 95% bootstrap interval over tasks; a difference is the mean of a - b, paired by task.
`n_examples` and `category` are optional; so is `adapters`, figures of the generated adapters: `norm/encoder_0`, ...,
`between_task_distance` among them, which compares a task with the next one in order, often of its kin.
And so is what the report of a benchmark suite has besides:

- `suite`: its name, how many of its official tasks (or data sets: `unit`) were evaluated, what is `missing` of it in
  words, whether that makes it `complete`, and which training data it was `checked_against`.
- `per_task/runs`: the scores of a task's runs (draws of the support, seeds, prompts), of which its score is the mean;
  intervals then resample tasks and runs within tasks. `per_task/medians`: their medians. `per_run`: the means over
  tasks of every run, where all tasks have the same runs.
- `per_task/other_metrics`: the task's scores by other metrics. `categories`: the means of every category, each by the
  metric that the suite reports for it.

>>> from hyperflax.evaluation.provenance import run_info
>>> scores = {"bare": {"t1": 0.0, "t2": 0.5}, "generated": {"t1": 1.0, "t2": 0.5}}
>>> report = build_report("exact_match", scores, run_info({}, seconds=1.0))
>>> report["conditions"]["generated"]["mean"], report["differences"][0]["mean"]
(0.75, 0.5)
"""

from __future__ import annotations

import json
import os
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from hyperflax.buckets import Location, locate
from hyperflax.errors import ConfigError, DataError
from hyperflax.evaluation.intervals import RESAMPLES, Interval, bootstrap_difference, bootstrap_mean, bootstrap_nested
from hyperflax.evaluation.markdown import render_markdown
from hyperflax.evaluation.provenance import plain_json
from hyperflax.evaluation.schema import CONDITIONS, DIFFERENCES, validate_report
from hyperflax.files import atomic_file
from hyperflax.json_files import write_json

_DIGITS = 6  # what is stored; the interval's own error is far larger


def _bounds(interval: Interval) -> dict[str, float]:
    # Rounding is monotone, so low <= mean <= high survives it.
    return {name: round(getattr(interval, name), _DIGITS) for name in ("mean", "low", "high")}


def build_report(
    metric: str,
    per_task_scores: Mapping[str, Mapping[str, float]],
    run: Mapping[str, Any],
    *,
    differences: Sequence[tuple[str, str]] | None = None,
    n_examples: Mapping[str, int] | None = None,
    categories: Mapping[str, str] | None = None,
    adapters: Mapping[str, float] | None = None,
    runs: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
    medians: bool = False,
    other_metrics: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
    extra: Mapping[str, Any] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Builds a report from `{condition: {task: score}}` and validates it.

    Args:
      metric: the metric's name.
      per_task_scores: a score in 0..1 for every task under every condition; the first condition orders the tasks.
      run: what `run_info` returns.
      differences: pairs (a, b) of conditions to compare as a - b; by default those of `DIFFERENCES` that are there.
      n_examples: how many examples each task was scored on.
      categories: each task's category.
      runs: `{condition: {task: {run: score}}}`, of which the scores are the means.
      medians: give every task the medians over its runs, too.
      other_metrics: `{metric: {condition: {task: score}}}`.
      extra: `suite`, `categories` and `per_run`, as the schema has them.
      adapters: figures of the generated adapters, see `Conditions.adapter_figures`.
      resamples, seed: of the bootstrap.

    Raises:
      DataError: conditions with different tasks, an unknown condition, a score that is no number in 0..1.
    """
    if not per_task_scores:
        raise DataError("report: expected scores of at least one condition, got none")
    conditions = [name for name in CONDITIONS if name in per_task_scores]
    if unknown := set(per_task_scores) - set(conditions):
        raise DataError(f"report: unknown conditions {sorted(unknown)}, expected some of {', '.join(CONDITIONS)}")
    tasks = list(next(iter(per_task_scores.values())))
    for name in conditions:
        if odd := set(per_task_scores[name]) ^ set(tasks):
            raise DataError(
                f"report: condition '{name}': expected the same tasks everywhere, differs in {sorted(odd)[:5]}"
            )
    scores = {name: [round(float(per_task_scores[name][task]), _DIGITS) for task in tasks] for name in conditions}
    if differences is None:
        differences = [(a, b) for a, b in DIFFERENCES if a in scores and b in scores]
    elif missing := {name for pair in differences for name in pair} - set(scores):
        raise DataError(f"report: differences: no scores for {sorted(missing)}")
    per_task: list[dict[str, Any]] = []
    for index, task in enumerate(tasks):
        row: dict[str, Any] = {"task": task, "scores": {name: scores[name][index] for name in conditions}}
        if n_examples is not None and task in n_examples:
            row["n_examples"] = int(n_examples[task])
        if categories is not None and task in categories:
            row["category"] = categories[task]
        if runs is not None:
            row["runs"] = [
                {"run": run, "scores": {name: round(float(runs[name][task][run]), _DIGITS) for name in conditions}}
                for run in runs[conditions[0]][task]
            ]
        if medians:
            row["medians"] = {
                name: round(statistics.median(run["scores"][name] for run in row["runs"]), _DIGITS)
                for name in conditions
            }
        if other_metrics:
            row["other_metrics"] = {
                other: {name: round(float(values[name][task]), _DIGITS) for name in conditions}
                for other, values in other_metrics.items()
            }
        per_task.append(row)

    def interval(a: str, b: str | None = None) -> Interval:
        options = {"resamples": resamples, "seed": seed}
        if runs is not None:
            of_runs = [[run["scores"][a] - (run["scores"][b] if b else 0.0) for run in row["runs"]] for row in per_task]
            return bootstrap_nested(of_runs, bounds=(-1.0 if b else 0.0, 1.0), **options)
        return bootstrap_difference(scores[a], scores[b], **options) if b else bootstrap_mean(scores[a], **options)

    report = {
        "metric": metric,
        "n_tasks": len(tasks),
        "conditions": {name: _bounds(interval(name)) for name in conditions},
        "differences": [{"a": a, "b": b, **_bounds(interval(a, b))} for a, b in differences],
        "per_task": per_task,
        "run": plain_json(dict(run), "run"),
        **(extra or {}),
    }
    if adapters is not None:
        report["adapters"] = {name: float(f"{value:.{_DIGITS}g}") for name, value in adapters.items()}
    validate_report(report)
    return report


def require_place(out: Location | str) -> None:
    """Raises ConfigError where a file stands in a report's place: for evaluations to ask before their work."""
    if locate(out).is_file():
        raise ConfigError(f"{out}: expected a folder or nothing there, found a file")


def write_report(report: Mapping[str, Any], out: Location | str) -> Location:
    """Validates the report and writes `report.json` and `report.md` into `out`; returns the path of the json.

    Each file appears whole or not at all: it is written beside its place and moved there.
    """
    validate_report(report)
    folder, page = locate(out), render_markdown(report)
    write_json(folder / "report.json", report)
    with atomic_file(folder / "report.md") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return folder / "report.json"


def read_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a report (the json file, or the folder it is in) and validates it.

    Raises:
      DataError: no such file, no json, or a report that breaks the schema, the file's name in front.
    """
    file = pathlib.Path(path)
    if file.is_dir():
        file = file / "report.json"
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        validate_report(report)
    except FileNotFoundError as error:
        raise DataError(f"{file}: no report there") from error
    except (ValueError, RecursionError) as error:  # json's and our own
        raise DataError(f"{file}: {error}") from error
    return report
