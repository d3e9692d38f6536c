"""Checkpoints in T5X's legacy form (msgpack + zarr), which T5X restores, written without T5X and without TensorFlow.

    checkpoint_1000/checkpoint                              msgpack: version 3, the tree, where each array lies
    checkpoint_1000/target.encoder.encoder_norm.scale/      zarr, version 2, gzip, one file per chunk

Arrays that T5X never partitions stand in the msgpack file, as it puts them: Adafactor's factors and unused slots.

>>> write_t5x_checkpoint("converted", params, step=1_000_000)
>>> read_t5x_checkpoint("converted")
"""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hyperflax import trees
from hyperflax.checkpoints.fingerprint import as_numpy
from hyperflax.checkpoints.t5x_index import NEWEST_VERSION, check_new_step
from hyperflax.checkpoints.zarr import chunk_size, in_flight_bytes
from hyperflax.files import array_writing, atomic_directory
from hyperflax.types import PyTree

_COMPRESSOR = {"id": "gzip", "level": 1}  # what T5X writes
_INLINE = ("/v_row", "/v_col")


def write_t5x_checkpoint(
    directory: pathlib.Path | str,
    params: PyTree,
    *,
    step: int,
    state: PyTree | None = None,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> pathlib.Path:
    """Writes `checkpoint_<step>` into a new directory; an interruption leaves nothing that looks like one.

    Args:
      directory: where to, as T5X's MODEL_DIR. It must not exist, or be empty.
      params: nested dict with T5X's names, of either of its layouts (see `layouts.py`).
      step: number of training steps.
      state: the optimizer's state, as `read_t5x_state` gives it; None writes a checkpoint for inference and fine-tuning
        from scratch states.
      progress: called with the number of bytes written, array by array.

    Returns:
      The checkpoint's own directory.

    Raises:
      CheckpointError: a leaf is no array of numbers, or the directory may not be replaced.
    """
    check_new_step(directory, step)
    slots = {path: leaf for path, leaf in trees.flatten(state or {}).items() if path != "step"}
    name, flat = f"checkpoint_{step}", trees.flatten(params)
    total = sum(getattr(leaf, "nbytes", 0) for leaf in (*flat.values(), *slots.values()))
    with atomic_directory(directory) as folder:
        (folder / name).mkdir()
        with array_writing(directory), _Writer(folder / name, total, progress) as writer:
            tree = {
                "target": writer.write("target", flat),
                "state": {"step": np.asarray(step, np.int32), **writer.write("state", slots)},
            }
        tree["state"].setdefault("param_states", {})
        (folder / name / "checkpoint").write_bytes(_packed(tree))
    return pathlib.Path(directory) / name


class _Writer:
    """Writes arrays, of `total` bytes in all, beside each other, a bounded number of bytes at a time."""

    def __init__(self, folder: pathlib.Path, total: int, progress: Callable[[int], None]):
        self._folder = folder
        self._limit, self._chunk = in_flight_bytes(total), chunk_size(total)
        self._progress = progress
        self._writing: collections.deque[tuple[int, Any]] = collections.deque()
        self._in_flight = 0

    def write(self, branch: str, flat: Mapping[str, Any]) -> dict[str, Any]:
        """Starts to write all leaves; returns the branch of the msgpack tree that says where they are."""
        return trees.unflatten({path: self._leaf(branch, path, leaf) for path, leaf in flat.items()})

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Waits for all that is being written; after an error too, or it would come back into a deleted folder."""
        try:
            while self._writing and kind is None:
                self._wait()
        finally:
            for _, writing in self._writing:
                writing.exception()  # waits for it

    def _leaf(self, branch: str, path: str, leaf: Any) -> np.ndarray | dict[str, Any]:
        nbytes = getattr(leaf, "nbytes", 0)
        while self._writing and self._in_flight + nbytes > self._limit:  # before a lazy leaf is made
            self._wait()
        array = as_numpy(path, leaf)
        inline = array.size <= 1 or path.endswith(_INLINE)
        return array if inline else self._start(".".join((branch, *path.split("/"))), array)

    def _start(self, name: str, array: np.ndarray) -> dict[str, Any]:
        import tensorstore as ts

        row = max(1, array.nbytes // array.shape[0])
        chunks = [min(array.shape[0], max(1, self._chunk // row)), *array.shape[1:]]
        spec = {
            "driver": "zarr",
            "dtype": array.dtype.name,
            "kvstore": {"driver": "file", "path": f"{name}/"},
            "metadata": {"chunks": chunks, "compressor": _COMPRESSOR, "shape": list(array.shape)},
        }
        there = {**spec, "kvstore": {"driver": "file", "path": f"{self._folder / name}/"}}
        store = ts.open(there, create=True).result()
        # Chunk by chunk: a write of several is over with the first that fails, while the others go on.
        for first in range(0, array.shape[0], chunks[0]):
            part = array[first : first + chunks[0]]
            # Nobody changes the array, so TensorStore needs no copy of it.
            writing = store[first : first + len(part)].write(part, can_reference_source_data_indefinitely=True)
            self._writing.append((part.nbytes, writing))
            self._in_flight += part.nbytes
        return spec

    def _wait(self) -> None:
        nbytes, future = self._writing.popleft()
        future.result()
        self._in_flight -= nbytes
        self._progress(nbytes)


def _packed(tree: Mapping[str, Any]) -> bytes:
    from flax import serialization

    return serialization.msgpack_serialize({"version": NEWEST_VERSION, "optimizer": dict(tree)})
