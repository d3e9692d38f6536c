"""Checkpoints: bit for bit, whole or absent, and refused with the leaf named."""

from __future__ import annotations

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperflax import trees
from hyperflax.checkpoints.forms import form_of, read_model
from hyperflax.checkpoints.inspection import inspect_path
from hyperflax.checkpoints.onto_mesh import read_onto_mesh
from hyperflax.errors import CheckpointError, ConfigError
from hyperflax.training.checkpointing import Checkpoints
from hyperflax.training.optimizers import adafactor, adamw, muon
from hyperflax.training.state import create_state, start_from
from tests.checkpoints.directories import CONFIG

PARAMS = {"encoder": {"kernel": jnp.linspace(0, 1, 12).reshape(3, 4), "scale": jnp.ones(3, jnp.bfloat16)}}


def abstract(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


@pytest.mark.parametrize(
    "optimizer", [adamw(1e-3), adafactor(1e-3, beta1=0.9), muon(1e-3)], ids=["adamw", "adafactor", "muon"]
)
def test_comes_back_bit_for_bit(tmp_path, optimizer):
    state = create_state(PARAMS, optimizer).replace(step=jnp.int32(7))
    host = {"seed": 3, "period": {"pairs": {"loss": [0.1 + 0.2, 1e-300]}, "steps": 2}}
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() is None
        checkpoints.save(state, host)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() == 7
        restored, found = checkpoints.restore(abstract(state))
    assert found == host
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
        assert old.dtype == new.dtype
        np.testing.assert_array_equal(old, new)
    assert (tmp_path / "checkpoints" / "checkpoint_7").is_dir()
    params = Checkpoints(tmp_path / "checkpoints", read_only=True).parameters()
    np.testing.assert_array_equal(params["encoder"]["kernel"], PARAMS["encoder"]["kernel"])
    assert params["encoder"]["scale"].dtype == jnp.bfloat16


def test_keeps_the_latest(tmp_path):
    state = create_state({"w": jnp.ones(2)}, adamw())
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(state.replace(step=jnp.int32(step)), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_2", "checkpoint_3"]


@pytest.mark.parametrize("keep", [0, -1])
def test_keeping_none_is_refused_before_anything_is_made(tmp_path, keep):
    with pytest.raises(ConfigError, match=f"Checkpoints.keep: expected at least 1 or None, got {keep}"):
        Checkpoints(tmp_path / "c", keep=keep)
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_named(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        with pytest.raises(CheckpointError, match="no complete checkpoint"):
            checkpoints.restore(create_state(PARAMS, adamw()))
        checkpoints.save(create_state(PARAMS, adamw()), {})
        wide = {"encoder": {"kernel": jnp.zeros((3, 5)), "scale": jnp.zeros(3)}}
        with pytest.raises(CheckpointError, match=r"'params/encoder/kernel' should be \(3, 5\), the file has \(3, 4\)"):
            checkpoints.restore(create_state(wide, adamw()))
        with pytest.raises(CheckpointError, match="'params/encoder/scale' is not in this model"):
            checkpoints.restore(create_state({"encoder": {"kernel": jnp.zeros((3, 4))}}, adamw()))
        with pytest.raises(CheckpointError, match="'opt_state/0/count' is missing"):
            checkpoints.restore(create_state(PARAMS, adafactor()))
        with pytest.raises(CheckpointError, match="no checkpoint of step 5"):
            checkpoints.parameters(5)
    with pytest.raises(CheckpointError, match="no such folder"):
        Checkpoints(tmp_path / "elsewhere", read_only=True)


def damaged(folder, damage):
    """Leaves a checkpoint of Orbax's without what it needs."""
    if damage == "no host":
        shutil.rmtree(folder / "host")
    elif damage == "no state":
        shutil.rmtree(folder / "state")
    elif damage == "torn host":
        (file,) = (path for path in (folder / "host").iterdir() if path.read_bytes().startswith(b"{"))
        file.write_bytes(file.read_bytes()[:5])
    elif damage == "torn description":
        (folder / "state" / "_METADATA").write_text("{")
    else:
        for file in (folder / "state").rglob("d/*"):
            file.write_bytes(bytes(file.stat().st_size))


@pytest.mark.parametrize("damage", ["no host", "no state", "torn host", "torn description", "zeroed arrays"])
@pytest.mark.parametrize(("others", "advice"), [([], "to begin anew"), ([1, 2], "to go on from step 2")])
def test_a_damaged_one_is_named_with_what_to_do(tmp_path, damage, others, advice):
    state = create_state({"w": jnp.arange(2.0)}, adamw())
    with Checkpoints(tmp_path) as checkpoints:
        for step in (*others, 3):
            checkpoints.save(state.replace(step=jnp.int32(step)), {"seed": 0})
    damaged(tmp_path / "checkpoint_3", damage)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(CheckpointError) as caught:
        checkpoints.restore(abstract(state))
    told = str(caught.value)
    assert told.startswith(f"{tmp_path}/checkpoint_3: cannot be read, ")
    assert told.endswith(f"; if it is damaged, remove it {advice}")


def test_a_run_s_own_is_no_t5_and_its_export_is_pointed_to(tmp_path):
    """`params` lies where T5X has `target`; its MODEL_DIR is no checkpoint at all."""
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(create_state(PARAMS, adamw()).replace(step=jnp.int32(3)), {})
    for path in (tmp_path / "checkpoints", tmp_path / "checkpoints" / "checkpoint_3"):
        for read in (read_model, lambda path: read_onto_mesh(path, CONFIG, lambda name, shape: pytest.fail(name))):
            with pytest.raises(CheckpointError) as caught:
                read(path)
            assert str(caught.value) == (
                f"{tmp_path}/checkpoints/checkpoint_3: expected a checkpoint of T5X, found a training checkpoint of "
                "hyperflax; name the model that its run exported, MODEL_DIR/model"
            )
        assert [leaf.path for leaf in inspect_path(path).leaves if leaf.path.startswith("params/")] == [
            "params/encoder/kernel", "params/encoder/scale"
        ]  # fmt: skip
    with pytest.raises(CheckpointError, match="expected a T5 directory, a model directory") as caught:
        form_of(tmp_path)
    assert "; one is" not in str(caught.value)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "t5.json").write_text("{}")
    with pytest.raises(CheckpointError, match=f"; one is {tmp_path}/model$"):
        form_of(tmp_path)


def test_initial_parameters_are_checked_and_copied():
    fresh = {"a": {"w": jnp.zeros(3)}, "b": jnp.zeros(2)}
    assert start_from(fresh, None) is fresh
    given = {"a": {"w": np.arange(3)}, "b": jnp.ones(2)}
    out = start_from(fresh, given)
    assert trees.flatten(out).keys() == trees.flatten(fresh).keys()
    assert out["a"]["w"].dtype == jnp.float32
    assert out["b"].unsafe_buffer_pointer() != given["b"].unsafe_buffer_pointer()
    np.testing.assert_array_equal(start_from(fresh, lambda params: {**params, "b": params["b"] + 1})["b"], [1, 1])
    for broken, message in (
        ({"a": {"w": np.zeros(3)}}, "'b' is missing"),
        ({"a": {"w": np.zeros(4)}, "b": np.zeros(2)}, r"'a/w' should be \(3,\), got \(4,\)"),
        ({"a": {"w": np.zeros(3)}, "b": np.zeros(2), "c": np.zeros(1)}, "'c' is not a parameter"),
    ):
        with pytest.raises(CheckpointError, match=message):
            start_from(fresh, broken)
