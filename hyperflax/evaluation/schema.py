"""The schema of a report, its condition names, and the check that a dict obeys it.

The check is strict: unknown keys are refused as missing ones are, and the figures must agree with each other (a mean
with the tasks it is the mean of), so that a report edited by hand or built by other code cannot say two things.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from hyperflax.errors import DataError

# In the order in which tables and plots show them.
CONDITIONS: dict[str, str] = {
    "bare": "the frozen base model on the input alone",
    "instruction": "the base model given the true instruction",
    "in_context": "the base model with the support in its input",
    "shared": "one adapter trained on all train tasks",
    "mtf": "the base model fine-tuned on all train tasks, with the support in its input",
    "mtf_zero_shot": "the base model fine-tuned on all train tasks without examples, given the instruction",
    "nearest_task": "the train task's adapter that fits the support best",
    "shuffled_support": "control: adapter generated from another task's support",
    "generated": "adapter generated from the support in one pass",
    "shuffled_support_refined": "control: generated from another task's support and refined on it",
    "refined": "generated adapter after a few gradient steps on the support",
    "shipped": "the shipped hypermodel, adapter as generated",
    "shipped_refined": "the shipped hypermodel, adapter refined on the support",
}

# What is compared by default, as a - b, where both are there.
DIFFERENCES: tuple[tuple[str, str], ...] = (
    ("generated", "bare"),
    ("generated", "shuffled_support"),
    ("generated", "in_context"),
    ("generated", "shared"),
    ("generated", "mtf"),
    ("generated", "mtf_zero_shot"),
    ("generated", "nearest_task"),
    ("generated", "instruction"),
    ("refined", "generated"),
    ("refined", "in_context"),
    ("refined", "nearest_task"),
    ("refined", "shuffled_support_refined"),
    ("shuffled_support", "bare"),
    ("shipped", "bare"),
    ("shipped", "in_context"),
    ("shipped", "generated"),
    ("shipped_refined", "shipped"),
)

_OPTIONAL_KEYS = ("adapters", "suite", "categories", "per_run")  # the last three in the report of a suite
_TOLERANCE = 1e-5  # means of scores that were rounded to six digits


def validate_report(report: Any) -> None:
    """Returns nothing if `report` obeys the schema.

    Raises:
      DataError: it does not; the message names the place, what was expected there and what came.
    """
    _keys(report, "report", ("metric", "n_tasks", "conditions", "differences", "per_task", "run"), _OPTIONAL_KEYS)
    _expect(isinstance(report["metric"], str) and report["metric"], "metric", "a name", report["metric"])
    scores = _per_task(report["per_task"])
    n_tasks = report["n_tasks"]
    _expect(type(n_tasks) is int and n_tasks == len(report["per_task"]), "n_tasks", len(report["per_task"]), n_tasks)
    conditions = report["conditions"]
    _keys(conditions, "conditions", tuple(scores))
    for name, values in scores.items():
        _keys(conditions[name], f"conditions/{name}", ("mean", "low", "high"))
        _interval(conditions[name], f"conditions/{name}", 0.0, values)
    _expect(isinstance(report["differences"], list), "differences", "a list", report["differences"])
    seen = set()
    for index, row in enumerate(report["differences"]):
        where = f"differences/{index}"
        _keys(row, where, ("a", "b", "mean", "low", "high"))
        pair = row["a"], row["b"]
        known = all(isinstance(name, str) and name in scores for name in pair)
        _expect(known and pair[0] != pair[1], where, f"a and b: two of {list(scores)}", pair)
        _expect(pair not in seen, where, "each pair once", pair)
        seen.add(pair)
        _interval(row, where, -1.0, [x - y for x, y in zip(scores[pair[0]], scores[pair[1]], strict=True)])
    _run(report["run"])
    adapters = report.get("adapters", {})
    _expect(isinstance(adapters, Mapping), "adapters", "an object", adapters)
    for name, value in adapters.items():
        _number(value, f"adapters/{name}", 0.0, math.inf)
    if "suite" in report:
        _suite(report["suite"], n_tasks)
    if "categories" in report:
        _categories(report["categories"], report, tuple(scores))
    if "per_run" in report:
        _per_run(report["per_run"], report["per_task"], tuple(scores))


def _per_task(rows: Any) -> dict[str, list[float]]:
    """Checks `per_task` and returns `{condition: [score of each task]}`."""
    _expect(isinstance(rows, list) and rows, "per_task", "a list with at least one task", rows)
    scores: dict[str, list[float]] = {}
    tasks = set()
    for index, row in enumerate(rows):
        where = f"per_task/{index}"
        _keys(row, where, ("task", "scores"), ("n_examples", "category", "runs", "medians", "other_metrics"))
        task = row["task"]
        _expect(isinstance(task, str) and task, f"{where}/task", "a name", task)
        _expect(task not in tasks, f"{where}/task", "each task once", task)
        tasks.add(task)
        if index == 0:
            _expect(isinstance(row["scores"], Mapping) and row["scores"], f"{where}/scores", "scores", row["scores"])
            for name in row["scores"]:
                _expect(name in CONDITIONS, f"{where}/scores", f"some of {', '.join(CONDITIONS)}", name)
                scores[name] = []
        _keys(row["scores"], f"{where}/scores", tuple(scores))
        for name, values in scores.items():
            values.append(_number(row["scores"][name], f"{where}/scores/{name}", 0.0, 1.0))
        if "n_examples" in row:
            count = row["n_examples"]
            _expect(type(count) is int and count > 0, f"{where}/n_examples", "a positive integer", count)
        if "category" in row:
            _expect(isinstance(row["category"], str), f"{where}/category", "a string", row["category"])
        _runs(row, where, tuple(scores))
        others = row.get("other_metrics", {})
        _expect(isinstance(others, Mapping), f"{where}/other_metrics", "an object", others)
        for metric, values in others.items():
            _scores(values, f"{where}/other_metrics/{metric}", tuple(scores))
    return scores


def _runs(row: Mapping[str, Any], where: str, conditions: tuple[str, ...]) -> None:
    """Checks that a task's score is the mean of its runs, and its median theirs."""
    _expect("medians" not in row or "runs" in row, f"{where}/medians", "`runs` beside it", list(row))
    if "runs" not in row:
        return
    runs = row["runs"]
    _expect(isinstance(runs, list) and runs, f"{where}/runs", "a list with at least one run", runs)
    for index, run in enumerate(runs):
        _keys(run, f"{where}/runs/{index}", ("run", "scores"))
        _expect(isinstance(run["run"], str) and run["run"], f"{where}/runs/{index}/run", "a name", run["run"])
        _scores(run["scores"], f"{where}/runs/{index}/scores", conditions)
    names = [run["run"] for run in runs]
    _expect(len(set(names)) == len(names), f"{where}/runs", "each run once", names)
    for name in conditions:
        _mean([run["scores"][name] for run in runs], row["scores"][name], f"{where}/scores/{name}", "runs")
    if "medians" in row:
        _scores(row["medians"], f"{where}/medians", conditions)
        for name in conditions:
            actual = statistics.median(run["scores"][name] for run in runs)
            close = abs(row["medians"][name] - actual) <= _TOLERANCE
            _expect(close, f"{where}/medians/{name}", f"the median over runs, {actual:.6f}", row["medians"][name])


