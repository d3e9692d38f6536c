"""Benchmark suites: official test tasks, the rules by which they are measured, and what of them is at hand.

A suite is data that a task module hands over, `suite()` in `hyperflax_tasks.natural_instructions`, `.p3`, `.metaicl`;
`hyperflax.evaluate_suite` runs it. Three shapes of benchmark are one here:

- Super-NaturalInstructions: a task is a task; a run is a draw of its support
- MetaICL: a task is a task; a run is a seed, which brings support and scored examples of its own
- P3: a task of the report is a data set; its runs are the prompts under which it is asked (`grouped`)

A task's score is the mean over its runs, a suite's the mean over tasks, and intervals resample both. A figure on a part
of a suite is never the suite's score: `complete` in the report says which of the two it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from hyperflax.data.examples import ExampleSource
from hyperflax.data.vocabularies import Vocabulary
from hyperflax.errors import DataError
from hyperflax.evaluation.metrics import get_metric
from hyperflax.evaluation.ranking import Rule
from hyperflax.evaluation.report import build_report
from hyperflax.evaluation.runner import EvaluationTask, ScoreTable

Scores = dict[str, dict[str, float]]  # {condition: {task: score}}


@dataclasses.dataclass(frozen=True)
class Suite:
    """A benchmark suite.

    Attributes:
      name: what `--suite` says.
      sources: `{run: vocabulary -> source}`, the same tasks in each; one entry unless the suite has seeds of its own.
      unit: what the report counts, in the plural: `test tasks`, `data sets`.
      official: how many of them the whole suite has.
      metric: what a task is measured by, a name of `METRICS`.
      support: where supports come from, see `HeldOut.from_source`.
      shots: how many examples the official evaluation shows; None if it does not say.
      inputs_length: tokens to which the official evaluation cuts inputs.
      targets_length: tokens of an answer that it generates; None if it ranks answers, or does not say.
      ranked: answers are ranked by this rule (`hyperflax.evaluation.ranking`); None where they are generated.
      category_metrics: categories that are reported by another metric.
      mixed: those metrics make the tasks' scores, too; otherwise they stand in the table of categories alone.
      grouped: a task of the report is a category of the sources, and its runs are that category's tasks.
      missing: what the data at hand lacks, one line each.
    """

    name: str
    sources: Mapping[str, Callable[[Vocabulary], ExampleSource]]
    unit: str
    official: int
    metric: str
    support: Literal["examples", "positives"] = "examples"
    shots: int | None = None
    inputs_length: int = 1024
    targets_length: int | None = None
    ranked: Rule | None = None
    category_metrics: Mapping[str, str] = dataclasses.field(default_factory=dict)
    mixed: bool = False
    grouped: bool = False
    missing: tuple[str, ...] = ()

    @property
    def metric_name(self) -> str:
        """The metric's name in the report: all names where categories differ."""
        others = sorted(set(self.category_metrics.values()) - {self.metric}) if self.mixed else []
        return "_or_".join([*others, self.metric])


def suite_report(
    suite: Suite,
    tables: Mapping[str, ScoreTable],
    run: Mapping[str, Any],
    *,
    missing: Sequence[str] = (),
    checked_against: Sequence[str] = (),
    **options: Any,
) -> dict[str, Any]:
    """The report on a suite.

    Args:
      suite: its rules.
      tables: what was found in each run, the same tasks in all.
      run: as `run_info` makes it.
      missing: what this evaluation left out, beside what the data lacks.
      checked_against: names of the training data that was compared with the suite.
      options: of `build_report`.
    """
    first = next(iter(tables.values()))
    cells = _cells(suite, {label: _scores(suite, table, suite.mixed) for label, table in tables.items()}, first.tasks)
    scores = _means(cells)
    several = suite.grouped or len(tables) > 1
    tasks = list(next(iter(scores.values())))
    sizes: dict[str, int] = {}
    for task in first.tasks:
        unit = _unit(suite, task)
        sizes[unit] = max(sizes.get(unit, 0), len(task.inputs))
    categories = {} if suite.grouped else {task.name: task.category for task in first.tasks if task.category}
    others = {} if suite.mixed else _other_metrics(suite, tables, first.tasks)
    missing = [*suite.missing, *missing]
    extra: dict[str, Any] = {
        "suite": {
            "name": suite.name,
            "unit": suite.unit,
            "evaluated": len(tasks),
            "official": suite.official,
            "complete": len(tasks) == suite.official and not missing,
            "missing": missing,
            "checked_against": list(checked_against),
        }
    }
    if categories:
        extra["categories"] = _category_rows(suite, scores, others, categories)
    if several and not suite.grouped:
        extra["per_run"] = [
            {"run": label, "scores": {c: _round(np.mean([cells[c][t][label] for t in tasks])) for c in cells}}
            for label in tables
        ]
    return build_report(
        suite.metric_name,
        scores,
        run,
        n_examples=sizes,
        categories=categories,
        runs=cells if several else None,
        medians=suite.grouped,
        other_metrics=others,
        extra=extra,
        **options,
    )


