"""Refining: a few optimizer steps on generated adapters, on the very examples that they were generated from.

A generated adapter is a starting point that generalises; some Adam steps on its own support bring the rest
(HyperTuning, section 5: generated parameters as initialisation). Many tasks are refined at once: the loss is the sum
over tasks of each task's mean token loss, and Adam works element by element, so every task is refined as if alone.

`refine` is all of it; who looks at the adapters in between takes `start` and, again and again, `advance`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hyperflax.models.t5 import T5
from hyperflax.objectives.language_model import task_loss
from hyperflax.objectives.normalisation import target_weights
from hyperflax.training.step import sum_over_microbatches
from hyperflax.types import Array, Batch, PyTree


class Refining(NamedTuple):
    """What is carried from step to step: adapters and Adam's moments, leaves [task, ...], and losses [task]."""

    adapters: PyTree
    moments: optax.OptState
    losses: Array


def refine(
    model: T5,
    params: PyTree,
    adapters: PyTree,
    batch: Mapping[str, Array],
    *,
    steps: int | Array,
    learning_rate: float | Array = 1e-3,
    microbatches: int = 1,
) -> tuple[PyTree, Array]:
    """Takes `steps` Adam steps on each task's adapter; pure, and one compilation serves any number of steps.

    Args:
      model, params: the frozen base model.
      adapters: leaves [task, ...], as generated.
      batch: encoder_input_tokens, decoder_input_tokens, decoder_target_tokens, decoder_loss_weights, each
        [task, example, length]: the support as inputs and targets.
      steps: number of steps.
      learning_rate: constant; 1e-3 suits adapters that are already generated.
      microbatches: parts that a task's examples are worked through in, one after the other; must divide their number.

    Returns:
      the refined adapters and each task's loss [task] before the last step; infinite after no step.

    Raises:
      ConfigError: `microbatches` does not divide the examples.
    """
    state = start(adapters)
    done = advance(model, params, state, batch, steps=steps, learning_rate=learning_rate, microbatches=microbatches)
    return done.adapters, done.losses


def start(adapters: PyTree) -> Refining:
    """Returns the state before the first step."""
    tasks = jax.tree.leaves(adapters)[0].shape[0]
    # Adam's moments are zeros at any rate.
    return Refining(adapters, optax.adam(0.0).init(adapters), jnp.full(tasks, jnp.inf))


def advance(
    model: T5,
    params: PyTree,
    state: Refining,
    batch: Mapping[str, Array],
    *,
    steps: int | Array,
    learning_rate: float | Array,
    microbatches: int = 1,
) -> Refining:
    """Takes `steps` more steps; arguments as of `refine`."""
    optimizer = optax.adam(learning_rate)
    by_example = {name: jnp.swapaxes(feature, 0, 1) for name, feature in batch.items()}
    total = _weight(by_example)
    total = jnp.where(total > 0, total, 1.0)

    def total_loss(adapters: PyTree, part: Batch) -> tuple[Array, Array]:
        """Of a part of every task's examples, its share in the mean over all of them."""
        losses = jax.vmap(functools.partial(task_loss, model, params), (0, 1))(adapters, part)
        losses *= _weight(part) / total
        return losses.sum(), losses

    def step(_: Array, state: Refining) -> Refining:
        gradient = functools.partial(jax.grad(total_loss, has_aux=True), state.adapters)
        gradients, losses = sum_over_microbatches(lambda part, _: gradient(part), by_example, None, microbatches)
        updates, moments = optimizer.update(gradients, state.moments)
        return Refining(optax.apply_updates(state.adapters, updates), moments, losses)

    return jax.lax.fori_loop(0, steps, step, state)


def _weight(examples: Batch) -> Array:
    """The sum [task] of each task's target weights, of examples [example, task, length]."""
    return target_weights(examples).sum((0, 2))
