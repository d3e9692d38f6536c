"""Writes T5X's legacy checkpoints in the forms that exist, independently of the reader.

Chunks and `.zarray` are written by hand (gzip, none) or by TensorStore (zstd, blosc), the msgpack file by flax.
"""

from __future__ import annotations

import gzip
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from flax import serialization


def write_zarr(
    directory: pathlib.Path, array: np.ndarray, chunks: Sequence[int] | None = None, compressor: str | None = "gzip"
) -> dict[str, Any]:
    """Writes one array; returns the metadata that T5X puts into its spec. Edge chunks have full size, as zarr wants."""
    directory.mkdir(parents=True)
    chunks = list(array.shape) if chunks is None else list(chunks)
    bf16 = array.dtype == ml_dtypes.bfloat16
    metadata = {
        "chunks": chunks,
        "compressor": {"id": compressor, "level": 1} if compressor else None,
        "dimension_separator": ".",
        "dtype": "bfloat16" if bf16 else array.dtype.str,
        "fill_value": None,
        "filters": None,
        "order": "C",
        "shape": list(array.shape),
        "zarr_format": 2,
    }
    (directory / ".zarray").write_text(json.dumps(metadata))
    grid = [range(-(-size // chunk)) for size, chunk in zip(array.shape, chunks, strict=True)]
    for index in itertools.product(*grid):
        block = np.zeros(chunks, array.dtype)
        place = tuple(slice(i * c, min((i + 1) * c, n)) for i, c, n in zip(index, chunks, array.shape, strict=True))
        part = array[place]
        block[tuple(slice(0, n) for n in part.shape)] = part
        data = block.tobytes()
        name = ".".join(map(str, index)) or "0"
        (directory / name).write_bytes(gzip.compress(data, 1, mtime=0) if compressor == "gzip" else data)
    return {"chunks": chunks, "compressor": metadata["compressor"], "shape": list(array.shape)}


def write_zarr_with_tensorstore(
    directory: pathlib.Path, array: np.ndarray, chunks: Sequence[int], compressor: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The same through TensorStore, which knows more compressors."""
    import tensorstore as ts

    metadata = {"chunks": list(chunks), "compressor": compressor, "shape": list(array.shape)}
    spec = {
        "driver": "zarr",
        "dtype": array.dtype.name,
        "kvstore": {"driver": "file", "path": f"{directory}/"},
        "metadata": metadata,
    }
    ts.open(spec, create=True).result().write(array).result()
    return metadata


def spec_of(name: str, array: np.ndarray, metadata: Mapping[str, Any], form: str = "file") -> dict[str, Any]:
    """The TensorStore spec in the msgpack file; `form` is where the writer ran and how old it was."""
    spec: dict[str, Any] = {"driver": "zarr", "dtype": array.dtype.name, "metadata": dict(metadata)}
    if form == "gcs":
        spec["kvstore"] = {"driver": "gcs", "bucket": "t5x-dummy-bucket", "path": f"{name}/"}
    elif form == "old":  # before TensorStore 0.1.14
        spec |= {"kvstore": {"driver": "file"}, "path": name}
    else:
        spec["kvstore"] = {"driver": form, "path": f"{name}/"}
    return spec


def write_msgpack(directory: pathlib.Path, target: Mapping[str, Any], *, version: int = 3, step: Any = 7) -> None:
    """Writes the msgpack file; leaves of `target` are arrays (inline) or specs."""
    optimizer = {"target": target, "state": {"step": step, "param_states": {}}}
    content = {"version": version, "optimizer": optimizer} if version else optimizer
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "checkpoint").write_bytes(serialization.msgpack_serialize(content))


def write_one(directory: pathlib.Path, array: np.ndarray, *, form: str = "file", **zarr: Any) -> pathlib.Path:
    """Writes a checkpoint with the single stored parameter `w/kernel`; returns the array's directory."""
    name = "target.w.kernel"
    metadata = write_zarr(directory / name, array, **zarr)
    write_msgpack(directory, {"w": {"kernel": spec_of(name, array, metadata, form)}})
    return directory / name
