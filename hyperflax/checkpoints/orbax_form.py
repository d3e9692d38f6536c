"""T5X's checkpoints in Orbax's form, today's default of its train.py, read and written without T5X.

    checkpoint_1000/_CHECKPOINT_METADATA
    checkpoint_1000/state/               the arrays, in OCDBT files, named `target.encoder.encoder_norm.scale` ...

T5X's own loader of checkpoints for inference cannot read this form. Reading goes through TensorStore alone and takes
files with and without OCDBT, of zarr versions 2 and 3; writing is Orbax's own, so that T5X restores it.

>>> params = read_orbax("runs/t5/checkpoint_1000")
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Callable, Collection
from typing import Any

import jax
import numpy as np

from hyperflax import trees
from hyperflax.buckets import BucketPath, Location, kvstore, locate
from hyperflax.checkpoints.fingerprint import as_numpy
from hyperflax.checkpoints.lazy import LazyArray
from hyperflax.checkpoints.t5x_index import LEGACY_FILE, check_new_step, check_step, step_directories
from hyperflax.checkpoints.zarr import ZarrArray, chunk_fits, chunk_size, floating_dtype, read_arrays, unreadable
from hyperflax.errors import CheckpointError, HyperflaxError
from hyperflax.files import array_writing, atomic_directory
from hyperflax.json_files import read_json
from hyperflax.types import PyTree

_METADATA, _ITEM, _MANIFEST = "_CHECKPOINT_METADATA", "state", "manifest.ocdbt"
_COMMITTED = "commit_success.txt"
_STEP = "state/step"
_TREE_METADATA = "_METADATA"  # inside the item: every leaf's keys, where a key may itself hold a dot
_ARRAY = re.compile(r"([^/]+)/(\.zarray|zarr\.json)")
_DRIVERS = {".zarray": "zarr", "zarr.json": "zarr3"}
_OWN = "params"  # where a run of hyperflax has what T5X has under `target`
# No compressor makes a byte stand for more: what the arrays claim is held against what the files hold.
_RATIO, _SLACK = 32768, 2**20


def find_orbax(path: Location | str, step: int | None = None) -> Location | None:
    """Returns the directory of the checkpoint that `path` means, or None if there is none in this form.

    Args:
      path: the checkpoint's directory, or a run's with `checkpoint_<step>` inside; local or in a bucket.
      step: which one of a run's checkpoints; by default the latest finished one, which may be in the legacy form.

    Raises:
      CheckpointError: a step, and `path` is another checkpoint's directory; or one that Orbax has not finished.
    """
    path = locate(path)
    if (path / _ITEM).is_dir():
        check_step(path, step)
        return path
    if not path.is_dir():
        return None
    directories = step_directories(path)
    orbax = {number: entry for number, entry in directories.items() if (entry / _ITEM).is_dir()}
    steps = {*_finished(orbax), *(number for number, entry in directories.items() if (entry / LEGACY_FILE).is_file())}
    if step in orbax and step not in steps:
        raise CheckpointError(
            f"{orbax[step]}: expected a finished checkpoint, found no {_COMMITTED}, which Orbax writes last; "
            f"finished are {sorted(steps)}"
        )
    return orbax.get(max(steps, default=-1) if step is None else step)


def _finished(steps: dict[int, Location]) -> Collection[int]:
    """Leaves out what Orbax has not finished in a bucket, where no rename tells: its marker comes last.

    A run copied from a disk has no markers. It is taken for finished, as it was there.
    """
    marked = [n for n, entry in steps.items() if isinstance(entry, BucketPath) and (entry / _COMMITTED).is_file()]
    return marked or steps


def read_orbax(
    path: Location | str,
    *,
    dtype: str | None = None,
    step: int | None = None,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> dict[str, Any]:
    """Reads the model's parameters; the optimizer's state is left on the disk.

    Args:
      path, step: as for `find_orbax`.
      dtype: cast floating leaves to this dtype; None keeps what is stored.
      progress: called with the number of bytes read, array by array.

    Returns:
      A nested dict of numpy arrays.

    Raises:
      CheckpointError: no such checkpoint, or a damaged or hostile one; names the directory and the leaf.
    """
    return _read(_found(path, step), "target", None if dtype is None else floating_dtype(dtype, path), progress)


def read_orbax_state(
    path: Location | str, step: int | None = None, *, progress: Callable[[int], None] = lambda nbytes: None
) -> dict[str, Any]:
    """Returns the optimizer's state as it is stored, `step` included; see `read_t5x_state`. Arguments as above."""
    return _read(_found(path, step), "state", None, progress)


