"""Checkpoints written in T5X's two forms: beside those that T5X itself wrote of the same values."""

from __future__ import annotations

import gzip
import json
import pathlib
import shutil

import ml_dtypes
import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hyperflax import trees
from hyperflax.checkpoints import read_t5x_checkpoint
from hyperflax.checkpoints.forms import load_base, read_model
from hyperflax.checkpoints.layouts import to_minimal, to_scalable, unrolled
from hyperflax.checkpoints.orbax_form import find_orbax, read_orbax, read_orbax_state, write_orbax
from hyperflax.checkpoints.t5x import look_at_t5x_state, read_t5x_state
from hyperflax.checkpoints.t5x_writer import write_t5x_checkpoint
from hyperflax.cli.main import main
from hyperflax.errors import CheckpointError, HyperflaxError
from tests.checkpoints.directories import base, random_tree


@pytest.fixture(scope="module")
def checkpoints(materialised: pathlib.Path) -> pathlib.Path:
    return materialised / "t5x" / "checkpoints"


def same(found, expected) -> None:
    found, expected = trees.flatten(found), trees.flatten(expected)
    assert found.keys() == expected.keys()
    for path, leaf in found.items():
        assert leaf.dtype == expected[path].dtype, path
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


def made(tree):
    """The tree with its lazy leaves made."""
    return trees.map_with_path(lambda path, leaf: np.asarray(leaf), tree)


def chunks(directory: pathlib.Path) -> dict[str, bytes]:
    """The chunks of an array, inflated."""
    return {file.name: gzip.decompress(file.read_bytes()) for file in directory.iterdir() if file.name != ".zarray"}


@pytest.mark.parametrize("form", ["micro_legacy_f32", "micro_legacy_bf16", "micro_scalable_legacy_f32"])
def test_what_is_written_is_what_t5x_wrote_file_by_file(checkpoints, form, tmp_path):
    theirs = checkpoints / form / "checkpoint_1000"
    state = read_t5x_state(theirs)
    step = int(state.pop("step"))
    ours = write_t5x_checkpoint(tmp_path / "run", read_t5x_checkpoint(theirs), step=step, state=state)
    assert ours.name == "checkpoint_1000"
    for directory in sorted(path for path in theirs.iterdir() if path.is_dir()):
        found = ours / directory.name
        assert json.loads((found / ".zarray").read_text()) == json.loads((directory / ".zarray").read_text())
        assert chunks(found) == chunks(directory)
    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
    unpacked = [msgpack.unpackb((folder / "checkpoint").read_bytes(), raw=False) for folder in (ours, theirs)]
    assert [content["version"] for content in unpacked] == [3, 3]
    specs = [trees.flatten(content["optimizer"]["target"]) for content in unpacked]
    assert specs[0].keys() == specs[1].keys()
    for path, value in specs[1].items():
        assert specs[0][path] == value, path


@pytest.mark.parametrize("form", ["micro_legacy_f32", "micro_legacy_f32_inline", "micro_legacy_f32_inference"])
@pytest.mark.parametrize("write", [write_t5x_checkpoint, write_orbax])
def test_written_parameters_and_state_come_back(checkpoints, form, write, tmp_path):
    params, state = read_t5x_checkpoint(checkpoints / form), read_t5x_state(checkpoints / form)
    write(tmp_path / "run", params, step=int(state["step"]), state=state)
    if write is write_orbax:
        same(read_orbax(tmp_path / "run"), params)
        found = read_orbax_state(tmp_path / "run")
    else:
        same(read_t5x_checkpoint(tmp_path / "run"), params)
        assert look_at_t5x_state(tmp_path / "run") == (1000, len(state) > 1)
        found = read_t5x_state(tmp_path / "run")
    assert int(found.pop("step")) == int(state.pop("step")) == 1000
    same(found, state)


def test_the_orbax_form_of_t5x_holds_the_truth(checkpoints):
    with np.load(checkpoints / "micro_state.npz") as arrays:
        truth = dict(arrays)
    found = trees.flatten(read_orbax(checkpoints / "micro_orbax_f32"))
    assert found.keys() == {name.removeprefix("target/") for name in truth if name.startswith("target/")}
    for path, leaf in found.items():
        np.testing.assert_array_equal(leaf, truth[f"target/{path}"], err_msg=path)
    state = trees.flatten(read_orbax_state(checkpoints / "micro_orbax_f32"))
    assert int(state.pop("step")) == 1000
    for path, leaf in state.items():
        if f"state/{path}" in truth:
            np.testing.assert_array_equal(leaf, truth[f"state/{path}"], err_msg=path)


