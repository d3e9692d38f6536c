"""Prefix tuning: learned keys and values before those of an attention (Li and Liang 2021, section 4.1).

    attention(q, [key; K], [value; V])      key, value [length, heads, head_dim]

Every query may attend to every prefix position, in the causal decoder, too. `position_bias` says which relative
position bias (Raffel et al. 2020, section 2.1) the prefix positions get:

- `zero`: none. They stand outside the sequence.
- `preceding`: they stand before it at positions -length .. -1, so query i is at distance `j - length - i` from prefix
  position j (memory minus query position, T5's convention), in the stack's own buckets.

Cross-attention has no position bias in T5, so both mean the same there, and the tree writes it as `prefix` in both.

An optional leaf `mask` [length], 1 = keep and 0 = nobody attends, makes prefixes of different lengths one shape. A
masked position has no effect at all; with every position masked the attention is the bare one up to the order of
summation, at most 1e-5 of the largest logit.

>>> spec = prefix_spec(Prefix(length=8, sites=("encoder/attention",)), t5_config)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax.numpy as jnp

from hyperflax.adapters import checks
from hyperflax.adapters.kind_config import KindConfig
from hyperflax.adapters.sites import Place, attentions, check_places, select
from hyperflax.adapters.spec import AdapterSpec, Leaf
from hyperflax.errors import ConfigError
from hyperflax.types import Array, T5Config

READERS = {"zero": "prefix", "preceding": "preceding_prefix"}
CROSS_ATTENTION = "encoder_decoder_attention"


@dataclasses.dataclass(frozen=True)
class Prefix(KindConfig):
    """Settings of prefix tuning.

    Attributes:
      length: positions, equal in all chosen attentions.
      position_bias: `zero` or `preceding`, see above.
      sites: patterns over `encoder/attention`, `decoder/self_attention`, `decoder/encoder_decoder_attention`.
      layers: numbers of the layers that have it, in either stack; None is all of them.
      init_std: start of the learned static keys and values.
      head_std: start of what a hypernetwork adds to them.
    """

    length: int = 8
    position_bias: Literal["zero", "preceding"] = "zero"
    sites: tuple[str, ...] = ("*",)
    layers: tuple[int, ...] | None = None
    init_std: float = 0.1
    head_std: float = 0.1

    kind: ClassVar[str] = "prefix"
    readers: ClassVar[tuple[str, ...]] = tuple(READERS.values())
    size: ClassVar[str] = "length"
    starts_at_identity: ClassVar[bool] = False
    refuses: ClassVar[Mapping[str, str]] = {
        "merge": "no change of the weights makes an attention see further positions",
        "interpolate": "its effect passes through one softmax over prefix and sequence together, and no prefix turns "
        "that into a weighted sum of effects",
    }

    def __post_init__(self) -> None:
        check_places(self)
        checks.size(self)
        if not isinstance(self.position_bias, str) or self.position_bias not in READERS:
            raise ConfigError(f"Prefix.position_bias: expected 'zero' or 'preceding', got {self.position_bias!r}")
        checks.numbers(self, "init_std", "head_std")

    def spec(self, t5: T5Config) -> AdapterSpec:
        return prefix_spec(self, t5)

    def resized(self, slots: int) -> Prefix:
        return dataclasses.replace(self, length=slots)

    @staticmethod
    def gram(slot: Mapping[str, Any]) -> Array:
        """Returns that of the positions' keys and values side by side; a masked position counts as zero."""
        key, value = (jnp.asarray(slot[name], jnp.float32) for name in ("key", "value"))
        rows = jnp.concatenate([key.reshape(key.shape[0], -1), value.reshape(value.shape[0], -1)], axis=-1)
        return row_gram(rows, slot.get("mask"))

    @classmethod
    def catalogue(cls) -> tuple[Prefix, ...]:
        preceding = ("encoder/attention", "decoder/self_attention")
        return cls(length=1), cls(length=1, position_bias="preceding", sites=preceding)


def row_gram(rows: Array, mask: Array | None = None) -> Array:
    """Returns `rows rows.T` [n, n] for rows [n, columns]; a masked row counts as zero."""
    rows = jnp.asarray(rows, jnp.float32)
    if mask is not None:
        rows = rows * mask[:, None]
    return rows @ rows.T


def prefix_spec(config: Prefix, t5: T5Config) -> AdapterSpec:
    """Returns `key` and `value` [length, heads, head_dim] for every chosen attention, and the optional `mask`.

    Raises:
      ConfigError: a site pattern or layer that chooses nothing; the message lists the sites.
    """
    places = select(attentions(t5), config.sites, config.layers)
    slots = [prefix_leaves(config, place, t5.num_heads, t5.head_dim) for place in places]
    leaves = tuple(leaf for key, value, _ in slots for leaf in (key, value))
    return AdapterSpec(leaves, (config,), optional=tuple(mask for *_, mask in slots))


def prefix_leaves(config: Prefix, place: Place, num_heads: int, head_dim: int) -> tuple[Leaf, Leaf, Leaf]:
    """Returns the leaves `key`, `value` and `mask` of one attention."""
    cross = place.module == CROSS_ATTENTION
    path = f"{place.path}/{READERS['zero' if cross else config.position_bias]}"
    where = {"stack": place.stack, "layer": place.layer, "slot_axis": 0}
    shape, axes = (config.length, num_heads, head_dim), ("prefix", "heads", "kv")
    stds = {"init_std": config.init_std, "head_std": config.head_std}
    key, value = (Leaf(f"{path}/{name}", shape, axes, **stds, **where) for name in ("key", "value"))
    return key, value, Leaf(f"{path}/mask", shape[:1], axes[:1], **where)
