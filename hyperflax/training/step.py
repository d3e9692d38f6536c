"""One training step, a pure function: (state, frozen, batch, rng) -> (state, metrics).

Gradient accumulation sums losses and gradients over microbatches and divides once, by the whole batch's divisor, so a
split step equals the unsplit one up to the order of summation. A step whose loss, gradient or update is not finite
changes nothing but the step number, and its metrics do not count.

>>> step = jax.jit(make_train_step(objective, optimizer), donate_argnums=0)
>>> state, metrics = step(state, frozen, batch, rng)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from hyperflax.configs import whole_number
from hyperflax.errors import ConfigError
from hyperflax.objectives.normalisation import (
    PER_SEQUENCE,
    REAL_TOKENS,
    LossNormalizingFactor,
    check_factor,
    normalise,
    weighted,
)
from hyperflax.objectives.protocol import Metrics, Objective, mesh_batch_axes, mesh_batch_shards
from hyperflax.training.optimizers import Transformation, at_step
from hyperflax.training.state import TrainState
from hyperflax.types import Array, Batch, PyTree

Step: TypeAlias = Callable[[TrainState, PyTree, Batch, Array], tuple[TrainState, Metrics]]


def make_train_step(
    objective: Objective,
    optimizer: Transformation,
    *,
    microbatches: int = 1,
    loss_normalizing_factor: LossNormalizingFactor = REAL_TOKENS,
) -> Step:
    """Returns the step.

    Its `rng` is the run's; the step folds its own number into it, so that equal (rng, step) gives equal dropout. Its
    metrics are (sum, weight) pairs: the objective's, and `gradient_norm` (before clipping), `learning_rate` where the
    optimizer has a schedule, and `skipped_steps`.

    Args:
      objective: what is learned.
      optimizer: an `Optimizer` or any optax transformation.
      microbatches: parts that a batch is worked through in; must divide the leading axis.
      loss_normalizing_factor: what the loss sum is divided by, see `objectives.normalisation`.

    Raises:
      ConfigError: an impossible setting.
    """
    factor = check_factor(loss_normalizing_factor)
    whole_number("microbatches", microbatches)
    schedule = getattr(optimizer, "schedule", None)

    def step(state: TrainState, frozen: PyTree, batch: Batch, rng: Array) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(rng, state.step)
        _, divisor = normalise(factor, batch)
        batch = weighted(factor, batch)
        grads, (loss_sum, weight_sum), metrics = accumulate(objective, state.params, frozen, batch, rng, microbatches)
        if factor in (REAL_TOKENS, PER_SEQUENCE):
            # The objective's own weights: one that does not score target tokens still gets a mean.
            divisor = weight_sum
        scale = 1.0 / jnp.where(divisor > 0, divisor, 1.0)
        grads = jax.tree.map(lambda grad: grad * scale, grads)
        norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, at_step(state.opt_state, state.step), state.params)
        # Where a loss is NaN, gradients can be finite: not everything in it is derived. An optimizer can make NaN of
        # finite gradients, too.
        finite = jnp.isfinite(loss_sum) & jnp.isfinite(norm) & jnp.isfinite(optax.tree.norm(updates))
        new = TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state)
        kept = dataclasses.replace(state, step=state.step + 1)
        new = jax.tree.map(lambda ours, theirs: jnp.where(finite, ours, theirs), new, kept)

        metrics["gradient_norm"] = (norm, jnp.float32(1.0))
        if schedule is not None:
            metrics["learning_rate"] = (schedule(state.step), jnp.float32(1.0))
        metrics = jax.tree.map(lambda value: jnp.where(finite, value, 0.0), metrics)
        metrics["skipped_steps"] = (jnp.where(finite, 0.0, 1.0), jnp.float32(1.0))
        return new, metrics

    return step


def accumulate(
    objective: Objective, params: PyTree, frozen: PyTree, batch: Batch, rng: Array, microbatches: int
) -> tuple[PyTree, tuple[Array, Array], Metrics]:
    """Returns (gradient of the loss sum, (loss sum, weight sum), metrics) over all microbatches."""

    def loss(params: PyTree, part: Batch, key: Array | None) -> tuple[Array, tuple[Array, Metrics]]:
        loss_sum, weight_sum, metrics = objective.loss(params, frozen, part, key)
        return loss_sum, (weight_sum, metrics)

    def one(part: Batch, key: Array | None) -> tuple[PyTree, tuple[Array, Array], Metrics]:
        (loss_sum, (weight_sum, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(params, part, key)
        return grads, (loss_sum, weight_sum), metrics

    return sum_over_microbatches(one, batch, rng, microbatches)


def sum_over_microbatches(
    one: Callable[[Batch, Array | None], PyTree], batch: Batch, rng: Array | None, microbatches: int
) -> PyTree:
    """Returns the sum of what `one` makes of each microbatch and its key, None where `rng` is; one after the other."""
    if microbatches == 1:
        return one(batch, rng)
    parts = split_batch(batch, microbatches)
    keys = None if rng is None else jax.random.split(rng, microbatches)
    first = jax.tree.map(lambda leaf: leaf[0], (parts, keys))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(one, *first))
    total, _ = jax.lax.scan(lambda carry, part: (jax.tree.map(jnp.add, carry, one(*part)), None), zeros, (parts, keys))
    return total


def split_batch(batch: Batch, parts: int) -> Batch:
    """Returns every feature as [parts, size / parts, ...].

    Part i takes rows i, i + parts, ...: each device keeps its own rows when the leading axis is sharded.

    Raises:
      ConfigError: the leading axis does not divide, or a part's does not over the mesh in use.
    """
    axes, shards = mesh_batch_axes(), mesh_batch_shards()

    def split(name: str, feature: Array) -> Array:
        size = feature.shape[0]
        if size % (parts * shards):
            over = f" over {shards} data shards" if shards > 1 else ""
            raise ConfigError(f"microbatches: {parts} does not divide the {size} rows of batch feature '{name}'{over}")
        feature = jnp.swapaxes(jnp.reshape(feature, (size // parts, parts, *feature.shape[1:])), 0, 1)
        return jax.lax.with_sharding_constraint(feature, PartitionSpec(None, axes)) if axes else feature

    return {name: split(name, feature) for name, feature in batch.items()}
