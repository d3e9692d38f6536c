"""The picture of a report: conditions with intervals, tasks in order of their score, categories.

Drawn with matplotlib's Agg canvas, without pyplot, so that no display, no global state and no backend are touched.
matplotlib is imported on the first call. Colours are Okabe and Ito's (2008), which colour-blind readers can tell apart;
controls are grey with open markers, so that nothing depends on colour alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from hyperflax.buckets import Location, locate
from hyperflax.evaluation.markdown import category_means, main_condition
from hyperflax.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _ORANGE, _GREEN, _VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
_PURPLE, _SKY, _GREY, _BLACK = "#CC79A7", "#56B4E9", "#8A8A8A", "#222222"

# Colour, marker and line of each condition: the same in every panel and every report.
_STYLES: dict[str, tuple[str, str, str]] = {
    "bare": (_BLACK, "o", ":"),
    "instruction": (_PURPLE, "^", "-."),
    "in_context": (_ORANGE, "s", "--"),
    "shared": (_SKY, "v", "-."),
    "mtf": (_PURPLE, "D", "--"),
    "mtf_zero_shot": (_PURPLE, "X", ":"),
    "nearest_task": (_GREEN, "P", "--"),
    "shuffled_support": (_GREY, "o", ":"),
    "generated": (_BLUE, "o", "-"),
    "shuffled_support_refined": (_GREY, "s", ":"),
    "refined": (_VERMILION, "s", "-"),
    "shipped": (_BLUE, "D", "--"),
    "shipped_refined": (_VERMILION, "D", "--"),
}
_MAX_CURVES = 6


def draw_conditions(axes: Axes, report: Mapping[str, Any]) -> None:
    """One row per condition: its mean as a point, its 95% interval as a line, the figure beside it."""
    names = list(report["conditions"])
    for row, name in enumerate(names):
        values, (colour, marker, _) = report["conditions"][name], _STYLES[name]
        axes.plot([values["low"], values["high"]], [row, row], color=colour, lw=2.2, solid_capstyle="round", zorder=2)
        axes.plot(values["mean"], row, marker, color=colour, ms=7.5, mfc=_face(name), mew=1.6, zorder=3)
        axes.annotate(
            f"{values['mean']:.2f}",
            (1.0, row),
            xytext=(8, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            color=_BLACK,
        )
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(_metric_label(report["metric"]))
    axes.set_title("Mean over tasks, 95% interval", loc="left")
    _clean(axes, grid="x")
    axes.tick_params(axis="y", length=0)


def draw_tasks(axes: Axes, report: Mapping[str, Any]) -> None:
    """Each condition's task scores, sorted for itself from best to worst: where it is good, and how often."""
    n = report["n_tasks"]
    shares = [100.0 * (index + 0.5) / n for index in range(n)]
    for name in _curves(report):
        colour, marker, line = _STYLES[name]
        scores = sorted((row["scores"][name] for row in report["per_task"]), reverse=True)
        axes.plot(
            shares,
            scores,
            line,
            color=colour,
            lw=1.9,
            marker=marker if n <= 15 else None,
            ms=5,
            mfc=_face(name),
            label=name.replace("_", " "),
            clip_on=False,
        )
    axes.set_xlim(-1, 101)
    axes.set_ylim(0, 1)
    axes.set_xlabel("tasks, % (each condition sorted for itself)")
    axes.set_ylabel(_metric_label(report["metric"]))
    axes.set_title(f"Scores of the {n} tasks" if n > 1 else "Score of the task", loc="left")
    axes.legend(**_LEGEND)
    _clean(axes, grid="y")


def draw_categories(axes: Axes, report: Mapping[str, Any]) -> None:
    """One row per category, best at the top: the mean of each of a few conditions as a point.

    A category that has another metric than the report says which.
    """
    groups = category_means(report)
    measured = {row["category"]: row["metric"] for row in report.get("categories", ())}
    others = {group: f", {_metric_label(name)}" for group, name in measured.items() if name != report["metric"]}
    main = main_condition(report)
    order = sorted(groups, key=lambda group: (-groups[group][1][main], group))
    curves = _curves(report)
    for row, group in enumerate(order):
        means = groups[group][1]
        ends = [means[name] for name in curves]
        axes.plot([min(ends), max(ends)], [row, row], color="#DDDDDD", lw=1.4, zorder=1)
    for name in curves:
        colour, marker, _ = _STYLES[name]
        points = [groups[group][1][name] for group in order]
        axes.plot(
            points,
            range(len(order)),
            marker,
            color=colour,
            mfc=_face(name),
            mew=1.4,
            ms=6,
            label=name.replace("_", " "),
        )
    labels = [f"{group} ({groups[group][0]}{others.get(group, '')})" for group in order]
    axes.set_yticks(range(len(order)), labels, parse_math=False)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(_metric_label(report["metric"]))
    axes.set_title("Mean by category (number of tasks)", loc="left")
    axes.legend(**_LEGEND)
    _clean(axes, grid="x")
    axes.tick_params(axis="y", length=0)


