"""The picture of docs/peers.md: all ratios with their spread, and the curves. Drawn without pyplot or a display."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from benchmarks.peers.case import Case
from benchmarks.peers.cases import CASES
from benchmarks.peers.results import Result, figure, ratio_figure
from hyperflax.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#0072B2", "#D55E00")  # Okabe and Ito's
_MARKERS = "os"
_WIDTH, _ROW, _PANEL = 9.0, 0.24, 2.6  # inches


def write_picture(path: pathlib.Path, results: Mapping[str, Result]) -> None:
    """Draws an svg, the same one from the same results."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    curves = [name for name in results if CASES[name].curves]
    ratios = {name: CASES[name] for name in results if CASES[name].ratios and not CASES[name].curves}
    rows = (len(curves) + 1) // 2
    heights = [0.8 + _ROW * sum(len(case.ratios) for case in ratios.values()), *([_PANEL * rows] if curves else [])]
    settings = {"svg.hashsalt": "peers", "svg.fonttype": "none", "font.size": 7}
    with matplotlib.rc_context(settings), atomic_file(path) as temporary:
        canvas = Figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
        # Apart, so that the labels of the one do not squeeze the others.
        parts = canvas.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        draw_ratios(parts[0].add_subplot(), ratios, results)
        for number, name in enumerate(curves, 1):
            draw_curves(parts[1].add_subplot(rows, 2, number), name, results[name])
        FigureCanvasSVG(canvas).print_svg(str(temporary), metadata={"Date": None})


def draw_ratios(axes: Axes, cases: Mapping[str, Case], results: Mapping[str, Result]) -> None:
    """A row for each ratio: median, spread, and a bar at the target where there is one."""
    labels = []
    for name, case in cases.items():
        for ratio in case.ratios:
            found = ratio_figure(ratio, results[name])
            if found is None:
                continue
            at = len(labels)
            labels.append(f"{name}: {ratio.says}")
            axes.plot([found.lowest, found.highest], [at, at], color=_COLOURS[0], lw=2)
            axes.plot(found.median, at, "o", color=_COLOURS[0], ms=4)
            for bound in (ratio.least, ratio.most):
                if bound is not None:
                    axes.plot(bound, at, "|", color=_COLOURS[1], ms=9, mew=2)
    axes.axvline(1.0, color="#222222", lw=0.8)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set(xscale="log", xlabel="ratio, median and spread; the bar is the target")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.grid(axis="x", alpha=0.3)


def draw_curves(axes: Axes, name: str, result: Result) -> None:
    """Seconds along what grows, with their spread."""
    case, entries = CASES[name], result["entries"]
    for (label, points), colour, marker in zip(case.curves.items(), _COLOURS, _MARKERS, strict=False):
        found = {x: figure(entries[entry]["seconds"]) for x, entry in points.items() if entry in entries}
        axes.plot(list(found), [each.median for each in found.values()], f"{marker}-", color=colour, label=label, ms=4)
        for x, each in found.items():
            axes.plot([x, x], [each.lowest, each.highest], color=colour, lw=1)
    axes.set(xscale="log", yscale="log", xlabel=case.x, ylabel="seconds")
    sizes = list(next(iter(case.curves.values())))
    axes.set_xticks(sizes, labels=[f"{x:,}" for x in sizes])
    axes.tick_params(axis="x", which="minor", labelbottom=False)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_title(name, loc="left", fontsize=7)
    axes.grid(alpha=0.3)
    axes.legend()
