"""Checkpoints of hypermodels in T5X's tree, read without T5X; and what is said where T5X is missing."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

import hyperflax
from hyperflax import trees
from hyperflax.checkpoints.orbax_form import write_orbax
from hyperflax.checkpoints.t5x_writer import write_t5x_checkpoint
from hyperflax.cli.gin_jobs import shipped_folder
from hyperflax.errors import CheckpointError
from hyperflax.integrations.t5x_export import export
from tests.integrations import t5x_model
from tests.integrations.t5x_model import CONFIG


@pytest.mark.parametrize("write", [write_orbax, write_t5x_checkpoint])
def test_a_trained_hypermodel_becomes_a_model_directory(tmp_path: pathlib.Path, write):
    params = t5x_model.branch(t5x_model.goldens(), "end")
    write(tmp_path / "run", params, step=6)
    export(tmp_path / "run", CONFIG, tmp_path / "model", name="letters")
    parts = hyperflax.load(tmp_path / "model").parts
    assert parts.name == "letters"
    # Heads have dots in their names, which T5X's files also use between names.
    for found, expected in ((parts.base, params["base"]), (parts.hypernetwork_params, params["hypernetwork"])):
        found, expected = trees.flatten(found), trees.flatten(expected)
        assert found.keys() == expected.keys()
        for path, leaf in expected.items():
            np.testing.assert_array_equal(found[path], leaf, err_msg=path)


def test_another_model_is_refused_with_its_leaves(tmp_path: pathlib.Path):
    params = t5x_model.branch(t5x_model.goldens(), "end")
    write_t5x_checkpoint(tmp_path / "t5", params["base"], step=6)
    with pytest.raises(CheckpointError, match="expected the branches 'base' and 'hypernetwork', got"):
        export(tmp_path / "t5", CONFIG, tmp_path / "model")
    wrong = {**params, "hypernetwork": jax.tree.map(lambda leaf: leaf, params["hypernetwork"])}
    wrong["hypernetwork"]["slots"] = np.zeros((3, 8), np.float32)
    write_orbax(tmp_path / "wrong", wrong, step=6)
    with pytest.raises(CheckpointError, match="slots"):
        export(tmp_path / "wrong", CONFIG, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_missing_t5x_is_named_with_what_to_do(tmp_path: pathlib.Path):
    code = "import sys; sys.modules['t5x'] = None; import hyperflax.integrations.t5x"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "MissingExtraError: t5x is needed here and is not installed. T5X is on no package index" in done.stderr
    assert "PYTHONPATH" in done.stderr


def test_the_gin_file_says_how_it_is_started():
    text = (shipped_folder() / "t5x" / "hypermodel.gin").read_text()
    header = text.partition("from __gin__")[0]
    assert "python -m t5x.train --gin_file=hyperflax_gin_configs/t5x/hypermodel.gin" in header
    assert re.search("TPU|H200|cores", header)
    assert "hours" in header
    assert "not run here" in header
