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
    steps: int,
    learning_rate: float = 1e-3,
) -> tuple[PyTree, Array]:
    """Takes `steps` Adam steps on each task's adapter; pure, made to be jitted with `steps` static.

    Args:
      model, params: the frozen base model.
      adapters: leaves [task, ...], as generated.
      batch: encoder_input_tokens, decoder_input_tokens, decoder_target_tokens, decoder_loss_weights, each
        [task, example, length]: the support as inputs and targets.
      steps: number of steps.
      learning_rate: constant; 1e-3 suits adapters that are already generated.

    Returns:
      the refined adapters and the losses [steps, task] before each step.
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

    def step(carry: tuple[PyTree, optax.OptState], _: None) -> tuple[tuple[PyTree, optax.OptState], Array]:
        adapters, state = carry
        gradients, losses = jax.grad(total_loss, has_aux=True)(adapters)
        updates, state = optimizer.update(gradients, state)
        return (optax.apply_updates(adapters, updates), state), losses

    (adapters, _), losses = jax.lax.scan(step, (adapters, optimizer.init(adapters)), length=steps)
    return adapters, losses
