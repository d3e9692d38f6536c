"""What gin jobs do around the job itself."""

from __future__ import annotations

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
