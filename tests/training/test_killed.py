"""A run that is killed, at a step or while it saves, ends bit for bit where an unbroken one does."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys

import numpy as np

from hyperflax import trees
from hyperflax.training.checkpointing import Checkpoints
from hyperflax.training.clock import CLOCK_FIGURES
from hyperflax.training.run_log import read_rows

SCRIPT = pathlib.Path(__file__).with_name("killed_run.py")


def start(directory, *kill):
    # One compilation serves all processes.
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(directory.parent / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, str(SCRIPT), str(directory), *kill]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **cache})


def end_of(directory):
    """Everything the last checkpoint holds but the clock, and the rows without it."""
    with Checkpoints(directory / "checkpoints", read_only=True) as checkpoints:
        step = checkpoints.latest_step()
        arrays = trees.flatten(checkpoints.arrays())
    rows = [{k: v for k, v in row.items() if k not in CLOCK_FIGURES}
            for row in read_rows(directory / "metrics.jsonl")]  # fmt: skip
    return step, arrays, rows


def test_killed_at_any_moment_and_restarted(tmp_path):
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    whole = start(unbroken)
    assert whole.returncode == 0, whole.stderr
    for kill in ("batch:4", "save:10", "batch:14"):
        assert start(broken, kill).returncode == -signal.SIGKILL
        rows = read_rows(broken / "metrics.jsonl")
        assert rows[0]["kind"] == "initial"
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
