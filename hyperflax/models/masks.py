"""Attention masks, bool [batch, 1, query, key], True = attend. The axis of size 1 stands for the heads."""

from __future__ import annotations

import jax.numpy as jnp

from hyperflax.types import Array


def pairs(query: Array, key: Array) -> Array:
    """Both are real: [batch, query] and [batch, key] bool -> [batch, 1, query, key]."""
    return (query[:, :, None] & key[:, None, :])[:, None]


def same_segment(query_ids: Array, key_ids: Array) -> Array:
    """Packed examples attend to themselves alone: ids [batch, query], [batch, key] -> [batch, 1, query, key]."""
    return (query_ids[:, :, None] == key_ids[:, None, :])[:, None]


def causal(length: int) -> Array:
    """Every position sees itself and what is before it: [1, 1, length, length]."""
    return jnp.tril(jnp.ones((length, length), bool))[None, None]
