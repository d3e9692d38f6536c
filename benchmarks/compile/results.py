"""Results of compilations: one json each, with the hash of its configuration, and the table made of them."""

from __future__ import annotations

import pathlib
from typing import Any

from benchmarks.compile.configs import CONFIGS
from hyperflax.compile.report import fits
from hyperflax.json_files import read_json, write_json
from hyperflax.versions import versions

FOLDER = pathlib.Path(__file__).with_name("results")
HEADINGS = (
    "run", "slice", "mesh", "tasks", "GB a chip", "PFLOP executed (model)", "GB received",
    "ms: step (products, memory, communication)", "MFU", "compiled, s",
)  # fmt: skip


def write_result(folder: pathlib.Path, name: str, reports: list[dict[str, Any]]) -> None:
    """Writes a result; it appears whole."""
    config = CONFIGS[name]
    write_json(
        folder / f"{name}.json",
        {
            "config": name,
            "hash": config.digest(),
            "command": config.command(),
            "versions": versions(),
            "reports": reports,
        },
    )


def current(folder: pathlib.Path, name: str) -> bool:
    """Returns whether a result is there and belongs to the configuration as it is now."""
    path = folder / f"{name}.json"
    return path.is_file() and read_json(path)["hash"] == CONFIGS[name].digest()


def stale(folder: pathlib.Path) -> list[str]:
    """Returns what is wrong with the results in a folder, a line each."""
    wrong = []
    for path in sorted(folder.glob("*.json")):
        if path.stem not in CONFIGS:
            wrong.append(f"{path}: no configuration has this name")
        elif (found := read_json(path)["hash"]) != (expected := CONFIGS[path.stem].digest()):
            wrong.append(f"{path}: stale, expected the hash {expected}, got {found}")
    return wrong


def rendered(folder: pathlib.Path) -> str:
    """Returns the results as the table of docs/compile.md, in the order of the configurations."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---" * len(HEADINGS) + "|"]
    for name in CONFIGS:
        path = folder / f"{name}.json"
        if path.is_file():
            lines += [_row(name, report) for report in read_json(path)["reports"]]
    return "\n".join(lines) + "\n"


def _row(name: str, report: dict[str, Any]) -> str:
    mesh = " x ".join(str(size) for size in report["mesh"].values())
    hbm = report["hbm"]
    memory = f"{hbm['total'] / 1e9:.1f} of {hbm['capacity'] / 1e9:.0f}" if "total" in hbm else ""
    cells = [f"{name}, {report['program']}", report["topology"], mesh, str(report["tasks"])]
    if not fits(report):
        return _line([*cells, f"{memory}: does not fit".removeprefix(": "), *[""] * 4, f"{_seconds(report):.0f}"])
    times, received = report["estimate"], sum(row["bytes"] for row in report["collectives"])
    parts = ("compute", "memory", "exposed_communication")
    return _line(
        [
            *cells,
            memory,
            f"{report['executed_flops'] * report['chips'] / 1e15:.1f} ({report['model_flops'] / 1e15:.1f})",
            f"{received / 1e9:.1f}",
            f"{1e3 * times['step']:.0f} ({', '.join(f'{1e3 * times[part]:.0f}' for part in parts)})",
            f"{report['mfu']:.0%}",
            f"{_seconds(report):.0f}",
        ]
    )


def _seconds(report: dict[str, Any]) -> float:
    return report["seconds"]["lowering"] + report["seconds"]["compiling"]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
