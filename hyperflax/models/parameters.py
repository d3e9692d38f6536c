"""Parameters of a module, read without tracing how they would be initialised.

`flax.linen.Module.param` traces the initialiser at every call, also where the parameter is there, to learn the shape to
check it against. Modules here know their shapes, and half of the time of tracing a T5 was initialisers.

>>> shapes = traced_shapes(hypernetwork, {"support_tokens": tokens})    # {"slots": (24, 128), "t5/...": ...}
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import errors
from flax import linen as nn

from hyperflax import trees
from hyperflax.types import Array

Initializer = Callable[..., Array]


def param(module: nn.Module, name: str, init: Initializer, shape: tuple[int, ...]) -> Array:
    """Returns a module's parameter, float32 where it is made: what `module.param` returns.

    Args:
      init: called with a key, the shape and float32 where parameters are made; not where they are made without a key,
        as `traced_shapes` does, which are zeros.

    Raises:
      flax.errors.ScopeParamNotFoundError, flax.errors.ScopeParamShapeError: as `module.param`.
    """
    if module.is_mutable_collection("params") and not module.has_rng("params"):
        return module.variable("params", name, jnp.zeros, shape).value
    if module.is_mutable_collection("params") or not module.has_variable("params", name):
        return module.param(name, init, shape, jnp.float32)
    value = nn.unbox(module.get_variable("params", name))
    if jnp.shape(value) != tuple(shape):
        raise errors.ScopeParamShapeError(name, "/" + "/".join(module.path), jnp.shape(value), tuple(shape))
    return value


def traced_shapes(module: nn.Module, *inputs: Any, method: str | None = None) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter of a module that is called with such inputs; nothing is computed."""
    made = jax.eval_shape(lambda: module.apply({}, *inputs, method=method, mutable=["params"])[1]["params"])
    return {path: leaf.shape for path, leaf in trees.flatten(made).items()}
