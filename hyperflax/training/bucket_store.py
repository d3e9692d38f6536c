"""Training checkpoints in a bucket: zarr arrays by TensorStore, complete when every process has said so.

    checkpoint_200/state/params/.../zarr.json, c/0/0, ...     an array, one object a shard
    checkpoint_200/host.json                                  a small json
    checkpoint_200/done-00001-of-00004                        by each process, when all that it writes is there

Nothing can be renamed in a bucket, and nobody waits for anybody here: a checkpoint is whole when all of its processes'
marks are there. What a killed run has left without them is removed when the next one starts. Every process writes the
shards that it holds (of copies, the first one), and reads what its devices want to hold, whatever mesh wrote it.
"""

from __future__ import annotations

import concurrent.futures
import json
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from hyperflax.buckets import BucketPath, kvstore, locate
from hyperflax.checkpoints.onto_mesh import Source, place_arrays
from hyperflax.checkpoints.zarr import ZarrArray, dtype_of
from hyperflax.errors import CheckpointError
from hyperflax.json_files import read_json
from hyperflax.processes import Processes
from hyperflax.training.orbax_store import PREFIX
from hyperflax.types import Array

_STEP = re.compile(PREFIX + r"_(\d{1,18})", re.ASCII)
_DONE = re.compile(r"done-\d{5}-of-(\d{5})", re.ASCII)


class BucketStore:
    """The checkpoints below an address.

    Args:
      address: of the folder.
      keep: how many of the latest complete ones stay; None keeps all.
      asynchronous: `write` returns once the arrays are copied.
      read_only: never write nor clean up.
    """

    def __init__(self, address: str, *, keep: int | None, asynchronous: bool, read_only: bool) -> None:
        self._address, self._keep, self._asynchronous = address, keep, asynchronous
        self._processes = Processes.running()
        if not read_only:
            self._processes.wait(address)  # for what they write as a part of an earlier run
        self._steps = self._complete()
        self._writer = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: concurrent.futures.Future[None] | None = None
        if self._processes.first and not read_only:
            for folder in self._folder().iterdir():
                if _STEP.fullmatch(folder.name) and folder.name not in map(_name, self._steps):
                    _remove(folder)

    def steps(self) -> list[int]:
        """Returns the steps of what was complete at the start, or was written since."""
        return sorted(self._steps)

    def shapes(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns what a checkpoint holds, by path."""
        folder = self._folder() / _name(step)
        mark = next(name for name in sorted(found.name for found in folder.iterdir()) if _DONE.fullmatch(name))
        leaves = read_json(folder / mark)["leaves"]  # any process's: all of them name all arrays
        try:
            return {
                path: jax.ShapeDtypeStruct(tuple(shape), dtype_of(dtype)) for path, (shape, dtype) in leaves.items()
            }
        except (AttributeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{folder / mark}: its list of arrays cannot be read, {error}") from error

    def write(self, step: int, leaves: Mapping[str, Array], host: Mapping[str, Any]) -> None:
        """Writes a checkpoint, and removes the oldest beyond those that are kept."""
        self._wait()
        folder = self._folder() / _name(step)
        opened = {path: self._open(folder / "state" / path, leaf) for path, leaf in leaves.items()}
        try:
            writing = [write for path, leaf in leaves.items() for write in _write_shards(opened[path].result(), leaf)]
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{folder}: cannot be written, {error}") from error
        for future in writing:
            future.copy.result()  # from here on the arrays may be donated
        listed = {path: [list(leaf.shape), str(leaf.dtype)] for path, leaf in leaves.items()}
        self._steps = [*self._steps, step]
        self._pending = self._writer.submit(self._finish, folder, writing, {"step": step, "leaves": listed}, dict(host))
        if not self._asynchronous:
            self._wait()

    def read(self, step: int, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Array]:
        """Returns arrays, each with the sharding that is wanted for it."""
        state = self._folder() / _name(step) / "state"
        sources = {
            path: Source(ZarrArray(path, state / path, like.shape, np.dtype(like.dtype), driver="zarr3"), _as_it_is)
            for path, like in wanted.items()
        }
        return place_arrays(sources, lambda path, shape: wanted[path].sharding)

    def host(self, step: int) -> dict[str, Any]:
        """Returns the json of a checkpoint."""
        return read_json(self._folder() / _name(step) / "host.json")

    def close(self) -> None:
        """Waits for what is being written."""
        try:
            self._wait()
        finally:
            self._writer.shutdown()

    def _folder(self) -> BucketPath:
        """The place with nothing known of what is there: another process may have written."""
        return locate(self._address)  # pyrefly: ignore[bad-return]  # an address

    def _complete(self) -> list[int]:
        found = [(folder, _STEP.fullmatch(folder.name)) for folder in self._folder().iterdir()]
        return sorted(int(match[1]) for folder, match in found if match and _is_whole(folder))

    def _open(self, place: BucketPath, leaf: Array) -> Any:
        """Returns a future of TensorStore's array for a leaf, one object a shard."""
        import tensorstore as ts

        grid = {"chunk_shape": [max(1, size) for size in leaf.sharding.shard_shape(leaf.shape)]}
        metadata = {
            "shape": list(leaf.shape),
            "data_type": str(leaf.dtype),
            "chunk_grid": {"name": "regular", "configuration": grid},
        }
        spec = {
            "driver": "zarr3",
            "kvstore": kvstore(place),
            "metadata": metadata,
            "store_data_equal_to_fill_value": True,  # or a part that is missing would pass for zeros
        }
        # The first process writes what describes the array, the others need not look.
        first = self._processes.first
        return ts.open(spec, open=True, create=first, assume_metadata=not first)

    def _finish(self, folder: BucketPath, writing: list[Any], listed: dict[str, Any], host: dict[str, Any]) -> None:
        try:
            for future in writing:
                future.result()
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{folder}: cannot be written, {error}") from error
        if self._processes.first:
            (folder / "host.json").write_bytes(_json(host))
        (folder / _done(self._processes)).write_bytes(_json(listed))
        if self._processes.first and self._keep is not None:
            for step in self._complete()[: -self._keep]:
                _remove(self._folder() / _name(step))

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def _write_shards(store: Any, leaf: Array) -> list[Any]:
    """Starts to write what this process holds of an array, of copies the first one."""
    own = [shard for shard in leaf.addressable_shards if shard.replica_id == 0]
    return [store[shard.index].write(np.asarray(shard.data)) for shard in own]


def _name(step: int) -> str:
    return f"{PREFIX}_{step}"


def _done(processes: Processes) -> str:
    return f"done-{processes.index:05d}-of-{processes.count:05d}"


def _is_whole(folder: BucketPath) -> bool:
    """Whether every process of the job that wrote a checkpoint has said that it is done."""
    marks = {found.name: match for found in folder.iterdir() if (match := _DONE.fullmatch(found.name))}
    counts = {int(match[1]) for match in marks.values()}
    return any(all(_done(Processes(index, count)) in marks for index in range(count)) for count in counts if count)


def _remove(folder: BucketPath) -> None:
    """Removes a checkpoint, which is none from the first moment on."""
    for found in list(folder.iterdir()):
        if _DONE.fullmatch(found.name):
            found.unlink()
    folder.rmtree()


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode("utf-8")


def _as_it_is(part: np.ndarray) -> np.ndarray:
    return part
