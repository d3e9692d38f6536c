"""Distillation: the divergence of a student's next-token distributions from a teacher's.

    KL(teacher || student) = sum_v p_teacher(v) (log p_teacher(v) - log p_student(v))        per token

The student is the base model with generated adapters, which sees the input alone; the teacher is the same frozen base
model without adapters, which reads the task's definition or the support before the input (context distillation, Snell
et al. 2022; for hypernetworks TAGI, Liao et al. 2024). A target token says what was right; the teacher says, for every
token of the vocabulary, what the base model would do if it knew the task.

>>> kl_sum = token_divergence(teacher_logits, logits, weights)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from hyperflax.errors import ConfigError
from hyperflax.types import Array


def token_divergence(teacher: Array, student: Array, weights: Array) -> Array:
    """Returns the weighted sum of KL(teacher || student) over tokens, in nats, a float32 scalar.

    The teacher gets no gradient.

    Args:
      teacher, student: logits [..., vocab].
      weights: [...], one per token; 0 leaves a token out.

    Raises:
      ConfigError: shapes that do not fit.
    """
    if teacher.shape != student.shape or weights.shape != student.shape[:-1]:
        raise ConfigError(
            f"token_divergence: expected logits of one shape and a weight per token, got {teacher.shape}, "
            f"{student.shape} and weights {weights.shape}"
        )
    log_p = jax.nn.log_softmax(jax.lax.stop_gradient(teacher).astype(jnp.float32))
    log_q = jax.nn.log_softmax(student.astype(jnp.float32))
    return jnp.sum(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1) * weights)
