"""The suite's own promises: absent data is said aloud, misplaced data fails, and every run ends with a count."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
PROCESSES = {"one process": ["-p", "no:xdist"], "xdist": ["-n", "2"]}

TESTS = """
import pytest

def test_fine(): pass

def test_needs_data(data_dir): pass

@pytest.mark.skip(reason="a reason")
def test_skipped(): pass

@pytest.mark.xfail(reason="a defect", strict=True)
def test_known(): assert False
"""


def run(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    *arguments: str,
    processes: str = "one process",
    **environment: str,
) -> str:
    for name in ("HYPERFLAX_DATA", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "repository" / "tests"
    folder.mkdir(parents=True)
    shutil.copy(HERE / "conftest.py", folder)
    (folder / "test_some.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *PROCESSES[processes], *arguments]
    return subprocess.run([*command, str(folder)], cwd=folder.parent, capture_output=True, text=True).stdout


def test_no_data_at_all_is_counted(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    out = run(tmp_path, monkeypatch)
    assert "3 tests not run:\n" in out
    assert "  1 x needs the reference data: set HYPERFLAX_DATA to its folder\n" in out
    assert "  1 x a reason\n" in out
    assert "  1 x known to fail: a defect\n" in out
    assert "1 passed, 2 skipped, 1 xfailed" in out.splitlines()[-1]


@pytest.mark.parametrize("processes", PROCESSES)
def test_left_out_tests_are_counted(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, processes: str):
    out = run(tmp_path, monkeypatch, "-k", "fine", processes=processes)
    assert "3 tests not run:\n  3 x left out by the command line\n" in out


def test_a_misplaced_data_folder_fails(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "shared").mkdir()
    out = run(tmp_path, monkeypatch)
    assert "shared is there, but its folder 'data' is not" in out
    assert "1 error" in out.splitlines()[-1]


def test_a_mistyped_variable_fails(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    out = run(tmp_path, monkeypatch, HYPERFLAX_DATA=str(tmp_path / "typo"))
    assert "typo: expected a folder of reference data, found none" in out
    assert "1 error" in out.splitlines()[-1]


def test_data_is_found_beside_the_repository(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "shared" / "data").mkdir(parents=True)
    assert "2 passed, 1 skipped, 1 xfailed" in run(tmp_path, monkeypatch).splitlines()[-1]
