"""What a loss sum is divided by: T5X's LOSS_NORMALIZING_FACTOR.

| value | the loss is |
|---|---|
| "NUM_REAL_TARGET_TOKENS" (hyperflax's default) | the mean over weighted target tokens |
| "NUM_TOTAL_TARGET_TOKENS" | the sum divided by all target positions, padding included |
| "AVERAGE_PER_SEQUENCE" | the mean over sequences of each one's mean over its tokens |
| None (T5X's default) | the sum |
| a number | the sum divided by it |

Adafactor hardly notices the difference; AdamW's gradient clipping and its epsilon do, hence the mean as default.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from hyperflax.errors import ConfigError
from hyperflax.types import Array, Batch

REAL_TOKENS = "NUM_REAL_TARGET_TOKENS"
TOTAL_TOKENS = "NUM_TOTAL_TARGET_TOKENS"
PER_SEQUENCE = "AVERAGE_PER_SEQUENCE"
LossNormalizingFactor = float | int | str | None


def check_factor(factor: LossNormalizingFactor) -> LossNormalizingFactor:
    """Returns the factor with names in upper case; raises ConfigError for anything that is not one."""
    if isinstance(factor, str):
        if factor.upper() not in (REAL_TOKENS, TOTAL_TOKENS, PER_SEQUENCE):
            names = f"{REAL_TOKENS!r}, {TOTAL_TOKENS!r} or {PER_SEQUENCE!r}"
            raise ConfigError(f"loss_normalizing_factor: expected None, a positive number, {names}, got {factor!r}")
        return factor.upper()
    if isinstance(factor, bool) or (factor is not None and not factor > 0):
        raise ConfigError(f"loss_normalizing_factor: expected a positive number, got {factor!r}")
    return factor


def target_weights(batch: Mapping[str, Array]) -> Array:
    """Returns the batch's `decoder_loss_weights`, or 1 wherever the target is not padding, as float32."""
    weights = batch.get("decoder_loss_weights")
    if weights is None:
        weights = batch["decoder_target_tokens"] > 0
    return jnp.asarray(weights, jnp.float32)


def normalise(factor: LossNormalizingFactor, batch: Mapping[str, Array]) -> tuple[Array, Array]:
    """Returns (weights per target token, number to divide the loss sum by) of a whole batch.

    Args:
      factor: one of the module's table.
      batch: `decoder_target_tokens` [..., length], optionally `decoder_loss_weights` of that shape and, when packed,
        `decoder_segment_ids`.
    """
    factor = check_factor(factor)
    weights = target_weights(batch)
    if factor == TOTAL_TOKENS:
        return weights, jnp.float32(weights.size)
    if factor == PER_SEQUENCE:
        per_token = _sequence_weight(weights, batch.get("decoder_segment_ids"))
        weights = jnp.where(per_token > 0, weights / jnp.where(per_token > 0, per_token, 1.0), 0.0)
    if factor in (REAL_TOKENS, PER_SEQUENCE):
        return weights, jnp.sum(weights)
    return weights, jnp.float32(1.0 if factor is None else factor)


def weighted(factor: LossNormalizingFactor, batch: Batch) -> Batch:
    """Returns what an objective is to see of a batch, so that the means that it reports are those of the factor.

    Under "AVERAGE_PER_SEQUENCE" every sequence's weights sum to 1, and a mean over target tokens is one over sequences;
    under all others the batch is returned as it is.

    Args:
      factor, batch: as in `normalise`.

    Raises:
      ConfigError: a factor that is none.

    >>> weighted("AVERAGE_PER_SEQUENCE", {"decoder_target_tokens": jnp.array([[5, 6, 1, 0]])})["decoder_loss_weights"]
    Array([[0.33333334, 0.33333334, 0.33333334, 0.        ]], dtype=float32)
    """
    if check_factor(factor) != PER_SEQUENCE:
        return batch
    return {**batch, "decoder_loss_weights": normalise(factor, batch)[0]}


def _sequence_weight(weights: Array, segment_ids: Array | None) -> Array:
    """Returns for every token the weight sum of the sequence that it belongs to, [..., length]."""
    if segment_ids is None:
        return jnp.broadcast_to(jnp.sum(weights, axis=-1, keepdims=True), weights.shape)

    def one_row(row: Array, segments: Array) -> Array:
        # A row of n tokens holds at most n segments, numbered from 1; 0 is padding.
        return jax.ops.segment_sum(row, segments, num_segments=row.shape[0] + 1)[segments] * (segments > 0)

    length = weights.shape[-1]
    flat = jax.vmap(one_row)(weights.reshape(-1, length), jnp.asarray(segment_ids).reshape(-1, length))
    return flat.reshape(weights.shape)
