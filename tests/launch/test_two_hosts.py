"""A real run of two processes by the launcher for plain hosts: SIGTERM to one of them, all save, all go on."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np

from hyperflax import trees
from hyperflax.checkpoints.forms import load_base
from hyperflax.types import T5Config
from tests.launch.worlds import REPOSITORY, World

GIN = pathlib.Path(__file__).with_name("micro.gin")
SHAPE = T5Config(
    vocab_size=384, emb_dim=8, num_heads=1, head_dim=8, mlp_dim=16, num_encoder_layers=1, num_decoder_layers=1
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def parameters(directory: pathlib.Path) -> dict[str, np.ndarray]:
    return trees.flatten(load_base(str(directory / "model"), SHAPE))


def losses(directory: pathlib.Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows if row["kind"] == "train"]


def test_sigterm_to_one_host_stops_and_resumes_all(world: World):
    """The interrupted run of two processes ends where an unbroken run of one process does."""
    for name in ("host0", "host1"):
        python = world.hosts / name / "hyperflax-run/.venv/bin/python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/usr/bin/env bash\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
    jax = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(world.folder / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(REPOSITORY),
    }
    run = world.folder / "run"
    done = world.run(
        *("launch/gpu_hosts.sh", "--hosts=host0,host1", f"--coordinator_address=localhost:{free_port()}"),
        *(f"--gin_file={GIN}", f"--gin.MODEL_DIR='{run}'", "--skip_install", "--backoff_seconds=0"),
        **jax,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "host0 ended with code 75" in done.stderr
    assert "host1 ended with code 75" in done.stderr
    assert "restart 1 of 100" in done.stderr
    assert "restart 2" not in done.stderr
    assert len(world.logs()) == 4
    assert (run / "sent").exists()

    unbroken = world.folder / "unbroken"
    command = [sys.executable, "-m", "hyperflax.train", f"--gin_file={GIN}", f"--gin.MODEL_DIR='{unbroken}'"]
    alone = subprocess.run(command, env=os.environ | jax, capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    # Two processes add up in another order than one; Adam makes of that a step's worth at most where a gradient is 0.
    np.testing.assert_allclose(losses(run), losses(unbroken), rtol=1e-5)
    found, wanted = parameters(run), parameters(unbroken)
    assert found.keys() == wanted.keys()
    for path, leaf in wanted.items():
        np.testing.assert_allclose(found[path], leaf, atol=1e-4, err_msg=path)
