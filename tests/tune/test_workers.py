"""Collections by workers of a real Ray on this machine, one of which is killed."""

from __future__ import annotations

import functools
import os
import pathlib
import signal
import sys
import types

import pytest

from hyperflax.cli.main import main
from hyperflax.data.jsonl import Line
from hyperflax.errors import ConfigError, DataError, MissingExtraError
from hyperflax.evaluation.contamination import TRAINING_TASKS, name_digests
from hyperflax.tune import workers
from hyperflax.tune.bench import Bench
from hyperflax.tune.collect import Collection, collect
from hyperflax.tune.workers import collect_on_ray
from hyperflax.tuner import table
from hyperflax.tuner.datasets import DataSet
from tests.finetuning.micro_model import micro_model

WORDS = [a + b for a in "abcd" for b in "pqrs"]
SMALL = {"structures": 2, "variants": 1, "seed": 0}


def data_set() -> DataSet:
    lines = [Line(f"words:{number}", word, word[0] * 2) for number, word in enumerate(WORDS)]
    return DataSet("words", tuple(lines[:8]), tuple(lines[8:12]), tuple(lines[12:]), task="task words")


class Mortal(Bench):
    """A bench whose process is killed after it has written a structure's files and before it has told of them, once."""

    def __init__(self, marker: pathlib.Path):
        super().__init__(micro_model())
        self.marker = marker

    def forget_programs(self) -> None:
        super().forget_programs()
        try:
            self.marker.touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


def informed_bench() -> Bench:
    model = micro_model()
    model.parts.provenance[TRAINING_TASKS] = name_digests(["task words"])
    return Bench(model)


@pytest.fixture
def needs_ray() -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'hyperflax[ray]'")


@pytest.mark.usefixtures("needs_ray")
def test_two_workers_fill_a_folder_though_one_is_killed(tmp_path):
    out, marker = tmp_path / "runs", tmp_path / "killed"
    collect_on_ray(functools.partial(Mortal, marker), [data_set()], workers=2, out=out, progress=False, **SMALL)
    assert marker.exists()
    collection = Collection(Bench(micro_model()), [data_set()], out=out, **SMALL)
    jobs = [job for number in range(2) for job in collection.jobs(number)]
    assert len(list(out.iterdir())) == len(jobs)
    model = collection.bench.model.parts.id
    assert [run.id for run in table.read(out)] == sorted(run for job in jobs for run in job.ids(model))
    assert {run.status for run in table.read(out)} == {"completed"}
    assert collect(collection, progress=False) == 0


@pytest.mark.usefixtures("needs_ray")
def test_a_workers_error_is_the_callers(tmp_path):
    with pytest.raises(DataError, match="was trained on and holds the evaluated task 'task words'"):
        collect_on_ray(informed_bench, [data_set()], workers=1, out=tmp_path, progress=False, **SMALL)
    assert list(tmp_path.iterdir()) == []


class SmallCluster:
    """What a collection asks of Ray, on a cluster of four processors and two GPUs; it starts no worker."""

    def __init__(self, **has: float):
        self.has, self.exceptions = has, types.SimpleNamespace(RayTaskError=ChildProcessError)

    def init(self, **given) -> None: ...

    def cluster_resources(self) -> dict[str, float]:
        return self.has

    def shutdown(self) -> None:
        self.has = {}


@pytest.mark.parametrize(
    ("has", "told"),
    [
        ({"CPU": 4.0, "GPU": 2.0}, "at most 2 workers, one for each GPU of the cluster, got 3"),
        ({"CPU": 2.0}, "at most 2 workers, one for each CPU of the cluster, got 3"),
        ({}, "at most 0 workers, one for each CPU of the cluster, got 3"),
    ],
)
def test_more_workers_than_the_cluster_has_room_for_are_refused(has, told, tmp_path, monkeypatch):
    """Ray would wait for a place for the others, for ever."""
    cluster = SmallCluster(**has)
    monkeypatch.setattr(workers, "_ray", lambda: cluster)
    with pytest.raises(ConfigError, match=told):
        collect_on_ray(informed_bench, [data_set()], workers=3, address="auto", out=tmp_path, **SMALL)
    assert cluster.has == {}  # left


def test_what_cannot_be_is_refused_before_anything_starts(tmp_path, monkeypatch, capsys):
    with pytest.raises(ConfigError, match="at least 1, got 0 and 2"):
        collect_on_ray(informed_bench, [data_set()], workers=0, out=tmp_path, **SMALL)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hyperflax\[ray\]'"):
        collect_on_ray(informed_bench, [data_set()], workers=1, out=tmp_path, **SMALL)
    (tmp_path / "words.jsonl").write_text("\n".join(f'{{"input": "{word}", "target": "{word[0]}"}}' for word in WORDS))
    command = ["tune", "collect", "--model", "strings", "--data", str(tmp_path / "words.jsonl"), "--structures", "1"]
    command += ["--out", str(tmp_path / "runs")]
    for more, told in (
        (["--workers", "2", "--shard", "0/2"], "--shard: expected none beside --workers"),
        (["--ray_address", "auto"], "--ray_address: expected --workers beside it"),
    ):
        assert main([*command, *more]) == 2
        assert told in capsys.readouterr().err
