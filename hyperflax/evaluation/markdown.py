"""A report as a page to read: means with intervals, differences in words, worst and best tasks, how to reproduce it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hyperflax.evaluation.schema import CONDITIONS

FEW_TASKS = 10
_SHOWN = 5  # worst and best tasks
# The condition a report is about, which orders its tasks: the first of these that is there.
_MAIN = (
    *("generated", "shipped", "refined", "shipped_refined", "nearest_task", "shared", "mtf", "mtf_zero_shot"),
    "in_context",
)


def main_condition(report: Mapping[str, Any]) -> str:
    """The condition that tasks are sorted by, in the page and in the plots."""
    names = list(report["conditions"])
    return next((name for name in _MAIN if name in names), names[-1])


def category_means(report: Mapping[str, Any]) -> dict[str, tuple[int, dict[str, float]]]:
    """`{category: (number of tasks, {condition: mean})}` by name; empty unless at least two categories are named.

    In the report of a suite they are those of its own table, each by the metric that the suite reports for it.
    """
    if len(report.get("categories", ())) > 1:
        return {row["category"]: (row["n_tasks"], row["scores"]) for row in report["categories"]}
    groups: dict[str, list[Mapping[str, float]]] = {}
    for row in report["per_task"]:
        if "category" in row:
            groups.setdefault(row["category"], []).append(row["scores"])
    if len(groups) < 2:
        return {}
    return {
        category: (len(rows), {name: math.fsum(row[name] for row in rows) / len(rows) for name in report["conditions"]})
        for category, rows in sorted(groups.items())
    }


def render_markdown(report: Mapping[str, Any]) -> str:
    """The page for a valid report."""
    parts = [
        f"# {report['metric']} over {_counted(report['n_tasks'])}",
        *_suite(report),
        *_notes(report),
        conditions_table(report),
    ]
    parts[1:1] = remarks(report)
    if report["differences"]:
        lines = [_difference(report, row) for row in report["differences"]]
        nested = " and over runs within them" if "runs" in report["per_task"][0] else ""
        said = f"Paired by task, with 95% bootstrap intervals over tasks{nested}."
        parts += ["## Differences", said, "\n".join(lines)]
    if "per_run" in report:
        parts += ["## By run", _runs(report)]
    if "medians" in report["per_task"][0]:
        parts += ["## Medians over runs", _medians(report)]
    if "categories" in report:
        parts += ["## By category", _category_metrics(report)]
    elif groups := category_means(report):
        parts += ["## By category", _categories(report, groups)]
    parts += [*_tasks(report), *_adapters(report), *_reproduce(report["run"])]
    return "\n\n".join(parts) + "\n"


def coverage(report: Mapping[str, Any]) -> str:
    """One line: which suite, and how much of it; empty where the report is on no suite."""
    if "suite" not in report:
        return ""
    suite = report["suite"]
    if suite["complete"]:
        return f"Suite {suite['name']}: all {suite['official']} {suite['unit']}."
    return (
        f"A part of the suite {suite['name']}, {suite['evaluated']} of {suite['official']} {suite['unit']}: these "
        "figures are not the suite's score."
    )


def remarks(report: Mapping[str, Any]) -> list[str]:
    """What else is to be known of the tasks, one line each: what was left out or cut, what is not new or may not be."""
    config, tasks = report["run"]["config"], report["n_tasks"]
    lines = []
    if told := config.get("left_out"):
        lines.append(f"Left out, {_counted(told['tasks'])}: {told['reasons'][0]}")
    if told := config.get("too_long"):
        examples = f"{told['examples']} of the {told['of']} examples of {_counted(told['tasks'])}"
        lines.append(f"Too long for the model and not scored: {examples}.")
    if told := config.get("supports_cut"):
        cut = f"{told['tasks']} of {tasks} tasks"
        lines.append(f"Not read whole: the supports of {cut}, a row has {told['length']} tokens.")
    if told := config.get("trained_on"):
        counts = ", ".join(f"{count} of {tasks} in {who}" for who, count in told.items())
        lines.append(f"Tasks that are not new: {counts}.")
    if told := config.get("not_recorded"):
        lines.append(f"No tasks are recorded, or not all, of {' and of '.join(told)}: these may be among them.")
    return lines


def _counted(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"


def _suite(report: Mapping[str, Any]) -> list[str]:
    if "suite" not in report:
        return []
    suite = report["suite"]
    parts = [coverage(report)]
    if suite["missing"]:
        parts.append("\n".join(f"- {line}" for line in suite["missing"]))
    if against := suite["checked_against"]:
        parts.append(f"No evaluated task or example is in what was named as trained on: {', '.join(against)}.")
    else:
        parts.append("Not compared with any training data (`--trained_on`).")
    return parts


def _runs(report: Mapping[str, Any]) -> str:
    """The mean over tasks of every run, and of each condition its worst."""
    names = list(report["conditions"])
    rows = [(row["run"], row["scores"]) for row in report["per_run"]]
    rows.append(("worst", {name: min(scores[name] for _, scores in rows) for name in names}))
    body = [[run, *(f"{scores[name]:.3f}" for name in names)] for run, scores in rows]
    return _table(["run", *names], body, right=range(1, len(names) + 1))


def _medians(report: Mapping[str, Any]) -> str:
    names, rows = list(report["conditions"]), report["per_task"]
    body = [[row["task"], str(len(row["runs"])), *(f"{row['medians'][name]:.3f}" for name in names)] for row in rows]
    means = [math.fsum(row["medians"][name] for row in rows) / len(rows) for name in names]
    body.append(["mean", "", *(f"{mean:.3f}" for mean in means)])
    return _table(["task", "runs", *names], body, right=range(1, len(names) + 2))


def _category_metrics(report: Mapping[str, Any]) -> str:
    names = list(report["conditions"])
    body = [
        [row["category"], row["metric"], str(row["n_tasks"]), *(f"{row['scores'][name]:.3f}" for name in names)]
        for row in report["categories"]
    ]
    return _table(["category", "metric", "tasks", *names], body, right=range(2, len(names) + 3))


def _notes(report: Mapping[str, Any]) -> list[str]:
    if report["n_tasks"] == 1:
        alone = "One task says nothing about others: the intervals below are the whole range of scores"
        return [f"{alone}, and there is no other one whose support the control `shuffled_support` could show."]
    if report["n_tasks"] < FEW_TASKS:
        return [f"With only {report['n_tasks']} tasks, bootstrap intervals are too narrow: read them as a lower bound."]
    return []


def conditions_table(report: Mapping[str, Any]) -> str:
    counts = [row.get("n_examples") for row in report["per_task"]]
    # The mean over examples (what some official scripts print) is another figure only where tasks differ in size.
    weigh = None not in counts and len(set(counts)) > 1
    header = ["condition", "mean", "95% interval", *(["over examples"] if weigh else []), "what it is"]
    rows = []
    for name, values in report["conditions"].items():
        row = [name, f"{values['mean']:.3f}", f"[{values['low']:.3f}, {values['high']:.3f}]"]
        if weigh:
            total = math.fsum(n * r["scores"][name] for n, r in zip(counts, report["per_task"], strict=True))
            row.append(f"{total / sum(counts):.3f}")
        rows.append([*row, CONDITIONS[name]])
    return _table(header, rows, right=(1, 2, 3) if weigh else (1, 2))


def _difference(report: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    a, b = row["a"], row["b"]
    deltas = [task["scores"][a] - task["scores"][b] for task in report["per_task"]]
    better, worse = sum(d > 0 for d in deltas), sum(d < 0 for d in deltas)
    verdict = "; the interval includes zero" if row["low"] <= 0 <= row["high"] else ""
    return (
        f"- {a} minus {b}: {row['mean']:+.3f} [{row['low']:.3f}, {row['high']:.3f}]; "
        f"better on {better} and worse on {worse} of {report['n_tasks']}{verdict}"
    )


def _categories(report: Mapping[str, Any], groups: Mapping[str, tuple[int, Mapping[str, float]]]) -> str:
    names = list(report["conditions"])
    rows = [[group, str(n), *(f"{means[name]:.3f}" for name in names)] for group, (n, means) in groups.items()]
    return _table(["category", "tasks", *names], rows, right=range(1, len(names) + 2))


def _tasks(report: Mapping[str, Any]) -> list[str]:
    main = main_condition(report)
    rows = sorted(report["per_task"], key=lambda row: (row["scores"][main], row["task"]))
    if len(rows) <= 2 * _SHOWN:
        return [f"## Tasks, by `{main}`", _task_table(report, rows)]
    worst, best = rows[:_SHOWN], sorted(rows, key=lambda row: (-row["scores"][main], row["task"]))[:_SHOWN]
    return [f"## Worst tasks of `{main}`", _task_table(report, worst), "## Best tasks", _task_table(report, best)]


def _task_table(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(report["conditions"])
    body = [[row["task"], *(f"{row['scores'][name]:.3f}" for name in names)] for row in rows]
    return _table(["task", *names], body, right=range(1, len(names) + 1))


def _adapters(report: Mapping[str, Any]) -> list[str]:
    figures = report.get("adapters", {})
    if "between_task_distance" not in figures:
        return []
    between = f"{figures['between_task_distance']:.3g}"
    line = f"Mean squared difference between the adapters of a task and of the next one in order: {between}"
    if "within_task_distance" in figures:
        line += f"; between two supports of one task: {figures['within_task_distance']:.3g}"
    kin = "The next task is often of the same kin: two drawn at random are further apart."
    return ["## Generated adapters", f"{line}. {kin} Norms and effective ranks by layer are in adapters.png."]


def _reproduce(run: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    return [
        "## How to reproduce",
        f"```\n{run['command']}\n```",
        f"{run['seconds']:.0f} seconds on {run['device']}; {versions}.",
        f"```json\n{json.dumps(run['config'], indent=1, ensure_ascii=False)}\n```",
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Iterable[int]) -> str:
    """A markdown table whose source is aligned, too; `right` are the columns of numbers."""
    numeric = set(right)
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [header, *rows]]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = [
            cell.rjust(w) if i in numeric else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * (w - 1) + ":" if i in numeric else "-" * w for i, w in enumerate(widths)]
    return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])])
