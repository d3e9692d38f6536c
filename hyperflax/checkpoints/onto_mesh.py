"""A T5 of T5X, read straight onto a mesh: every process reads the parts that its own devices hold, and no more.

The whole tree never lies in a host's memory, so that the largest models load where only the mesh can hold them. Both of
T5X's forms are read, in the layout that they have; a checkpoint that is to be stored in another layout, or one of
Hugging Face's, is converted first (`hyperflax convert`).

>>> partitioner = Partitioner(make_mesh(data=1, fsdp=8))
>>> frozen = read_onto_mesh("t5_1_1_xxl/checkpoint_1000000", config, partitioner.t5_sharding)
>>> frozen["token_embedder"]["embedding"].sharding.spec
PartitionSpec('model', 'fsdp')
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np

from hyperflax import trees
from hyperflax.buckets import Location, locate
from hyperflax.checkpoints.orbax_form import find_orbax, open_arrays
from hyperflax.checkpoints.shapes import check_shapes
from hyperflax.checkpoints.t5x import as_asked, on_disk
from hyperflax.checkpoints.t5x_index import Stored, read_index
from hyperflax.checkpoints.zarr import FILE_THREADS, IN_FLIGHT_BYTES, ZarrArray, dtype_of, spec_of, unreadable
from hyperflax.errors import CheckpointError
from hyperflax.types import PyTree, T5Config

# (path, shape) -> where the parameter lies
Place: TypeAlias = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]
# a leaf in memory or on disk, and what is done to every part of it as it arrives
Source: TypeAlias = tuple[np.ndarray | ZarrArray, Callable[[np.ndarray], np.ndarray]]
Part: TypeAlias = tuple[tuple[int, int], ...]  # (start, stop) of every dimension


def read_onto_mesh(
    path: Location | str, config: T5Config, place: Place, *, dtype: str | None = None, step: int | None = None
) -> PyTree:
    """Reads the model's parameters.

    Args:
      path: the checkpoint's directory or a run's, legacy or Orbax; local or in a bucket.
      config: the T5 that is expected, checked before any value is read.
      place: the sharding of each parameter, see `Partitioner.t5_sharding`.
      dtype: cast floating leaves to this dtype, part by part; None keeps what is stored.
      step: which one of a run's checkpoints; the latest by default.

    Returns:
      a nested dict of `jax.Array`s, placed.

    Raises:
      CheckpointError: no such checkpoint, a damaged one, or another model: every leaf with expected and found shape.
    """
    target = None if dtype is None else dtype_of(dtype)
    if dtype is not None and target is None:
        raise CheckpointError(f"{path}: dtype: expected a floating dtype such as 'float32', got {dtype!r}")
    path = locate(path)
    folder = find_orbax(path, step)
    sources = _legacy(path, step, target) if folder is None else _orbax(folder, target)
    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, (leaf, _) in sources.items()}
    check_shapes(trees.unflatten(shapes), config, where=str(path))
    return trees.unflatten(place_arrays(sources, place))


def _legacy(path: Location, step: int | None, target: np.dtype | None) -> dict[str, Source]:
    index = read_index(path, step)

    def source(name: str, leaf: np.ndarray | Stored) -> Source:
        where = f"target/{name}"
        found = on_disk(where, leaf) if isinstance(leaf, Stored) else leaf
        return found, lambda part: as_asked(index, where, part, target)

    return {name: source(name, leaf) for name, leaf in index.leaves("target").items()}


def _orbax(folder: Location, target: np.dtype | None) -> dict[str, Source]:
    def finish(part: np.ndarray) -> np.ndarray:
        return part if target is None or part.dtype == target else part.astype(target)

    prefix = "target/"
    return {
        name.removeprefix(prefix): (array, finish)
        for name, array in open_arrays(folder).items()
        if name.startswith(prefix)
    }


def place_arrays(sources: Mapping[str, Source], place: Place) -> dict[str, jax.Array]:
    """Returns arrays where they belong, of which every process reads what its devices hold.

    Many parts are read at a time; no more than 16 MiB a core wait to be placed at any moment.

    Args:
      sources: what to read, by name.
      place: (name, shape) -> sharding.

    Raises:
      CheckpointError: an array cannot be read; names it.
    """
    import tensorstore as ts

    context = ts.Context({"file_io_concurrency": {"limit": FILE_THREADS}})
    reading: collections.deque[tuple[str, jax.sharding.Sharding, dict[Part, Any], int]] = collections.deque()
    done: dict[str, jax.Array] = {}
    in_flight = 0

    def finish_first() -> int:
        name, sharding, parts, nbytes = reading.popleft()
        leaf, finish = sources[name]
        try:
            values = {part: finish(np.asarray(value.result())) for part, value in parts.items()}
        except (ValueError, OSError, NotImplementedError) as error:
            # Arrays in memory are never read.
            raise unreadable(leaf, str(error)) from error  # pyrefly: ignore[bad-argument-type]
        done[name] = jax.make_array_from_callback(leaf.shape, sharding, lambda index: values[_part(index, leaf.shape)])
        return nbytes

    for name, (leaf, finish) in sources.items():
        sharding = place(name, leaf.shape)
        if isinstance(leaf, np.ndarray):
            values = finish(leaf)
            done[name] = jax.make_array_from_callback(leaf.shape, sharding, lambda index, values=values: values[index])
            continue
        # Devices that hold the same part share one reading of it.
        indices = sharding.addressable_devices_indices_map(leaf.shape).values()
        wanted = {_part(index, leaf.shape) for index in indices}
        nbytes = sum(_size(part) for part in wanted) * leaf.dtype.itemsize
        while reading and in_flight + nbytes > IN_FLIGHT_BYTES:
            in_flight -= finish_first()
        try:
            store = ts.open(spec_of(leaf), open=True, read=True, context=context).result()
        except (ValueError, OSError, NotImplementedError) as error:
            raise unreadable(leaf, str(error)) from error
        if store.shape != leaf.shape or store.dtype.numpy_dtype != leaf.dtype:
            raise unreadable(leaf, "the metadata changed meanwhile")
        parts = {part: store[tuple(slice(*ends) for ends in part)].read(order="C") for part in wanted}
        reading.append((name, sharding, parts, nbytes))
        in_flight += nbytes
    while reading:
        finish_first()
    return {name: done[name] for name in sources}


def _part(index: Any, shape: tuple[int, ...]) -> Part:
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _size(part: Part) -> int:
    return int(np.prod([stop - start for start, stop in part], dtype=np.int64))
