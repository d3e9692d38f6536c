"""Our reader and writer of safetensors files, held to the safetensors library's."""

from __future__ import annotations

import json
import pathlib
import struct
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from hyperflax.checkpoints.safetensors_files import Tensor, open_tensors, write_tensors
from hyperflax.errors import CheckpointError

DTYPES = [np.float16, np.float32, np.float64, ml_dtypes.bfloat16]


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"matrix": (5, 3), "vector": (7,), "scalar": (), "empty": (0, 4)}
    return {
        f"{name}.{np.dtype(dtype).name}": rng.normal(size=shape).astype(dtype)
        for name, shape in shapes.items()
        for dtype in DTYPES
    }


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    with open_tensors(path) as tensors:
        return {name: tensors.read(name) for name in tensors.shapes}


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype), name
        assert found[name].tobytes() == array.tobytes(), name


def test_what_the_library_writes_is_read(tmp_path):
    save_file(arrays(), tmp_path / "file", metadata={"format": "pt"})
    found = read(tmp_path / "file")
    same(found, arrays())
    assert all(array.flags.writeable for array in found.values())


def test_what_is_written_the_library_reads(tmp_path):
    tensors = [Tensor(name, array.shape, array.dtype, lambda array=array: array) for name, array in arrays().items()]
    write_tensors(tmp_path / "file", tensors)
    same(load_file(tmp_path / "file"), arrays())


def test_other_numbers_are_told_of_and_not_read(tmp_path):
    save_file({"count": np.arange(3), "flag": np.ones(2, bool)}, tmp_path / "file")
    with open_tensors(tmp_path / "file") as tensors:
        assert tensors.shapes == {"count": (3,), "flag": (2,)}
        with pytest.raises(CheckpointError, match=r"tensor 'count'.*floating"):
            tensors.read("count")


def test_a_file_cut_while_it_is_open(tmp_path):
    save_file({"w": np.ones(1000, np.float32)}, tmp_path / "file")
    with open_tensors(tmp_path / "file") as tensors:
        with (tmp_path / "file").open("r+b") as stream:
            stream.truncate(200)
        with pytest.raises(CheckpointError, match=r"tensor 'w'.*expected 4,000 bytes"):
            tensors.read("w")


def written(path: pathlib.Path, header: dict[str, Any], data: bytes) -> pathlib.Path:
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)
    return path


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]},
        {"dtype": "F32", "shape": [1], "data_offsets": {"0": 0, "4": 4}},
        {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1]},
        {"shape": [1], "data_offsets": [0, 4]},
        [],
        None,
    ],
)
def test_entries_that_are_refused_by_name(tmp_path, entry):
    file = written(tmp_path / "file", {"w": entry}, b"\0" * 4)
    with pytest.raises(CheckpointError, match=r"file: tensor 'w'"):
        read(file)
    with pytest.raises(safetensors.SafetensorError):
        load_file(file)


def test_tensors_must_follow_one_another(tmp_path):
    word = {"dtype": "F32", "shape": [1]}
    for second in ([0, 4], [2, 6], [8, 12]):
        header = {"a": {**word, "data_offsets": [0, 4]}, "b": {**word, "data_offsets": second}}
        with pytest.raises(CheckpointError, match="tensor 'b': expected to begin"):
            read(written(tmp_path / "file", header, b"\0" * 12))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_is_taken_the_library_takes_too(tmp_path, data):
    """A damaged file is refused, or read as the library reads it; never taken where the library refuses."""
    file = tmp_path / "file"
    save_file({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float16)}, file)
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(
            st.sampled_from(b'0123456789[]{},:"FI \x00\xff')
        )
    file.write_bytes(bytes(content[: data.draw(st.sampled_from([len(content), len(content) - 1, 40]))]))
    try:
        found = read(file)
    except CheckpointError:
        return
    same(found, load_file(file))
