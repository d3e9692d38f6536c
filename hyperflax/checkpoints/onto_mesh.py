"""A T5 of T5X, read straight onto a mesh: every process reads the parts that its own devices hold, and no more.

The whole tree never lies in a host's memory, so that the largest models load where only the mesh can hold them. Both of
T5X's forms are read, unrolled or in scalable_t5's layout, and become what the configuration asks for, scanned or
unrolled: what is stored is read once, and layers are stacked or taken apart on the devices. A model in Hugging Face's
form is converted first (`hyperflax convert`).

>>> partitioner = Partitioner(make_mesh(data=1, fsdp=8))
>>> frozen = read_onto_mesh("t5_1_1_xxl/checkpoint_1000000", config, partitioner.t5_sharding)
>>> frozen["token_embedder"]["embedding"].sharding.spec
PartitionSpec('model', 'fsdp')
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from hyperflax import trees
from hyperflax.buckets import Location, locate
from hyperflax.checkpoints.orbax_form import find_orbax, open_branch
from hyperflax.checkpoints.shapes import check_shapes, join_heads, of_scalable
from hyperflax.checkpoints.t5x import as_asked, on_disk
from hyperflax.checkpoints.t5x_index import Stored, read_index
from hyperflax.checkpoints.zarr import FILE_THREADS, ZarrArray, dtype_of, in_flight_bytes, spec_of, unreadable
from hyperflax.errors import CheckpointError
from hyperflax.models.stacking import LAYER_AXIS, group_layers
from hyperflax.types import PyTree, T5Config

# (path, shape) -> where the parameter lies
Place: TypeAlias = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]
Part: TypeAlias = tuple[tuple[int, int], ...]  # (start, stop) of every dimension


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A parameter as it is stored.

    Attributes:
      leaf: in memory or on disk.
      finish: applied to every part as it arrives.
      heads: the leaf's axes of heads and of kv, where the parameter has one for both; see `of_scalable`.
    """

    leaf: np.ndarray | ZarrArray
    finish: Callable[[np.ndarray], np.ndarray]
    heads: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the parameter."""
        shape = list(self.leaf.shape)
        if self.heads is not None:
            shape[self.heads[0]] *= shape.pop(self.heads[1])
        return tuple(shape)

    def stored(self, part: Part) -> Part:
        """The smallest part of the leaf that holds a part of the parameter."""
        if self.heads is None:
            return part
        heads, kv = self.heads
        width, (start, stop) = self.leaf.shape[kv], part[heads]
        wanted = [*part]
        wanted[heads] = (start // width, -(-stop // width))
        wanted.insert(kv, (0, width))
        return tuple(wanted)

    def taken(self, values: np.ndarray, part: Part) -> np.ndarray:
        """A part of the parameter, of the values of `stored(part)`."""
        values = self.finish(values)
        if self.heads is None:
            return values
        (heads, kv), values = self.heads, join_heads(values, self.heads)
        start, stop = part[heads]
        first = start % self.leaf.shape[kv]  # a device's part need not begin with a head
        return values[(slice(None),) * heads + (slice(first, first + stop - start),)]


def read_onto_mesh(
    path: Location | str,
    config: T5Config,
    place: Place,
    *,
    dtype: str | Callable[[str], str | None] | None = None,
    step: int | None = None,
) -> PyTree:
    """Reads the model's parameters.

    Args:
      path: the checkpoint's directory or a run's, legacy or Orbax; local or in a bucket.
      config: the T5 that is expected, checked before any value is read. `scan_layers` says which layout is returned,
        whichever is stored.
      place: the sharding of each parameter, see `Partitioner.t5_sharding`; asked for parameters in both layouts.
      dtype: cast floating leaves to this dtype, part by part, or to what a function of the path says; None keeps what
        is stored.
      step: which one of a run's checkpoints; the latest by default.

    Returns:
      a nested dict of `jax.Array`s, placed.

    Raises:
      CheckpointError: no such checkpoint, a damaged one, or another model: every leaf with expected and found shape.
    """
    path = locate(path)

    def target(name: str) -> np.dtype | None:
        wanted = dtype(name) if callable(dtype) else dtype
        found = None if wanted is None else dtype_of(wanted)
        if wanted is not None and found is None:
            raise CheckpointError(f"{path}: dtype: expected a floating dtype such as 'float32', got {wanted!r}")
        return found

    folder = find_orbax(path, step)
    sources = _legacy(path, step, target) if folder is None else _orbax(folder, target)
    sources = dict(_scanned(name, source) for name, source in sources.items())
    shapes = {name: jax.ShapeDtypeStruct(source.shape, source.leaf.dtype) for name, source in sources.items()}
    scanned = any(name.startswith("encoder/layers/") for name in sources)
    check_shapes(trees.unflatten(shapes), config.replace(scan_layers=scanned), where=str(path))
    placed = place_arrays(sources, place)
    if config.scan_layers and not scanned:
        placed = _stacked(placed, config, place)
    elif scanned and not config.scan_layers:
        placed = _taken_apart(placed, place)
    return trees.unflatten(placed)


def _scanned(name: str, source: Source) -> tuple[str, Source]:
    """A leaf of scalable_t5 as a parameter of scanned layers; any other one as it is."""
    name, heads = of_scalable(name, source.leaf.shape)
    return name, dataclasses.replace(source, heads=heads)


def _stacked(placed: dict[str, jax.Array], config: T5Config, place: Place) -> dict[str, jax.Array]:
    """Scanned layers of unrolled ones, on the devices; `placed` is emptied, so that none of it is there twice."""
    flat, groups = group_layers(trees.unflatten(placed), config)
    placed.clear()
    for name in list(groups):
        layers = groups.pop(name)
        sharding = place(name, (*layers[0].shape[:LAYER_AXIS], len(layers), *layers[0].shape[LAYER_AXIS:]))
        flat[name] = jax.jit(lambda layers: jnp.stack(layers, LAYER_AXIS), out_shardings=sharding)(layers)
    return flat


def _taken_apart(placed: dict[str, jax.Array], place: Place) -> dict[str, jax.Array]:
    """The way back."""
    for name in [name for name in placed if "/layers/" in name]:
        array = placed.pop(name)
        depth, shape = array.shape[LAYER_AXIS], (*array.shape[:LAYER_AXIS], *array.shape[LAYER_AXIS + 1 :])
        names = [name.replace("/layers/", f"/layers_{layer}/") for layer in range(depth)]
        shardings = [place(name, shape) for name in names]
        layers = jax.jit(lambda array: [*jnp.unstack(array, axis=LAYER_AXIS)], out_shardings=shardings)(array)
        placed.update(zip(names, layers, strict=True))
    return placed


def _legacy(path: Location, step: int | None, target: Callable[[str], np.dtype | None]) -> dict[str, Source]:
    index = read_index(path, step)
    leaves = index.leaves("target")
    where = {name: f"target/{name}" for name in leaves}

    def source(name: str, leaf: np.ndarray | ZarrArray) -> Source:
        wanted = target(name)
        return Source(leaf, lambda part: as_asked(index, where[name], part, wanted))

    stored = on_disk(leaves, where)
    return {name: source(name, stored[name] if isinstance(leaf, Stored) else leaf) for name, leaf in leaves.items()}


def _orbax(folder: Location, target: Callable[[str], np.dtype | None]) -> dict[str, Source]:
    def source(name: str, array: ZarrArray) -> Source:
        wanted = target(name)
        return Source(array, lambda part: part if wanted is None else part.astype(wanted, copy=False))

    found = {name.removeprefix("target/"): array for name, array in open_branch(folder, "target").items()}
    return {name: source(name, array) for name, array in found.items()}


def place_arrays(sources: Mapping[str, Source], place: Place) -> dict[str, jax.Array]:
    """Returns arrays where they belong, of which every process reads what its devices hold.

    Many parts are read at a time, see `in_flight_bytes`.

    Args:
      sources: what to read, by name.
      place: (name, shape) -> sharding.

    Raises:
      CheckpointError: an array cannot be read; names it.
    """
    import tensorstore as ts

    context = ts.Context({"file_io_concurrency": {"limit": FILE_THREADS}})
    opened = {
        name: ts.open(spec_of(source.leaf), open=True, read=True, context=context)
        for name, source in sources.items()
        if isinstance(source.leaf, ZarrArray)
    }
    reading: collections.deque[tuple[str, jax.sharding.Sharding, dict[Part, Any], int]] = collections.deque()
    done: dict[str, jax.Array] = {}
    in_flight = 0
    limit = in_flight_bytes(sum(source.leaf.nbytes for source in sources.values()) // jax.process_count())

    def finish_first() -> int:
        name, sharding, parts, nbytes = reading.popleft()
        source = sources[name]
        try:
            values = {part: source.taken(np.asarray(value.result()), part) for part, value in parts.items()}
        except (ValueError, OSError, NotImplementedError) as error:
            # Arrays in memory are never read.
            raise unreadable(source.leaf, str(error)) from error  # pyrefly: ignore[bad-argument-type]
        shape = source.shape
        done[name] = jax.make_array_from_callback(shape, sharding, lambda index: values[_part(index, shape)])
        return nbytes

    for name, source in sources.items():
        leaf, shape = source.leaf, source.shape
        sharding = place(name, shape)
        if isinstance(leaf, np.ndarray):
            values = source.taken(leaf, tuple((0, size) for size in shape))
            done[name] = jax.make_array_from_callback(shape, sharding, lambda index, values=values: values[index])
            continue
        # Devices that hold the same part share one reading of it.
        indices = sharding.addressable_devices_indices_map(shape).values()
        wanted = {_part(index, shape) for index in indices}
        nbytes = sum(_size(source.stored(part)) for part in wanted) * leaf.dtype.itemsize
        while reading and in_flight + nbytes > limit:
            in_flight -= finish_first()
        try:
            store = opened.pop(name).result()
        except (ValueError, OSError, NotImplementedError) as error:
            raise unreadable(leaf, str(error)) from error
        if store.shape != leaf.shape or store.dtype.numpy_dtype != leaf.dtype:
            raise unreadable(leaf, "the metadata changed meanwhile")
        parts = {part: store[tuple(slice(*ends) for ends in source.stored(part))].read(order="C") for part in wanted}
        reading.append((name, sharding, parts, nbytes))
        in_flight += nbytes
    while reading:
        finish_first()
    return {name: done[name] for name in sources}


def _part(index: Any, shape: tuple[int, ...]) -> Part:
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _size(part: Part) -> int:
    return int(np.prod([stop - start for start, stop in part], dtype=np.int64))
