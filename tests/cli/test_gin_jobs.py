"""What gin jobs do around the job itself."""

from __future__ import annotations

import os
import pathlib

import pytest

from hyperflax.cli.gin_main import main
from hyperflax.locks import LOCK, alone_in

GIN = pathlib.Path(__file__).parents[1] / "launch" / "micro.gin"


def test_a_missing_gin_file_is_told_before_the_other_hosts_are_waited_for(monkeypatch, capsys):
    monkeypatch.setattr("jax.distributed.initialize", lambda *arguments: pytest.fail("joined"))
    assert main("hyperflax.train.train", ["--multiprocess"]) == 2
    assert "python -m hyperflax.train: expected at least one --gin_file" in capsys.readouterr().err


def test_a_second_job_in_a_folder_leaves_the_first_ones_configuration(tmp_path, capsys):
    with alone_in(tmp_path):
        (tmp_path / LOCK).write_text("123 elsewhere 4567")  # of another process
        assert main("hyperflax.train.train", [f"--gin_file={GIN}", f"--gin.MODEL_DIR='{tmp_path}'"]) == 2
    assert f"python -m hyperflax.train: {tmp_path}: process 123 on elsewhere is at" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_a_refused_job_leaves_the_configuration_of_the_run_that_is_there(tmp_path, capsys):
    (tmp_path / "sent").touch()  # the job's batches send no signal then
    job = [f"--gin_file={GIN}", f"--gin.MODEL_DIR='{tmp_path}'"]
    files = [tmp_path / name for name in ("config.gin", "operative_config.gin")]

    def written() -> list[str]:
        return [file.read_text() for file in files]

    assert main("hyperflax.train.train", [*job, "--gin.train.train.total_steps=1"]) == 0
    first = written()
    assert all("total_steps = 1" in text for text in first)
    for other in ("train.train.seed=1", "types.T5Config.emb_dim=16", "train.train.log_period=0"):
        assert main("hyperflax.train.train", [*job, f"--gin.{other}"]) == 2
        assert written() == first, other
    assert "holds a run of seed 0, got seed 1" in capsys.readouterr().err
    assert main("hyperflax.train.train", [*job, "--gin.train.train.total_steps=2"]) == 0  # goes on: it is its own now
    assert all("total_steps = 2" in text for text in written())


@pytest.mark.parametrize("value", ["20241130", "None", "['a']"])
def test_a_folder_that_is_no_path_is_refused_before_the_job_begins(value, tmp_path, monkeypatch, capsys):
    """gin takes a name of digits for a number."""
    monkeypatch.chdir(tmp_path)
    assert main("hyperflax.train.train", [f"--gin_file={GIN}", f"--gin.MODEL_DIR={value}"]) == 2
    assert f"train: {value}: expected a path, which is a string (a number wants quotes)" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_what_a_job_requires_and_no_file_binds_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.gin").write_text("""
from __gin__ import dynamic_registration
from hyperflax import train
train.train.model_dir = 'run'
train.train.total_steps = 3
""")
    assert main("hyperflax.train.train", ["--gin_file=job.gin"]) == 2
    told = "bind hyperflax.train.train.model; required are model, batches, optimizer, total_steps, model_dir"
    assert f"gin: expected the files to {told}\n" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_configuration_is_where_the_job_writes(tmp_path, capsys):
    """Whatever its folder comes from: another macro, or no macro at all."""
    flags = {
        "macro": [f"--gin.MODEL_DIR={tmp_path}/of_a_macro", "--gin.train.train.model_dir=%MODEL_DIR"],
        "other": ["--gin.MODEL_DIR=%FOLDER", f"--gin.FOLDER={tmp_path}/of_another"],
        "direct": [f"--gin.MODEL_DIR={tmp_path}/of_the_data", f"--gin.train.train.model_dir={tmp_path}/of_none"],
    }
    for name in ("of_a_macro", "of_another", "of_the_data"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sent").touch()  # the job's batches send no signal then
    for given in flags.values():
        assert main("hyperflax.train.train", [f"--gin_file={GIN}", *given, "--gin.train.train.total_steps=1"]) == 0
    written = sorted(path.relative_to(tmp_path) for path in tmp_path.glob("*/*config.gin"))
    names = ("config.gin", "operative_config.gin")
    folders = ("of_a_macro", "of_another", "of_none")
    assert written == [pathlib.Path(folder, name) for folder in folders for name in names]


def test_the_folder_of_tfds_is_told_to_tfds(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", "before")
    missing = str(tmp_path / "missing.gin")
    assert main("hyperflax.train.train", [f"--gin_file={missing}"]) == 2
    assert os.environ["TFDS_DATA_DIR"] == "before"
    assert main("hyperflax.train.train", [f"--gin_file={missing}", "--tfds_data_dir=gs://bucket/tfds"]) == 2
    assert os.environ["TFDS_DATA_DIR"] == "gs://bucket/tfds"
    assert "missing.gin" in capsys.readouterr().err
