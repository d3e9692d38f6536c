"""Plots: what is drawn is what the report says, and the files are pictures."""

from __future__ import annotations

import pathlib
import struct
import subprocess
import sys
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hyperflax.evaluation import CONDITIONS, build_report, run_info, write_plots
from hyperflax.evaluation.markdown import category_means
from hyperflax.evaluation.plots import draw_adapters, draw_categories, draw_conditions, draw_distances, draw_tasks


def make(n_tasks: int = 20, conditions: int = len(CONDITIONS), categories: bool = True) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    tasks = [f"task{i}" for i in range(n_tasks)]
    scores = {
        name: dict(zip(tasks, rng.uniform(size=n_tasks).tolist(), strict=True))
        for name in list(CONDITIONS)[-conditions:]
    }
    groups = {task: f"group {i % 3}" for i, task in enumerate(tasks)} if categories else None
    return build_report("rouge_l", scores, run_info({}, seconds=1.0), categories=groups, resamples=200)


def _size(path: pathlib.Path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", header[16:24])


def test_files(tmp_path: pathlib.Path) -> None:
    report, categories = write_plots(make(), tmp_path / "new")
    assert (report.name, categories.name) == ("report.png", "categories.png")
    assert _size(report)[0] == 1800
    assert _size(categories)[0] > 1000
    assert sorted(p.name for p in report.parent.iterdir()) == ["categories.png", "report.png"]
    assert [p.name for p in write_plots(make(1, 2, categories=False), tmp_path)] == ["report.png"]


def test_a_category_may_have_dollars_in_its_name(tmp_path: pathlib.Path) -> None:
    """matplotlib would read what stands between two of them as a formula, and refuse one that is none."""
    report = make()
    for row in report["per_task"]:
        row["category"] = row["category"].replace("group", r"$\frac$")
    assert [path.name for path in write_plots(report, tmp_path)] == ["report.png", "categories.png"]
    draw_categories(axes := Figure().subplots(), report)
    assert {label.get_text()[:7] for label in axes.get_yticklabels()} == {r"$\frac$"}


def test_conditions_are_drawn_where_the_report_says() -> None:
    report, axes = make(), Figure().subplots()
    draw_conditions(axes, report)
    assert [label.get_text().replace(" ", "_") for label in axes.get_yticklabels()] == list(report["conditions"])
    intervals, points = axes.lines[::2], axes.lines[1::2]
    for row, (values, interval, point) in enumerate(zip(report["conditions"].values(), intervals, points, strict=True)):
        assert list(interval.get_xdata()) == [values["low"], values["high"]]
        assert (list(point.get_xdata()), list(point.get_ydata())) == ([values["mean"]], [row])
    assert [text.get_text() for text in axes.texts] == [f"{v['mean']:.2f}" for v in report["conditions"].values()]
    looks = {(line.get_color(), line.get_marker(), line.get_markerfacecolor()) for line in points}
    assert len(looks) == len(CONDITIONS)  # no two conditions look alike


def test_task_curves_are_sorted_scores() -> None:
    report, axes = make(conditions=6), Figure().subplots()
    draw_tasks(axes, report)
    assert len(axes.lines) == 6
    for line in axes.lines:
        name = line.get_label().replace(" ", "_")
        assert list(line.get_ydata()) == sorted((r["scores"][name] for r in report["per_task"]), reverse=True)
    assert axes.lines[0].get_label() == "generated"


def test_the_control_is_drawn_among_many_conditions() -> None:
    axes = Figure().subplots()
    draw_tasks(axes, make())
    labels = [line.get_label() for line in axes.lines]
    assert len(labels) == 6
    assert {"generated", "shuffled support", "bare"} <= set(labels)


def test_categories_are_ordered_by_the_main_condition() -> None:
    report, axes = make(), Figure().subplots()
    draw_categories(axes, report)
    generated = next(line for line in axes.lines if line.get_label() == "generated")
    points = list(generated.get_xdata())
    assert points == sorted(points, reverse=True)
    assert len(points) == 3


def test_a_category_by_another_metric_than_the_report_s_says_which() -> None:
    report, axes = make(), Figure().subplots()
    metrics = dict(zip(category_means(report), ["rouge_l", "exact_match_normalised", "macro_f1"], strict=True))
    report["categories"] = [
        {"category": group, "metric": metrics[group], "n_tasks": count, "scores": scores}
        for group, (count, scores) in category_means(report).items()
    ]
    draw_categories(axes, report)
    labels = {label.get_text() for label in axes.get_yticklabels()}
    assert labels == {"group 0 (7)", "group 1 (7, exact match normalised)", "group 2 (6, macro-F1)"}
    assert axes.get_xlabel() == "ROUGE-L"


def test_importing_evaluation_is_light() -> None:
    code = "import sys, hyperflax.evaluation; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "numpy" in loaded
    assert not set(loaded) & {"matplotlib", "rouge_score", "nltk", "jax", "flax", "tensorflow", "seqio", "gin", "torch"}


def test_adapters_are_drawn_layer_by_layer_encoder_first(tmp_path: pathlib.Path) -> None:
    layers = ["decoder_0", "decoder_1", "encoder_0", "encoder_10", "encoder_2"]
    figures = {f"norm/{layer}": float(i) for i, layer in enumerate(layers)}
    figures |= {f"effective_rank/{layer}": 1.0 + i for i, layer in enumerate(layers)} | {"between_task_distance": 1e-7}
    report = {**make(2, 2, categories=False), "adapters": figures}
    axes = Figure().subplots()
    draw_adapters(axes, report, "norm")
    encoder, decoder = axes.lines
    assert (list(encoder.get_xdata()), list(encoder.get_ydata())) == ([0, 1, 2], [2.0, 4.0, 3.0])
    assert (list(decoder.get_xdata()), list(decoder.get_ydata())) == ([3, 4], [0.0, 1.0])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "2", "10", "0", "1"]
    assert [path.name for path in write_plots(report, tmp_path)] == ["report.png", "adapters.png"]


def test_distances_within_and_between_tasks_are_drawn_beside_each_other() -> None:
    figures = {"norm/encoder_0": 1.0, "between_task_distance": 4e-7, "within_task_distance": 1e-7}
    draw_distances(axes := Figure().subplots(), {"adapters": figures})
    assert [label.get_text() for label in axes.get_yticklabels()] == ["two supports\nof one task", "two tasks"]
    assert [bar.get_width() for bar in axes.patches] == [1e-7, 4e-7]
    draw_distances(axes := Figure().subplots(), {"adapters": {"between_task_distance": 4e-7}})
    assert [bar.get_width() for bar in axes.patches] == [4e-7]


def test_a_task_of_one_support_has_no_distances_to_draw(tmp_path: pathlib.Path) -> None:
    figures = {"norm/encoder_0": 1.0, "effective_rank/encoder_0": 1.0}
    report = make(1, 2, categories=False)
    _, two = write_plots({**report, "adapters": figures}, tmp_path / "two")
    _, three = write_plots({**report, "adapters": {**figures, "within_task_distance": 1e-7}}, tmp_path / "three")
    assert _size(two)[0] < _size(three)[0]


def test_pictures_of_an_earlier_report_do_not_stay_beside_another(tmp_path: pathlib.Path) -> None:
    (tmp_path / "adapters.png").write_bytes(b"an earlier report's")
    (tmp_path / "mine.png").write_bytes(b"mine")
    write_plots(make(2, 2), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.png", "categories.png", "mine.png"}
    write_plots(make(2, 2, categories=False), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.png", "mine.png"}