def draw_adapters(axes: Axes, report: Mapping[str, Any], figure: str) -> None:
    """One point per layer, encoder before decoder: the figure `norm` or `effective_rank`, its mean over tasks."""
    numbers: list[int] = []
    for stack, colour, marker in (("encoder", _BLUE, "o"), ("decoder", _VERMILION, "s")):
        start = f"{figure}/{stack}_"
        found = {int(name.removeprefix(start)): v for name, v in report["adapters"].items() if name.startswith(start)}
        layers = sorted(found)
        places = range(len(numbers), len(numbers) + len(layers))
        heights = [found[layer] for layer in layers]
        axes.plot(places, heights, "-", marker=marker, color=colour, lw=1.9, ms=5, label=stack)
        numbers += layers
    axes.set_xticks(range(len(numbers)), [str(number) for number in numbers])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("layer")
    axes.set_title(f"{figure.replace('_', ' ').capitalize()} of generated adapters", loc="left")
    axes.legend(frameon=False, fontsize=9.5)
    _clean(axes, grid="y")


_DISTANCES = {"within_task_distance": "two supports\nof one task", "between_task_distance": "two tasks"}


def draw_distances(axes: Axes, report: Mapping[str, Any]) -> None:
    """One bar each for the adapters of two supports of one task and of two tasks: the mean squared difference."""
    found = {label: report["adapters"][name] for name, label in _DISTANCES.items() if name in report["adapters"]}
    axes.barh(list(found), list(found.values()), height=0.5, color=_BLUE)
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel("mean squared difference")
    axes.set_title("Distance of generated adapters", loc="left")
    _clean(axes, grid="x")
    axes.tick_params(axis="y", length=0)


def write_plots(report: Mapping[str, Any], out: Location | str) -> list[Location]:
    """Draws a valid report into `out`: `report.png`; `categories.png` where tasks have two categories or more;
    `adapters.png` where the report has figures of generated adapters. Where it has none, an earlier report's goes.

    Returns:
      The paths written.
    """
    from matplotlib.figure import Figure

    folder = locate(out)
    n_conditions = len(report["conditions"])
    figure = Figure(figsize=(12, max(3.6, 1.4 + 0.36 * n_conditions)), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_conditions(left, report)
    draw_tasks(right, report)
    paths = [folder / "report.png"]
    _save(figure, paths[0])
    if groups := category_means(report):
        figure = Figure(figsize=(7.5, 1.5 + 0.3 * len(groups)), layout="constrained")
        draw_categories(figure.subplots(), report)
        paths.append(folder / "categories.png")
        _save(figure, paths[-1])
    if "adapters" in report:
        panels: list[Callable[[Axes, Mapping[str, Any]], None]] = [
            functools.partial(draw_adapters, figure=name) for name in ("norm", "effective_rank")
        ]
        if _DISTANCES.keys() & report["adapters"].keys():  # not of a single task's one support
            panels.append(draw_distances)
        figure = Figure(figsize=(5 * len(panels), 3.6), layout="constrained")
        for axes, draw in zip(figure.subplots(1, len(panels)), panels, strict=True):
            draw(axes, report)
        paths.append(folder / "adapters.png")
        _save(figure, paths[-1])
    for name in {"categories.png", "adapters.png"} - {path.name for path in paths}:
        if (earlier := folder / name).is_file():
            earlier.unlink()
    return paths


_LEGEND: dict[str, Any] = {"frameon": False, "loc": "center left", "bbox_to_anchor": (1.01, 0.5), "fontsize": 9.5}
_CURVE_ORDER = ("generated", "refined", "in_context", "shuffled_support", "bare", "shipped", "shipped_refined")


def _curves(report: Mapping[str, Any]) -> list[str]:
    """The few conditions that are drawn task by task; more would hide each other."""
    names = report["conditions"]
    return [name for name in dict.fromkeys((*_CURVE_ORDER, *names)) if name in names][:_MAX_CURVES]


def _face(name: str) -> str:
    return "white" if name.startswith("shuffled") else _STYLES[name][0]


def _metric_label(metric: str) -> str:
    return {"rouge_l": "ROUGE-L", "rouge_1": "ROUGE-1", "macro_f1": "macro-F1"}.get(metric, metric.replace("_", " "))


def _clean(axes: Axes, grid: Literal["x", "y"]) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    if grid == "x":
        axes.spines["left"].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.grid(axis=grid, color="#E6E6E6", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(color="#999999")


def _save(figure: Any, path: Location) -> None:
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
