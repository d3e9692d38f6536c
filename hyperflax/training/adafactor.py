"""Adafactor's second moments, factored into rows and columns, as T5X computes them.

Shazeer and Stern 2018, Adafactor, algorithms 4 (matrices) and 5 (vectors): with g the gradient, t the step from 1,
beta = 1 - t^-decay_rate,

    R = beta R + (1 - beta) mean over columns of (g^2 + eps1)
    C = beta C + (1 - beta) mean over rows of (g^2 + eps1)
    u = g / sqrt(R C / mean(R))               or g / sqrt(V) where a parameter is not factored
    u = u / max(1, rms(u) / clipping_threshold)
    u = u max(eps2, rms(parameter))           where multiply_by_parameter_scale

A parameter is factored over its two largest dimensions when both reach `min_dim_size_to_factor`. optax.adafactor
differs from T5X in the order of clipping, scaling and learning rate, hence this one. A parameter with a stacked layer
axis (scanned layers) is factored and scaled layer by layer through `layer_axis`.

>>> transformation = optax.chain(scale_by_adafactor(), optax.scale_by_learning_rate(0.01))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hyperflax.errors import ConfigError
from hyperflax.types import Array, PyTree

UNUSED = (1,)


class AdafactorState(NamedTuple):
    """Slots a parameter does not use are zeros of shape (1,), as in T5X's checkpoints.

    Attributes:
      count: [] int32, updates done.
      v_row, v_col: means of squares over the largest and the second largest dimension, a tree like the parameters.
      v: full second moments of parameters that are not factored.
    """

    count: Array
    v_row: PyTree
    v_col: PyTree
    v: PyTree


def scale_by_adafactor(
    *,
    decay_rate: float = 0.8,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: float | None = 1.0,
    min_dim_size_to_factor: int = 128,
    factored: bool = True,
    epsilon1: float = 1e-30,
    epsilon2: float = 1e-3,
    layer_axis: Callable[[tuple[str, ...], tuple[int, ...]], int | None] | None = None,
) -> optax.GradientTransformation:
    """Returns Adafactor without learning rate and momentum; the update still points up the gradient.

    Args:
      decay_rate: exponent of the second moments' decay schedule.
      multiply_by_parameter_scale: updates are relative to each parameter's root mean square.
      clipping_threshold: largest root mean square of an update before that scaling; None leaves it.
      min_dim_size_to_factor: both of the two largest dimensions must reach it.
      factored: False keeps full second moments everywhere.
      epsilon1: added to squared gradients. epsilon2: least parameter scale.
      layer_axis: (path, shape) -> the axis of stacked layers, or None; everything happens within a layer.
    """
    if not 0.0 < decay_rate < 1.0:
        raise ConfigError(f"adafactor: decay_rate should be between 0 and 1, got {decay_rate}")

    def stacked(path: tuple[jax.tree_util.KeyEntry, ...], shape: tuple[int, ...]) -> int | None:
        if layer_axis is None:
            return None
        return layer_axis(tuple(jax.tree_util.keystr((key,), simple=True) for key in path), shape)

    def factored_dims(shape: tuple[int, ...], layers: int | None) -> tuple[int, int] | None:
        """(second largest, largest) dimension, in numpy's order for ties, which is T5X's."""
        dims = [d for d in range(len(shape)) if d != layers]
        if not factored or len(dims) < 2:
            return None
        order = np.argsort([shape[d] for d in dims])
        smaller, larger = dims[order[-2]], dims[order[-1]]
        return (smaller, larger) if shape[smaller] >= min_dim_size_to_factor else None

    def init(params: PyTree) -> AdafactorState:
        def slots(path: tuple[jax.tree_util.KeyEntry, ...], param: Array) -> tuple[Array, Array, Array]:
            dims = factored_dims(param.shape, stacked(path, param.shape))
            if dims is None:
                return jnp.zeros(UNUSED), jnp.zeros(UNUSED), jnp.zeros(param.shape, jnp.float32)
            row, col = (tuple(np.delete(param.shape, d).tolist()) for d in reversed(dims))
            return jnp.zeros(row, jnp.float32), jnp.zeros(col, jnp.float32), jnp.zeros(UNUSED)

        return AdafactorState(jnp.zeros((), jnp.int32), *_transpose(params, jax.tree.map_with_path(slots, params), 3))

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, AdafactorState]:
        if params is None:
            raise ConfigError("adafactor: the update needs the parameters, call update(grads, state, params)")
        step = state.count.astype(jnp.float32) + 1.0
        beta = 1.0 - step**-decay_rate

        def one(
            path: tuple[jax.tree_util.KeyEntry, ...], grad: Array, param: Array, v_row: Array, v_col: Array, v: Array
        ) -> tuple[Array, Array, Array, Array]:
            layers = stacked(path, param.shape)
            within = tuple(d for d in range(param.ndim) if d != layers)
            grad = grad.astype(jnp.float32)
            square = grad * grad + epsilon1
            dims = factored_dims(param.shape, layers)
            if dims is None:
                v = beta * v + (1.0 - beta) * square
                out = grad * v**-0.5
            else:
                smaller, larger = dims
                v_row = beta * v_row + (1.0 - beta) * jnp.mean(square, axis=larger)
                v_col = beta * v_col + (1.0 - beta) * jnp.mean(square, axis=smaller)
                # Inside v_row the larger dimension is gone, so the smaller one may have moved down by one.
                row = v_row / jnp.mean(v_row, axis=smaller - (larger < smaller), keepdims=True)
                out = grad * jnp.expand_dims(row**-0.5, larger) * jnp.expand_dims(v_col**-0.5, smaller)
            if clipping_threshold is not None:
                out /= jnp.maximum(1.0, _rms(out, within) / clipping_threshold)
            if multiply_by_parameter_scale:
                out *= jnp.maximum(_rms(param, within), epsilon2)
            return out, v_row, v_col, v

        results = jax.tree.map_with_path(one, updates, params, state.v_row, state.v_col, state.v)
        out, v_row, v_col, v = _transpose(updates, results, 4)
        return out, AdafactorState(state.count + 1, v_row, v_col, v)

    return optax.GradientTransformation(init, update)


def _rms(x: Array, axes: tuple[int, ...]) -> Array:
    return jnp.sqrt(jnp.mean(x * x, axis=axes, keepdims=True))


def _transpose(outer: PyTree, tree_of_tuples: PyTree, size: int) -> tuple[PyTree, ...]:
    return jax.tree.transpose(jax.tree.structure(outer), jax.tree.structure((0,) * size), tree_of_tuples)
