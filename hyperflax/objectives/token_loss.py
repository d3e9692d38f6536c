"""Cross entropy over tokens with z-loss and label smoothing, as sums and weights.

T5's loss (Raffel et al. 2020, section 3.1.2; the z-loss is Mesh TensorFlow's) with T5X's conventions:

    loss = H(q, softmax(logits)) - H(q) + z_loss * log(Z)^2        per token, then weighted and summed

where q is the smoothed target and Z the softmax's normaliser. The entropy constant H(q) is subtracted so that a perfect
prediction costs nothing. Sums of several batches or devices add up, means do not, so sums are returned; `mean` is that
of one batch alone.

Neither the one-hot target nor the log-softmax is ever stored: the backward pass rebuilds the softmax from the logits
and one number per token, in a single elementwise sweep.

>>> token_loss(logits, targets, weights, z_loss=1e-4).mean
Array(2.3, dtype=float32)
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hyperflax.errors import ConfigError
from hyperflax.types import Array


class TokenLoss(NamedTuple):
    """Three float32 scalars.

    Attributes:
      loss_sum: weighted sum over tokens, the z-loss included.
      z_loss_sum: the part of it that is z-loss.
      weight_sum: sum of the weights.
    """

    loss_sum: Array
    z_loss_sum: Array
    weight_sum: Array

    @property
    def mean(self) -> Array:
        """The loss a token, 0 where no token counts; leaves may have leading axes, as after a vmap."""
        return self.loss_sum / jnp.where(self.weight_sum > 0, self.weight_sum, 1.0)


def token_loss(
    logits: Array,
    targets: Array,
    weights: Array | None = None,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> TokenLoss:
    """Returns the weighted sums of the token losses.

    Args:
      logits: [..., vocab] floats.
      targets: [...] integer ids below vocab.
      weights: [...] numbers, one per token; 0 leaves a token out. None counts every token once.
      z_loss: coefficient of log(Z)^2.
      label_smoothing: probability mass taken from the target and spread evenly over the other ids, in [0, 1).

    Raises:
      ConfigError: shapes that do not fit, or smoothing outside [0, 1).
    """
    if logits.shape[:-1] != targets.shape:
        raise ConfigError(
            f"token_loss: targets should be {logits.shape[:-1]} for logits {logits.shape}, got {targets.shape}"
        )
    if weights is not None and weights.shape != targets.shape:
        raise ConfigError(f"token_loss: weights should be {targets.shape}, got {weights.shape}")
    if not 0.0 <= label_smoothing < 1.0:
        raise ConfigError(f"token_loss: label_smoothing should be in [0, 1), got {label_smoothing}")
    loss, z_part = per_token_loss(logits, targets, float(z_loss), float(label_smoothing))
    if weights is None:
        return TokenLoss(jnp.sum(loss), jnp.sum(z_part), jnp.float32(targets.size))
    weights = jnp.asarray(weights, jnp.float32)
    return TokenLoss(jnp.sum(loss * weights), jnp.sum(z_part * weights), jnp.sum(weights))


def smoothed_target(vocab_size: int, label_smoothing: float) -> tuple[float, float, float]:
    """Returns (probability of the target, probability of every other id, entropy of the distribution)."""
    on = 1.0 - label_smoothing
    off = label_smoothing / max(vocab_size - 1, 1)
    # The 1e-20 only makes the logarithm of zero defined; T5X has the same one.
    entropy = -(on * math.log(on) + (vocab_size - 1) * off * math.log(off + 1e-20))
    return on, off, entropy


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def per_token_loss(logits: Array, targets: Array, z_loss: float, label_smoothing: float) -> tuple[Array, Array]:
    """Returns (loss with its z-loss, the z-loss) per token, both float32 of the targets' shape."""
    return _forward(logits, targets, z_loss, label_smoothing)[0]


def _forward(
    logits: Array, targets: Array, z_loss: float, label_smoothing: float
) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
    on, off, entropy = smoothed_target(logits.shape[-1], label_smoothing)
    values = logits.astype(jnp.float32)
    largest = jnp.max(values, axis=-1)
    shifted = values - largest[..., None]
    log_sum = jnp.log(jnp.sum(jnp.exp(shifted), axis=-1))
    at_target = jnp.take_along_axis(values, targets[..., None], axis=-1)[..., 0] - largest
    # on + (vocab - 1) * off = 1, so the cross entropy is log_sum minus the expected shifted logit.
    expected = (on - off) * at_target
    if off:
        expected = expected + off * jnp.sum(shifted, axis=-1)
    log_z = log_sum + largest
    z_part = z_loss * jnp.square(log_z)
    return (log_sum - expected - entropy + z_part, z_part), (logits, targets, log_z)


def _backward(
    z_loss: float, label_smoothing: float, residuals: tuple[Array, Array, Array], cotangents: tuple[Array, Array]
) -> tuple[Array, np.ndarray]:
    logits, targets, log_z = residuals
    on_loss, on_z_part = cotangents
    on, off, _ = smoothed_target(logits.shape[-1], label_smoothing)
    softmax = jnp.exp(logits.astype(jnp.float32) - log_z[..., None])
    of_softmax = on_loss + 2.0 * z_loss * log_z * (on_loss + on_z_part)
    is_target = jnp.arange(logits.shape[-1], dtype=targets.dtype) == targets[..., None]
    gradient = of_softmax[..., None] * softmax - on_loss[..., None] * jnp.where(is_target, on, off)
    return gradient.astype(logits.dtype), np.zeros(targets.shape, jax.dtypes.float0)


per_token_loss.defvjp(_forward, _backward)


def correct_tokens(logits: Array, targets: Array) -> Array:
    """Returns [...] booleans: no other id has a larger logit than the target. A tie counts as correct.

    The comparison with the maximum costs a fraction of an argmax over the vocabulary on CPU.
    """
    at_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return at_target >= jnp.max(logits, axis=-1)
