"""What training changes: the step number, the parameters and the optimizer's state. Nothing frozen is in it.

>>> state = create_state(params, optimizer)
>>> state.step
0
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from hyperflax import trees
from hyperflax.errors import CheckpointError
from hyperflax.training.optimizers import Transformation
from hyperflax.types import Array, PyTree


@flax.struct.dataclass
class TrainState:
    """A pytree.

    Attributes:
      step: [] int32, updates done so far; also the number of the batch that comes next.
      params: the trained parameters, a nested dict.
      opt_state: what the optax transformation keeps.
    """

    step: Array
    params: PyTree
    opt_state: PyTree


def create_state(params: PyTree, optimizer: Transformation) -> TrainState:
    """Returns the state before the first step."""
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params))


def start_from(params: PyTree, given: PyTree | Callable[[PyTree], PyTree] | None) -> PyTree:
    """Returns the parameters to start from, each where the fresh one lies and with its dtype.

    Args:
      params: freshly initialised ones, arrays on devices.
      given: None keeps those; a tree replaces them; a function maps them to the ones to use (for instance
        `lambda params: initialise_from_t5(params, t5_params)`).

    Raises:
      CheckpointError: the given tree has another leaf or shape than the model, with the leaf named.
    """
    if given is None:
        return params
    tree = given(params) if callable(given) else given
    check_like(tree, params, "initial parameters")
    return jax.tree.map(_placed_like, _plain(tree), _plain(params))


def _placed_like(new: Array | np.ndarray, old: Array) -> Array:
    """A real copy, even of what is on the device already: the training step donates its buffers."""
    if isinstance(new, jax.Array):
        return jax.device_put(jnp.array(new, old.dtype, copy=True), old.sharding)
    # From the host each device gets its part, and never the whole: the largest models fit no single one.
    return jax.make_array_from_callback(old.shape, old.sharding, lambda index: np.array(new[index], old.dtype))


def check_like(tree: PyTree, template: PyTree, what: str) -> None:
    """Raises CheckpointError unless `tree` has exactly the template's paths and shapes."""
    found, wanted = trees.flatten(tree), trees.flatten(template)
    for path, leaf in wanted.items():
        if path not in found:
            raise CheckpointError(f"{what}: '{path}' is missing; expected shape {tuple(leaf.shape)}")
        if tuple(found[path].shape) != tuple(leaf.shape):
            raise CheckpointError(f"{what}: '{path}' should be {tuple(leaf.shape)}, got {tuple(found[path].shape)}")
    if extra := sorted(set(found) - set(wanted)):
        raise CheckpointError(f"{what}: '{extra[0]}' is not a parameter of this model ({len(extra)} such)")


def _plain(tree: Mapping[str, PyTree]) -> dict[str, PyTree]:
    return trees.unflatten(trees.flatten(tree))
