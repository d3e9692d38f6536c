"""Checkpoints that are damaged, incomplete or malicious: one kind of error, naming the file and the leaf."""

from __future__ import annotations

import gzip
import json
import os
import pathlib
import struct
import subprocess
import sys

import msgpack
import numpy as np
import pytest
import tensorstore as ts
from flax import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperflax.checkpoints import read_t5x_checkpoint
from hyperflax.checkpoints.t5x import look_at_t5x_state
from hyperflax.errors import CheckpointError
from tests.checkpoints.t5x_writer import spec_of, write_msgpack, write_one, write_zarr, write_zarr_with_tensorstore

ARRAY = np.arange(48, dtype=np.float32).reshape(8, 6)


def refused(path: pathlib.Path, *named: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_t5x_checkpoint(path)
    message = str(caught.value)
    for name in named:
        assert name in message, message
    return message


def edit_metadata(directory: pathlib.Path, **changes) -> None:
    file = directory / ".zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# Paths


@pytest.mark.parametrize("path", ["../outside/", "/outside", "a/../../outside", "", ".", "..", "a\0b", "..\\outside"])
def test_path_out_of_the_checkpoint(tmp_path, path):
    write_zarr(tmp_path / "outside", ARRAY)
    folder = tmp_path / "inside"
    spec = spec_of("x", ARRAY, {"shape": [8, 6]})
    spec["kvstore"]["path"] = path.replace("/outside", str(tmp_path / "outside")) if path == "/outside" else path
    write_msgpack(folder, {"w": {"kernel": spec}})
    refused(folder, "checkpoint", "target/w/kernel", "inside the checkpoint")


def test_link_out_of_the_checkpoint(tmp_path):
    write_zarr(tmp_path / "outside", ARRAY)
    folder = tmp_path / "inside"
    write_msgpack(folder, {"w": spec_of("link", ARRAY, {"shape": [8, 6]})})
    os.symlink(tmp_path / "outside", folder / "link")
    refused(folder, "target/w", "inside the checkpoint", "outside")
    (folder / "link").unlink()
    os.symlink("link", folder / "link")
    refused(folder, "target/w")


def test_other_drivers_are_refused(tmp_path):
    spec = spec_of("x", ARRAY, {"shape": [8, 6]})
    for change in ({"driver": "http"}, {"driver": "zarr3"}, {"driver": "json"}):
        write_msgpack(tmp_path, {"w": spec | change})
        refused(tmp_path, "target/w", "zarr")
    write_msgpack(tmp_path, {"w": {"driver": "zarr", "kvstore": {"driver": "http", "base_url": "http://localhost"}}})
    refused(tmp_path, "target/w", "path")


# Chunks


def test_missing_chunk_is_not_read_as_zeros(tmp_path):
    directory = write_one(tmp_path, ARRAY, chunks=(4, 3))
    (directory / "1.0").unlink()
    refused(tmp_path, str(directory / "1.0"), "target/w/kernel", "missing")


@pytest.mark.parametrize("name", [".zarray", "0.0"])
def test_directory_or_pipe_in_place_of_a_file(tmp_path, name):
    directory = write_one(tmp_path, ARRAY)
    (directory / name).unlink()
    (directory / name).mkdir()
    refused(tmp_path, name, "target/w/kernel")
    (directory / name).rmdir()
    os.mkfifo(directory / name)
    refused(tmp_path, name, "target/w/kernel")


def test_missing_array(tmp_path):
    write_msgpack(tmp_path, {"w": spec_of("gone", ARRAY, {"shape": [8, 6]})})
    refused(tmp_path, "gone", ".zarray", "target/w")


@pytest.mark.parametrize("compressor", ["gzip", None])
def test_damaged_chunk(tmp_path, compressor):
    directory = write_one(tmp_path, ARRAY, compressor=compressor)
    chunk = directory / "0.0"
    data = chunk.read_bytes()
    broken = {"truncated": data[:-5], "longer": data + b"123", "empty": b""}
    if compressor == "gzip":
        broken |= {"magic": b"xx" + data[2:], "checksum": data[:-6] + bytes([data[-6] ^ 1]) + data[-5:]}
        broken |= {"too few values": gzip.compress(ARRAY.tobytes()[:-4])}
    for content in broken.values():
        chunk.write_bytes(content)
        refused(tmp_path, str(directory), "target/w/kernel")


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("compressor", [{"id": "gzip", "level": 1}, {"id": "zstd", "level": 1}, None])
def test_chunk_truncated_anywhere(tmp_path, compressor, zeros):
    array = ARRAY * 0 if zeros else ARRAY
    metadata = write_zarr_with_tensorstore(tmp_path / "w", array, array.shape, compressor)
    write_msgpack(tmp_path, {"w": spec_of("w", array, metadata)})
    read_t5x_checkpoint(tmp_path)
    chunk = tmp_path / "w" / "0.0"
    data = chunk.read_bytes()
    for length in range(len(data)):
        chunk.write_bytes(data[:length])
        refused(tmp_path, "target/w")


COMPRESSORS = {
    "gzip": {"id": "gzip", "level": 9},
    "zstd": {"id": "zstd", "level": 9},
    "blosc": {"id": "blosc", "cname": "zstd", "clevel": 1, "shuffle": 0},
    "none": None,
}
READ_ALL = """
import pathlib, sys
from hyperflax.checkpoints import read_t5x_checkpoint
from hyperflax.checkpoints.orbax_form import find_orbax, read_orbax
from hyperflax.errors import CheckpointError

def peak():  # KiB
    return int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

def read(folder):
    (read_t5x_checkpoint if find_orbax(folder) is None else read_orbax)(folder)

read(sys.argv[1])
before = peak()
for folder in sys.argv[2:]:
    try:
        read(folder)
    except CheckpointError as error:
        assert "target" in str(error), error
    else:
        raise SystemExit(f"{folder} was read")
print((peak() - before) // 1024)
"""
PEAK = pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")


@PEAK
def test_bombs_are_not_inflated(tmp_path):
    array, large = np.zeros(64, np.float32), np.zeros(1 << 24, np.float32)  # 256 bytes, 64 MiB
    write_msgpack(tmp_path / "good", {"w": spec_of("w", array, write_zarr(tmp_path / "good" / "w", array))})
    folders = [tmp_path / "good"]
    for name, compressor in COMPRESSORS.items():
        write_zarr_with_tensorstore(tmp_path / name / "large", large, large.shape, compressor)
        bomb = bytearray((tmp_path / name / "large" / "0").read_bytes())
        for lies in (False, True):
            if lies and name in ("gzip", "blosc"):  # these two store the size; say what is expected
                bomb[slice(-4, None) if name == "gzip" else slice(4, 8)] = struct.pack("<I", array.nbytes)
            folders.append(tmp_path / name / str(lies))
            metadata = write_zarr_with_tensorstore(folders[-1] / "w", array, array.shape, compressor)
            (folders[-1] / "w" / "0").write_bytes(bomb)
            write_msgpack(folders[-1], {"w": spec_of("w", array, metadata)})
    assert growth(folders) < 32  # MiB


@PEAK
@pytest.mark.parametrize("driver", ["zarr", "zarr3"])
def test_bombs_in_orbax_files_are_not_inflated(tmp_path, driver):
    """Orbax's files, of either version of zarr, with a chunk of 64 MiB where one of 256 bytes should be."""

    def write(item: pathlib.Path, size: int) -> pathlib.Path:
        store = {"driver": "file", "path": f"{item / 'target.w'}/"}
        spec = {"driver": driver, "dtype": "float32", "kvstore": store}
        metadata = {"shape": [size], "chunks": [size], "compressor": COMPRESSORS["zstd"]}
        if driver == "zarr3":
            codecs = [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 9}}]
            grid = {"name": "regular", "configuration": {"chunk_shape": [size]}}
            metadata = {"shape": [size], "chunk_grid": grid, "codecs": codecs}
        array = np.ones(size, np.float32)  # a chunk of zeros would not be written
        ts.open({**spec, "metadata": metadata}, create=True).result().write(array).result()
        return item / "target.w" / ("0" if driver == "zarr" else "c/0")

    write(tmp_path / "good" / "state", 64)
    bomb = write(tmp_path / "large" / "state", 1 << 24)
    chunk = write(tmp_path / "bomb" / "state", 64)
    chunk.write_bytes(bomb.read_bytes())
    assert growth([tmp_path / "good", tmp_path / "bomb"]) < 32  # MiB


