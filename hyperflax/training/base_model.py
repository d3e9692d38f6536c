"""The T5 that a run starts from or adapts, read for the mesh that it trains on, and known again when it is read again.

>>> frozen = read_base("gs://t5-data/.../checkpoint_1000000", config, partitioner, compute_dtype=True)
>>> loop.train(frozen=frozen, origin=Origin("gs://t5-data/.../checkpoint_1000000", digest(frozen)), ...)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from hyperflax import trees
from hyperflax.buckets import locate
from hyperflax.checkpoints.forms import find_t5x, form_of, load_base
from hyperflax.checkpoints.onto_mesh import read_onto_mesh
from hyperflax.data.vocabularies import Vocabulary
from hyperflax.errors import CheckpointError
from hyperflax.models.session import cast_kernels, kernel_dtype
from hyperflax.models.stacking import LAYER_AXIS, stack_layers
from hyperflax.processes import Processes
from hyperflax.training.partitioning import Partitioner
from hyperflax.types import PyTree, T5Config

_SCANNED = "/layers/"


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a run's frozen parameters come from.

    Attributes:
      path: as it was given.
      digest: see `digest`.
    """

    path: str
    digest: str

    def check(self, where: str, path: str, found: str) -> None:
        """Raises CheckpointError, naming `where` it was noticed, if `path` holds parameters with another digest."""
        if found != self.digest:
            raise CheckpointError(
                f"{where}: expected the frozen parameters that the run began with, {self.digest} from {self.path}, got "
                f"{found} from {path}; of a folder of checkpoints the latest is read: name the one that it began with"
            )


def read_base(
    path: str,
    config: T5Config,
    partitioner: Partitioner,
    *,
    vocabulary: Vocabulary | None = None,
    compute_dtype: bool = False,
) -> PyTree:
    """Reads a T5's parameters.

    Of a checkpoint of T5X every process reads the parts that its own devices hold, and no host ever holds the tree.
    Other forms are read to the host as a whole; `Partitioner.place_frozen` and `start_from` upload a device's parts.

    Args:
      path: see `load_base`.
      config: the shape that is expected; `scan_layers` says which layout is returned, whichever is stored.
      partitioner: whose mesh.
      vocabulary: see `load_base`; the forms that are read onto the mesh record none.
      compute_dtype: cast what the layers would cast in every step, see `cast_kernels`: half of the memory in bfloat16,
        and no bit of a result changes. Not for adapters that `changes_parameters`: their sum with what is rounded here
        is another one.

    Returns:
      a nested dict, of placed `jax.Array`s or of numpy arrays.

    Raises:
      CheckpointError: as `load_base`.
    """
    place = locate(path)  # whose names, in a bucket, are listed once
    if form_of(place) in ("t5x", "orbax"):
        # Of a run that goes on, hosts that look one after the other may each find another one the latest.
        path = Processes.running().told_by_first(str(find_t5x(place)[1]))
        dtype = (lambda name: kernel_dtype(name, config)) if compute_dtype else None
        return read_onto_mesh(path, config, partitioner.t5_sharding, dtype=dtype)
    params = load_base(place, config, vocabulary)
    params = cast_kernels(params, config) if compute_dtype else params
    return stack_layers(params, config) if config.scan_layers else params


def digest(params: PyTree) -> str:
    """Returns 16 hex digits that tell one T5 from another, the same ones however `params` was read.

    That is, on the host or on any mesh, scanned or unrolled, and in bfloat16 or not: what counts is every value rounded
    to it. Nothing is gathered: each device adds up what it holds.
    """
    found = {}
    for path, leaf in trees.flatten(params).items():
        shape, sums = list(leaf.shape), _sums(leaf, _SCANNED in path)
        if _SCANNED not in path:
            found[path] = shape, int(sums)
            continue
        del shape[LAYER_AXIS]
        for layer, value in enumerate(sums):
            found[path.replace(_SCANNED, f"/layers_{layer}/")] = shape, int(value)
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def _sums(leaf: Any, scanned: bool) -> np.ndarray:
    """Returns a leaf's sum, or that of each of its layers; all processes get all of it."""
    if not isinstance(leaf, jax.Array):
        return _weighted(leaf, scanned)
    place = leaf.sharding
    everywhere = NamedSharding(place.mesh, PartitionSpec()) if isinstance(place, NamedSharding) else None
    return np.asarray(jax.jit(_weighted, static_argnums=1, out_shardings=everywhere)(leaf, scanned))


def _weighted(leaf: Any, scanned: bool) -> Any:
    """The sum of a numpy or jax array's bits modulo 2^32, in which every place has a weight: exact in any order."""
    bits = leaf.astype(jnp.bfloat16).view(np.uint16)
    total = bits * ((bits & 0x7F80) != 0)  # what is below the smallest normal number, some devices take for zero
    if scanned:
        total = total.swapaxes(0, LAYER_AXIS)
    for axis in range(total.ndim - scanned):
        # Powers of odd numbers, which are odd: no change of a single value goes unseen.
        weights = np.cumprod(np.full(total.shape[-1], 0x9E3779B1 + 2 * axis, np.uint32), dtype=np.uint32)
        total = (total * weights).sum(axis=-1, dtype=np.uint32)
    return total
