"""Multi-head attention with T5X's parameters, adapter prefixes, and a cache for decoding.

Scores are `q k + bias` without 1/sqrt(head_dim) (folded into the query's initial values), masked to -1e10, softmax over
keys. Two slots of the `adapters` collection put extra keys and values in front of the sequence's own (Li and Liang
2021, prefix tuning): `prefix` with a position bias of zero, `preceding_prefix` standing at positions -length..-1. Each
holds `key` and `value` [length, heads, head_dim] and, if some positions are to be ignored, `mask` [length] (1 = keep).
An absent slot leaves exactly the bare computation.

On a GPU, whole sequences in bfloat16 go through one kernel where there is one (`fused_attention.py`). Otherwise
everything is [rows, heads, positions, head_dim] before it is multiplied. Left to einsum, XLA on CPU hands the layout of
[rows, positions, heads, head_dim] on to the scores, and their softmax takes several times as long.

Decoding lays keys out as [rows, heads, positions * width, head_dim]: a new token is one `dynamic_update_slice` that
nothing reshapes afterwards (a reshaped use would make XLA copy the cache in every step). `width` is 1, or the number of
beams that share a row; then each beam attends to all of them and a mask keeps its own ancestors, so beams are never
reordered in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from hyperflax.models import fused_attention
from hyperflax.models.cache import write_position
from hyperflax.models.layers import ATTENTION_INIT, Projection, query_init
from hyperflax.models.masks import Trailing
from hyperflax.models.relative_bias import PositionBias
from hyperflax.types import Array, T5Config

MASKED = -1e10
PREFIX_SLOTS = ("prefix", "preceding_prefix")


class Attention(nn.Module):
    """One attention: encoder self, decoder self or decoder cross."""

    config: T5Config

    def setup(self) -> None:
        cfg = self.config
        self.query = Projection(cfg.joined_kv, cfg.dtype, query_init(cfg.head_dim))
        self.key = Projection(cfg.joined_kv, cfg.dtype, ATTENTION_INIT)
        self.value = Projection(cfg.joined_kv, cfg.dtype, ATTENTION_INIT)
        self.out = Projection(cfg.emb_dim, cfg.dtype, ATTENTION_INIT)
        self.dropout = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))

    def __call__(
        self,
        x: Array,
        source: Array,
        mask: Array | None,
        bias: PositionBias | None,
        deterministic: bool = True,
        trailing: Trailing | None = None,
    ) -> Array:
        """Attends from every position of `x` to every position of `source`.

        Args:
          x: [batch, queries, emb].
          source: [batch, keys, emb]; `x` itself for self-attention.
          mask: bool, broadcastable to [batch, heads, queries, keys]; True = attend. None: everything.
          bias: the stack's relative position bias, None for none.
          deterministic: no dropout.
          trailing: what the mask says where all padding trails; None: something else.

        Returns:
          [batch, queries, emb].
        """
        q, k, v = self._split(self.query(x)), self._split(self.key(source)), self._split(self.value(source))
        prefixes = self._prefixes()
        if not prefixes and trailing is not None and self._fused(q, k, bias, deterministic):
            y = fused_attention.attend(q, k, v, None if bias is None else bias.own, trailing)
            return self.out(y.reshape(*x.shape[:2], -1))
        k, v = self._prepend(prefixes, "key", k), self._prepend(prefixes, "value", v)
        q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
        y = self._attend(
            q, k, v, self._bias(prefixes, bias), self._mask(prefixes, mask, source.shape[1]), deterministic
        )
        return self.out(y.swapaxes(1, 2).reshape(*x.shape[:2], -1))

    # Decoding

    def start_self(self, rows: int, width: int, length: int) -> dict[str, Array]:
        """Returns an empty cache for `length` positions, prefixes already in it: `key` and `value`, see the module."""
        cfg = self.config
        prefixes = self._prefixes()
        empty = jnp.zeros((rows, length, cfg.num_heads, cfg.head_dim), cfg.dtype)
        cache = {name: self._prepend(prefixes, name, empty).swapaxes(1, 2) for name in ("key", "value")}
        return {name: jnp.repeat(x, width, axis=2) for name, x in cache.items()}

    def start_cross(self, source: Array) -> dict[str, Array]:
        """Computes the keys and values of `source` [batch, keys, emb] once, prefixes in front.

        Returns:
          `key` and `value` [batch, heads, prefix + keys, head_dim].
        """
        prefixes = self._prefixes()
        parts = {"key": self._split(self.key(source)), "value": self._split(self.value(source))}
        return {name: self._prepend(prefixes, name, x).swapaxes(1, 2) for name, x in parts.items()}

    def step_self(
        self, x: Array, cache: Mapping[str, Array], bias: PositionBias, ancestors: Array | None
    ) -> tuple[Array, dict[str, Array]]:
        """One decoding step of self-attention: writes the token's key and value, attends to what has been written.

        Args:
          x: [example, decodes, emb], one token of each decode.
          cache: `key`, `value` [rows, heads, (prefix + length) * width, head_dim], rows * width = example * decodes.
          bias: the stack's bias, for the position `bias.index`, which the cache keeps at `bias.place`.
          ancestors: with width > 1, int32 [rows, width, length]: which of the row's `width` places holds a decode's
            token at each position.

        Returns:
          [example, decodes, emb] and the new cache.
        """
        rows, heads, places, head_dim = cache["key"].shape
        width = x.shape[0] * x.shape[1] // rows
        prefixes = self._prefixes()
        prefix_length = places // width - bias.length
        new = {}
        for name, projection in (("key", self.key), ("value", self.value)):
            y = projection(x).reshape(rows, width, heads, head_dim).swapaxes(1, 2)
            new[name] = write_position(cache[name], y, (prefix_length + bias.place) * width, axis=2)
        q = self.query(x).reshape(rows, width, heads, head_dim).swapaxes(1, 2)
        position_bias = jnp.repeat(self._bias(prefixes, bias), width, axis=-1)
        mask = self._mask(prefixes, (bias.ages() <= bias.index)[None, None, None], bias.length)
        mask = jnp.repeat(mask, width, axis=-1)
        if ancestors is not None:
            ancestors = jnp.pad(ancestors, ((0, 0), (0, 0), (prefix_length, 0)))
            own = ancestors[..., None] == jnp.arange(width)
            mask = mask & own.reshape(rows, 1, width, places)
        y = self._attend(q, new["key"], new["value"], position_bias, mask)
        return self.out(y.swapaxes(1, 2).reshape(*x.shape[:2], -1)), new

    def step_cross(self, x: Array, cache: Mapping[str, Array], mask: Array, deterministic: bool = True) -> Array:
        """Cross-attention with keys and values computed before; an example's decodes share them.

        Args:
          x: [example, decodes, emb]: one token of each decode, or the slots of a hypernetwork.
          cache: what `start_cross` returned.
          mask: bool [example, 1, 1 or decodes, keys].
          deterministic: no dropout.

        Returns:
          [example, decodes, emb].
        """
        q = self._split(self.query(x)).swapaxes(1, 2)
        mask = self._mask(self._prefixes(), mask, mask.shape[-1])
        y = self._attend(q, cache["key"], cache["value"], None, mask, deterministic)
        return self.out(y.swapaxes(1, 2).reshape(*x.shape[:2], -1))

    # Shared by both ways

    def _split(self, x: Array) -> Array:
        """[..., heads * head_dim] -> [..., heads, head_dim]."""
        return x.reshape(*x.shape[:-1], self.config.num_heads, self.config.head_dim)

    def _fused(self, q: Array, k: Array, bias: PositionBias | None, deterministic: bool) -> bool:
        """Whether one kernel does what `_attend` does."""
        cfg = self.config
        plain = not cfg.float32_attention_logits and (deterministic or not cfg.dropout_rate)
        return plain and not (bias and bias.adapted) and fused_attention.fits(q, k)

    def _attend(
        self, q: Array, k: Array, v: Array, bias: Array | None, mask: Array | None, deterministic: bool = True
    ) -> Array:
        """q [rows, heads, queries, head_dim] over k and v [rows, heads, keys, head_dim] -> the shape of q."""
        if self.config.float32_attention_logits:
            q, k = q.astype(jnp.float32), k.astype(jnp.float32)
        scores = jnp.einsum("rhqd,rhkd->rhqk", q, k)
        if bias is not None:
            scores = scores + _for_every_row(bias.astype(scores.dtype), scores.shape[0])
        if mask is not None:
            scores = jnp.where(mask, scores, jnp.asarray(MASKED, scores.dtype))
        weights = self.dropout(softmax(scores).astype(self.config.dtype), deterministic=deterministic)
        return jnp.einsum("rhqk,rhkd->rhqd", weights, v)

    # Prefixes

    def _prefixes(self) -> dict[str, Mapping[str, Array]]:
        """Returns the prefix slots that are there, `prefix` before `preceding_prefix`."""
        slots = {name: self.get_variable("adapters", name) for name in PREFIX_SLOTS}
        return {name: slot for name, slot in slots.items() if slot is not None}

    def _prepend(self, prefixes: Mapping[str, Mapping[str, Array]], name: str, x: Array) -> Array:
        """Puts every prefix's `key` or `value` in front of x [batch, keys, heads, head_dim]."""
        extra = [slot[name].astype(x.dtype) for slot in prefixes.values()]
        return jnp.concatenate([*(jnp.broadcast_to(y, (x.shape[0], *y.shape)) for y in extra), x], axis=1)

    def _mask(self, prefixes: Mapping[str, Mapping[str, Array]], mask: Array | None, keys: int) -> Any:
        """Widens a mask [..., keys] to the left by the prefixes' own, which are all ones where they are absent."""
        if not prefixes:
            return mask
        mask = jnp.ones((1, 1, 1, keys), bool) if mask is None else mask
        extra = [
            slot["mask"] > 0 if "mask" in slot else jnp.ones(slot["key"].shape[0], bool) for slot in prefixes.values()
        ]
        return jnp.concatenate([*(jnp.broadcast_to(y, (*mask.shape[:-1], *y.shape)) for y in extra), mask], axis=-1)

    def _bias(self, prefixes: Mapping[str, Mapping[str, Array]], bias: PositionBias | None) -> Any:
        """Returns the bias of prefixes and own keys, [heads, queries, prefix + keys]; None where nothing has one."""
        if bias is None:
            return None
        extra = [(name, bias.preceding(slot["key"].shape[0])) for name, slot in prefixes.items()]
        parts = [x if name == "preceding_prefix" else jnp.zeros_like(x) for name, x in extra]
        return jnp.concatenate([*parts, bias.own], axis=-1)


@jax.custom_vjp
def softmax(scores: Array) -> Array:
    """Softmax over the last axis, whose gradient is computed from the weights.

    XLA on CPU otherwise computes the weights once more, in a third of the time of attention's gradient.
    """
    return jax.nn.softmax(scores)


def _softmax_forward(scores: Array) -> tuple[Array, Array]:
    weights = softmax(scores)
    return weights, weights


def _softmax_backward(weights: Array, gradient: Array) -> tuple[Array]:
    return (weights * (gradient - jnp.sum(weights * gradient, axis=-1, keepdims=True)),)


softmax.defvjp(_softmax_forward, _softmax_backward)


def _for_every_row(bias: Array, rows: int) -> Array:
    """[heads, queries, keys] -> [rows, heads, queries, keys].

    Written as a product with ones, which XLA turns into a broadcast. Its gradient is then a matrix product, where a
    broadcast's would be a sum over rows of all layers at once, read with a large stride: on CPU that took a seventh of
    the training step of a small T5.
    """
    return jnp.einsum("r,hqk->rhqk", jnp.ones(rows, bias.dtype), bias)
