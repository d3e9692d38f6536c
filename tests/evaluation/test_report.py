"""The report: figures, schema, files, page."""

from __future__ import annotations

import copy
import json
import math
import pathlib
import platform
import sys
from collections.abc import Callable
from typing import Any

import pytest

from hyperflax.errors import ConfigError, DataError
from hyperflax.evaluation import build_report, provenance, read_report, run_info, validate_report, write_report
from hyperflax.evaluation.markdown import category_means, main_condition, render_markdown
from hyperflax.evaluation.provenance import command_line

SCORES = {
    "generated": {"t1": 1.0, "t2": 0.5, "t3": 0.9, "t|4": 0.2},
    "bare": {"t1": 0.0, "t2": 0.25, "t3": 0.0, "t|4": 0.15},
    "shuffled_support": {"t1": 0.0, "t2": 0.3, "t3": 0.1, "t|4": 0.0},
}
RUN = {
    "command": "hyperflax evaluate --model strings",
    "config": {"shots": 4},
    "versions": {"jax": "0.10.2"},
    "device": "cpu",
    "seconds": 12.0,
}


def make(**options: Any) -> dict[str, Any]:
    return build_report("exact_match", SCORES, RUN, **options)


def test_figures_are_means_over_tasks() -> None:
    report = make(n_examples={"t1": 10}, categories={"t1": "names"})
    assert report["metric"] == "exact_match"
    assert report["n_tasks"] == 4
    assert list(report["conditions"]) == ["bare", "shuffled_support", "generated"]  # always in one order
    assert report["conditions"]["generated"]["mean"] == pytest.approx(0.65)
    assert report["conditions"]["bare"]["mean"] == pytest.approx(0.1)
    pairs = {(row["a"], row["b"]): row for row in report["differences"]}
    assert list(pairs) == [("generated", "bare"), ("generated", "shuffled_support"), ("shuffled_support", "bare")]
    assert pairs["generated", "bare"]["mean"] == pytest.approx(0.55)
    # A bootstrap mean stays between the smallest and the largest difference, here 0.05 and 1.
    assert 0.05 <= pairs["generated", "bare"]["low"] < 0.55 < pairs["generated", "bare"]["high"] <= 1.0
    assert report["per_task"][0] == {
        "task": "t1",
        "scores": {"bare": 0.0, "shuffled_support": 0.0, "generated": 1.0},
        "n_examples": 10,
        "category": "names",
    }
    assert "category" not in report["per_task"][1]
    assert report["run"] == RUN


