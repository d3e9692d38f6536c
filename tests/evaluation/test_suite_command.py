"""`hyperflax evaluate --suite`: the suites by name, a suite of one's own, and what goes with neither."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest

from hyperflax.cli.evaluate import SUITES, load_suite
from hyperflax.cli.main import main
from hyperflax.data import registry
from hyperflax.errors import ConfigError, DataError
from hyperflax.evaluate_suite import evaluate_suite
from hyperflax.evaluation.report import read_report
from hyperflax.hypermodel import load
from hyperflax_tasks import natural_instructions, p3_split
from tests.evaluation.micro import hypermodel
from tests.evaluation.test_suite import toy_suite
from tests.launch.test_two_hosts import free_port
from tests.launch.worlds import REPOSITORY, TIMEOUT

RUN = "hyperflax_gin_configs/runs/evaluate_suite.gin"
MODULE = """
from tests.evaluation.test_suite import toy_suite

def suite():
    return toy_suite()
"""


def test_the_shipped_suites_are_found_by_name(materialised: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERFLAX_NATURAL_INSTRUCTIONS", str(materialised / "natural-instructions"))
    monkeypatch.setenv("HYPERFLAX_P3", str(materialised / "p3"))
    monkeypatch.setenv("HYPERFLAX_METAICL", str(materialised / "metaicl"))
    suites = [load_suite(f"{name}/hr_to_lr" if name == "metaicl" else name) for name in SUITES]
    assert [(suite.official, suite.unit) for suite in suites] == [
        (natural_instructions.OFFICIAL_TEST_TASKS, "test tasks"),
        (len(p3_split.HELD_OUT), "data sets"),
        (26, "test tasks"),
    ]
    exact = {name for name, metric in suites[0].category_metrics.items() if metric == "exact_match_normalised"}
    assert len(exact) == 6
    assert (suites[0].metric, suites[0].support, suites[0].shots) == ("rouge_l", "positives", 2)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("t0", "expected one of natural_instructions, p3, metaicl/SETTING or a module, got 't0'"),
        ("metaicl", "expected a setting out of hr_to_lr, class_to_class, .*, got none"),
        ("p3/hellaswag", "--suite p3: expected no setting behind it, got 'hellaswag'"),
        ("natural_instructions/", "--suite natural_instructions: expected no setting behind it, got ''"),
        ("no_such.module", "module 'no_such.module': expected an importable Python module"),
        ("hyperflax.errors", "expected a module with a function suite()"),
    ],
)
def test_an_unknown_suite_is_named(name: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem).replace(r"\.\*", ".*")):
        load_suite(name)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["--suite", "p3", "--metric", "rouge_l"], "--metric goes with --mixture, got it beside --suite"),
        (["--suite", "p3", "--first"], "--first goes with --mixture"),
        (["--mixture", "strings", "--draws", "3"], "--draws goes with --suite, got it beside --mixture"),
        (["--mixture", "strings", "--trained_on", "strings"], "--trained_on goes with --suite"),
        (["--mixture", "strings", "--refine", "10000000000"], "--refine: expected at most 1000000, got 10000000000"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(given: list[str], problem: str, capsys) -> None:
    assert main(["evaluate", "--model", "nothing", "--out", "nowhere", *given]) == 2
    assert problem in capsys.readouterr().err


def test_a_file_in_the_report_s_place_is_refused(tmp_path: pathlib.Path, capsys) -> None:
    (tmp_path / "mine.csv").write_text("mine")
    assert main(["evaluate", "--model", "none", "--mixture", "strings", "--out", str(tmp_path / "mine.csv")]) == 2
    assert "mine.csv: expected a folder or nothing there, found a file" in capsys.readouterr().err


def test_a_suite_of_ones_own_is_evaluated(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (tmp_path / "own_suites").mkdir()
    (tmp_path / "own_suites" / "toy.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    hypermodel().save(tmp_path / "model")
    arguments = ["evaluate", "--model", str(tmp_path / "model"), "--suite", "own_suites.toy"]
    arguments += ["--out", str(tmp_path / "report"), "--conditions", "bare", "--trained_on", "strings_handwritten:test"]
    assert main(arguments) == 0
    assert "3 of 4 data sets: these figures are not the suite's score" in capsys.readouterr().out
    report = read_report(tmp_path / "report")
    assert report["suite"]["checked_against"] == ["strings_handwritten:test"]
    assert (tmp_path / "report" / "report.png").is_file()


def test_two_hosts_share_out_a_suite(tmp_path: pathlib.Path) -> None:
    """Each answers a part of its tasks, and the report is that of one process."""
    (tmp_path / "own_suites").mkdir()
    (tmp_path / "own_suites" / "toy.py").write_text(MODULE)
    hypermodel().save(tmp_path / "model")
    out, port = tmp_path / "report", free_port()
    job = [sys.executable, "-m", "hyperflax.evaluate_suite", f"--gin_file={RUN}", "--gin.SUITE=own_suites.toy"]
    job += [f"--gin.CHECKPOINT_PATH={tmp_path}/model", f"--gin.EVAL_OUTPUT_DIR={out}"]
    job += ["--gin.evaluate_suite.evaluate_suite.conditions=('bare', 'generated')"]
    job += ["--gin.evaluate_suite.evaluate_suite.batch_size=1"]
    job += ["--multiprocess", f"--coordinator_address=localhost:{port}", "--process_count=2"]
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ""), str(REPOSITORY)])
    environment = {**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"}
    hosts = [
        subprocess.Popen([*job, f"--process_index={index}"], env=environment, stderr=subprocess.PIPE, text=True)
        for index in range(2)
    ]
    try:
        errors = [host.communicate(timeout=TIMEOUT)[1] for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    assert [host.returncode for host in hosts] == [0, 0], "\n".join(errors)
    shards = sorted(out.glob("scores-*.jsonl-*"))
    assert [path.name.partition(".")[2] for path in shards] == ["jsonl-00000-of-00002", "jsonl-00001-of-00002"]
    assert all(path.stat().st_size for path in shards)
    alone = evaluate_suite(
        model=load(tmp_path / "model"), suite=toy_suite(), conditions=["bare", "generated"], batch_size=1,
        out=str(tmp_path / "alone"), progress=False,
    )  # fmt: skip
    assert read_report(out)["per_task"] == alone["per_task"]


@pytest.mark.parametrize(
    ("given", "name", "split"),
    [
        ("mine", "mine", "train"),
        ("mine:test", "mine", "test"),
        ("caches/mine", "caches/mine", "train"),
        ("gs://bucket/caches/mine", "gs://bucket/caches/mine", "train"),
        ("gs://bucket/caches/mine:test", "gs://bucket/caches/mine", "test"),
    ],
)
def test_training_data_is_named_with_a_split_or_without(
    given: str, name: str, split: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hypermodel().save(tmp_path / "model")
    asked = []

    def load(name: str, split: str, **options: object) -> None:
        asked.append((name, split))
        raise DataError("seen enough")

    monkeypatch.setattr(registry, "load_source", load)
    arguments = ["--model", str(tmp_path / "model"), "--suite", "tests.evaluation.test_suite_command"]
    assert main(["evaluate", *arguments, "--out", str(tmp_path / "report"), "--trained_on", given]) == 2
    assert asked == [(name, split)]


suite = toy_suite
