"""The picture of a claim: its comparisons with intervals, its curves, and how its experiments learn.

Drawn as `hyperflax.evaluation.plots` draws: matplotlib's Agg canvas without pyplot, Okabe and Ito's colours.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmarks.claims.verdicts import NOT_REPRODUCED, REPRODUCED
from hyperflax.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#222222")
_MARKERS = "osDv^P"
_VERDICTS = {REPRODUCED: "#009E73", NOT_REPRODUCED: "#D55E00"}
_WIDTH, _ROW, _PANEL = 9.0, 0.34, 3.0  # inches


def write_pictures(findings: Mapping[str, Any], folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws `FAMILY-SCALE-claimN.png` for every claim with a comparison to draw; returns the paths."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    paths = []
    for claim in findings["claims"]:
        compared = [row for row in claim["comparisons"] if "difference" in row]
        if not compared:
            continue
        panels = [curve for curve in claim["curves"] if curve["lines"]]
        learning = _learning_panels(claim["learning"])
        rows = (len(panels) + len(learning) + 1) // 2
        heights = [1.2 + _ROW * len(compared), *[_PANEL] * rows]
        figure = Figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
        grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
        figure.suptitle(f"{claim['claim']}. {claim['says']}", fontsize=10)
        draw_comparisons(figure.add_subplot(grid[0, :]), compared)
        for number, curve in enumerate([*panels, *learning]):
            draw_curve(figure.add_subplot(grid[1 + number // 2, number % 2]), curve)
        path = folder / f"{findings['family']}-{findings['scale']}-claim{claim['claim']}.png"
        with atomic_file(path) as temporary:
            FigureCanvasAgg(figure).print_png(str(temporary))
        paths.append(path)
    return paths


def draw_comparisons(axes: Axes, rows: list[Mapping[str, Any]]) -> None:
    """One row per comparison: the difference as a point, its interval as a line, in the colour of its verdict."""
    for at, row in enumerate(rows):
        difference, colour = row["difference"], _VERDICTS.get(row["verdict"], "#8A8A8A")
        axes.plot([difference["low"], difference["high"]], [at, at], color=colour, lw=2)
        axes.plot(difference["mean"], at, "o", color=colour, mfc=colour if row["decides"] else "white")
    axes.axvline(0.0, color="#222222", lw=0.8)
    axes.set_yticks(range(len(rows)), [row["says"] for row in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    # Losses and scores of one claim may differ in size by far.
    axes.set_xscale("symlog", linthresh=0.01)
    axes.set_xlabel("a - b, 95% interval; green reproduced, red not, grey not decidable; open: decides nothing")
    axes.grid(axis="x", alpha=0.3)


def draw_curve(axes: Axes, curve: Mapping[str, Any]) -> None:
    """Lines through means, a bar for each interval where there is one."""
    for number, (label, points) in enumerate(curve["lines"].items()):
        colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
        axes.plot([p[0] for p in points], [p[1] for p in points], f"{marker}-", color=colour, label=label, ms=4, lw=1.4)
        for x, _, *ends in points:
            if ends:
                axes.plot([x, x], ends, color=colour, lw=1.0)
    axes.set(xlabel=curve["x"], ylabel=curve["y"])
    axes.set_title(curve["title"], loc="left", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=6)


def _learning_panels(learning: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Validation loss over steps and over floating-point operations; none where there is nothing."""
    if not learning:
        return []
    panels = []
    for title, unit in (("steps", None), ("PFLOP", 1e15)):
        lines = {
            name: [[step * found["flops_per_step"] / unit if unit else step, loss] for step, loss in found["points"]]
            for name, found in learning.items()
        }
        panels.append({"title": f"learning over {title}", "x": title, "y": "validation loss", "lines": lines})
    return panels
