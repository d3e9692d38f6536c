"""A run that is killed, at a step or while it saves, or told to stop, ends bit for bit where an unbroken one does."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks import killed_run, kills
from hyperflax.errors import BusyError, ConfigError
from hyperflax.training.bucket_store import BucketStore
from hyperflax.training.run_log import read_rows
from hyperflax.training.stopping import RESUME_EXIT_CODE
from tests.checkpoints.bucket_server import serve

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def start(directory, *kills, ignored=None, run=subprocess.run, **environment):
    command = [sys.executable, "-m", "benchmarks.killed_run", str(directory), *kills]
    if ignored:
        command = ["sh", "-c", f'trap "" {int(ignored)}; exec "$@"', "sh", *command]
    environment = {**os.environ, **environment}
    return run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=REPOSITORY)


def assert_same_end(found, wanted):
    (arrays, rows), (wanted_arrays, wanted_rows) = found, wanted
    assert rows == wanted_rows
    assert [row["step"] for row in rows if row["kind"] == "train"] == [3, 6, 9, 12, 15, 18, 20]
    assert arrays.keys() == wanted_arrays.keys()
    assert arrays["step"] == 20
    assert any(path.startswith("opt_state") for path in arrays)
    for path, leaf in wanted_arrays.items():
        np.testing.assert_array_equal(arrays[path], leaf, err_msg=path)


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
            killed_run.run(str(broken))
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


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_saved_where_nobody_reads_any_more_what_it_tells(tmp_path, name):
    """Ctrl-C ends the `tee` that a run writes to before it ends the run; a terminal may be closed."""
    code = f"from benchmarks import killed_run; killed_run.run({str(tmp_path)!r}, '{name}:7', progress=True)"
    running = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, cwd=REPOSITORY)
    running.stderr.close()
    assert running.wait() == {"SIGINT": -signal.SIGINT, "SIGTERM": RESUME_EXIT_CODE}[name]
    assert 5 <= saved(tmp_path) <= 8


def saved(directory):
    return max(int(path.name.removeprefix("checkpoint_")) for path in (directory / "checkpoints").iterdir())


def assert_ends_alike(broken, unbroken):
    """The run in `broken`, started again, ends bit for bit as the other one did."""
    last = start(broken)
    assert last.returncode == 0, last.stderr

    assert_same_end(kills.end_of(broken), kills.end_of(unbroken))
    assert not [path for path in (broken / "checkpoints").iterdir() if "tmp" in path.name]


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_in_a_bucket_killed_while_saving_and_restarted(unbroken, tmp_path, scheme):
    """A kill in the middle of a checkpoint's arrays, and one when only the mark that makes it complete is missing."""
    folder, address = tmp_path / "bucket" / "run", f"{scheme}://bucket/run"
    folder.parent.mkdir()
    with serve(folder.parent) as server:
        for fatal in ("checkpoint_5/state/params", "checkpoint_10/done-"):
            with start(address, run=subprocess.Popen, **server.environment) as running:

                def kill(name, running=running, fatal=fatal):
                    if f"checkpoints/{fatal}" not in name:
                        return True
                    running.kill()
                    return False

                server.admits = kill
                told = running.communicate()[1]
            assert running.returncode == -signal.SIGKILL, told
        server.admits = lambda name: True
        assert [path.name for path in (folder / "checkpoints").glob("*/done-*")] == ["done-00000-of-00001"]
        assert (folder / "checkpoints" / "checkpoint_10" / "host.json").exists()
        server.changes.clear()
        last = start(address, **server.environment)
        assert last.returncode == 0, last.stderr
    # It went on from step 5: what was left of step 10 is removed before anything is written, and 5 when 20 is there.
    touched = [(verb, int(name.split("checkpoint_")[1].split("/")[0])) for verb, name in server.changes
               if "checkpoint_" in name]  # fmt: skip
    assert list(dict.fromkeys(touched)) == [("delete", 10), ("write", 10), ("write", 15), ("write", 20), ("delete", 5)]
    assert next(name for verb, name in server.changes if verb == "delete").startswith("run/checkpoints/checkpoint_10/")
    store = BucketStore(str(folder / "checkpoints"), keep=None, asynchronous=False, read_only=True)
    assert store.steps() == [10, 15, 20]
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = {path: leaf.update(sharding=here) for path, leaf in store.shapes(20).items()}
    assert_same_end((store.read(20, shapes), kills.rows_of(folder)), kills.end_of(unbroken))
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((folder / "tensorboard").iterdir())) == 3  # one a process: the first one had flushed at step 5


def test_random_kills_cost_no_more_than_a_save_period(tmp_path):
    """The benchmark of 50 kills, with 3."""
    arguments = ["--kills=3", "--steps=40", f"--folder={tmp_path}", f"--out={tmp_path}/out.json"]
    command = [sys.executable, "-m", "benchmarks.kills", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert (result["kills"], result["same"]["double_rows"]) == (3, 0)
    assert result["same"]["state"] is result["same"]["log"] is True
    assert result["most_steps_again"] <= result["save_period"] == 10
    assert result["same"]["rows"] == 1 + 40 + 1  # before the first step, every step, an evaluation at the end
    with pytest.raises(ConfigError, match=f"^{tmp_path}: expected a folder to run in"):  # which nobody would kill
        kills.measure(tmp_path, steps=40, kills=3, seed=1)


@pytest.mark.parametrize(
    ("changed", "passes"),
    [
        ({}, True),
        ({"most_steps_again": 11}, False),
        ({"same": {"state": False, "log": True, "double_rows": 0}}, False),
        ({"same": {"state": True, "log": True, "double_rows": 1}}, False),
    ],
)
def test_what_the_benchmark_of_kills_lets_pass(changed, passes):
    result = {"save_period": 10, "most_steps_again": 10, "same": {"state": True, "log": True, "double_rows": 0}}
    assert kills.passed(result | changed) is passes
