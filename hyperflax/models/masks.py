"""Attention masks, bool [batch, 1, query, key], True = attend. The axis of size 1 stands for the heads."""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct

from hyperflax.types import Array


@struct.dataclass
class Trailing:
    """What a mask says of real queries where padding stands at the ends of rows alone, as all batches here have it.

    A kernel that takes lengths needs no mask. Positions of padding then hold other numbers than with one; nobody reads
    them.

    Attributes:
      keys: int32 [batch], how many keys of a row are real; None: all that a query may see.
      causal: a query sees itself and what is before it.
    """

    keys: Array | None = None
    causal: bool = struct.field(pytree_node=False, default=False)


def length(real: Array) -> Array:
    """[batch, positions] bool -> int32 [batch]: up to and with the last real position."""
    return jnp.max(jnp.where(real, jnp.arange(1, real.shape[-1] + 1, dtype=jnp.int32), 0), axis=-1)


def pairs(query: Array, key: Array) -> Array:
    """Both are real: [batch, query] and [batch, key] bool -> [batch, 1, query, key]."""
    return (query[:, :, None] & key[:, None, :])[:, None]


def same_segment(query_ids: Array, key_ids: Array) -> Array:
    """Packed examples attend to themselves alone: ids [batch, query], [batch, key] -> [batch, 1, query, key]."""
    return (query_ids[:, :, None] == key_ids[:, None, :])[:, None]


def causal(length: int) -> Array:
    """Every position sees itself and what is before it: [1, 1, length, length]."""
    return jnp.tril(jnp.ones((length, length), bool))[None, None]
