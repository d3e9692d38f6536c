"""Where a command cannot write, or a number is out of bounds, it says so in one line, before it reads anything."""

from __future__ import annotations

import errno
import importlib
import os
import pathlib
import subprocess
import sys

import pytest

from hyperflax.cli import tune
from hyperflax.cli.exit_codes import exit_code
from hyperflax.cli.main import main

# Every command with the function that it reads a model, an adapter or a table with.
COMMANDS = {
    "compile": (["compile", "--gin_file=f", "--topology=v5e:2x2", "--out"], "hyperflax.cli.compile.topology_devices"),
    "adapt": (["adapt", "--model", "m", "--examples", "e.jsonl", "--out"], "hyperflax.hypermodel.load"),
    "convert": (["convert", "m"], "hyperflax.checkpoints.forms.read_model"),
    "export": (["export", "a", "--format", "peft", "--out"], "hyperflax.checkpoints.artefacts.load_adapter"),
    "import": (["import", "p", "--base", "m", "--out"], "hyperflax.checkpoints.forms.read_model"),
    "predict": (["predict", "--model", "m", "--inputs", "i.jsonl", "--out"], "hyperflax.hypermodel.load"),
    "tune fit": (["tune", "fit", "--table", "t", "--out"], "hyperflax.tuner.table.read"),
}
# What takes such a function by its name when it is imported: a false one would stay with it for all tests that follow.
BY_NAME = (
    "hyperflax.evaluate",
    "hyperflax.infer",
    "hyperflax.serving.store",
    "hyperflax.tune.bank",
    "hyperflax.tune.shared",
)
FILES = ("predict", "compile")
FOLDERS = [name for name in COMMANDS if name not in FILES]


