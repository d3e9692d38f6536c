"""What gin jobs do around the job itself."""

from __future__ import annotations

import pytest

from hyperflax.cli.gin_main import main


def test_a_missing_gin_file_is_told_before_the_other_hosts_are_waited_for(monkeypatch, capsys):
    monkeypatch.setattr("jax.distributed.initialize", lambda *arguments: pytest.fail("joined"))
    assert main("hyperflax.train.train", ["--multiprocess"]) == 2
    assert "python -m hyperflax.train: expected at least one --gin_file" in capsys.readouterr().err