def _suite(suite: Any, n_tasks: int) -> None:
    _keys(suite, "suite", ("name", "unit", "evaluated", "official", "complete", "missing", "checked_against"))
    for name in ("name", "unit"):
        _expect(isinstance(suite[name], str) and suite[name], f"suite/{name}", "a name", suite[name])
    _expect(suite["evaluated"] == n_tasks, "suite/evaluated", f"n_tasks, {n_tasks}", suite["evaluated"])
    official = suite["official"]
    _expect(type(official) is int and official >= n_tasks, "suite/official", f"at least {n_tasks}", official)
    for name in ("missing", "checked_against"):
        lines = suite[name]
        fine = isinstance(lines, list) and all(isinstance(line, str) for line in lines)
        _expect(fine, f"suite/{name}", "a list of strings", lines)
    whole = official == n_tasks and not suite["missing"]
    _expect(suite["complete"] is whole, "suite/complete", whole, suite["complete"])


def _categories(rows: Any, report: Mapping[str, Any], conditions: tuple[str, ...]) -> None:
    """Checks that each category's figures are the means of its tasks', by the metric it names."""
    _expect(isinstance(rows, list) and rows, "categories", "a list with at least one category", rows)
    for index, row in enumerate(rows):
        where = f"categories/{index}"
        _keys(row, where, ("category", "metric", "n_tasks", "scores"))
        tasks = [task for task in report["per_task"] if task.get("category") == row["category"]]
        _expect(tasks and row["n_tasks"] == len(tasks), f"{where}/n_tasks", len(tasks), row["n_tasks"])
        _scores(row["scores"], f"{where}/scores", conditions)
        for task in tasks:
            # Where tasks are scored by the metrics of their categories, the report's metric names all of them.
            known = {report["metric"], *report["metric"].split("_or_"), *task.get("other_metrics", {})}
            _expect(
                isinstance(row["metric"], str) and row["metric"] in known,
                f"{where}/metric",
                f"one of {sorted(known)}",
                row["metric"],
            )
        for name in conditions:
            values = [task.get("other_metrics", {}).get(row["metric"], task["scores"])[name] for task in tasks]
            _mean(values, row["scores"][name], f"{where}/scores/{name}", "tasks of the category")
    names = [row["category"] for row in rows]
    _expect(len(set(names)) == len(names), "categories", "each category once", names)


