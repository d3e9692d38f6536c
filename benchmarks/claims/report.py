"""From results to the table of verdicts: `verdicts-SCALE.json`, `verdicts-SCALE.md` and a picture for every claim.

>>> findings = aggregate("strings_demo", "cpu", claims(setting), results)
>>> findings["claims"][0]["verdict"]
'reproduced'
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.claims.comparisons import Claim, Comparison, Curve, Side
from benchmarks.claims.results import Results
from benchmarks.claims.verdicts import Verdict, combine, crossed_interval, judge

DIGITS = 4
MARKS = (
    "Published figures: [P] read in the paper, [2] in a paper or review that quotes it, [M] remembered, not checked. "
    "TAGI: Liao et al. 2024."
)

Values = dict[int, dict[str, float]]  # {seed: {task: value}}; a figure has the one task ""


def values(results: Results, side: Side, statistic: str) -> Values:
    """Returns what a side measures, of every seed that there is a result of; empty where none has it."""
    found: Values = {}
    for (name, seed), result in results.items():
        if name != side.experiment:
            continue
        if statistic == "figure":
            if side.measure in result["figures"]:
                found[seed] = {"": result["figures"][side.measure]}
            continue
        runs = result["measures"].get(side.measure, {})
        if statistic == "spread":
            found[seed] = {task: statistics.stdev(scores) for task, scores in runs.items() if len(scores) > 1}
        else:
            found[seed] = {task: statistics.fmean(scores) for task, scores in runs.items()}
    return {seed: tasks for seed, tasks in found.items() if tasks}


def matrix(*sides: Values) -> tuple[list[int], list[str], list[np.ndarray]]:
    """Returns the seeds and tasks that all sides have, and a matrix [seed, task] of each side."""
    seeds = sorted(set.intersection(*(set(side) for side in sides)))
    if not seeds:
        return [], [], [np.zeros((0, 0)) for _ in sides]
    tasks = sorted(set.intersection(*(set(side[seed]) for side in sides for seed in seeds)))
    return seeds, tasks, [np.array([[side[seed][task] for task in tasks] for seed in seeds]) for side in sides]


def compare(comparison: Comparison, results: Results, planned: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Returns the row of one comparison: both means, the difference with its interval, the verdict.

    Args:
      comparison: what is compared.
      results: of the family at the scale.
      planned: seeds by experiment; while one is missing, nothing is decided.
    """
    sides = [values(results, side, comparison.statistic) for side in (comparison.a, comparison.b)]
    missing = [
        f"{side.experiment} ({side.measure}), seed {seed}"
        for side, found in zip((comparison.a, comparison.b), sides, strict=True)
        for seed in planned[side.experiment]
        if seed not in found
    ]
    missing += _other_bases(results, comparison)
    seeds, tasks, (a, b) = matrix(*sides)
    row: dict[str, Any] = {
        "says": comparison.says,
        "decides": comparison.decides,
        "better": comparison.better,
        "least": comparison.least,
        "published": comparison.published,
    }
    interval = None
    if len(seeds) > 1 and tasks:
        interval = crossed_interval(a - b)
        row |= {"a": _round(a.mean()), "b": _round(b.mean()), "seeds": len(seeds), "tasks": len(tasks)}
        row["difference"] = {name: _round(getattr(interval, name)) for name in ("mean", "low", "high")}
    verdict = judge(
        interval,
        len(seeds),
        len(tasks),
        higher=comparison.better == "higher",
        least=comparison.least,
        missing="no result of " + "; ".join(dict.fromkeys(missing)) if missing else "",
    )
    return {**row, "verdict": verdict.verdict, "why": verdict.why}


def aggregate(family: str, scale: str, claims: Iterable[Claim], results: Results) -> dict[str, Any]:
    """Returns everything that the table and the pictures show of a family at a scale, as json."""
    rows = []
    for claim in claims:
        planned = {experiment.name: experiment.seeds for experiment in claim.experiments}
        comparisons = [compare(comparison, results, planned) for comparison in claim.comparisons]
        verdict = combine(Verdict(row["verdict"], row["why"]) for row in comparisons if row["decides"])
        rows.append(
            {
                "claim": claim.number,
                "says": claim.says,
                "published": claim.published,
                "verdict": verdict.verdict,
                "why": verdict.why,
                "comparisons": comparisons,
                "curves": [_curve(curve, results) for curve in claim.curves],
                "learning": _learning(claim, results),
            }
        )
    return {"family": family, "scale": scale, "claims": rows}


