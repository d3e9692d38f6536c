"""What all tests share: where the reference data is, and the closing count of tests that were not run.

The reference data lies outside the repository, at `HYPERFLAX_DATA`, by default `../shared/data` beside it. A test that
needs it is not run where there is none at all; where somebody has put a data folder and it is not as expected, the test
fails: a mistyped path must not turn into a green run.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

# Started in the background, a shell has its children ignore Ctrl-C, and tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests state what holds on CPU, bit for bit; on another device name it: JAX_PLATFORMS=cuda make test.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
# Shared by all test processes of this machine, those that tests start included, and by later runs.
HOME = pathlib.Path(tempfile.gettempdir()) / f"hyperflax-tests-{os.getuid()}"
HOME.mkdir(mode=0o700, exist_ok=True)
if HOME.stat().st_uid != os.getuid():
    raise pytest.UsageError(f"{HOME} belongs to somebody else")

# Most of the time of most tests is compilation, of small programs that need not be fast, and mostly of such as another
# test has compiled already. XLA's own passes, and so what a program computes and sends, are those of every run.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(HOME / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


WEEK = 7 * 24 * 3600  # seconds


def remove_unused(paths: Iterable[pathlib.Path]) -> None:
    """Removes files that nothing has read and folders that nothing has marked for a week."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # another run removes them, too
            status = path.stat()
            if path.is_dir() and time.time() - status.st_mtime > WEEK:
                shutil.rmtree(path, ignore_errors=True)
            elif path.is_file() and time.time() - status.st_atime > WEEK:
                path.unlink()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Every run, not every process of it, removes compiled programs that are of no more use."""
    if not hasattr(session.config, "workerinput"):
        remove_unused((HOME / "jax").glob("*"))


# Linux allows a process 65,530 of them (vm.max_map_count), and XLA aborts where it gets no more.
MAPPINGS = 16_000


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs_are_dropped() -> Iterator[None]:
    """Lets a test process forget its compiled programs before they take all of its memory mappings.

    A program takes three to a hundred; a process that kept those of a thousand tests would die in the midst of them.
    """
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and "jax" in sys.modules and len(maps.read_bytes().splitlines()) > MAPPINGS:
        sys.modules["jax"].clear_caches()


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """The folder of reference data."""
    if named := os.environ.get("HYPERFLAX_DATA"):
        path = pathlib.Path(named)
        if not path.is_dir():
            pytest.fail(f"HYPERFLAX_DATA={named}: expected a folder of reference data, found none", pytrace=False)
        return path
    path = REPOSITORY.parent / "shared" / "data"
    if not path.is_dir():
        if path.parent.exists():
            pytest.fail(f"{path.parent} is there, but its folder 'data' is not", pytrace=False)
        pytest.skip("needs the reference data: set HYPERFLAX_DATA to its folder")
    return path


@pytest.fixture(scope="session")
def materialised(data_dir: pathlib.Path) -> pathlib.Path:
    """The reference data in the layouts in which users have it.

    Taken from `HYPERFLAX_MATERIALISED`, or unpacked once per machine and state of the data (a minute and 300 MB) and
    then shared by all runs; read it, never write to it.
    """
    if named := os.environ.get("HYPERFLAX_MATERIALISED"):
        path = pathlib.Path(named)
        if not path.is_dir():
            pytest.fail(f"HYPERFLAX_MATERIALISED={named}: expected a folder, found none", pytrace=False)
        return path
    out = HOME / f"data-{_state(data_dir)}"
    with (HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other test processes wait for the first one
        if not out.is_dir():
            remove_unused(HOME.glob("data-*"))
            partial = out.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            subprocess.run([sys.executable, str(data_dir / "materialise.py"), str(partial)], check=True)
            partial.rename(out)
        os.utime(out)  # in use, for `remove_unused`
    return out


def _state(data_dir: pathlib.Path) -> str:
    """A name for what the data folder holds: changes with any file's name, size or time."""
    digest = hashlib.sha256(str(data_dir.resolve()).encode())
    for path in sorted(data_dir.rglob("*")):
        status = path.stat()
        digest.update(f"{path.relative_to(data_dir)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


@pytest.fixture(scope="session")
def goldens(data_dir: pathlib.Path) -> pathlib.Path:
    """Arrays computed by T5X itself."""
    return data_dir / "t5x" / "goldens"


@pytest.fixture
def seqio_registries() -> Iterator[None]:
    """Forgets what a test registers with seqio."""
    seqio = pytest.importorskip("seqio", reason="seqio is not installed: pip install 'hyperflax[seqio]'")
    before = set(seqio.TaskRegistry.names()), set(seqio.MixtureRegistry.names())
    yield
    for kind, names in zip((seqio.TaskRegistry, seqio.MixtureRegistry), before, strict=True):
        for name in set(kind.names()) - names:
            kind.remove(name)


@pytest.fixture(scope="session")
def t5x_copy() -> pathlib.Path:
    """The repository of T5X, which is on no package index."""
    if named := os.environ.get("HYPERFLAX_T5X"):
        path = pathlib.Path(named)
        if not (path / "t5x" / "train.py").is_file():
            pytest.fail(f"HYPERFLAX_T5X={named}: expected a copy of T5X's repository, found no t5x/train.py in it")
        return path
    pytest.skip("needs a copy of T5X: set HYPERFLAX_T5X to its repository (docs/interop.md)")


@pytest.fixture(scope="session")
def tpu_library() -> pathlib.Path:
    """The TPU compiler, which works on machines without a TPU."""
    named = os.environ.get("TPU_LIBRARY_PATH")
    path = pathlib.Path(named) if named else pathlib.Path(sys.prefix) / "tpu_compiler" / "libtpu" / "libtpu.so"
    if path.is_file():
        return path
    if named or path.parents[1].exists():
        pytest.fail(f"{path}: expected the TPU compiler, found none", pytrace=False)
    pytest.skip("needs the TPU compiler: make test installs it on Linux, or set TPU_LIBRARY_PATH")


LEFT_OUT = pytest.StashKey[int]()


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Under xdist, hands on what the command line leaves out: its processes choose, each for itself and all alike."""
    if items and hasattr(items[0].config, "workeroutput"):
        told = items[0].config.workeroutput
        told["left_out"] = told.get("left_out", 0) + len(items)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Takes it from every process that ends; one that has crashed tells nothing."""
    stash = node.config.stash
    stash[LEFT_OUT] = max(stash.get(LEFT_OUT, 0), getattr(node, "workeroutput", {}).get("left_out", 0))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Ends every run with the number of tests that were not run, and why."""
    reasons: collections.Counter[str] = collections.Counter()
    for kind in ("skipped", "xfailed"):
        for report in terminalreporter.stats.get(kind, []):
            if isinstance(report.longrepr, tuple):
                reason = report.longrepr[2].removeprefix("Skipped: ")
            else:
                reason = getattr(report, "wasxfail", "") or str(report.longrepr)
            reasons[reason if kind == "skipped" else f"known to fail: {reason}"] += 1
    deselected = terminalreporter.config.stash.get(LEFT_OUT, len(terminalreporter.stats.get("deselected", [])))
    if deselected:
        reasons["left out by the command line"] = deselected
    terminalreporter.section("tests not run")
    terminalreporter.write_line(f"{sum(reasons.values())} tests not run{':' if reasons else ''}")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"  {count} x {reason}")
