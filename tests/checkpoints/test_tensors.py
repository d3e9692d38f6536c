"""Trees in safetensors files."""

from __future__ import annotations

import json
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyperflax import trees
from hyperflax.checkpoints import fingerprint, load_tree, rounded, save_tree
from hyperflax.errors import CheckpointError, HyperflaxError
from tests.checkpoints.test_fingerprint import TREES

ONE_FILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


def same(one, other) -> bool:
    flat, found = trees.flatten(one), trees.flatten(other)
    return flat.keys() == found.keys() and all(
        (flat[path].dtype, flat[path].shape, flat[path].tobytes())
        == (found[path].dtype, found[path].shape, found[path].tobytes())
        for path in flat
    )


@ONE_FILE
@given(TREES)
def test_round_trip(tmp_path, tree):
    save_tree(tmp_path / "t.safetensors", tree)
    assert same(load_tree(tmp_path / "t.safetensors"), tree)
    jax_tree = trees.map_with_path(lambda _, leaf: jnp.asarray(leaf), tree)
    save_tree(tmp_path / "t.safetensors", jax_tree)
    assert same(load_tree(tmp_path / "t.safetensors"), tree)


@ONE_FILE
@given(TREES, st.integers(0, 2**31))
def test_round_trip_in_bfloat16(tmp_path, tree, seed):
    tree = {**tree, "noise": np.random.default_rng(seed).normal(size=(3, 5)).astype(np.float32)}
    save_tree(tmp_path / "t.safetensors", tree, dtype="bfloat16")
    found = load_tree(tmp_path / "t.safetensors")
    assert same(found, rounded(tree, "bfloat16"))
    assert fingerprint(found) == fingerprint(rounded(tree, "bfloat16"))
    for path, leaf in trees.flatten(tree).items():
        loaded = trees.flatten(found)[path]
        assert loaded.dtype == leaf.dtype
        if leaf.dtype == np.float32:
            np.testing.assert_array_equal(loaded, leaf.astype(ml_dtypes.bfloat16).astype(np.float32))
        else:
            np.testing.assert_array_equal(loaded, leaf)
    save_tree(tmp_path / "again.safetensors", found, dtype="bfloat16")
    assert same(load_tree(tmp_path / "again.safetensors"), found)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_loaded_model_is_in_memory_once(tmp_path, dtype):
    cpu = jax.devices("cpu")[0]
    kernels = {f"layer_{number}": np.full((7, 31 + number), number, np.float32) for number in range(40)}
    save_tree(tmp_path / "t.safetensors", kernels, dtype=dtype)
    for array in load_tree(tmp_path / "t.safetensors").values():
        assert jax.device_put(array, cpu).unsafe_buffer_pointer() == array.ctypes.data


def test_other_software_reads_the_file(tmp_path):
    tree = {"a": {"b": np.arange(6, dtype=np.float32).reshape(2, 3)}, "c": np.ones(2, ml_dtypes.bfloat16)}
    save_tree(tmp_path / "t.safetensors", tree)
    found = safetensors.numpy.load_file(tmp_path / "t.safetensors")
    assert sorted(found) == ["a/b", "c"]
    np.testing.assert_array_equal(found["a/b"], tree["a"]["b"])
    assert found["c"].dtype == ml_dtypes.bfloat16


def test_bfloat16_halves_the_file(tmp_path):
    tree = {"a": np.zeros((256, 256), np.float32)}
    save_tree(tmp_path / "f32", tree)
    save_tree(tmp_path / "bf16", tree, dtype="bfloat16")
    assert (tmp_path / "bf16").stat().st_size < 0.51 * (tmp_path / "f32").stat().st_size


def test_saving_what_cannot_be_saved(tmp_path):
    file = tmp_path / "t.safetensors"
    for tree, told in [({}, "no arrays"), ({"a": {"b": None}}, "a/b"), ({"a": np.array(["x"])}, "'a'")]:
        with pytest.raises(CheckpointError, match=told):
            save_tree(file, tree)
    with pytest.raises(HyperflaxError, match="a/b"):
        save_tree(file, {"a/b": np.zeros(1)})
    with pytest.raises(CheckpointError, match="float16"):
        save_tree(file, {"a": np.zeros(1)}, dtype="float16")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def saved(tmp_path):
    file = tmp_path / "t.safetensors"
    save_tree(file, {"a": {"b": np.arange(6, dtype=np.float32)}, "c": np.ones(3, np.float32)}, dtype="bfloat16")
    return file


def header_of(data: bytes) -> tuple[dict, bytes]:
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def with_header(header: dict, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def test_truncated_at_every_length(saved):
    data = saved.read_bytes()
    for length in range(len(data)):
        saved.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"t\.safetensors"):
            load_tree(saved)
    saved.write_bytes(data + b"\0")
    with pytest.raises(CheckpointError, match=r"t\.safetensors"):
        load_tree(saved)


def test_missing_or_no_file(tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(CheckpointError, match="expected a file"):
            load_tree(path)


def test_foreign_headers(saved):
    header, body = header_of(saved.read_bytes())
    leaf = header["c"]

    def refused(header, told):
        saved.write_bytes(with_header(header, body))
        with pytest.raises(CheckpointError, match=told):
            load_tree(saved)

    refused({**header, "c": {**leaf, "dtype": "F99"}}, "expected a safetensors file")
    refused({**header, "c": {**leaf, "shape": [2**62, 2**62]}}, "expected a safetensors file")
    refused({**header, "c": {**leaf, "data_offsets": [0, 2**60]}}, "expected a safetensors file")
    refused({"a": leaf | {"data_offsets": [0, 6]}, "b": leaf | {"data_offsets": [3, 9]}}, "expected a safetensors file")
    others = {"a/b": header["a/b"]}
    refused({**others, "a/b/c": leaf}, "'a/b/c'")
    refused({**others, "": leaf}, "expected a non-empty string|key ''")
    refused({**others, "a//c": leaf}, "key ''")
    refused({**others, "c": {"dtype": "F4", "shape": [12], "data_offsets": [12, 18]}}, "'c'.*dtype|dtype|expected")
    for rounded_leaves in ("[", '{"c": 1}', "[1]", '["gone"]', "[" * 10_000):
        metadata = {"hyperflax_rounded_from_float32": rounded_leaves}
        refused({**header, "__metadata__": metadata}, "rounded_from_float32|gone")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(st.data())
def test_changed_bytes(saved, data):
    original = saved.read_bytes()
    content = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    saved.write_bytes(content)
    try:
        load_tree(saved)
    except CheckpointError:
        pass
    finally:
        saved.write_bytes(original)


def test_files_can_be_read_by_whom_the_umask_lets(tmp_path):
    save_tree(tmp_path / "a.safetensors", {"w": np.zeros(2, np.float32)})
    (tmp_path / "b").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "b").stat().st_mode