def look_at_orbax_state(path: Location | str, step: int | None = None) -> tuple[int, bool]:
    """Returns the number of training steps, 0 where none is told, and whether there is more of an optimizer's state.

    Arguments and errors as above.
    """
    folder = _found(path, step)
    arrays = open_branch(folder, "state")
    more = any(name != _STEP for name in arrays)
    if _STEP not in arrays:
        return 0, more
    if math.prod(arrays[_STEP].shape) != 1 or arrays[_STEP].dtype.kind not in "iu":
        raise CheckpointError(f"{folder / _ITEM}: leaf '{_STEP}': expected one integer")
    return int(read_arrays({_STEP: arrays[_STEP]}, lambda _, array: array)[_STEP].reshape(())), more


def write_orbax(
    directory: pathlib.Path | str,
    params: PyTree,
    *,
    step: int,
    state: PyTree | None = None,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> pathlib.Path:
    """Writes `checkpoint_<step>` into a new directory. Arguments, result and errors as for `write_t5x_checkpoint`."""
    import orbax.checkpoint as ocp
    from orbax.checkpoint import type_handlers

    check_new_step(directory, step)
    slots = {path: _lazy(path, value) for path, value in trees.flatten(state or {}).items() if path != "step"}
    tree = {
        "target": trees.map_with_path(_lazy, params),
        "state": {"step": _lazy("step", np.asarray(step, np.int32)), **trees.unflatten(slots)},
    }
    total = sum(leaf.nbytes for leaf in trees.flatten(tree).values())
    writer = _one_at_a_time(chunk_size(total), progress)
    # There are no arrays of jax in the tree; Orbax warns where nothing would write them.
    registry = type_handlers.create_type_handler_registry((LazyArray, writer), (jax.Array, writer))
    name = f"checkpoint_{step}"
    with atomic_directory(directory) as folder:
        (folder / name / "dataset").mkdir(parents=True)
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, type_handler_registry=registry)
        with array_writing(directory), ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save((folder / name / _ITEM).resolve(), tree)
        handlers = {"state": "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler"}
        (folder / name / _METADATA).write_text(json.dumps({"item_handlers": handlers, "metrics": {}}))
    return pathlib.Path(directory) / name


def _read(folder: Location, branch: str, target: np.dtype | None, progress: Callable[[int], None]) -> dict[str, Any]:
    item = folder / _ITEM
    arrays = open_branch(folder, branch)
    if not arrays:
        raise CheckpointError(f"{item}: expected leaves under '{branch}', found none")
    claimed = sum(array.nbytes for array in arrays.values())
    if isinstance(item, pathlib.Path):  # a bucket's list of names tells no sizes
        held = sum(file.stat().st_size for file in item.rglob("*") if file.is_file())
        if claimed > held * _RATIO + _SLACK:
            raise CheckpointError(f"{item}: claims {claimed:,} bytes of arrays, which files of {held:,} cannot hold")

    def finish(name: str, array: np.ndarray) -> np.ndarray:
        floating = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
        return array.astype(target) if target is not None and floating and array.dtype != target else array

    flat = read_arrays(arrays, finish, progress)
    try:
        return trees.unflatten({name.removeprefix(f"{branch}/"): array for name, array in flat.items()})
    except HyperflaxError as error:
        raise CheckpointError(f"{item}: {error}") from error


def _lazy(path: str, value: Any) -> LazyArray:
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        as_numpy(path, value)  # which refuses it
    return LazyArray(tuple(value.shape), np.dtype(value.dtype.name), lambda: as_numpy(path, value))


def _one_at_a_time(chunk: int, progress: Callable[[int], None]) -> Any:
    """Returns what Orbax is to write a `LazyArray` with; its own way copies every array before it writes the first.

    Chunks have at most `chunk` bytes.
    """
    from orbax.checkpoint import type_handlers

    def in_chunks(arg: Any) -> Any:
        return dataclasses.replace(arg or type_handlers.SaveArgs(), chunk_byte_size=chunk)

    class OneAtATime(type_handlers.NumpyHandler):
        def __init__(self) -> None:
            super().__init__(deepcopy_host_arrays=False)

        async def serialize(self, values: Any, infos: Any, args: Any = None) -> list[Any]:
            for value, info, arg in zip(values, infos, args, strict=True):
                array = np.asarray(value)
                for writing in await super().serialize([array], [info], [in_chunks(arg)]):
                    writing.result()
                progress(array.nbytes)
                del array, writing  # before the next one is made
            return []

    return OneAtATime()


