"""Parameters from a T5X checkpoint in the legacy form (msgpack + zarr), without T5X and without TensorFlow.

Public T5 checkpoints have this form. The tree comes back with T5X's names, as it was stored: `encoder/layers_0/...` or,
from scalable_t5, all layers in one array (`encoder/encoder/...`, layers on axis 1).

>>> params = read_t5x_checkpoint("t5_1_1_small/checkpoint_1000000")
>>> params["encoder"]["layers_0"]["attention"]["query"]["kernel"].shape
(512, 384)
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from hyperflax import trees
from hyperflax.buckets import Location
from hyperflax.checkpoints.t5x_index import Stored, T5XIndex, read_index
from hyperflax.checkpoints.zarr import (
    FILE_THREADS,
    ZarrArray,
    floating_dtype,
    inspect_array,
    is_floating,
    read_arrays,
)
from hyperflax.errors import CheckpointError

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_UINT16 = np.dtype(np.uint16)


def read_t5x_checkpoint(
    path: Location | str,
    *,
    dtype: str | None = None,
    step: int | None = None,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> dict[str, Any]:
    """Reads the model's parameters; the optimizer's state is left on the disk.

    Args:
      path: the checkpoint's directory, its msgpack file, or a run's directory with `checkpoint_<step>` inside; a local
        path, or a directory in a bucket, `gs://...` or `s3://...`.
      dtype: cast floating leaves to this dtype, `"float32"` or `"bfloat16"`; None keeps what is stored.
      step: which one of a run's checkpoints; the latest by default.
      progress: called with the number of bytes read, array by array.

    Returns:
      A nested dict of numpy arrays (ml_dtypes.bfloat16 where that is stored).

    Raises:
      CheckpointError: no such checkpoint, or a damaged, incomplete or hostile one; names the file and the leaf.
    """
    target = None if dtype is None else floating_dtype(dtype, path)
    return trees.unflatten(_read(read_index(path, step), ("target",), target, progress))


def look_at_t5x_state(path: Location | str, step: int | None = None) -> tuple[int, bool]:
    """Returns the number of training steps, 0 where none is told, and whether there is more of an optimizer's state.

    Arguments as above.

    Raises:
      CheckpointError: as above, or the step is no integer.
    """
    index = read_index(path, step)
    paths = index.paths("state")
    return _step(index) if "step" in paths else 0, any(leaf != "step" for leaf in paths)


def read_t5x_state(
    path: Location | str, step: int | None = None, *, progress: Callable[[int], None] = lambda nbytes: None
) -> dict[str, Any]:
    """Returns the optimizer's state as it is stored, `step` included: `{"step": ..., "param_states": ...}`.

    Adafactor's slots stand below each parameter's path, optax's as `param_states/0/{count, mu, nu}`; a checkpoint for
    inference has `step` alone. Arguments as above.

    Raises:
      CheckpointError: as above.
    """
    return trees.unflatten(_read(read_index(path, step), ("state",), progress=progress))


def _step(index: T5XIndex) -> int:
    value = _read(index, ("state", "step")).get("")
    if value is None or value.size != 1 or value.dtype.kind not in "iu":
        raise CheckpointError(f"{index.file}: leaf 'state/step': expected one integer")
    return int(value.reshape(()))


def _read(
    index: T5XIndex,
    branch: tuple[str, ...],
    target: np.dtype | None = None,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> dict[str, np.ndarray]:
    leaves = index.leaves(*branch)
    if not leaves or (branch == ("target",) and "" in leaves):
        raise CheckpointError(f"{index.file}: expected leaves under '{'/'.join(branch)}', found none")
    where = {path: "/".join((*branch, path)).rstrip("/") for path in leaves}

    def finish(path: str, array: np.ndarray) -> np.ndarray:
        return as_asked(index, where[path], array, target)

    arrays = read_arrays(on_disk(leaves, where), finish, progress)
    return {path: arrays[path] if isinstance(leaf, Stored) else finish(path, leaf) for path, leaf in leaves.items()}


def on_disk(leaves: Mapping[str, np.ndarray | Stored], where: Mapping[str, str]) -> dict[str, ZarrArray]:
    """Returns the arrays of those leaves that are stored, each checked against what the index says of it.

    Many are looked at at a time: in a bucket each is a round trip.

    Args:
      leaves: by path.
      where: what each is called in errors.
    """
    stored = {path: leaf for path, leaf in leaves.items() if isinstance(leaf, Stored)}
    with concurrent.futures.ThreadPoolExecutor(FILE_THREADS) as pool:
        arrays = pool.map(_on_disk, [where[path] for path in stored], stored.values())
        return dict(zip(stored, arrays, strict=True))


def _on_disk(where: str, leaf: Stored) -> ZarrArray:
    array = inspect_array(where, leaf.directory)
    file = leaf.directory / ".zarray"
    if leaf.shape is not None and leaf.shape != array.shape:
        raise CheckpointError(f"{file}: leaf '{where}': expected shape {leaf.shape} as indexed, got {array.shape}")
    stored_as_integer = array.dtype == _UINT16 and leaf.dtype == _BFLOAT16
    if leaf.dtype is not None and leaf.dtype != array.dtype and not stored_as_integer:
        raise CheckpointError(f"{file}: leaf '{where}': expected dtype {leaf.dtype} as indexed, got {array.dtype}")
    return array


def as_asked(index: T5XIndex, where: str, array: np.ndarray, target: np.dtype | None) -> np.ndarray:
    """Returns an array, or a part of one, with old bfloat16 decoded and cast to `target`."""
    if array.dtype == _UINT16:
        # Before version 3 these are bfloat16's bits. Since then no parameter is an integer; T5X refuses them as well.
        if index.version >= 3:
            raise CheckpointError(f"{index.file}: leaf '{where}': expected a floating dtype, got uint16")
        array = array.view(_BFLOAT16)
    if target is None or target == array.dtype or not is_floating(array.dtype):
        return array
    return array.astype(target)
