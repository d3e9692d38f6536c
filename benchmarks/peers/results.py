"""Results: one json for every case, with the hash of its case, and the figures and tables made of them.

```
{"case": "train_lora", "hash": "3f0c...", "command": "python -m benchmarks.peers", "versions": {...},
 "device": "cpu (AMD EPYC 7R13 Processor, 2 cores)",
 "entries": {"hyperflax": {"side": "hyperflax", "seconds": [1.21, ...], "work": 123, "unit": "flop"}, ...},
 "agreement": [{"entries": ["hyperflax", "transformers"], "losses": [10.9, 10.8], "loss_difference": 2e-07}]}
```
"""

from __future__ import annotations

import importlib.metadata
import itertools
import math
import os
import pathlib
import statistics
import subprocess
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from benchmarks.peers.agreement import in_words
from benchmarks.peers.case import Case, Ratio, Side
from benchmarks.peers.cases import CASES
from hyperflax.evaluation.provenance import command_line
from hyperflax.json_files import read_json, write_json
from hyperflax.versions import versions

FOLDER = pathlib.Path(__file__).with_name("results")
OTHERS = ("torch", "transformers", "peft")
Result = dict[str, Any]


class Figure(NamedTuple):
    """Something measured in every round."""

    median: float
    lowest: float
    highest: float


def write_result(folder: pathlib.Path, name: str, measured: Mapping[str, Any]) -> None:
    """Writes what `measure` returned of a case; it appears whole."""
    found = {**versions(), **{package: v for package in OTHERS if (v := _version(package))}, **_t5x()}
    about = {"case": name, "hash": CASES[name].digest(), "command": command_line()}
    write_json(folder / f"{name}.json", {**about, "versions": found, **measured})


def current(folder: pathlib.Path, name: str, sides: Collection[Side]) -> bool:
    """Returns whether a result is there, of the case as it is now and of all these sides."""
    path, case = folder / f"{name}.json", CASES[name]
    if not path.is_file():
        return False
    result = read_json(path)
    wanted = {entry for entry in case.entries if case.entries[entry].side in sides}
    return result["hash"] == case.digest() and wanted <= set(result["entries"])


def stale(folder: pathlib.Path) -> list[str]:
    """Returns what is wrong with the results in a folder, a line each."""
    wrong = []
    for path in sorted(folder.glob("*.json")):
        if path.stem not in CASES:
            wrong.append(f"{path}: no case has this name")
        elif (found := read_json(path)["hash"]) != (expected := CASES[path.stem].digest()):
            wrong.append(f"{path}: stale, expected the hash {expected}, got {found}")
    return wrong


def read_results(folder: pathlib.Path) -> dict[str, Result]:
    """Returns the results that are there, in the order of the cases."""
    paths = {name: folder / f"{name}.json" for name in CASES}
    return {name: read_json(path) for name, path in paths.items() if path.is_file()}


# Figures


def figure(values: Collection[float]) -> Figure:
    """Returns median, lowest and highest."""
    return Figure(statistics.median(values), min(values), max(values))


def ratio_figure(ratio: Ratio, result: Result) -> Figure | None:
    """Returns a ratio round by round; None where one of its entries was not run.

    >>> ratio_figure(Ratio("", "b", "a"), {"entries": {"a": {"seconds": [1, 2]}, "b": {"seconds": [3, 4]}}})
    Figure(median=2.5, lowest=2.0, highest=3.0)
    """
    entries = result["entries"]
    if ratio.over not in entries or ratio.under not in entries:
        return None
    over, under = entries[ratio.over], entries[ratio.under]
    factor = under["work"] / over["work"] if ratio.rates else 1.0
    return figure([factor * a / b for a, b in zip(over["seconds"], under["seconds"], strict=True)])


def crossing(over: Mapping[int, float], under: Mapping[int, float]) -> float | str:
    """Returns the x from which on `over` is larger than `under`, between two points on straight lines in logarithms.

    Args:
      over, under: x -> seconds, increasing x, equal for both.

    Returns:
      a number, or in words that it lies outside of what was measured.
    """
    gains = [(math.log(x), math.log(over[x] / under[x])) for x in over]
    if gains[0][1] > 0:
        return f"before {min(over)}"
    for (x, gain), (next_x, next_gain) in itertools.pairwise(gains):
        if gain <= 0 < next_gain:
            return math.exp(x + (next_x - x) * -gain / (next_gain - gain))
    return f"not by {max(over)}"


# Tables


def rendered(results: Mapping[str, Result]) -> str:
    """Returns the tables of docs/peers.md."""
    lines: list[str] = []
    for name, result in results.items():
        lines += [
            f"### {CASES[name].says}",
            "",
            *_ratios(CASES[name], result),
            *_seconds(CASES[name], result),
            *_remarks(CASES[name], result),
        ]
    return "\n".join([*lines, *_machines(results)])


def _ratios(case: Case, result: Result) -> list[str]:
    if not case.ratios:
        return []
    lines = ["| ratio | median | lowest to highest | target |", "|---|---|---|---|"]
    for ratio in case.ratios:
        found = ratio_figure(ratio, result)
        told = "not run | " if found is None else f"{found.median:.2f} | {found.lowest:.2f} to {found.highest:.2f}"
        lines.append(f"| {ratio.says} | {told} | {_target(ratio.least, ratio.most, found)} |")
    return [*lines, ""]


def _target(least: float | None, most: float | None, found: Figure | None) -> str:
    """The target in words, and whether the median misses it."""
    told = f"at least {least:g}" if least is not None else "" if most is None else f"at most {most:g}"
    if found is None:
        return told
    low, high = least is not None and found.median < least, most is not None and found.median > most
    return f"{told}, missed" if low or high else told


def _seconds(case: Case, result: Result) -> list[str]:
    last = "target" if case.most_seconds else "rate"
    lines = [f"| | seconds, median | lowest to highest | {last} |", "|---|---|---|---|"]
    for name, entry in result["entries"].items():
        found = figure(entry["seconds"])
        rate = entry["work"] / found.median
        told = {"flop": f"{rate / 1e9:.0f} GFLOP/s", "token": f"{rate:.0f} tokens/s"}.get(entry["unit"], "")
        told = _target(None, case.most_seconds[name], found) if name in case.most_seconds else told
        lines.append(f"| {name} | {found.median:.3f} | {found.lowest:.3f} to {found.highest:.3f} | {told} |")
    return [*lines, ""]


def _remarks(case: Case, result: Result) -> list[str]:
    remarks = [in_words(pair) for pair in result["agreement"]]
    if case.crossing:
        over, under = (_curve(case.curves[label], result) for label in case.crossing)
        at = crossing(over, under)
        remarks.append(f"The gain crosses 1: {at if isinstance(at, str) else f'at {at:.1f}'} {case.x}.")
    return [" ".join(remarks), ""] if remarks else []


def _curve(points: Mapping[int, str], result: Result) -> dict[int, float]:
    return {x: figure(result["entries"][name]["seconds"]).median for x, name in points.items()}


def _machines(results: Mapping[str, Result]) -> list[str]:
    """What the figures were made with; results of several machines or versions are told apart."""
    made = {}
    for name, result in results.items():
        about = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
        made.setdefault(f"{result['device']}; {about}", []).append(name)
    return [f"Measured on {about} ({', '.join(names)})." for about, names in made.items()]


def _t5x() -> dict[str, str]:
    """The commit of T5X's checkout, which has no releases; nothing without one."""
    if not (checkout := os.environ.get("HYPERFLAX_T5X")):
        return {}
    found = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {"t5x": found.stdout.strip() or "unknown"}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
