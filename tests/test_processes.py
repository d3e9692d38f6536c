"""How work is shared out among the processes of a job."""

from __future__ import annotations

import argparse
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflax.cli import multiprocess
from hyperflax.errors import ConfigError
from hyperflax.processes import Processes


@given(size=st.integers(0, 200), count=st.integers(1, 20))
def test_parts_in_order_are_the_whole(size: int, count: int):
    things = list(range(size))
    parts = [things[Processes(index, count).part(size)] for index in range(count)]
    assert [thing for part in parts for thing in part] == things
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_shards_are_named_as_t5x_does():
    assert Processes().shard("out/a.jsonl") == pathlib.Path("out/a.jsonl")
    assert Processes(1, 4).shard("out/a.jsonl") == pathlib.Path("out/a.jsonl-00001-of-00004")
    with pytest.raises(ConfigError, match="expected 0 to 1, got 2"):
        Processes(2, 2)


def parse(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    multiprocess.add_multiprocess_arguments(parser)
    return parser.parse_args(flags)


WHERE = ["--coordinator_address=h:1", "--process_count=2", "--process_index=1"]


@pytest.mark.parametrize(
    ("flags", "given_to_jax"),
    [
        ([], None),
        (["--multiprocess"], (None, None, None)),
        (["--multiprocess", *WHERE], ("h:1", 2, 1)),
        (["--multiprocess_gpu", *WHERE], ("h:1", 2, 1)),  # T5X's name
    ],
)
def test_jax_is_told_where_the_others_are(monkeypatch, flags, given_to_jax):
    calls = []
    monkeypatch.setattr("jax.distributed.initialize", lambda *where, **options: calls.append(where))
    multiprocess.join(parse(*flags))
    assert calls == ([] if given_to_jax is None else [given_to_jax])


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (WHERE, "--coordinator_address: expected beside it --multiprocess"),
        (["--multiprocess", WHERE[1]], "--process_count: expected beside it --coordinator_address, --process_index"),
        (["--multiprocess", "--coordinator_address=h", *WHERE[1:]], "expected HOST:PORT, got 'h'"),
        (["--multiprocess", *WHERE[:2], "--process_index=2"], "expected 0 to 1 .*, got 2"),
        (["--multiprocess", WHERE[0], "--process_count=0", "--process_index=0"], "expected a positive number, got 0"),
    ],
)
def test_half_an_address_is_refused(monkeypatch, flags, complaint):
    monkeypatch.setattr("jax.distributed.initialize", lambda *arguments: pytest.fail("joined"))
    with pytest.raises(ConfigError, match=complaint):
        multiprocess.join(parse(*flags))


ON_SLURM = """
import argparse, os, signal, sys
from hyperflax.cli import multiprocess

parser = argparse.ArgumentParser()
multiprocess.add_multiprocess_arguments(parser)
multiprocess.join(parser.parse_args(["--multiprocess"]))
import jax
print(jax.process_count(), jax.config.values["jax_cuda_visible_devices"], flush=True)
os.kill(os.getpid(), signal.SIGTERM)
print("still here")
"""


def test_under_slurm_a_process_has_all_devices_of_its_node_and_ends_on_sigterm():
    """By itself JAX takes one device for each process there, and catches SIGTERM for a service of its own."""
    job = {"JOB_ID": str(os.getpid()), "STEP_NODELIST": "localhost", "NTASKS": "1", "PROCID": "0", "LOCALID": "0"}
    slurm = {f"SLURM_{name}": value for name, value in job.items()}
    command = [sys.executable, "-c", ON_SLURM]
    done = subprocess.run(command, env=os.environ | slurm | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
    assert done.returncode == -signal.SIGTERM, done.stderr
    assert done.stdout == "1 all\n"
