"""T5's relative position bias: one learned number per head and bucket of distances (Raffel et al. 2020, section 2.1).

Positions are places in the array, also in packed batches: distances inside one segment do not change by packing.
A bias depends on `key position - query position` alone, so it is looked up once per distance and then spread over
the [query, key] plane by reshaping: no [buckets, query, key] one-hot, and a gradient that is a sum, not a scatter.

For the same reason a decoding cache can be a ring. Place p of it was written (place - p) mod length steps ago, whatever
the row's own position is, so rows that started at different times share one place to write to and one bias; only how
far back a row may look is its own.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from hyperflax.models.layers import TABLE_INIT, parameter
from hyperflax.types import Array, T5Config


def bucket(distance: np.ndarray, *, bidirectional: bool, num_buckets: int = 32, max_distance: int = 128) -> np.ndarray:
    """Returns the bucket of every distance, in [0, num_buckets).

    Half of the buckets hold one distance each, the other half grow logarithmically up to `max_distance`.

    Args:
      distance: integers, key position minus query position.
      bidirectional: half of the buckets are for keys after the query; otherwise those all share bucket 0.
      num_buckets, max_distance: as in `T5Config`, which refuses what has no buckets.
    """
    distance = np.asarray(distance)
    offset = np.zeros_like(distance)
    behind = -distance
    if bidirectional:
        num_buckets //= 2
        offset = (distance > 0) * num_buckets
        behind = np.abs(behind)
    else:
        behind = np.maximum(behind, 0)
    exact = num_buckets // 2
    # As in T5X: ratio and logarithm are float32, its epsilon lifts what rounding would put below a bucket's edge. The
    # other logarithm is a float64 scalar, which under numpy 2 makes all that comes after float64.
    ratio = behind.astype(np.float32) / exact + np.finfo(np.float32).eps
    large = exact + (np.log(ratio) / np.log(max_distance / exact) * (num_buckets - exact)).astype(np.int32)
    return (offset + np.where(behind < exact, behind, np.minimum(large, num_buckets - 1))).astype(np.int32)


@struct.dataclass
class PositionBias:
    """The bias of one stack, or of one layer.

    Attributes:
      own: [heads, queries, keys] for keys at the positions 0 .. length - 1; while decoding, in the places of the cache.
      table: [heads, buckets] in the compute dtype.
      index: None for a whole sequence; while decoding, the position of the single query (an int32 scalar).
      place: while decoding, the cache's place for that position, an int32 scalar below `length`.
      length: number of query positions, static; while decoding, the number of places in the cache.
      bidirectional, max_distance: see `bucket`.
      start: where the sequence begins, an int32 scalar of at most `latest_start`; None is 0. Positions before it are
        masked, and a prefix stands right before it.
      adapted: an adapter adds to the table, so that tasks may have their own.
    """

    own: Array
    table: Array
    index: Any
    place: Any
    length: int = struct.field(pytree_node=False)
    bidirectional: bool = struct.field(pytree_node=False)
    max_distance: int = struct.field(pytree_node=False)
    start: Array | None = None
    latest_start: int = struct.field(pytree_node=False, default=0)
    adapted: bool = struct.field(pytree_node=False, default=False)

    @classmethod
    def create(
        cls,
        table: Array,
        *,
        length: int,
        bidirectional: bool,
        max_distance: int,
        index: Array | None = None,
        place: Array | None = None,
    ) -> PositionBias:
        """Computes `own` once, to be shared by all layers. Without a `place`, position and place are one."""
        bias = cls(table, table, index, index if place is None else place, length, bidirectional, max_distance)
        return dataclasses.replace(bias, own=bias.at(0, length) if index is None else bias.in_places())

    def ages(self) -> Array:
        """While decoding: how many steps ago every place was written, int32 [length]; 0 is the query's own."""
        return (self.place - jnp.arange(self.length, dtype=jnp.int32)) % self.length

    def in_places(self) -> Array:
        """While decoding: [heads, 1, length] for the keys in the cache's places."""
        return jnp.take(self.values(-np.arange(self.length)), self.ages(), axis=1, mode="clip")[:, None]

    def preceding(self, length: int) -> Array:
        """Returns [heads, queries, length] for keys at the positions -length .. -1 from the start: for a prefix."""
        if self.start is None:
            return self.at(-length, length)
        values = self.values(np.arange(-length - (self.length - 1), self.latest_start))
        values = jax.lax.dynamic_slice_in_dim(values, self.start, length + self.length - 1, axis=1)
        return _toeplitz(values, self.length, length)

    def at(self, first_key: int, keys: int) -> Array:
        """Returns [heads, queries, keys] for keys at the positions `first_key` and on."""
        # One column per distance, from the last query's to the first key up to the first query's to the last key.
        values = self.values(np.arange(first_key - (self.length - 1), first_key + keys))
        if self.index is not None:
            return jax.lax.dynamic_slice_in_dim(values, self.length - 1 - self.index, keys, axis=1)[:, None]
        return _toeplitz(values, self.length, keys)

    def values(self, distance: np.ndarray) -> Array:
        """Returns [heads, n] for n distances, key position minus query position."""
        sizes = {"num_buckets": self.table.shape[-1], "max_distance": self.max_distance}
        return jnp.take(self.table, bucket(distance, bidirectional=self.bidirectional, **sizes), axis=1, mode="clip")


def _toeplitz(values: Array, queries: int, keys: int) -> Array:
    """[heads, queries + keys - 1] -> out[h, i, j] = values[h, queries - 1 - i + j].

    Rows of width n + 1 laid end to end and cut again at width n: each row starts one place earlier than the one above.
    """
    heads, n = values.shape
    rows = jnp.broadcast_to(jnp.pad(values, ((0, 0), (0, 1)))[:, None], (heads, queries, n + 1))
    return rows.reshape(heads, -1)[:, : queries * n].reshape(heads, queries, n)[:, :, queries - 1 :]


class RelativeBias(nn.Module):
    """Holds the parameter `rel_embedding` [heads, buckets]."""

    config: T5Config

    @nn.compact
    def __call__(
        self, length: int, bidirectional: bool, index: Array | None = None, place: Array | None = None
    ) -> PositionBias:
        """Returns the bias for `length` query positions, or for the one at `index` with a cache of `length` places."""
        cfg = self.config
        table = parameter(self, "rel_embedding", TABLE_INIT, (cfg.num_heads, cfg.num_buckets))
        bias = PositionBias.create(
            jnp.asarray(table, cfg.dtype),
            length=length,
            bidirectional=bidirectional,
            max_distance=cfg.max_distance,
            index=index,
            place=place,
        )
        return dataclasses.replace(bias, adapted=self.has_variable("adapters", "full"))