def growth(folders: list[pathlib.Path]) -> int:
    """MiB by which memory grew while all but the first of these were refused."""
    command = [sys.executable, "-c", READ_ALL, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


# Metadata


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"shape": [2**50, 2**50]}, "shape"),
        ({"shape": [-8, 6]}, "shape"),
        ({"shape": [8.0, 6]}, "shape"),
        ({"shape": [True, 6]}, "shape"),
        ({"shape": [1] * 40}, "shape"),
        ({"shape": "8,6"}, "shape"),
        ({"shape": None}, "shape"),
        ({"shape": [4, 6]}, "shape"),
        ({"chunks": [0, 6]}, "chunks"),
        ({"chunks": [8]}, "chunks"),
        ({"chunks": [2**29, 2**29]}, "chunks"),
        ({"dtype": "|O"}, "dtype"),
        ({"dtype": "<U4"}, "dtype"),
        ({"dtype": [["a", "<f4"]]}, "dtype"),
        ({"dtype": "<f8"}, "0.0"),
        ({"dtype": "<i4"}, "dtype"),
        ({"compressor": {"id": "lzma"}}, "compressor"),
        ({"compressor": {"id": "zlib"}}, "compressor"),
        ({"compressor": "gzip"}, "target/w/kernel"),
        ({"compressor": {"id": ["gzip"]}}, "compressor"),
        ({"filters": [{"id": "delta"}]}, "filters"),
        ({"order": "X"}, "order"),
        ({"dimension_separator": "../"}, "dimension_separator"),
        ({"zarr_format": 3}, "zarr_format"),
    ],
)
def test_absurd_metadata(tmp_path, changes, key):
    directory = write_one(tmp_path, ARRAY, compressor=None)
    edit_metadata(directory, **changes)
    refused(tmp_path, str(directory), "target/w/kernel", key)


