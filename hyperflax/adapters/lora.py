"""LoRA: a low-rank addition to any projection (Hu et al. 2021, section 4.1).

    y = x W + (alpha / rank) (x a) b        x [..., in], W [in, out], a [in, rank], b [rank, out]

The factor alpha / rank is `b`'s scale in the spec, so the tree that a layer reads holds `b` already multiplied and a
layer computes y = x W + (x a) b. With b = 0 the projection is the bare one, bit for bit.

Slots: rank index r owns column r of every `a` and row r of every `b` of its layer.

>>> spec = lora_spec(LoRA(rank=4, sites=("*/query", "*/mlp/*")), t5_config)
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from hyperflax.adapters import checks
from hyperflax.adapters.kind_config import KindConfig
from hyperflax.adapters.sites import Projection, check_places, projections, select
from hyperflax.adapters.spec import AdapterSpec, Leaf
from hyperflax.types import Array, T5Config

# For what is kept: a TPU multiplies float32 in bfloat16 unless it is told, a GPU in TF32.
_exact = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


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


@dataclasses.dataclass(frozen=True)
class LoRA(KindConfig):
    """Settings of LoRA.

    Attributes:
      rank: columns of `a`.
      alpha: the addition is multiplied by alpha / rank.
      sites: patterns over `encoder/attention/query`, `decoder/self_attention/out`,
        `decoder/encoder_decoder_attention/key`, `encoder/mlp/wi_0` ...
      layers: numbers of the layers that have it, in either stack; None is all of them.
      a_head_std: start of a generated addition to `a`, relative to `a`'s own start of 1 / sqrt(in).
      b_head_std: start of a generated `b`. Large values (1.0) were seen to stop all learning.
    """

    rank: int = 8
    alpha: float = 8.0
    sites: tuple[str, ...] = ("*/query", "*/value")
    layers: tuple[int, ...] | None = None
    a_head_std: float = 0.1
    b_head_std: float = 0.02

    kind: ClassVar[str] = "lora"
    readers: ClassVar[tuple[str, ...]] = ("lora",)
    size: ClassVar[str] = "rank"

    def __post_init__(self) -> None:
        check_places(self)
        checks.size(self)
        checks.numbers(self, "alpha", "a_head_std", "b_head_std")

    def spec(self, t5: T5Config) -> AdapterSpec:
        return lora_spec(self, t5)

    def resized(self, slots: int) -> LoRA:
        return dataclasses.replace(self, rank=slots, alpha=self.alpha / self.rank * slots)

    @classmethod
    def catalogue(cls) -> tuple[LoRA, ...]:
        return (cls(rank=1, sites=("*",)),)

    @staticmethod
    def gram(slot: Mapping[str, Any]) -> Array:
        """Returns that of `a b`, [rank, rank]."""
        return product_gram(slot["a"], slot["b"])

    @staticmethod
    def merge_slot(kernel: Array, slot: Mapping[str, Any]) -> Array:
        """Returns `kernel + a b`, summed in float32 and given in the kernel's dtype."""
        delta = _exact(jnp.asarray(slot["a"], jnp.float32), jnp.asarray(slot["b"], jnp.float32))
        return (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)

    @staticmethod
    def mix_slots(slots: Sequence[Mapping[str, Any]], weights: Sequence[Any]) -> dict[str, Array]:
        """Returns `[a_1 a_2 ...]` and `[w_1 b_1; w_2 b_2; ...]`, whose product is the weighted sum of products."""
        a = jnp.concatenate([slot["a"] for slot in slots], axis=-1)
        weighted = [(weight * slot["b"]).astype(slot["b"].dtype) for slot, weight in zip(slots, weights, strict=True)]
        return {"a": a, "b": jnp.concatenate(weighted, axis=-2)}

    @staticmethod
    def fit_slot(slot: Mapping[str, np.ndarray], fresh: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the slot with another rank: smaller, by what is nearest to `a b` in the Frobenius norm (Eckart and
        Young 1936), shared evenly between `a` and `b`. Columns of the fresh `a` beside rows of zeros are what is more,
        and what stands where `a b` has nothing: beside a column of zeros such a row would never get a gradient."""
        a, b = (np.asarray(slot[name], np.float64) for name in ("a", "b"))
        wanted = fresh["a"].shape[1]
        if wanted < a.shape[1]:
            left, upper_a = np.linalg.qr(a)
            right, upper_b = np.linalg.qr(b.T)
            u, s, v = np.linalg.svd(upper_a @ upper_b.T, full_matrices=False)
            # Singular values that are 0 come out as rounding.
            rank = np.count_nonzero(s[:wanted] > s[0] * max(a.shape) * np.finfo(s.dtype).eps)
            root = np.sqrt(s[:rank])
            a, b = (left @ u[:, :rank]) * root, (right @ v[:rank].T * root).T
        rank = a.shape[1]
        a, b = np.concatenate([a, fresh["a"][:, rank:]], axis=1), np.pad(b, ((0, wanted - rank), (0, 0)))
        return {"a": a.astype(np.float32), "b": b.astype(np.float32)}


def product_gram(a: Array, b: Array) -> Array:
    """Returns `a.T a b b.T` [rank, rank] for a [in, rank] and b [rank, out]; `a b` itself is never computed."""
    a, b = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
    return _exact(_exact(a.T, a), _exact(b, b.T))  # distances are small differences of such products


def lora_spec(config: LoRA, t5: T5Config) -> AdapterSpec:
    """Returns two leaves, `a` and `b`, for every chosen projection in every chosen layer.

    `a` starts at normal(1 / sqrt(in)) and `b` at zero, so that training starts from the bare model.

    Raises:
      ConfigError: a site pattern or layer that chooses nothing; the message lists the sites.
    """
    places = select(projections(t5), config.sites, config.layers)
    return AdapterSpec(tuple(leaf for place in places for leaf in lora_leaves(config, place)), (config,))


def lora_leaves(config: LoRA, place: Projection) -> tuple[Leaf, Leaf]:
    """Returns the leaves `a` and `b` of one projection."""
    where = {"stack": place.stack, "layer": place.layer}
    std = 1.0 / math.sqrt(place.in_dim)
    a = Leaf(
        path=f"{place.path}/lora/a",
        shape=(place.in_dim, config.rank),
        axes=(place.in_axis, "rank"),
        slot_axis=1,
        init_std=std,
        head_std=config.a_head_std * std,
        **where,
    )
    b = Leaf(
        path=f"{place.path}/lora/b",
        shape=(config.rank, place.out_dim),
        axes=("rank", place.out_axis),
        slot_axis=0,
        scale=config.alpha / config.rank,
        head_std=config.b_head_std,
        **where,
    )
    return a, b
