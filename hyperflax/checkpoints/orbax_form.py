"""T5X's checkpoints in Orbax's form, today's default of its train.py, read and written without T5X.

    checkpoint_1000/_CHECKPOINT_METADATA
    checkpoint_1000/state/               the arrays, in OCDBT files, named `target.encoder.encoder_norm.scale` ...

T5X's own loader of checkpoints for inference cannot read this form. Reading goes through TensorStore alone and takes
files with and without OCDBT, of zarr versions 2 and 3; writing is Orbax's own, so that T5X restores it.

>>> params = read_orbax("runs/t5/checkpoint_1000")
"""

from __future__ import annotations

import json
import math
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from hyperflax import trees
from hyperflax.buckets import Location, kvstore, locate
from hyperflax.checkpoints.fingerprint import as_numpy
from hyperflax.checkpoints.zarr import ZarrArray, chunk_fits, dtype_of, read_arrays, unreadable
from hyperflax.errors import CheckpointError, HyperflaxError
from hyperflax.files import atomic_directory, read_json
from hyperflax.types import PyTree

_METADATA, _ITEM, _MANIFEST = "_CHECKPOINT_METADATA", "state", "manifest.ocdbt"
_TREE_METADATA = "_METADATA"  # inside the item: every leaf's keys, where a key may itself hold a dot
_STEP_DIRECTORY = re.compile(r"checkpoint_(0|[1-9][0-9]{0,18})")
_ARRAY = re.compile(r"([^/]+)/(\.zarray|zarr\.json)")
_DRIVERS = {".zarray": "zarr", "zarr.json": "zarr3"}
# No compressor makes a byte stand for more: what the arrays claim is held against what the files hold.
_RATIO, _SLACK = 32768, 2**20


def find_orbax(path: Location | str, step: int | None = None) -> Location | None:
    """Returns the directory of the checkpoint that `path` means, or None if there is none in this form.

    Args:
      path: the checkpoint's directory, or a run's with `checkpoint_<step>` inside; local or in a bucket.
      step: which one of a run's checkpoints; the latest by default.
    """
    path = locate(path)
    if (path / _ITEM).is_dir():
        return path
    if not path.is_dir():
        return None
    matches = (_STEP_DIRECTORY.fullmatch(entry.name) for entry in path.iterdir() if (entry / _ITEM).is_dir())
    steps = sorted(int(match[1]) for match in matches if match)
    if not steps or (step is not None and step not in steps):
        return None
    return path / f"checkpoint_{steps[-1] if step is None else step}"


def read_orbax(
    path: Location | str,
    *,
    branch: str = "target",
    dtype: str | None = None,
    step: int | None = None,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> dict[str, Any]:
    """Reads the model's parameters, or another branch of the state.

    Args:
      path, step: as for `find_orbax`.
      branch: `target`, the parameters, or `state`, the optimizer's.
      dtype: cast floating leaves to this dtype; None keeps what is stored.
      progress: called with the number of bytes read, array by array.

    Returns:
      A nested dict of numpy arrays.

    Raises:
      CheckpointError: no such checkpoint, or a damaged or hostile one; names the directory and the leaf.
    """
    folder = find_orbax(path, step)
    if folder is None:
        raise CheckpointError(f"{path}: expected a checkpoint in Orbax's form, a directory with '{_ITEM}' inside")
    item = folder / _ITEM
    target = None if dtype is None else dtype_of(dtype)
    arrays = {name: array for name, array in open_arrays(folder).items() if name.startswith(f"{branch}/")}
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


def write_orbax(
    directory: pathlib.Path | str,
    params: PyTree,
    *,
    step: int,
    dtype: str | None = None,
    state: PyTree | None = None,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> pathlib.Path:
    """Writes `checkpoint_<step>` into a new directory. Arguments, result and errors as for `write_t5x_checkpoint`."""
    import orbax.checkpoint as ocp

    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise CheckpointError(f"{directory}: step: expected 0 or more, got {step!r}")
    target = None if dtype is None else dtype_of(dtype)

    def leaf(path: str, value: Any) -> np.ndarray:
        array = as_numpy(path, value)
        return array if target is None or array.dtype == target else array.astype(target)

    slots = {path: as_numpy(path, value) for path, value in trees.flatten(state or {}).items() if path != "step"}
    tree = {
        "target": trees.map_with_path(leaf, params),
        "state": {"step": np.asarray(step, np.int32), **trees.unflatten(slots)},
    }
    name = f"checkpoint_{step}"
    with atomic_directory(directory) as folder:
        (folder / name / "dataset").mkdir(parents=True)
        with ocp.PyTreeCheckpointer(use_ocdbt=True) as checkpointer:
            checkpointer.save((folder / name / _ITEM).resolve(), tree)
        handlers = {"state": "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler"}
        (folder / name / _METADATA).write_text(json.dumps({"item_handlers": handlers, "metrics": {}}))
    progress(sum(array.nbytes for array in trees.flatten(tree).values()))
    return pathlib.Path(directory) / name


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
