"""`--gin.NAME=VALUE`: what the shell gives arrives in gin, and what gin refuses is told of that flag."""

from __future__ import annotations

import argparse
import ast
import pathlib
import re

import gin
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from hyperflax.cli import gin_jobs
from hyperflax.cli.bindings import split_bindings
from hyperflax.cli.compile import STAND_INS
from hyperflax.cli.main import main
from hyperflax.errors import ConfigError
from hyperflax.processes import Processes

FILE = """
from __gin__ import dynamic_registration
from hyperflax import processes
processes.Processes.index = %INDEX
INDEX = 0
SEED = 1
MODEL_DIR = "runs/none"
FOLDER = %MODEL_DIR
"""


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "job.gin").write_text(FILE)
    return tmp_path / "job.gin"


def parse(file: pathlib.Path, *flags: str) -> None:
    rest, bindings = split_bindings([f"--gin_file={file}", *flags])
    parser = argparse.ArgumentParser()
    gin_jobs.add_gin_arguments(parser)
    gin_jobs.parse("hyperflax.processes.Processes", parser.parse_args(rest, argparse.Namespace(gin_bindings=bindings)))


def arrived(file: pathlib.Path, value: str) -> object:
    """What gin has for MODEL_DIR behind `--gin.MODEL_DIR=value`."""
    parse(file, f"--gin.MODEL_DIR={value}")
    return gin.query_parameter("MODEL_DIR/gin.macro.value")


@pytest.mark.parametrize(
    "path",
    [
        *(
            "./runs/first",
            "../runs/a",
            ".",
            "..",
            ".hidden/a",
            "2024-run/a",
            "2024/10/a",
            "4x4x8",
            "-a/b",
            "1e3/b",
            "+a",
        ),
        *("runs/a", "~/x", "/mnt/run1", "gs://bucket/run", "a b", "it's", 'a"b', "a\\b", "a = b", "08", "Truely", ""),
    ],
)
def test_a_path_is_a_string_however_it_begins(file: pathlib.Path, path: str) -> None:
    assert arrived(file, path) == path


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *(("3", 3), ("-3", -3), ("1e-3", 1e-3), (".5", 0.5), ("2.", 2.0), ("1_000", 1000), (" 7", 7)),
        *(("True", True), ("False", False), ("None", None), ("'runs/a'", "runs/a"), ('"3"', "3")),
        *(("(4, 4)", (4, 4)), ("[1, 'a']", [1, "a"]), ("{'a': 1}", {"a": 1})),
    ],
)
def test_a_value_of_gins_stays_one(file: pathlib.Path, value: str, expected: object) -> None:
    found = arrived(file, value)
    assert found == expected
    assert type(found) is type(expected)


def test_references_stay_references(file: pathlib.Path) -> None:
    assert isinstance(arrived(file, "@processes.Processes"), gin.config.ConfigurableReference)
    assert isinstance(arrived(file, "%SEED"), gin.config.ConfigurableReference)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_any_other_text_arrives_as_it_is(file: pathlib.Path, text: str) -> None:
    assume(not text.lstrip().startswith(tuple("'\"@%([{")) and text.lower() not in ("false", "true"))
    try:
        ast.literal_eval(text)
    except (SyntaxError, ValueError):
        assert arrived(file, text) == text


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--gin.STEPS=[1, 2", "gin: --gin.STEPS=[1, 2: "),
        ("--gin.STEPS=@nobody", "gin: --gin.STEPS=@nobody: "),
        ("--gin.nobody.steps=3", "gin: --gin.nobody.steps=3: "),
    ],
)
def test_what_gin_refuses_is_told_of_its_flag(file: pathlib.Path, flag: str, told: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(told)}"):
        parse(file, "--gin.MODEL_DIR=./a", flag, "--gin.SEED=1")


def test_a_name_that_no_file_uses_is_refused(file: pathlib.Path) -> None:
    """Gin takes any macro, and the job would run as if it had not been given."""
    with pytest.raises(ConfigError, match=r"^--gin.INDEXES: .* that the gin files use, which are INDEX, MODEL_DIR$"):
        parse(file, "--gin.MODEL_DIR=./a", "--gin.INDEXES=3")
    file.write_text(FILE + "INDEX = %gin.REQUIRED\n")  # which is no name of a macro
    with pytest.raises(ConfigError, match=r"which are INDEX, MODEL_DIR$"):
        parse(file, "--gin.INDEXES=3")
    parse(file, "--gin.INDEX=3", "--gin.processes.Processes.count=%COUNT", "--gin.COUNT=4")
    assert gin.get_configurable("hyperflax.processes.Processes")() == Processes(index=3, count=4)


def test_a_name_that_a_file_sets_and_none_uses_is_told(
    file: pathlib.Path, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mine.gin").write_text("INDEXES = 3")  # for INDEX
    flags = (f"--gin_file={tmp_path / 'mine.gin'}", "--gin.processes.Processes.count=%SEED")
    parse(file, *flags, "--gin.processes.Processes.index=%FOLDER")
    used = "FOLDER, INDEX, MODEL_DIR, SEED"
    assert caplog.messages == [f"gin: nothing uses what the files set as INDEXES; names that are used are {used}"]


@pytest.mark.parametrize("run", gin_jobs.shipped_runs())
def test_a_shipped_run_uses_all_that_it_sets(run: str, caplog: pytest.LogCaptureFixture) -> None:
    job = next((name for name in ("evaluate", "evaluate_suite", "infer") if run.endswith(f"{name}.gin")), "train")
    arguments = argparse.Namespace(gin_file=[run], gin_bindings=[], gin_search_paths="", module=[])
    gin_jobs.parse(f"hyperflax.{job}.{job}", arguments, STAND_INS)
    assert not [record for record in caplog.records if record.name == "hyperflax.gin"]


@pytest.mark.parametrize("flag", ["--gin.STEPS", "--gin.=3"])
def test_a_flag_without_a_name_or_a_value(flag: str) -> None:
    with pytest.raises(ConfigError, match=f"^{flag}: expected --gin.NAME=VALUE"):
        split_bindings([flag])


@pytest.mark.parametrize(("word", "meant"), [("false", "False"), ("FALSE", "False"), ("true", "True")])
def test_a_truth_value_is_no_string(word: str, meant: str) -> None:
    """As a string, false would be true."""
    with pytest.raises(ConfigError, match=f"^--gin.T5Config.remat={word}: expected {meant}, or quotes"):
        split_bindings([f"--gin.T5Config.remat={word}"])
    assert split_bindings([f"--gin.NAME='{word}'"])[1] == [f"NAME = '{word}'"]


def test_a_command_without_gin_takes_no_binding(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "--gin.MIXTURE_OR_TASK_NAME=strings"]) == 2
    assert "--gin.MIXTURE_OR_TASK_NAME: expected none, `hyperflax tasks` runs no gin" in capsys.readouterr().err