def test_chosen_differences() -> None:
    report = make(differences=[("bare", "generated")])
    assert [(row["a"], row["b"]) for row in report["differences"]] == [("bare", "generated")]
    assert report["differences"][0]["mean"] == pytest.approx(-0.55)
    with pytest.raises(DataError, match="'refined'"):
        make(differences=[("refined", "bare")])


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({}, "at least one condition"),
        ({"magic": {"t": 1.0}}, "unknown conditions .*magic"),
        ({"bare": {"t": 1.0}, "generated": {"u": 1.0}}, "'generated': expected the same tasks"),
        ({"bare": {"t": 1.5}}, "got 1.5"),
        ({"bare": {"t": math.nan}}, "nan"),
        ({"bare": {}}, "at least one"),
    ],
)
def test_builder_refuses(scores: dict[str, dict[str, float]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_report("exact_match", scores, RUN)


def _set(*path: Any, value: Any) -> Callable[[Any], None]:
    def change(report: Any) -> None:
        for key in path[:-1]:
            report = report[key]
        report[path[-1]] = value

    return change


def _delete(*path: Any) -> Callable[[Any], None]:
    def change(report: Any) -> None:
        for key in path[:-1]:
            report = report[key]
        del report[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (_delete("metric"), "report"),
        (_set("metric", value=""), "metric"),
        (_set("extra", value=1), "report"),
        (_set("n_tasks", value=5), "n_tasks"),
        (_set("n_tasks", value=4.0), "n_tasks"),
        (_delete("conditions", "bare"), "conditions"),
        (_set("conditions", "magic", value={"mean": 0, "low": 0, "high": 0}), "conditions"),
        (_delete("conditions", "bare", "low"), "conditions/bare"),
        (_set("conditions", "bare", "low", value=0.2), "conditions/bare"),  # above the mean
        (_set("conditions", "bare", "high", value=1.2), "conditions/bare/high"),
        (_set("conditions", "bare", "mean", value=0.11), "conditions/bare/mean"),  # not the mean of the tasks
        (_set("conditions", "bare", "mean", value="0.1"), "conditions/bare/mean"),
        (_set("conditions", "bare", "mean", value=math.nan), "conditions/bare/mean"),
        (_set("differences", value={}), "differences"),
        (_set("differences", 0, "a", value="refined"), "differences/0"),
        (_set("differences", 0, "a", value="bare"), "differences/0"),  # a minus itself
        (_set("differences", 0, "mean", value=0.6), "differences/0/mean"),
        (_set("differences", 1, "b", value="bare"), "differences/1"),  # the same pair again
        (_set("per_task", value=[]), "per_task"),
        (_set("per_task", 1, "task", value="t1"), "per_task/1/task"),
        (_set("per_task", 1, "scores", "bare", value=-0.1), "per_task/1/scores/bare"),
        (_set("per_task", 1, "scores", "bare", value=True), "per_task/1/scores/bare"),
        (_delete("per_task", 1, "scores", "bare"), "per_task/1/scores"),
        (_set("per_task", 0, "scores", value={"magic": 1.0}), "per_task/0/scores"),
        (_set("per_task", 0, "n_examples", value=0), "per_task/0/n_examples"),
        (_set("per_task", 0, "category", value=3), "per_task/0/category"),
        (_set("per_task", 0, "note", value="x"), "per_task/0"),
        (_delete("run", "command"), "run"),
        (_set("run", "seconds", value=-1), "run/seconds"),
        (_set("run", "config", value=[]), "run/config"),
        (_set("run", "versions", "jax", value=10), "run/versions/jax"),
    ],
)
def test_schema_is_strict_and_names_the_place(change: Callable[[Any], None], place: str) -> None:
    report = copy.deepcopy(make())
    validate_report(report)
    change(report)
    with pytest.raises(DataError, match=f"^{place}: expected"):
        validate_report(report)


def test_no_dict_at_all_is_refused() -> None:
    with pytest.raises(DataError, match=r"report: expected an object, got \[\]"):
        validate_report([])


def test_written_report_reads_back_equal(tmp_path: pathlib.Path) -> None:
    report = make(categories=dict.fromkeys(SCORES["bare"], "dates"))
    path = write_report(report, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "report.json"
    assert read_report(path) == read_report(path.parent) == report
    assert sorted(p.name for p in path.parent.iterdir()) == ["report.json", "report.md"]  # nothing temporary is left


def test_a_failed_write_leaves_the_old_report(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_report(make(), tmp_path)
    before = path.read_bytes()

    def full_disk(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_report(make(differences=[]), tmp_path)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.json", "report.md"]
    with pytest.raises(DataError, match="report"):
        write_report({}, tmp_path)
    assert path.read_bytes() == before


def test_reading_names_the_file(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r"report\.json: no report there"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text('{"metric": ')
    with pytest.raises(DataError, match=r"report\.json: Expecting value"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"report\.json: maximum recursion depth"):
        read_report(tmp_path)
    report = make()
    report["n_tasks"] = 3
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(DataError, match=r"report\.json: n_tasks: expected 4, got 3"):
        read_report(tmp_path)


def test_page_says_it_in_words() -> None:
    page = render_markdown(make())
    assert page.startswith("# exact_match over 4 tasks\n")
    assert "- generated minus bare: +0.550 [" in page
    assert "better on 4 and worse on 0 of 4" in page
    assert "shuffled_support minus bare: +0.000 [" in page
    assert "better on 2 and worse on 1 of 4; the interval includes zero" in page
    assert "too narrow" in page  # only four tasks
    assert "hyperflax evaluate --model strings" in page
    assert '"shots": 4' in page
    assert "t\\|4" in page  # a name must not break the table
    assert page.index("t\\|4") < page.index("| t2") < page.index("| t3") < page.index("| t1")  # worst first
    assert "over examples" not in page
    for line in page.splitlines():
        if line.startswith("| "):
            assert line.replace("\\|", "").count("|") in (5, 5)  # both tables have four columns


def test_page_adds_the_mean_over_examples_where_it_differs() -> None:
    page = render_markdown(make(n_examples={"t1": 10, "t2": 10, "t3": 10, "t|4": 70}))
    # generated: (1 + 0.5 + 0.9) * 10 + 0.2 * 70 = 38 of 100
    assert "over examples" in page
    assert "| 0.650 |" in page
    assert "|         0.380 |" in page
    assert "over examples" not in render_markdown(make(n_examples=dict.fromkeys(SCORES["bare"], 7)))


def test_page_of_one_task_claims_nothing() -> None:
    report = build_report("rouge_l", {"bare": {"t": 0.2}, "generated": {"t": 0.9}}, RUN)
    assert report["conditions"]["generated"] == {"mean": 0.9, "low": 0.0, "high": 1.0}
    page = render_markdown(report)
    assert "over 1 task\n" in page
    assert "One task says nothing about others" in page
    assert "the interval includes zero" in page


def test_page_of_many_tasks_shows_the_ends() -> None:
    scores = {f"task{i:02d}": i / 30 for i in range(30)}
    page = render_markdown(build_report("exact_match", {"in_context": scores}, RUN))
    assert "## Worst tasks of `in_context`" in page
    shown = [f"task{i:02d}" for i in range(30) if f"task{i:02d}" in page]
    assert shown == [f"task{i:02d}" for i in (0, 1, 2, 3, 4, 25, 26, 27, 28, 29)]
    assert page.index("task29") < page.index("task25")  # best first
    assert "too narrow" not in page
    assert "## Differences" not in page


def test_the_page_says_which_two_tasks_are_compared() -> None:
    """Neighbours in the order of names, of P3 two prompts of one data set: not two drawn at random."""
    figures = {"norm/encoder_0": 1.0, "between_task_distance": 4e-7, "within_task_distance": 1e-7}
    page = render_markdown(make(adapters=figures))
    told = "Mean squared difference between the adapters of a task and of the next one in order: 4e-07; between two "
    assert f"{told}supports of one task: 1e-07. The next task is often of the same kin" in page


def test_categories_are_averaged() -> None:
    report = make(categories={"t1": "names", "t2": "dates", "t3": "names"})
    groups = category_means(report)
    assert list(groups) == ["dates", "names"]
    count, means = groups["names"]
    assert (count, means["generated"], means["shuffled_support"]) == (2, pytest.approx(0.95), pytest.approx(0.05))
    assert "## By category" in render_markdown(report)
    assert category_means(make(categories=dict.fromkeys(SCORES["bare"], "one"))) == {}


def test_main_condition() -> None:
    assert main_condition(make()) == "generated"
    assert main_condition(build_report("exact_match", {"bare": {"t": 0.0}}, RUN)) == "bare"


def test_run_info_says_where_figures_come_from() -> None:
    run = run_info({"shots": (1, 4), "model": "strings"}, seconds=1.23456)
    assert run["config"] == {"shots": [1, 4], "model": "strings"}  # as json gives it back
    assert run["seconds"] == 1.23
    assert run["versions"]["hyperflax"]
    assert run["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert run["device"]
    validate_report(build_report("exact_match", SCORES, run))
    assert run_info({}, seconds=0, command="hyperflax demo")["command"] == "hyperflax demo"
    with pytest.raises(ConfigError, match="config"):
        run_info({"model": object()}, seconds=1)
    with pytest.raises(ConfigError, match="config"):
        run_info({"lr": math.nan}, seconds=1)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("processor\t: 0\nmodel name\t: AMD EPYC 7R13 Processor\n\nmodel name\t: other\n", "AMD EPYC 7R13 Processor"),
        ("processor\t: 0\nBogoMIPS\t: 243.75\n", platform.machine()),  # as an ARM says
        ("model name\t: \n", platform.machine()),
        (None, platform.machine()),  # not Linux
    ],
)
def test_a_processor_is_told_by_its_model(told: str | None, expected: str, tmp_path, monkeypatch) -> None:
    """Two machines of one architecture are not one device."""
    monkeypatch.setattr(provenance, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(provenance.os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    if told is not None:
        (tmp_path / "cpuinfo").write_text(told)
    assert provenance.device() == f"cpu ({expected}, 2 cores)"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (
            ["/home/x/.venv/bin/python", "/home/x/.venv/bin/hyperflax", "demo", "--out", "a b"],
            "hyperflax demo --out 'a b'",
        ),
        (["python3", "-m", "hyperflax.evaluate", "--gin_file=f.gin"], "python -m hyperflax.evaluate --gin_file=f.gin"),
        (["python3", "scripts/run.py", "--n=1"], "python scripts/run.py --n=1"),
        (["python3", "-c", "import secrets"], "python -c ..."),
        (["python3"], "python"),
    ],
)
def test_command_line(argv: list[str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", argv)
    assert command_line() == expected
