"""Nested dicts of arrays in one safetensors file: the tensors' names are the leaves' paths.

Float32 leaves can be stored as bfloat16 to halve the file. What is lost is lost at saving: loading gives float32 arrays
of the rounded values, and the file itself says which leaves these are. Leaves that are bfloat16 in memory stay so.

>>> save_tree("base.safetensors", params, dtype="bfloat16")
>>> loaded = load_tree("base.safetensors")  # equal to rounded(params, "bfloat16")
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import ml_dtypes
import numpy as np

from hyperflax import trees
from hyperflax.buckets import Location
from hyperflax.checkpoints.fingerprint import as_numpy
from hyperflax.errors import CheckpointError, HyperflaxError
from hyperflax.files import atomic_file, require_file
from hyperflax.types import PyTree

StorageDtype = Literal["bfloat16"]

_ALIGNMENT = 64  # bytes
_ROUNDED = "hyperflax_rounded_from_float32"


def rounded(tree: PyTree, dtype: StorageDtype | None) -> dict[str, Any]:
    """Returns what `load_tree` gives after `save_tree(..., dtype)`: float32 leaves hold values that `dtype` can hold.

    Take scores and fingerprints from this tree if the model is going to be saved in `dtype`.
    """
    _check_dtype(dtype)

    def leaf(path: str, value: Any) -> np.ndarray:
        array = as_numpy(path, value)
        if dtype is None or array.dtype != np.float32:
            return array
        return array.astype(ml_dtypes.bfloat16).astype(np.float32)

    return trees.map_with_path(leaf, tree)


def save_tree(path: Location | str, tree: PyTree, *, dtype: StorageDtype | None = None) -> None:
    """Writes the tree, atomically.

    Args:
      path: the file, by custom `NAME.safetensors`.
      tree: nested dict of numpy or jax arrays.
      dtype: store float32 leaves in this dtype; None stores every leaf as it is.

    Raises:
      CheckpointError: a leaf is no array, the tree is empty, or safetensors cannot hold a leaf's dtype.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    _check_dtype(dtype)
    arrays = {name: as_numpy(name, leaf) for name, leaf in trees.flatten(tree).items()}
    if not arrays:
        raise CheckpointError(f"{path}: not written, the tree has no arrays")
    narrowed = [name for name, array in arrays.items() if dtype is not None and array.dtype == np.float32]
    for name in narrowed:
        arrays[name] = arrays[name].astype(ml_dtypes.bfloat16)
    metadata = {_ROUNDED: json.dumps(narrowed)} if narrowed else None  # one key: safetensors shuffles several
    with atomic_file(path) as temporary:
        temporary.touch()
        mode = (
            temporary.stat().st_mode
        )  # what the user's umask gives; safetensors writes files that nobody else may read
        try:
            save_file(arrays, temporary, metadata=metadata)
        except (KeyError, ValueError, TypeError, SafetensorError) as error:  # the last for a full disk, among others
            raise CheckpointError(f"{path}: not written, {error}") from error
        temporary.chmod(mode)


def load_tree(path: pathlib.Path | str, *, progress: Callable[[int], None] = lambda nbytes: None) -> dict[str, Any]:
    """Returns the nested dict of numpy arrays in a safetensors file, whoever wrote it.

    `progress` is called with the number of bytes read, array by array.

    Raises:
      CheckpointError: no file, a truncated or foreign file, or tensor names that make no tree.
    """
    import safetensors

    path = pathlib.Path(path)
    require_file(path)
    arrays: dict[str, np.ndarray] = {}
    try:
        with safetensors.safe_open(path, framework="np") as file:
            names = file.keys()
            narrowed = set(_narrowed(path, file.metadata() or {}))
            if missing := sorted(narrowed.difference(names)):
                raise _not_narrowed(path, missing[0])
            for name in names:
                array = _tensor(file, path, name)
                progress(array.nbytes)
                if name in narrowed and array.dtype != ml_dtypes.bfloat16:
                    raise _not_narrowed(path, name)
                arrays[name] = _aligned(array, np.float32 if name in narrowed else array.dtype)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: expected a safetensors file, {error}") from error
    return tree_of(path, arrays)


def tree_of(path: pathlib.Path, arrays: dict[str, Any]) -> dict[str, Any]:
    """Nests leaves named by '/'-joined paths; CheckpointError naming the file where the names contradict each other."""
    try:
        tree = trees.unflatten(arrays)
        trees.flatten(tree)  # refuses empty keys
    except HyperflaxError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return tree


def _aligned(array: np.ndarray, dtype: Any) -> np.ndarray:
    """A copy where XLA wants its arrays: on a CPU `jax.device_put` takes it as it is, and a model is in memory once."""
    size = array.size * np.dtype(dtype).itemsize
    room = np.empty(size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    copy = room[start : start + size].view(dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _tensor(file: Any, path: pathlib.Path, name: str) -> np.ndarray:
    try:
        return file.get_tensor(name)
    except (TypeError, KeyError, AttributeError) as error:  # a dtype that numpy lacks, such as a 4-bit float
        raise CheckpointError(f"{path}: leaf '{name}': expected a dtype that numpy knows ({error})") from error
    except (ValueError, OverflowError) as error:  # [0, 2**62]
        raise CheckpointError(f"{path}: leaf '{name}': expected a shape that numpy can have ({error})") from error


def _not_narrowed(path: pathlib.Path, name: str) -> CheckpointError:
    return CheckpointError(f"{path}: leaf '{name}': expected bfloat16 values, as the file's metadata says")


def _narrowed(path: pathlib.Path, metadata: dict[str, str]) -> list[str]:
    """Names of the leaves that were float32 before they were stored."""
    if _ROUNDED not in metadata:
        return []
    try:
        names = json.loads(metadata[_ROUNDED])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: metadata '{_ROUNDED}': expected json, {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{path}: metadata '{_ROUNDED}': expected a list of leaf paths")
    return names


def _check_dtype(dtype: Any) -> None:
    if dtype not in (None, "bfloat16"):
        raise CheckpointError(f"storage dtype: expected None or 'bfloat16', got {dtype!r}")
