"""Refining: a few optimizer steps on generated adapters, on the very examples that they were generated from.

A generated adapter is a starting point that generalises; some Adam steps on its own support bring the rest
(HyperTuning, section 5: generated parameters as initialisation). Many tasks are refined at once: the loss is the sum
over tasks of each task's mean token loss, and Adam works element by element, so every task is refined as if alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from hyperflax.models.t5 import T5
from hyperflax.objectives.token_loss import token_loss
from hyperflax.types import Array, PyTree


def refine(
    model: T5,
    params: PyTree,
    adapters: PyTree,
    batch: Mapping[str, Array],
    *,
    steps: int | Array,
    learning_rate: float | Array = 1e-3,
) -> tuple[PyTree, Array]:
    """Takes `steps` Adam steps on each task's adapter; pure, and one compilation serves any number of steps.

    Args:
      model, params: the frozen base model.
      adapters: leaves [task, ...], as generated.
      batch: encoder_input_tokens, decoder_input_tokens, decoder_target_tokens, decoder_loss_weights, each
        [task, example, length]: the support as inputs and targets.
      steps: number of steps.
      learning_rate: constant; 1e-3 suits adapters that are already generated.

    Returns:
      the refined adapters and each task's loss [task] before the last step; infinite after no step.
    """
    optimizer = optax.adam(learning_rate)

    def task_loss(adapter: PyTree, example: Mapping[str, Array]) -> Array:
        logits = model.apply(
            {"params": params, "adapters": adapter},
            example["encoder_input_tokens"],
            example["decoder_input_tokens"],
            example["decoder_target_tokens"],
        )
        loss = token_loss(logits, example["decoder_target_tokens"], example["decoder_loss_weights"])
        return loss.loss_sum / jnp.maximum(loss.weight_sum, 1.0)

    def total_loss(adapters: PyTree) -> tuple[Array, Array]:
        losses = jax.vmap(task_loss)(adapters, dict(batch))
        return losses.sum(), losses

    def step(_: Array, carry: tuple[PyTree, optax.OptState, Array]) -> tuple[PyTree, optax.OptState, Array]:
        adapters, state, _ = carry
        gradients, losses = jax.grad(total_loss, has_aux=True)(adapters)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(adapters, updates), state, losses

    tasks = batch["encoder_input_tokens"].shape[0]
    start = (adapters, optimizer.init(adapters), jnp.full(tasks, jnp.inf))
    adapters, _, losses = jax.lax.fori_loop(0, steps, step, start)
    return adapters, losses
