"""The schema of a report, its condition names, and the check that a dict obeys it.

The check is strict: unknown keys are refused as missing ones are, and the figures must agree with each other (a mean
with the tasks it is the mean of), so that a report edited by hand or built by other code cannot say two things.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hyperflax.errors import DataError

# In the order in which tables and plots show them.
CONDITIONS: dict[str, str] = {
    "bare": "the frozen base model on the input alone",
    "instruction": "the base model given the true instruction",
    "in_context": "the base model with the support in its input",
    "shared": "one adapter trained on all train tasks",
    "mtf": "the base model fine-tuned on all train tasks",
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

_TOLERANCE = 1e-5  # means of scores that were rounded to six digits


def validate_report(report: Any) -> None:
    """Returns nothing if `report` obeys the schema.

    Raises:
      DataError: it does not; the message names the place, what was expected there and what came.
    """
    _keys(report, "report", ("metric", "n_tasks", "conditions", "differences", "per_task", "run"), ("adapters",))
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
    for name, value in dict(report.get("adapters", {})).items():
        _number(value, f"adapters/{name}", 0.0, math.inf)


def _per_task(rows: Any) -> dict[str, list[float]]:
    """Checks `per_task` and returns `{condition: [score of each task]}`."""
    _expect(isinstance(rows, list) and rows, "per_task", "a list with at least one task", rows)
    scores: dict[str, list[float]] = {}
    tasks = set()
    for index, row in enumerate(rows):
        where = f"per_task/{index}"
        _keys(row, where, ("task", "scores"), ("n_examples", "category"))
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
    return scores


def _interval(row: Mapping[str, Any], where: str, lowest: float, values: list[float]) -> None:
    low, mean, high = (_number(row[name], f"{where}/{name}", lowest, 1.0) for name in ("low", "mean", "high"))
    _expect(low <= mean <= high, where, "low <= mean <= high", (low, mean, high))
    actual = math.fsum(values) / len(values)
    _expect(abs(mean - actual) <= _TOLERANCE, f"{where}/mean", f"the mean over per_task, {actual:.6f}", mean)


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
