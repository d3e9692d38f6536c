"""LoRA: a low-rank addition to a projection (Hu et al. 2021, section 4.1)."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp

from hyperflax.types import Array


def lora_delta(x: Array, slot: Mapping[str, Array]) -> Array:
    """Returns what the slot adds to a projection of `x`: `(x a) b`, never through the [in, out] product.

    Args:
      x: [..., in], the projection's input.
      slot: `a` [in, rank] and `b` [rank, out], with the factor alpha / rank already folded into `b`.

    Returns:
      [..., out] in the dtype of `x`; exactly zero where `b` is.
    """
    a = jnp.asarray(slot["a"], x.dtype)
    b = jnp.asarray(slot["b"], x.dtype)
    return (x @ a) @ b