def _per_run(rows: Any, per_task: list[Mapping[str, Any]], conditions: tuple[str, ...]) -> None:
    """Checks that each run's figures are the means over tasks of that run."""
    _expect(isinstance(rows, list) and rows, "per_run", "a list with at least one run", rows)
    for index, row in enumerate(rows):
        where = f"per_run/{index}"
        _keys(row, where, ("run", "scores"))
        _scores(row["scores"], f"{where}/scores", conditions)
        runs = [run["scores"] for task in per_task for run in task.get("runs", []) if run["run"] == row["run"]]
        _expect(len(runs) == len(per_task), f"{where}/run", "a run of every task", row["run"])
        for name in conditions:
            _mean([scores[name] for scores in runs], row["scores"][name], f"{where}/scores/{name}", "tasks")


def _scores(values: Any, where: str, conditions: tuple[str, ...]) -> None:
    _keys(values, where, conditions)
    for name in conditions:
        _number(values[name], f"{where}/{name}", 0.0, 1.0)


def _mean(values: list[float], mean: float, where: str, over: str) -> None:
    actual = math.fsum(values) / len(values)
    _expect(abs(mean - actual) <= _TOLERANCE, where, f"the mean over {over}, {actual:.6f}", mean)


def _interval(row: Mapping[str, Any], where: str, lowest: float, values: list[float]) -> None:
    low, mean, high = (_number(row[name], f"{where}/{name}", lowest, 1.0) for name in ("low", "mean", "high"))
    _expect(low <= mean <= high, where, "low <= mean <= high", (low, mean, high))
    _mean(values, mean, f"{where}/mean", "per_task")


def _run(run: Any) -> None:
    _keys(run, "run", ("command", "config", "versions", "device", "seconds"))
    for name in ("command", "device"):
        _expect(isinstance(run[name], str), f"run/{name}", "a string", run[name])
    for name in ("config", "versions"):
        _expect(isinstance(run[name], Mapping), f"run/{name}", "an object", run[name])
    _number(run["seconds"], "run/seconds", 0.0, math.inf)
    for package, version in run["versions"].items():
        _expect(isinstance(version, str), f"run/versions/{package}", "a string", version)


def _number(value: Any, where: str, low: float, high: float) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    _expect(good and low <= value <= high, where, f"a number in {low:g}..{high:g}", value)
    return float(value)


def _keys(value: Any, where: str, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
    _expect(isinstance(value, Mapping), where, "an object", value)
    missing, unknown = set(required) - set(value), set(value) - set(required) - set(optional)
    _expect(not missing, where, f"the keys {', '.join(required)}", list(value))
    _expect(not unknown, where, f"no other keys than {', '.join(required + optional)}", sorted(map(str, unknown)))


def _expect(condition: Any, where: str, expected: Any, got: Any) -> None:
    if not condition:
        raise DataError(f"{where}: expected {expected}, got {got!r:.200}")