def markdown(findings: Iterable[Mapping[str, Any]]) -> str:
    """Returns the table of verdicts as markdown: all claims, then the comparisons of each.

    Comparisons in parentheses stand beside the claim and decide nothing.
    """
    findings = list(findings)
    lines = ["# Verdicts", "", MARKS, ""]
    lines += ["| claim | family | scale | verdict | by | the papers |", "|---|---|---|---|---|---|"]
    for found in findings:
        for claim in found["claims"]:
            lines.append(
                f"| {claim['claim']}. {claim['says']} | {found['family']} | {found['scale']} | **{claim['verdict']}** "
                f"| {claim['why']} | {claim['published']} |"
            )
    for found in findings:
        lines += ["", f"## {found['family']}, scale {found['scale']}"]
        for claim in found["claims"]:
            lines += ["", f"### {claim['claim']}. {claim['says']}", ""]
            lines += ["| | a | b | a - b, 95% | tasks x seeds | published | verdict |", "|---|---|---|---|---|---|---|"]
            lines += [_line(row) for row in claim["comparisons"]]
    return "\n".join(lines) + "\n"


def _line(row: Mapping[str, Any]) -> str:
    says = row["says"] if row["decides"] else f"({row['says']})"
    figures = "| | |"
    if "difference" in row:
        difference = row["difference"]
        figures = (
            f"{row['a']:.4g} | {row['b']:.4g} | {difference['mean']:+.4f} [{difference['low']:+.4f}, "
            f"{difference['high']:+.4f}] | {row['tasks']} x {row['seeds']}"
        )
    return f"| {says} | {figures} | {row['published']} | {row['verdict']}: {row['why']} |"


def _other_bases(results: Results, comparison: Comparison) -> list[str]:
    """Names the experiments whose runs stand on different bases of one name, and so cannot be compared."""
    names = (comparison.a.experiment, comparison.b.experiment)
    prints = {result["base"]["fingerprint"] for (name, _), result in results.items() if name in names}
    return [f"{names[0]} and {names[1]} on one and the same base"] if len(prints) > 1 else []


def _curve(curve: Curve, results: Results) -> dict[str, Any]:
    """Points [x, mean, low, high] of every line that has at least two seeds, all over the same seeds and tasks."""
    lines = {}
    for label, points in curve.lines.items():
        found = {x: measured for x, side in points if (measured := values(results, side, "mean"))}
        seeds, tasks, matrices = matrix(*found.values()) if found else ([], [], [])
        if len(seeds) > 1 and tasks:
            intervals = [(x, crossed_interval(one)) for x, one in zip(found, matrices, strict=True)]
            lines[label] = [[x, _round(one.mean), _round(one.low), _round(one.high)] for x, one in intervals]
    return {"title": curve.title, "x": curve.x, "y": curve.y, "lines": lines}


def _learning(claim: Claim, results: Results) -> dict[str, Any]:
    """Validation loss over steps, mean over seeds: `{experiment: {"flops_per_step": F, "points": [[step, loss]]}}`."""
    curves = {}
    for experiment in claim.experiments:
        runs = [result for (name, _), result in results.items() if name == experiment.name and result.get("validation")]
        if runs and "flops_per_step" in runs[0]:
            losses = np.mean([[loss for _, loss in run["validation"]] for run in runs], axis=0)
            steps = [step for step, _ in runs[0]["validation"]]
            points = [[step, _round(loss)] for step, loss in zip(steps, losses, strict=True)]
            curves[experiment.name] = {"flops_per_step": runs[0]["flops_per_step"], "points": points}
    return curves


def _round(value: Any) -> float:
    return round(float(value), DIGITS)