def test_adamw_momentum_and_chunks_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("hyperflax.checkpoints.t5x_writer.chunk_size", lambda total: 64)
    params = {"a": {"kernel": np.arange(45).reshape(9, 5).astype(ml_dtypes.bfloat16)}, "b": {"scale": np.ones(7)}}
    state = random_tree({"param_states/0/mu/a/kernel": (9, 5), "param_states/0/nu/a/kernel": (9, 5)}, 1)
    state["param_states"]["0"]["count"] = np.asarray(12, np.int32)
    write_t5x_checkpoint(tmp_path / "run", params, step=12, state=state)
    assert (
        len(chunks(tmp_path / "run" / "checkpoint_12" / "target.a.kernel")) == 2
    )  # six rows of five bfloat16, then three
    same(read_t5x_checkpoint(tmp_path / "run"), params)
    again = read_t5x_state(tmp_path / "run")
    assert int(again.pop("step")) == 12
    same(again, state)


@pytest.mark.parametrize("write", [write_t5x_checkpoint, write_orbax])
def test_the_state_is_read_when_it_is_asked_for_and_not_before(write, tmp_path):
    state = random_tree({"param_states/0/mu/decoder/logits_dense/kernel": (8, 32)}, 1)
    write(tmp_path / "run", base(), step=5, state=state)
    model = read_model(tmp_path / "run")
    assert model.step == 5
    assert model.read_state is not None
    found = model.read_state(lambda nbytes: None)
    assert int(found.pop("step")) == 5
    same(found, state)
    if write is write_t5x_checkpoint:  # Orbax keeps all arrays in one set of files
        shutil.rmtree(tmp_path / "run" / "checkpoint_5" / "state.param_states.0.mu.decoder.logits_dense.kernel")
        read_state = read_model(tmp_path / "run").read_state
        assert read_state is not None
        with pytest.raises(CheckpointError, match="mu/decoder/logits_dense/kernel"):
            read_state(lambda nbytes: None)
    write(tmp_path / "inference", base(), step=5)
    model = read_model(tmp_path / "inference")
    assert (model.step, model.read_state) == (5, None)


@pytest.mark.parametrize("write", [write_t5x_checkpoint, write_orbax])
def test_parameters_and_state_are_of_one_checkpoint_of_a_run_that_goes_on(write, tmp_path):
    for step in (5, 6):
        state = random_tree({"param_states/0/mu/decoder/logits_dense/kernel": (8, 32)}, step)
        write(tmp_path / f"until_{step}", base(step), step=step, state=state)
    run = tmp_path / "until_5"

    def saving(nbytes: int) -> None:
        if (later := tmp_path / "until_6" / "checkpoint_6").exists():
            later.rename(run / later.name)

    model = read_model(run, progress=saving)
    assert model.step == 5
    same(model.params, base(5))
    assert model.read_state is not None
    assert int(model.read_state(saving)["step"]) == 5
    assert read_model(run).step == 6


@pytest.mark.parametrize(("options", "goes_along"), [(["--to", "orbax"], True), (["--to", "t5x", "--scalable"], False)])
def test_the_state_goes_along_where_the_layout_stays(options, goes_along, tmp_path, capsys):
    state = random_tree({"param_states/0/mu/decoder/logits_dense/kernel": (8, 32)}, 1)
    write_t5x_checkpoint(tmp_path / "run", base(), step=5, state=state)
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "out"), *options]) == 0
    assert ("left behind" in capsys.readouterr().out) != goes_along
    model = read_model(tmp_path / "out")
    assert (model.read_state is not None) == goes_along
    if model.read_state is not None:
        same(model.read_state(lambda nbytes: None)["param_states"], state["param_states"])


def test_scalable_layout_there_and_back(checkpoints):
    stored = read_t5x_checkpoint(checkpoints / "micro_scalable_legacy_f32")
    params, config = unrolled(stored)
    assert config.relative_bias == "per_layer"
    same(made(to_scalable(params, config)), stored)
    same(load_base(checkpoints / "micro_scalable_legacy_f32", config), params)


