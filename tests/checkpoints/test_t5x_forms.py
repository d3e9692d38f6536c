"""Forms of T5X checkpoints that exist in the wild but not in the reference data."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from flax import serialization

from hyperflax import trees
from hyperflax.checkpoints import read_t5x_checkpoint, zarr
from hyperflax.checkpoints.t5x import look_at_t5x_state
from hyperflax.errors import CheckpointError
from tests.checkpoints.t5x_writer import spec_of, write_msgpack, write_one, write_zarr, write_zarr_with_tensorstore


def values(*shape: int, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


@pytest.mark.parametrize("compressor", ["gzip", None])
@pytest.mark.parametrize("chunks", [None, (4, 3), (5, 4), (1, 1), (16, 64)])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float64, np.float16])
def test_chunks_and_compressors(tmp_path, compressor, chunks, dtype):
    array = values(12, 10, dtype=dtype)
    write_one(tmp_path / "checkpoint_7", array, chunks=chunks, compressor=compressor)
    found = read_t5x_checkpoint(tmp_path)["w"]["kernel"]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    "compressor",
    [
        None,
        {"id": "zstd", "level": 1},
        {"id": "gzip", "level": 9},
        {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1},
    ],
)
@pytest.mark.parametrize("zeros", [False, True])
def test_chunks_written_by_tensorstore(tmp_path, compressor, zeros):
    array = np.zeros((300, 200), np.float32) if zeros else values(300, 200)
    name = "target.w.kernel"
    metadata = write_zarr_with_tensorstore(tmp_path / name, array, (100, 64), compressor)
    write_msgpack(tmp_path, {"w": {"kernel": spec_of(name, array, metadata)}})
    np.testing.assert_array_equal(read_t5x_checkpoint(tmp_path)["w"]["kernel"], array)


@pytest.mark.parametrize("form", ["file", "gfile", "gcs", "old"])
def test_wherever_the_writer_ran(tmp_path, form):
    array = values(4, 4)
    write_one(tmp_path, array, form=form)
    np.testing.assert_array_equal(read_t5x_checkpoint(tmp_path)["w"]["kernel"], array)


def test_big_endian_scalar_and_empty_arrays(tmp_path):
    big, scalar, empty = values(3, 5).astype(">f4"), np.array(2.5, np.float32), np.zeros((0, 4), np.float32)
    target = {}
    for name, array in {"big": big, "scalar": scalar, "empty": empty}.items():
        metadata = write_zarr(tmp_path / name, array, chunks=[max(size, 1) for size in array.shape])
        target[name] = spec_of(name, array, metadata)
    write_msgpack(tmp_path, target)
    found = read_t5x_checkpoint(tmp_path)
    np.testing.assert_array_equal(found["big"], big)
    assert found["big"].dtype == np.float32
    assert found["scalar"] == 2.5
    assert found["scalar"].shape == ()
    assert found["empty"].shape == (0, 4)


def test_bfloat16_stored_as_uint16_before_version_3(tmp_path):
    array = values(6, 4, dtype=ml_dtypes.bfloat16)
    bits = array.view(np.uint16)
    for dtype in (np.uint16, ml_dtypes.bfloat16):  # what the index says
        folder = tmp_path / np.dtype(dtype).name
        metadata = write_zarr(folder / "w", bits)
        for version in (2, 3):
            target = {"w": spec_of("w", np.zeros((), dtype), metadata), "inline": bits}
            write_msgpack(folder, target, version=version)
            if version == 3:
                with pytest.raises(CheckpointError, match=r"target/(w|inline).*uint16"):
                    read_t5x_checkpoint(folder)
                continue
            found = read_t5x_checkpoint(folder)
            for leaf in found.values():
                assert leaf.dtype == ml_dtypes.bfloat16
                np.testing.assert_array_equal(leaf, array)
            as_float = read_t5x_checkpoint(folder, dtype="float32")["w"]
            np.testing.assert_array_equal(as_float, array.astype(np.float32))


@pytest.mark.parametrize("version", [0, 2, 3])
def test_everything_inline_in_one_file(tmp_path, version):
    target = {
        "f32": values(3, 4),
        "bf16": values(5, dtype=ml_dtypes.bfloat16),
        "scalar": np.float32(1.5),
        "nested": {"deep": {"int": np.arange(3, dtype=np.int32)}},
        "empty": {},
    }
    write_msgpack(tmp_path, target, version=version, step=np.int32(41))
    found, expected = trees.flatten(read_t5x_checkpoint(tmp_path)), trees.flatten(target)
    assert found.keys() == expected.keys()
    for path, array in found.items():
        assert array.dtype == expected[path].dtype
        np.testing.assert_array_equal(array, expected[path], err_msg=path)
    assert look_at_t5x_state(tmp_path) == (41, False)


def test_inline_array_in_pieces_as_flax_splits_large_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 64)
    array = values(7, 9)
    write_msgpack(tmp_path, {"w": array})
    assert b"__msgpack_chunked_array__" in (tmp_path / "checkpoint").read_bytes()
    np.testing.assert_array_equal(read_t5x_checkpoint(tmp_path)["w"], array)


@pytest.mark.parametrize("step", [12, np.int64(12), np.array(12, np.int32), np.array([12], np.int32)])
def test_step_in_every_form(tmp_path, step):
    write_msgpack(tmp_path, {"w": values(2)}, step=step)
    assert look_at_t5x_state(tmp_path) == (12, False)


def test_integers_are_not_cast(tmp_path):
    write_msgpack(tmp_path, {"count": np.arange(3, dtype=np.int32), "w": values(2)})
    found = read_t5x_checkpoint(tmp_path, dtype="bfloat16")
    assert found["count"].dtype == np.int32
    assert found["w"].dtype == ml_dtypes.bfloat16


def test_latest_step_by_number_and_never_one_that_is_not_finished(tmp_path):
    for step in (9, 10, 2):
        write_msgpack(tmp_path / f"checkpoint_{step}", {"w": np.full(2, step, np.float32)}, step=step)
    write_msgpack(tmp_path / "checkpoint_11.tmp-1700000000", {"w": values(2)}, step=11)
    (tmp_path / "checkpoint_12").mkdir()  # a bucket has no rename: its file comes last
    assert look_at_t5x_state(tmp_path) == (10, False)
    assert read_t5x_checkpoint(tmp_path)["w"][0] == 10
    assert look_at_t5x_state(tmp_path, step=9) == (9, False)
    with pytest.raises(CheckpointError, match=r"checkpoint_3, found steps \[2, 9, 10, 12\]"):
        look_at_t5x_state(tmp_path, step=3)


def test_a_tree_larger_than_what_may_wait_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(zarr, "_IN_FLIGHT_BYTES", 1000)
    target, expected = {}, {}
    for number in range(12):
        expected[f"w{number}"] = values(number + 1, 40)
        metadata = write_zarr(tmp_path / f"w{number}", expected[f"w{number}"])
        target[f"w{number}"] = spec_of(f"w{number}", expected[f"w{number}"], metadata)
    write_msgpack(tmp_path, target)
    found = read_t5x_checkpoint(tmp_path)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
