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
    return jnp.sum(_divergence(jax.lax.stop_gradient(teacher), student) * weights)


@jax.custom_vjp
def _divergence(teacher: Array, student: Array) -> Array:
    """The divergence per token, float32 [...]; the teacher is a constant.

    As in `token_loss`, no array of the logits' size is stored beside the logits: the backward pass rebuilds both
    distributions from them and one number per token.
    """
    return _forward(teacher, student)[0]


def _forward(teacher: Array, student: Array) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    wide_p, wide_q = teacher.astype(jnp.float32), student.astype(jnp.float32)
    log_z_p, log_z_q = jax.nn.logsumexp(wide_p, axis=-1), jax.nn.logsumexp(wide_q, axis=-1)
    # The normalisers are taken out of the sum over log p - log q: one sweep then, with them in it XLA makes three.
    expected = jnp.sum(jnp.exp(wide_p - log_z_p[..., None]) * (wide_p - wide_q), axis=-1)
    return expected - log_z_p + log_z_q, (teacher, student, log_z_p, log_z_q)


def _backward(residuals: tuple[Array, Array, Array, Array], cotangent: Array) -> tuple[Array, Array]:
    teacher, student, log_z_p, log_z_q = residuals
    p = jnp.exp(teacher.astype(jnp.float32) - log_z_p[..., None])
    q = jnp.exp(student.astype(jnp.float32) - log_z_q[..., None])
    return jnp.zeros_like(teacher), (cotangent[..., None] * (q - p)).astype(student.dtype)


_divergence.defvjp(_forward, _backward)
