"""Checkpoints between hyperflax and a real copy of T5X: what one writes, the other restores, bit for bit."""

from __future__ import annotations

import pathlib

import jax
import numpy as np
import pytest

from hyperflax import trees
from hyperflax.checkpoints.orbax_form import read_orbax, read_orbax_state, write_orbax
from hyperflax.checkpoints.t5x import read_t5x_checkpoint, read_t5x_state
from hyperflax.checkpoints.t5x_writer import write_t5x_checkpoint
from tests.integrations import t5x_states
from tests.integrations.t5x_states import STATES, STEP

WRITERS = {"legacy": write_t5x_checkpoint, "orbax": write_orbax}


@pytest.fixture(scope="module", params=STATES, ids="_".join)
def training(request, t5x_copy: pathlib.Path):
    """A training state of T5X, its partitioner, and its arrays by path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(t5x_copy))
        state, partitioner = t5x_states.training_state(*request.param)
        yield state, partitioner, t5x_states.leaves(state)


def branch(leaves: dict[str, np.ndarray], name: str) -> dict:
    return trees.unflatten({p.removeprefix(f"{name}/"): x for p, x in leaves.items() if p.startswith(f"{name}/")})


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        assert found[path].dtype == leaf.dtype, path
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)


@pytest.mark.parametrize("form", WRITERS)
def test_t5x_restores_what_hyperflax_writes(training, form, tmp_path):
    state, partitioner, leaves = training
    written = WRITERS[form](tmp_path / "run", branch(leaves, "target"), step=STEP, state=branch(leaves, "state"))
    # Into a state of zeros, so that nothing can come from elsewhere.
    empty = state.restore_state(jax.tree.map(np.zeros_like, state.state_dict()))
    arguments = (empty, partitioner, str(tmp_path / "run"))
    if form == "orbax":
        arguments = (str(tmp_path / "run"), empty, partitioner)
    restored = t5x_states.checkpointer(form)(*arguments).restore(path=str(written))
    same(t5x_states.leaves(restored), leaves)


@pytest.mark.parametrize("form", WRITERS)
def test_hyperflax_reads_what_t5x_writes(training, form, tmp_path):
    state, partitioner, leaves = training
    t5x_states.save(form, tmp_path / "run")(state, partitioner)
    if form == "legacy":
        found = {"target": read_t5x_checkpoint(tmp_path / "run"), "state": read_t5x_state(tmp_path / "run")}
    else:
        found = {"target": read_orbax(tmp_path / "run"), "state": read_orbax_state(tmp_path / "run")}
    same(trees.flatten(found), leaves)