@pytest.fixture(autouse=True)
def _nothing_is_read(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pathlib.Path("e.jsonl").write_text('{"input": "a", "target": "b"}\n')
    pathlib.Path("taken").mkdir()
    pathlib.Path("taken", "thesis.txt").write_text("mine")
    for module in BY_NAME:
        importlib.import_module(module)
    for _, reads in COMMANDS.values():
        monkeypatch.setattr(reads, lambda *arguments, **options: pytest.fail("read"))


def told(command: str, destination: str, capsys: pytest.CaptureFixture[str]) -> str:
    before = sorted(pathlib.Path().rglob("*"))
    assert main([*COMMANDS[command][0], destination]) == 2
    assert sorted(pathlib.Path().rglob("*")) == before
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("command", FOLDERS)
def test_a_folder_that_holds_something(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(command, "taken", capsys).endswith(": taken: already exists and is not empty; choose another name")


@pytest.mark.parametrize("command", FILES)
def test_a_folder_where_a_file_is_to_be(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = told(command, "taken", capsys)
    assert line == f"hyperflax {command}: taken: expected a file or nothing, found a directory"


def test_the_demo_asks_before_it_trains(capsys: pytest.CaptureFixture[str]) -> None:
    pathlib.Path("out").mkdir()
    pathlib.Path("taken").rename("out/adapter")
    for out, reason in (("e.jsonl", "nothing can be written there (Not a directory"), ("out", "it holds other files")):
        assert main(["demo", "--out", out]) == 2
        assert reason in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("destination", "reason"),
    [
        ("e.jsonl/out", "Not a directory"),
        ("e.jsonl/deep/out", "Not a directory"),
        ("x" * 300, "File name too long"),
        ("x" * 240, "File name too long"),  # what is written first has a longer name
        (f"deep/{'x' * 300}", "File name too long"),
        ("/proc/out", ""),
    ],
)
def test_a_place_where_nothing_can_be_made(
    command: str, destination: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f": {destination}: nothing can be written there ({reason}" in told(command, destination, capsys)


@pytest.mark.parametrize("command", ["convert", "export", "tune fit"])
def test_an_address_that_is_not_written_to(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "gs://bucket/out: this is not written to a bucket" in told(command, "gs://bucket/out", capsys)


@pytest.mark.parametrize(
    ("command", "flag", "least", "most"), [("predict", "max_length", 1, 16384), ("adapt", "refine", 0, 1000000)]
)
def test_a_number_out_of_bounds(
    command: str, flag: str, least: int, most: int, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (least - 1, most + 1, 99999999999):
        assert main([*COMMANDS[command][0], "out", f"--{flag}", str(number)]) == 2
        told = f"hyperflax {command}: --{flag}: expected {least} to {most}, got {number}\n"
        assert capsys.readouterr().err == told


@pytest.mark.parametrize("out", [[], ["--out", "out"]], ids=["stdout", "file"])
@pytest.mark.parametrize(("option", "path"), [("--adapter", "nowhere"), ("--inputs", "none.jsonl")])
def test_what_is_to_be_answered_is_read_before_the_model(
    option: str, path: str, out: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pathlib.Path("i.jsonl").write_text('{"input": "a"}\n')
    assert main([*COMMANDS["predict"][0][:-1], *out, option, path]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"hyperflax predict: {path}")


@pytest.mark.parametrize("command", [name for name in tune.COMMANDS if name not in ("report", "renew")])
def test_a_seed_that_no_run_can_keep(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in ("-1", "2147483648", "²"):
        with pytest.raises(SystemExit, match="2"):
            main(["tune", command, "--seed", seed])
        assert f"argument --seed: expected 0 to 2147483647, got '{seed}'" in capsys.readouterr().err


def test_what_the_system_refuses_is_one_line_and_a_defect_keeps_its_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(error: OSError) -> None:
        raise error

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "there")
    assert exit_code("hyperflax it", lambda: refuse(full)) == 2
    assert capsys.readouterr().err == "hyperflax it: [Errno 28] No space left on device: 'there'\n"
    with pytest.raises(TimeoutError):
        exit_code("hyperflax it", lambda: refuse(TimeoutError("a library's own")))
    # gin raises an error of its own, of that class and text, and without the number.
    assert exit_code("hyperflax it", lambda: refuse(OSError("[Errno 28] No space left on device: 'there'"))) == 2


def printing(flush: bool, output: int | None = None, shell: str = '"$@"') -> tuple[int, str]:
    """Exit code and errors of a command that prints an answer."""
    command = f"sys.exit(exit_code('hyperflax it', lambda: print('an answer', flush={flush})))"
    script = [sys.executable, "-c", f"import sys; from hyperflax.cli.exit_codes import exit_code; {command}"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    run = ["sh", "-c", shell, "sh", *script]
    ended = subprocess.run(run, stdout=output, stderr=subprocess.PIPE, text=True, env=environment)
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("flush", [False, True])
def test_output_that_nobody_takes_is_not_told(flush: bool) -> None:
    reader, pipe = os.pipe()
    os.close(reader)  # as `head` does when it has enough
    assert printing(flush, pipe) == (141, "")
    os.close(pipe)
    assert printing(flush, shell='"$@" >&-') == (0, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a disk that is always full")
@pytest.mark.parametrize("flush", [False, True])
def test_output_for_which_there_is_no_room_is_told_once(flush: bool) -> None:
    assert printing(flush, shell='"$@" >/dev/full') == (2, "hyperflax it: [Errno 28] No space left on device\n")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--examples", "0"], "--examples: expected at least 1, got 0"),
        (["--tasks", "-1"], "--tasks: expected at least 1, got -1"),
        (["--supports", "0"], "--supports: expected at least 1, got 0"),
        (["--refine", "-1"], "--refine: expected at least 0, got -1"),
    ],
)
def test_numbers_of_an_evaluation_that_mean_nothing(
    given: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--model", "m", "--mixture", "mine", "--out", "out", *given]) == 2
    assert capsys.readouterr().err == f"hyperflax evaluate: {told}\n"
