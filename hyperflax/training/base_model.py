"""The T5 that a run starts from or adapts, read for the mesh that it trains on.

>>> frozen = read_base("gs://t5-data/.../checkpoint_1000000", config, partitioner, compute_dtype=True)
>>> loop.train(frozen=frozen, partitioner=partitioner, ...)
"""

from __future__ import annotations

from hyperflax.checkpoints.forms import form_of, load_base
from hyperflax.checkpoints.onto_mesh import read_onto_mesh
from hyperflax.models.session import cast_kernels, kernel_dtype
from hyperflax.models.stacking import stack_layers
from hyperflax.training.partitioning import Partitioner
from hyperflax.types import PyTree, T5Config


def read_base(path: str, config: T5Config, partitioner: Partitioner, *, compute_dtype: bool = False) -> PyTree:
    """Reads a T5's parameters.

    Of a checkpoint of T5X every process reads the parts that its own devices hold, and no host ever holds the tree.
    Other forms are read to the host as a whole; `Partitioner.place_frozen` and `start_from` upload a device's parts.

    Args:
      path: see `load_base`.
      config: the shape that is expected; `scan_layers` says which layout is returned, whichever is stored.
      partitioner: whose mesh.
      compute_dtype: cast what the layers would cast in every step, see `cast_kernels`: half of the memory in bfloat16,
        and no bit of a result changes. Not for adapters that `changes_parameters`: their sum with what is rounded here
        is another one.

    Returns:
      a nested dict, of placed `jax.Array`s or of numpy arrays.

    Raises:
      CheckpointError: as `load_base`.
    """
    if form_of(path) in ("t5x", "orbax"):
        dtype = (lambda name: kernel_dtype(name, config)) if compute_dtype else None
        return read_onto_mesh(path, config, partitioner.t5_sharding, dtype=dtype)
    params = load_base(path, config)
    params = cast_kernels(params, config) if compute_dtype else params
    return stack_layers(params, config) if config.scan_layers else params
