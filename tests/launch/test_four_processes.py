"""Four processes on one machine, over jax.distributed and a bucket, do what one does; what is refused, all refuse."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from hyperflax import load, trees
from hyperflax.checkpoints.fingerprint import fingerprint
from hyperflax.checkpoints.forms import load_base
from hyperflax.checkpoints.t5x_writer import write_t5x_checkpoint
from hyperflax.locks import alone_in
from hyperflax.models.t5 import T5
from tests.checkpoints.bucket_server import Server, serve
from tests.launch.job_of_four import BASE
from tests.launch.test_two_hosts import free_port
from tests.launch.worlds import REPOSITORY, TIMEOUT

COUNT = 4


def job(server: Server, folder: pathlib.Path, count: int) -> list[dict]:
    """Runs a job of so many processes; returns what each says."""
    port = str(free_port())
    environment = {**os.environ, **server.environment, "JAX_PLATFORMS": "cpu"}
    started = []
    for index in range(count):
        where = [port, str(count), str(index)] if count > 1 else []
        command = [sys.executable, "-m", "tests.launch.job_of_four", f"gs://bucket/of-{count}", str(folder), *where]
        started.append(
            subprocess.Popen(
                command, env=environment, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    try:
        ended = [process.communicate(timeout=TIMEOUT) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * count, "\n".join(error for _, error in ended)
    return [json.loads(out.splitlines()[-1]) for out, _ in ended]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory) -> dict:
    """What one process says and leaves, and what four do, while this one is at work in `folder`."""
    bucket, folder = tmp_path_factory.mktemp("bucket"), tmp_path_factory.mktemp("folder")
    tokens = np.ones((1, 1), np.int32)
    base = jax.device_get(jax.jit(T5(BASE).init)(jax.random.key(0), tokens, tokens)["params"])
    for count in (1, COUNT):
        write_t5x_checkpoint(bucket / f"of-{count}" / "t5", base, step=7)
    with serve(bucket) as server, alone_in(folder):
        said = {count: job(server, folder, count) for count in (1, COUNT)}
    arrays = {count: dict(np.load(folder / f"of-{count}.npz")) for count in said}
    return {"said": said, "arrays": arrays, "bucket": bucket, "folder": folder}


def test_training_resuming_and_validating_are_those_of_one_process(jobs):
    """Sums are made in another order; Adam makes of that a step's worth at most where a gradient is 0."""
    rows = {count: said[0]["rows"] for count, said in jobs["said"].items()}
    told = [[(row["step"], row["kind"]) for row in rows[count]] for count in (1, COUNT)]
    assert told[0] == told[1]
    assert told[0] == [(0, "initial"), *[(step, "train") for step in (1, 2, 3)], (3, "eval"),
                       *[(step, "train") for step in (4, 5, 6)], (6, "eval")]  # fmt: skip
    losses = [[row["loss"] for row in rows[count]] for count in (COUNT, 1)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    found, wanted = jobs["arrays"][COUNT], jobs["arrays"][1]
    assert found.keys() == wanted.keys()
    assert found["step"] == 6
    for path, leaf in wanted.items():
        np.testing.assert_allclose(found[path], leaf, atol=1e-4, err_msg=path)


def test_each_process_writes_its_part_of_a_checkpoint(jobs):
    folder = jobs["bucket"] / f"of-{COUNT}" / "run" / "checkpoints"
    # The first process may be done with the sixth step before the others, and leaves the second one then.
    kept = {path.name for path in folder.iterdir()} - {"checkpoint_2"}
    assert kept == {"checkpoint_3", "checkpoint_4", "checkpoint_6"}
    marks = sorted(path.name for path in (folder / "checkpoint_6").glob("done-*"))
    assert marks == [f"done-{index:05d}-of-{COUNT:05d}" for index in range(COUNT)]
    # [vocabulary, 8], the second dimension split in two by fsdp
    chunks = folder / "checkpoint_6/state/params/token_embedder/embedding/c"
    assert sorted(path.relative_to(chunks).as_posix() for path in chunks.glob("*/*")) == ["0/0", "0/1"]


def test_a_hypernetwork_for_a_t5x_checkpoint_is_that_of_one_process(jobs):
    """Both T5s are read onto the mesh; the exported base is the checkpoint's, to the bit."""
    alone, several = (load(jobs["bucket"] / f"of-{count}" / "hypernetwork" / "model") for count in (1, COUNT))
    checkpoint = load_base(jobs["bucket"] / "of-1" / "t5", BASE)
    assert alone.base_fingerprint == several.base_fingerprint == fingerprint(checkpoint)
    found, wanted = (trees.flatten(model.parts.hypernetwork_params) for model in (several, alone))
    assert found.keys() == wanted.keys()
    for path, leaf in wanted.items():
        np.testing.assert_allclose(found[path], leaf, atol=1e-4, err_msg=path)
    # Two steps of Adam at 0.01 from the checkpoint's T5.
    moved = np.abs(wanted["t5/token_embedder/embedding"] - checkpoint["token_embedder"]["embedding"]).max()
    assert 0 < moved <= 0.0201


def test_heads_that_look_next_door_lie_apart(jobs):
    """Two of a table's numbers are 3 more than fresh ones; no process holds both heads of a table."""
    tables = [f"{stack}/relpos_bias/rel_embedding" for stack in ("decoder", "encoder")]
    for said in jobs["said"][1] + jobs["said"][COUNT]:
        assert said["tables"] == {path: pytest.approx(6.0, abs=1e-4) for path in tables}


def test_evaluating_gives_the_scores_of_one_process_to_all(jobs):
    (alone,) = jobs["said"][1]
    assert alone["scores"] == {"bare": {f"task{number}": 0.5 for number in range(7)}}
    assert [said["scores"] for said in jobs["said"][COUNT]] == [alone["scores"]] * COUNT
    parts = sorted((jobs["bucket"] / f"of-{COUNT}" / "scores").iterdir())
    assert [path.name[-14:] for path in parts] == [f"{index:05d}-of-{COUNT:05d}" for index in range(COUNT)]
    assert [len(path.read_text().splitlines()) for path in parts] == [2, 2, 2, 1]


def test_all_processes_refuse_a_folder_in_which_somebody_is_at_work(jobs):
    told = f"{jobs['folder']}: process {os.getpid()} on {os.uname().nodename} is at work in it"
    for said in jobs["said"][COUNT]:
        assert said["folder"].startswith(told)


def test_all_processes_refuse_different_base_models(jobs):
    for said in jobs["said"][COUNT]:
        assert said["base"].startswith("frozen parameters: process 0 has read sha256:")
        assert ", process 2 sha256:" in said["base"]