def check_units(suite: Suite, tasks: Sequence[EvaluationTask]) -> None:
    """Raises DataError unless tasks make what the suite counts, and no more than it has; asked before they are run."""
    units = {_unit(suite, task) for task in tasks}
    if len(units) > suite.official:
        raise DataError(f"suite '{suite.name}': expected at most {suite.official} {suite.unit}, got {len(units)}")


def _unit(suite: Suite, task: EvaluationTask) -> str:
    """The report's task that a source's task belongs to."""
    if not suite.grouped:
        return task.name
    if task.category is None:
        raise DataError(f"suite '{suite.name}': expected a category, which tasks are grouped by, of task '{task.name}'")
    return task.category


def _scores(suite: Suite, table: ScoreTable, mixed: bool) -> Scores:
    """A run's scores; with `mixed`, of each task by the metric of its category."""
    if not mixed:
        return table.scores
    return {
        condition: {
            task.name: get_metric(suite.category_metrics.get(task.category or "", suite.metric)).score(
                answers[task.name], task.references
            )
            for task in table.tasks
        }
        for condition, answers in table.predictions.items()
    }


def _cells(
    suite: Suite, of_runs: Mapping[str, Scores], tasks: Sequence[EvaluationTask]
) -> dict[str, dict[str, dict[str, float]]]:
    """{condition: {task of the report: {run: score}}}; grouped, a run is a task, its score the mean of draws."""
    cells: dict[str, dict[str, dict[str, float]]] = {}
    for condition in next(iter(of_runs.values())):
        rows = cells.setdefault(condition, {})
        for task in tasks:
            values = {label: scores[condition][task.name] for label, scores in of_runs.items()}
            unit = _unit(suite, task)
            if suite.grouped:
                rows.setdefault(unit, {})[task.name.removeprefix(f"{unit}_")] = float(np.mean(list(values.values())))
            else:
                rows[unit] = values
    return cells


def _means(cells: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Scores:
    return {
        condition: {task: float(np.mean(list(runs.values()))) for task, runs in rows.items()}
        for condition, rows in cells.items()
    }


def _other_metrics(
    suite: Suite, tables: Mapping[str, ScoreTable], tasks: Sequence[EvaluationTask]
) -> dict[str, Scores]:
    """{metric: scores} of the metrics that some categories are reported by, means over runs."""
    others = {}
    for name in sorted(set(suite.category_metrics.values()) - {suite.metric}):
        metric = get_metric(name)
        of_runs = {
            label: {
                condition: {task.name: metric.score(answers[task.name], task.references) for task in table.tasks}
                for condition, answers in table.predictions.items()
            }
            for label, table in tables.items()
        }
        others[name] = _means(_cells(suite, of_runs, tasks))
    return others


def _category_rows(
    suite: Suite, scores: Scores, others: Mapping[str, Scores], categories: Mapping[str, str]
) -> list[dict[str, Any]]:
    """One row for every category, by the metric that the suite reports for it."""
    rows = []
    for category in sorted(set(categories.values())):
        members = [task for task, of in categories.items() if of == category]
        metric = suite.category_metrics.get(category, suite.metric)
        found = others.get(metric, scores)
        means = {name: _round(np.mean([found[name][task] for task in members])) for name in scores}
        rows.append({"category": category, "metric": metric, "n_tasks": len(members), "scores": means})
    return rows


def _round(value: Any) -> float:
    return round(float(value), 6)
