"""The suite's own promises: absent data is said aloud, misplaced data fails, runs end with a count and leave little."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

HERE = pathlib.Path(__file__).resolve().parent
PROCESSES = {"one process": ["-p", "no:xdist"], "xdist": ["-n", "2"]}
DAY = 24 * 3600  # seconds

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
    tests: str = TESTS,
    **environment: str,
) -> str:
    for name in ("HYPERFLAX_DATA", "HYPERFLAX_MATERIALISED", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "repository" / "tests"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "conftest.py", folder)
    (folder / "test_some.py").write_text(tests)
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


def test_what_no_test_has_used_for_a_week_is_removed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """The data goes when other data is unpacked, compiled programs at the start of any run."""
    home, data = tmp_path / f"hyperflax-tests-{os.getuid()}", tmp_path / "shared" / "data"
    data.mkdir(parents=True)
    (data / "materialise.py").write_text("import pathlib, sys\npathlib.Path(sys.argv[1]).mkdir()\n")

    def leftovers() -> set[str]:
        tests = "def test_that_needs_it(materialised): assert materialised.is_dir()"
        assert "1 passed" in run(tmp_path, monkeypatch, tests=tests, TMPDIR=str(tmp_path)).splitlines()[-1]
        return {path.relative_to(home).as_posix() for path in [*home.glob("*"), *home.glob("jax/*")]}

    def used(path: pathlib.Path, days: int) -> None:
        os.utime(path, (time.time() - days * DAY,) * 2)

    (unpacked,) = leftovers() - {"lock"}
    used(home / unpacked, 6)
    for days in (6, 8):
        for path in (home / f"data-{days}" / "file", home / "jax" / f"{days}-cache"):
            path.parent.mkdir(exist_ok=True)
            path.touch()
            used(path, days)
        used(home / f"data-{days}", days)
    assert leftovers() == {"lock", "jax", "jax/6-cache", "data-6", "data-8", unpacked}
    assert time.time() - (home / unpacked).stat().st_mtime < DAY  # that run has used it
    os.utime(data / "materialise.py", (0, 0))  # another state of the data
    (other,) = leftovers() - {"lock", "jax", "jax/6-cache", "data-6", unpacked}
    assert other.startswith("data-")
    assert other != "data-8"


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_clean_removes_what_runs_share(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    run(tmp_path, monkeypatch, TMPDIR=str(tmp_path))
    home = tmp_path / f"hyperflax-tests-{os.getuid()}"
    assert home.is_dir()
    # In another folder, and with no variable of an outer make: it removes nothing else.
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)}
    command = ["make", "-f", str(HERE.parent / "Makefile"), "clean"]
    subprocess.run(command, cwd=tmp_path / "repository", env=environment, check=True)
    assert not home.exists()