def test_scalable_to_minimal_only_where_all_layers_have_equal_biases(checkpoints):
    minimal, config = unrolled(read_t5x_checkpoint(checkpoints / "micro_legacy_f32"))
    scalable, per_layer = unrolled(made(to_scalable(minimal, config)))
    assert per_layer == config.replace(relative_bias="per_layer")
    same(to_minimal(scalable, per_layer)[0], minimal)
    scalable["decoder"]["layers_1"]["relpos_bias"]["rel_embedding"] = (
        scalable["decoder"]["layers_1"]["relpos_bias"]["rel_embedding"] + 1
    )
    with pytest.raises(CheckpointError, match=r"decoder/layers_1/relpos_bias.*scalable_t5's can hold it"):
        to_minimal(scalable, per_layer)


@pytest.mark.parametrize("step", [-1, True, 1.5, 2**31])
@pytest.mark.parametrize("write", [write_t5x_checkpoint, write_orbax])
def test_steps_are_counts(write, step, tmp_path):
    with pytest.raises(CheckpointError, match="step"):
        write(tmp_path / "run", random_tree({"a": (2,)}, 0), step=step)
    assert not list(tmp_path.iterdir())


def test_damaged_orbax_files_are_refused(checkpoints, tmp_path):
    shutil.copytree(checkpoints / "micro_orbax_f32", tmp_path / "run")
    state = tmp_path / "run" / "checkpoint_1000" / "state"
    for file in sorted(state.rglob("*")):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(CheckpointError, match="state"):
        read_orbax(tmp_path / "run")
    (state / "manifest.ocdbt").write_bytes(b"\0" * 100)
    with pytest.raises(CheckpointError, match="state"):
        read_orbax(tmp_path / "run")
    assert find_orbax(tmp_path / "run", step=7) is None
    with pytest.raises(CheckpointError, match="Orbax"):
        read_orbax(tmp_path / "nothing")


def test_orbax_arrays_that_the_files_cannot_hold_are_refused(tmp_path):
    item = tmp_path / "checkpoint_0" / "state" / "target.w"
    item.mkdir(parents=True)
    metadata = {
        "zarr_format": 2,
        "shape": [2**20, 2**20],
        "chunks": [2**20, 2**20],
        "dtype": "<f4",
        "compressor": None,
        "fill_value": 0,
        "order": "C",
        "filters": None,
    }
    (item / ".zarray").write_text(json.dumps(metadata))
    with pytest.raises(CheckpointError, match="cannot hold"):
        read_orbax(tmp_path)
    (item / ".zarray").write_text(json.dumps({**metadata, "shape": [4, 4], "chunks": [4, 4]}))
    with pytest.raises(CheckpointError, match=r"target\.w"):  # the chunk is missing: no zeros are made up for it
        read_orbax(tmp_path)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_orbax_files_damaged_anywhere_are_refused_or_keep_their_shapes(checkpoints, tmp_path_factory, data):
    source = checkpoints / "micro_orbax_f32" / "checkpoint_1000" / "state"
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    copy = tmp_path_factory.mktemp("damaged") / "state"
    shutil.copytree(source, copy)
    victim = copy / data.draw(st.sampled_from(files))
    content = bytearray(victim.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, max(0, len(content) - 1)))]
    elif content:
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    victim.write_bytes(bytes(content))
    try:
        found = trees.flatten(read_orbax(copy.parent))
    except CheckpointError:
        return
    with np.load(checkpoints / "micro_state.npz") as truth:
        for path, leaf in found.items():
            assert leaf.shape == truth[f"target/{path}"].shape


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    leaves=st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_]{0,5}(/[a-z][a-z0-9_]{0,5}){1,2}", fullmatch=True),
        hnp.arrays(
            st.sampled_from([np.float32, np.float64, np.int32, np.uint8, ml_dtypes.bfloat16]),
            hnp.array_shapes(min_dims=0, max_dims=4, max_side=5),
            elements=st.integers(0, 100),
        ),
        min_size=1,
        max_size=4,
    ),
    step=st.integers(0, 10**9),
)
def test_any_tree_of_arrays_comes_back_bit_for_bit(tmp_path_factory, leaves, step):
    try:
        tree = trees.unflatten(leaves)
    except HyperflaxError:
        return  # one path is the beginning of another
    folder = tmp_path_factory.mktemp("any") / "run"
    write_t5x_checkpoint(folder, tree, step=step)
    assert look_at_t5x_state(folder) == (step, False)
    same(read_t5x_checkpoint(folder), tree)
