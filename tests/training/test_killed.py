"""A run that is killed, at a step or while it saves, or told to stop, ends bit for bit where an unbroken one does."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from hyperflax import trees
from hyperflax.errors import BusyError
from hyperflax.training.checkpointing import Checkpoints
from hyperflax.training.clock import CLOCK_FIGURES
from hyperflax.training.run_log import read_rows
from hyperflax.training.stopping import RESUME_EXIT_CODE
from tests.training import killed_run

SCRIPT = pathlib.Path(__file__).with_name("killed_run.py")


def start(directory, *kills, ignored=None, run=subprocess.run):
    # One compilation serves all processes.
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(directory.parent / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, str(SCRIPT), str(directory), *kills]
    if ignored:
        command = ["sh", "-c", f'trap "" {int(ignored)}; exec "$@"', "sh", *command]
    return run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **cache})


def end_of(directory):
    """Everything the last checkpoint holds but the clock, and the rows without it."""
    with Checkpoints(directory / "checkpoints", read_only=True) as checkpoints:
        step = checkpoints.latest_step()
        arrays = trees.flatten(checkpoints.arrays())
    rows = [{k: v for k, v in row.items() if k not in CLOCK_FIGURES}
            for row in read_rows(directory / "metrics.jsonl")]  # fmt: skip
    return step, arrays, rows


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "unbroken"
    whole = start(directory)
    assert whole.returncode == 0, whole.stderr
    return directory


def test_killed_at_any_moment_and_restarted(unbroken):
    broken = unbroken.with_name("killed")
    for kill in ("SIGKILL:4", "save:10"):
        assert start(broken, kill).returncode == -signal.SIGKILL
        rows = read_rows(broken / "metrics.jsonl")
        assert rows[0]["kind"] == "initial"
    # As long as it lives, even if it does nothing, no second process joins in.
    with start(broken, "SIGSTOP:14", run=subprocess.Popen) as running:
        assert os.WIFSTOPPED(os.waitpid(running.pid, os.WUNTRACED)[1])
        with pytest.raises(BusyError, match=f"{broken}: process {running.pid} on "):
            killed_run.main(str(broken))
        running.kill()
    assert_ends_alike(broken, unbroken)


def test_told_to_stop_saved_and_restarted(unbroken):
    """Ctrl-C, then SIGTERM to a process that ignores Ctrl-C, as one that `nohup ... &` started does."""
    broken = unbroken.with_name("stopped")
    interrupted = start(broken, "SIGINT:7")
    assert interrupted.returncode == -signal.SIGINT, interrupted.stderr
    first = saved(broken)
    assert 5 <= first <= 8
    assert f"SIGINT: {broken} is saved at step {first}" in interrupted.stderr
    stopped = start(broken, "SIGINT:11", "SIGTERM:16", ignored=signal.SIGINT)
    assert stopped.returncode == RESUME_EXIT_CODE, stopped.stderr
    second = saved(broken)
    assert 14 <= second <= 17
    assert f"SIGTERM: {broken} is saved at step {second}" in stopped.stderr
    assert "SIGINT" not in stopped.stderr
    assert_ends_alike(broken, unbroken)


def saved(directory):
    return max(int(path.name.removeprefix("checkpoint_")) for path in (directory / "checkpoints").iterdir())


def assert_ends_alike(broken, unbroken):
    """The run in `broken`, started again, ends bit for bit as the other one did."""
    last = start(broken)
    assert last.returncode == 0, last.stderr

    step, arrays, rows = end_of(broken)
    wanted_step, wanted_arrays, wanted_rows = end_of(unbroken)
    assert step == wanted_step == 20
    assert rows == wanted_rows
    assert [row["step"] for row in rows if row["kind"] == "train"] == [3, 6, 9, 12, 15, 18, 20]
    assert arrays.keys() == wanted_arrays.keys()
    assert any(path.startswith("opt_state") for path in arrays)
    for path, leaf in wanted_arrays.items():
        np.testing.assert_array_equal(arrays[path], leaf, err_msg=path)
    assert not [path for path in (broken / "checkpoints").iterdir() if "tmp" in path.name]
