"""Fine-tuning that is killed, between steps or between the best adapter and its checkpoint, ends bit for bit alike."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys

from hyperflax.training.clock import CLOCK_FIGURES
from hyperflax.training.run_log import read_rows
from tests.finetuning.micro_model import write_task

ROOT = pathlib.Path(__file__).resolve().parents[2]
SAME = ("adapter.json", "adapter.safetensors", "best.safetensors", "report.json", "run.json")


def start(folder, examples, *kill):
    # One compilation serves all processes.
    own = {
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)])),
    }
    command = [sys.executable, "-m", "tests.finetuning.killed_run", str(folder), str(examples), *kill]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **own}, cwd=folder.parent)


def rows_of(folder):
    return [{k: v for k, v in row.items() if k not in CLOCK_FIGURES} for row in read_rows(folder / "metrics.jsonl")]


def test_killed_and_restarted(tmp_path):
    examples = write_task(tmp_path / "task.jsonl", count=10)
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    whole = start(unbroken, examples)
    assert whole.returncode == 0, whole.stderr
    for kill in ("keep:2", "batch:12"):
        assert start(broken, examples, kill).returncode == -signal.SIGKILL
        assert not (broken / "adapter.json").exists()
    last = start(broken, examples)
    assert last.returncode == 0, last.stderr
    assert rows_of(broken) == rows_of(unbroken)
    assert [row["step"] for row in rows_of(broken) if row["kind"] == "eval"] == [0, 5, 10, 15, 20]
    for name in SAME:
        assert (broken / name).read_bytes() == (unbroken / name).read_bytes(), name