def _found(path: Location | str, step: int | None) -> Location:
    folder = find_orbax(path, step)
    if folder is None:
        what = "a checkpoint" if step is None else f"checkpoint_{step}"
        raise CheckpointError(f"{path}: expected {what} in Orbax's form, a directory with '{_ITEM}' inside")
    return folder


def open_branch(directory: Location, branch: str) -> dict[str, ZarrArray]:
    """Opens the arrays of T5X's `target` or `state`, see `open_arrays`.

    Raises:
      CheckpointError: as `open_arrays`; or it is no checkpoint of T5X but one of a run of hyperflax.
    """
    arrays = open_arrays(directory)
    # In a bucket a run has them in folders, which nothing of Orbax's is.
    if any(name.startswith(f"{_OWN}/") for name in arrays) or (directory / _ITEM / _OWN).is_dir():
        raise CheckpointError(
            f"{directory}: expected a checkpoint of T5X, found a training checkpoint of hyperflax; name the model that "
            "its run exported, MODEL_DIR/model"
        )
    return {name: array for name, array in arrays.items() if name.startswith(f"{branch}/")}


def open_arrays(directory: Location) -> dict[str, ZarrArray]:
    """Opens every array of a checkpoint's directory, without reading values.

    Returns:
      `{path: array}`, `target/...` and `state/...`.

    Raises:
      CheckpointError: damaged files; names the directory and the leaf.
    """
    import tensorstore as ts

    item = directory / _ITEM
    base: dict[str, Any] = kvstore(item.resolve() if isinstance(item, pathlib.Path) else item)
    if (item / _MANIFEST).is_file():
        base = {"driver": "ocdbt", "base": base}
    try:
        keys = {key.decode() for key in ts.KvStore.open(base).result().list().result()}
    except (ValueError, OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{item}: expected Orbax's files, {error}") from error
    opened = {}
    for match in filter(None, map(_ARRAY.fullmatch, sorted(keys))):
        store = {**base, "path": f"{base.get('path', '')}{match[1]}/"}
        spec = {"driver": _DRIVERS[match[2]], "kvstore": store, "fill_missing_data_reads": False}
        opened[match[1]] = (spec, ts.open(spec, open=True, read=True))
    found, paths = {}, _paths(item)
    for name, (spec, future) in opened.items():
        try:
            store = future.result()
        except (ValueError, OSError, NotImplementedError) as error:
            raise CheckpointError(f"{item}: leaf '{name}': cannot be opened, {error}") from error
        if math.prod(store.shape) >= 2**60:
            raise CheckpointError(f"{item}: leaf '{name}': expected a shape that fits in memory, got {store.shape}")
        array = ZarrArray(name, item, tuple(store.shape), store.dtype.numpy_dtype, spec["driver"], spec["kvstore"])
        _check_storage(array, store)
        found[paths.get(name, name.replace(".", "/"))] = array
    return found


def _check_storage(array: ZarrArray, store: Any) -> None:
    """Raises CheckpointError where a chunk could ask for more memory than its array: no file vouches for its size."""
    for kind in ("read_chunk", "write_chunk"):  # one is a part of the other where chunks lie in shards
        sizes = getattr(store.chunk_layout, kind).shape or ()
        if not chunk_fits(math.prod(sizes) * array.dtype.itemsize, array):
            raise unreadable(array, f"expected chunks no larger than its shape {array.shape}, got {tuple(sizes)}")
    if _blosc(store.spec().to_json().get("metadata")):
        raise unreadable(array, "expected gzip, zstd or no compressor; blosc allocates whatever a chunk says it holds")


def _blosc(metadata: Any) -> bool:
    if isinstance(metadata, dict):
        return "blosc" in (metadata.get("id"), metadata.get("name")) or any(map(_blosc, metadata.values()))
    return isinstance(metadata, list) and any(map(_blosc, metadata))


def _paths(item: Location) -> dict[str, str]:
    """Returns the path of every array by its name in the files, as Orbax's own metadata tells; {} where there is none.

    Raises:
      CheckpointError: that file is damaged.
    """
    file = item / _TREE_METADATA
    if not file.is_file():
        return {}
    content = read_json(file)
    try:
        keys = [[str(entry["key"]) for entry in leaf["key_metadata"]] for leaf in content["tree_metadata"].values()]
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: expected Orbax's description of a tree, {error!r}") from error
    return {".".join(parts): trees.SEPARATOR.join(parts) for parts in keys}
