"""Training a surrogate's parameters: Adam with cosine decay on minibatches of rows, each a loss of its own.

Rows are drawn without replacement within a step and padded to a power of two, with a mask. A step whose loss or
gradient is not finite, as when a covariance cannot be decomposed, changes nothing; if every second step was such a one,
the training has failed and says so.

>>> params = minimise(surrogate, params, {"inputs": inputs, "targets": targets}, Schedule(500, 1e-2), rows=512, seed=0)
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Hashable, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hyperflax.configs import check_sizes
from hyperflax.errors import ConfigError, SurrogateError
from hyperflax.tuner.surrogates.exact_gp import pad, padded_size, row_mask
from hyperflax.types import Array, PyTree

_ADAM = optax.chain(optax.clip_by_global_norm(10.0), optax.scale_by_adam())


class Trained(Hashable, Protocol):
    """A frozen configuration with a loss; it is compared by value, so that equal ones share a compiled step."""

    def loss(self, params: PyTree, batch: Mapping[str, PyTree], mask: Array) -> Array:
        """Returns a scalar to be minimised, for a batch whose leaves have a leading axis of rows; mask [rows]."""
        ...


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Steps of Adam, and the learning rate from which it falls to 0 by a cosine."""

    steps: int
    learning_rate: float

    def __post_init__(self) -> None:
        check_sizes(self, steps=1)
        if not 0.0 < self.learning_rate < 1.0:
            raise ConfigError(f"learning_rate: expected a number in (0, 1), got {self.learning_rate!r}")

    def rate(self, step: int) -> float:
        """Returns the learning rate of a step, counted from 0."""
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * step / self.steps))


def minimise(
    trained: Trained, params: PyTree, data: Mapping[str, PyTree], schedule: Schedule, *, rows: int, seed: int
) -> PyTree:
    """Returns the parameters after training, as numpy arrays.

    Args:
      trained: gives the loss.
      params: where to start.
      data: trees of numpy arrays [n, ...].
      schedule: how long and how fast.
      rows: rows of a minibatch; a smaller table is one batch.
      seed: draws the minibatches.

    Raises:
      SurrogateError: half of the steps or more were not finite.
    """
    total = len(jax.tree.leaves(data)[0])
    count = min(rows, total)
    size, draw = padded_size(count), np.random.default_rng(seed)
    mask = jnp.asarray(row_mask(count, size))
    state, failed = jax.jit(_ADAM.init)(params), jnp.zeros((), jnp.int32)
    batch = _batch(data, np.arange(total), size) if count == total else None
    for step in range(schedule.steps):
        drawn = batch or _batch(data, draw.choice(total, count, replace=False), size)
        params, state, failed = _step(trained, schedule.rate(step), params, state, failed, drawn, mask)
    if 2 * int(failed) >= schedule.steps:
        raise SurrogateError(
            f"{type(trained).__name__}: loss or gradient was not finite in {int(failed)} of {schedule.steps} steps; "
            "expected finite ones: try a lower learning rate, and look for values far from all others"
        )
    return jax.tree.map(np.asarray, params)


def _batch(data: Mapping[str, PyTree], chosen: np.ndarray, size: int) -> Mapping[str, PyTree]:
    return jax.tree.map(lambda array: pad(array[chosen], size), dict(data))


@functools.partial(jax.jit, static_argnames="trained")
def _step(trained: Trained, rate, params, state, failed, batch, mask):
    # The rate is an argument: `fit` and `refit` share what is compiled.
    loss, gradient = jax.value_and_grad(trained.loss)(params, batch, mask)
    fine = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((loss, gradient))]))
    updates, new_state = _ADAM.update(gradient, state, params)
    new = jax.tree.map(lambda param, update: param - rate * update, params, updates)
    choose = functools.partial(jnp.where, fine)
    return *jax.tree.map(choose, (new, new_state), (params, state)), failed + ~fine