def test_grid_of_absurd_size_ends_at_its_first_missing_chunk(tmp_path):
    directory = write_one(tmp_path, ARRAY[:1, :1])
    shape = [2**29, 2**30]
    edit_metadata(directory, shape=shape, chunks=[1, 1])
    write_msgpack(tmp_path, {"w": {"kernel": spec_of("target.w.kernel", ARRAY, {"shape": shape})}})
    refused(tmp_path, "target/w/kernel", "0.1")


def test_large_chunk_claimed_by_a_small_file(tmp_path):
    directory = write_one(tmp_path, ARRAY)
    edit_metadata(directory, chunks=[2**17, 2**17])
    refused(tmp_path, "0.0", "target/w/kernel", "cannot hold")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"shape": NaN}', b'{"a": 1, "a": 2}', b"\xff\xfe", b"[" * 10**5]
)
def test_zarray_that_is_no_json(tmp_path, content):
    directory = write_one(tmp_path, ARRAY)
    (directory / ".zarray").write_bytes(content)
    refused(tmp_path, ".zarray", "target/w/kernel")


# The msgpack file


def test_whatever_is_no_checkpoint(tmp_path):
    refused(tmp_path / "nothing", "nothing")
    refused(tmp_path, "checkpoint_<step>")
    with pytest.raises(CheckpointError, match="expected a local path, gs://"):
        read_t5x_checkpoint("https://host/checkpoint_1000")
    with pytest.raises(CheckpointError, match="dtype"):
        read_t5x_checkpoint(tmp_path, dtype="int8")
    with pytest.raises(CheckpointError, match="dtype"):
        read_t5x_checkpoint(tmp_path, dtype="float33")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        b"\x80\x04\x95",  # pickle
        b"\xdf\xff\xff\xff\xff",  # a map of four billion
        b"\xc9\xff\xff\xff\xff\x01",  # an extension of four gigabytes
        b"\x81" * 5000 + b"\x01",
        b"\x81\xa7version" * 3000,
        msgpack.packb([1, 2]),
        msgpack.packb({"version": 3}),
        msgpack.packb({"version": 4, "optimizer": {}}),
        msgpack.packb({"version": "3", "optimizer": {}}),
        msgpack.packb({"version": 3, "optimizer": 5}),
        msgpack.packb({"version": 3, "optimizer": {"state": {}}}),
        msgpack.packb({"version": 3, "optimizer": {"target": {}}}),
        msgpack.packb({"version": 3, "optimizer": {"target": 1.0}}),
        msgpack.packb({"version": 3, "optimizer": {"target": {"a/b": 1.0}}}),
        msgpack.packb({"version": 3, "optimizer": {"target": {"": 1.0}}}),
        msgpack.packb({"version": 3, "optimizer": {"target": {"w": "text"}}}),
        msgpack.packb({"version": 3, "optimizer": {"target": {"w": [1.0]}}}),
        msgpack.packb({"version": 3, "optimizer": {"target": {"w": b"bytes"}}}),
        b"\x82\xa1a\x01\xa1a\x02",  # a key twice
    ],
)
def test_file_of_another_kind(tmp_path, content):
    (tmp_path / "checkpoint").write_bytes(content)
    refused(tmp_path, str(tmp_path / "checkpoint"))


def inline(shape, dtype, buffer, code: int = 1) -> bytes:
    array = msgpack.ExtType(code, msgpack.packb((shape, dtype, buffer)))
    return msgpack.packb({"version": 3, "optimizer": {"target": {"w": array}}})


