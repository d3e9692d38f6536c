"""The picture of a claim: its comparisons with intervals, its curves, and how its experiments learn.

Comparisons are drawn as the verdict looks at them: turned so that the claimed side is on the right, and in units of the
smallest difference that would matter, so that scores, losses and seconds fit one axis. An interval right of the line is
a claim that was reproduced; one that ends before the end of the grey band, or left of the line, is one that was not.

Drawn as `hyperflax.evaluation.plots` draws: matplotlib's Agg canvas without pyplot, Okabe and Ito's colours.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.claims.verdicts import NOT_REPRODUCED, REPRODUCED, UNDECIDED
from hyperflax.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#222222")
_MARKERS = "osDv^PXhd"
_VERDICTS = {REPRODUCED: "#009E73", NOT_REPRODUCED: "#D55E00", UNDECIDED: "#8A8A8A"}
_WIDTH, _ROW, _FRAME, _PANEL = 10.0, 0.26, 1.5, 2.7  # inches; the frame is what the comparisons have around their rows
_COLUMNS = 2
_TICKS = 8  # at most so many places of a curve are all marked
_WIDE = 16  # their axis is logarithmic if its ends are so far apart


def write_pictures(findings: Mapping[str, Any], folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws `FAMILY-SCALE-claimN.png` for every claim with a comparison to draw; returns the paths."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    paths = []
    for claim in findings["claims"]:
        compared = [row for row in claim["comparisons"] if "difference" in row]
        if not compared:
            continue
        panels = [*filter(is_curve, claim["curves"]), *_learning_panels(claim["learning"])]
        rows = -(-len(panels) // _COLUMNS)
        heights = [_FRAME + _ROW * len(compared), *[_PANEL * rows] * bool(rows)]
        figure = Figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        parts[0].suptitle(f"{claim['claim']}. {claim['says']}", fontsize=10)
        draw_comparisons(parts[0].subplots(), compared)
        if panels:
            places = list(parts[1].subplots(rows, _COLUMNS, squeeze=False).flat)
            for place, curve in zip(places, panels, strict=False):
                draw_curve(place, curve)
            for place in places[len(panels) :]:
                place.set_axis_off()
        path = folder / f"{findings['family']}-{findings['scale']}-claim{claim['claim']}.png"
        with atomic_file(path) as temporary:
            FigureCanvasAgg(figure).print_png(str(temporary))
        paths.append(path)
    return paths


def draw_comparisons(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """One row per comparison: the difference as a point, its interval as a line, in the colour of its verdict."""
    axes.axvspan(0.0, 1.0, color="#EEEEEE", lw=0)
    axes.axvline(0.0, color="#222222", lw=0.8)
    for at, row in enumerate(rows):
        colour = _VERDICTS.get(row["verdict"], _VERDICTS[UNDECIDED])
        low, mean, high = turned(row)
        axes.plot([low, high], [at, at], color=colour, lw=2)
        axes.plot(mean, at, "o", color=colour, mfc=colour if row["decides"] else "white", ms=5)
    axes.set_yticks(range(len(rows)), [row["says"] for row in rows], fontsize=7)
    axes.set_xscale("symlog", linthresh=1.0)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(
        "difference, right: as claimed, in the smallest differences that would matter (grey)\n"
        "green: reproduced, red: not, grey: not decidable; open: stands beside the claim",
        fontsize=8,
    )
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.3)
    both = axes.twinx()
    both.set_yticks(range(len(rows)), [f"{_short(row['a'])} : {_short(row['b'])}" for row in rows], fontsize=7)
    both.tick_params(length=0)
    for each in (axes, both):
        each.set_ylim(len(rows) - 0.4, -0.6)


def turned(row: Mapping[str, Any]) -> tuple[float, float, float]:
    """Returns low end, mean and high end of a difference, the claimed side positive, in the least that would matter.

    >>> turned({"better": "lower", "least": 0.5, "difference": {"low": -1.0, "mean": -0.5, "high": 0.25}})
    (-0.5, 1.0, 2.0)
    """
    ends = [row["difference"][name] / row["least"] for name in ("low", "mean", "high")]
    low, mean, high = ends if row["better"] == "higher" else [-end for end in reversed(ends)]
    return low, mean, high


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.3g}"


def draw_curve(axes: Axes, curve: Mapping[str, Any]) -> None:
    """Lines through means, a bar for each interval where there is one."""
    for number, (label, points) in enumerate(curve["lines"].items()):
        colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
        dash = "-" if number < len(_COLOURS) else "--"
        xs, ys = [point[0] for point in points], [point[1] for point in points]
        axes.plot(xs, ys, f"{marker}{dash}", color=colour, label=label, ms=4, lw=1.4)
        for x, _, *ends in points:
            if ends:
                axes.plot([x, x], ends, color=colour, lw=1.0)
    places = sorted({point[0] for points in curve["lines"].values() for point in points})
    positive = [place for place in places if place > 0]
    if len(places) <= _TICKS:
        if positive[-1] / positive[0] >= _WIDE:
            axes.set_xscale("symlog", linthresh=positive[0])
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.minorticks_off()
    axes.set_xlabel(curve["x"], fontsize=8)
    axes.set_ylabel(curve["y"], fontsize=8)
    axes.set_title(curve["title"], loc="left", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    many = len(curve["lines"]) > len(_COLOURS)  # in one column they would cover the lines
    axes.legend(fontsize=5 if many else 6, ncols=2 if many else 1)


def is_curve(curve: Mapping[str, Any]) -> bool:
    """A line through at least two points: one alone is the reference, whose variants were not run."""
    return any(len(points) > 1 for points in curve["lines"].values())


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