@pytest.mark.parametrize(
    "content",
    [
        inline([2], "float32", b"1234567"),
        inline([2**40, 2**40], "float32", b""),
        inline([-1], "float32", b"1234"),
        inline([1.0], "float32", b"1234"),
        inline(1, "float32", b"1234"),
        inline([1], "object", b"12345678"),
        inline([1], "U1", b"1234"),
        inline([1], "float32", 7),
        inline([1], 7, b"1234"),
        inline([1], "float32,float32", b"12345678"),
        inline([1] * 33, "float32", b"1234"),
        inline([1], "float32", b"1234", code=2),
        inline([1], "float32", b"1234", code=99),
        msgpack.packb({"version": 3, "optimizer": {"target": {"w": msgpack.ExtType(1, b"\x93")}}}),
        msgpack.packb({"version": 3, "optimizer": {"target": {"w": msgpack.Timestamp(0)}}}),
    ],
)
def test_broken_inline_array(tmp_path, content):
    (tmp_path / "checkpoint").write_bytes(content)
    refused(tmp_path, str(tmp_path / "checkpoint"), "target/w")


@pytest.mark.parametrize(
    "pieces",
    [
        {"shape": {"0": 5}, "chunks": {"0": np.zeros(4, np.float32)}},
        {"shape": {"0": -1}, "chunks": {"0": np.zeros(1, np.float32)}},
        {"shape": {"1": 4}, "chunks": {"0": np.zeros(4, np.float32)}},
        {"shape": {"0": 4}, "chunks": {}},
        {"shape": {"0": 4}},
        {"shape": {"0": 4.0}, "chunks": {"0": np.zeros(4, np.float32)}},
        {"shape": {"0": 4}, "chunks": {"0": np.zeros((2, 2), np.float32)}},
        {"shape": {"0": 4}, "chunks": {"0": np.zeros(2, np.float32), "1": np.zeros(2, np.float64)}},
    ],
)
def test_broken_array_in_pieces(tmp_path, pieces):
    write_msgpack(tmp_path, {"w": {"__msgpack_chunked_array__": True, **pieces}})
    refused(tmp_path, "target/w")


def test_index_and_array_must_agree(tmp_path):
    metadata = write_zarr(tmp_path / "w", ARRAY)
    write_msgpack(tmp_path, {"w": spec_of("w", ARRAY, metadata | {"shape": [6, 8]})})
    refused(tmp_path, "target/w", "(6, 8)", "(8, 6)")
    write_msgpack(tmp_path, {"w": spec_of("w", ARRAY.astype(np.float64), metadata)})
    refused(tmp_path, "target/w", "float64", "float32")


def test_a_file_of_another_kind_lies_in_the_directory_that_was_meant(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"{}")
    refused(tmp_path / "model.safetensors", "expected a checkpoint's directory, or a msgpack file as T5X writes it")


@pytest.mark.parametrize("step", ["text", 1.5, np.zeros(2, np.int32)])
def test_step_that_is_no_number(tmp_path, step):
    write_msgpack(tmp_path, {"w": ARRAY}, step=step)
    with pytest.raises(CheckpointError, match="state/step"):
        look_at_t5x_state(tmp_path)


VALID = serialization.msgpack_serialize(
    {
        "version": 3,
        "optimizer": {
            "target": {"a": {"kernel": ARRAY}, "b": np.float32(1.0), "c": spec_of("c", ARRAY, {"shape": [8, 6]})},
            "state": {"step": np.int32(7)},
        },
    }
)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("fuzzed")
    write_zarr(folder / "c", ARRAY)
    return folder


def expect_tree_or_error(folder: pathlib.Path) -> None:
    try:
        tree = read_t5x_checkpoint(folder)
    except CheckpointError:
        return
    assert tree


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_in_the_msgpack_file(fuzzed, changes):
    data = bytearray(VALID)
    for place, byte in changes:
        data[place] = byte
    (fuzzed / "checkpoint").write_bytes(data)
    expect_tree_or_error(fuzzed)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(VALID) - 1))
def test_truncated_msgpack_file(fuzzed, length):
    (fuzzed / "checkpoint").write_bytes(VALID[:length])
    refused(fuzzed, "checkpoint")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["shape", "chunks", "dtype", "compressor", "order", "filters", "fill_value"]), JSON)
def test_any_value_in_the_zarr_metadata(tmp_path_factory, key, value):
    folder = tmp_path_factory.mktemp("fuzz")
    directory = write_one(folder, ARRAY)
    edit_metadata(directory, **{key: value})
    expect_tree_or_error(folder)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["0.0", ".zarray"]))
def test_any_bytes_in_a_file(tmp_path_factory, content, name):
    folder = tmp_path_factory.mktemp("fuzz")
    directory = write_one(folder, ARRAY)
    (directory / name).write_bytes(content)
    refused(folder, "target/w/kernel")


def test_gzip_header_that_lies_about_its_size(tmp_path):
    directory = write_one(tmp_path, ARRAY)
    data = (directory / "0.0").read_bytes()
    (directory / "0.0").write_bytes(data[:-4] + struct.pack("<I", 2**31))
    refused(tmp_path, str(directory), "target/w/kernel")
