"""Scaled parallel adapter on the feed-forward block, as in MAM (He et al. 2022, sections 3.3 and 4.6).

    y = mlp(x) + scale * relu(x down) up        x [..., emb], down [emb, bottleneck], up [bottleneck, emb]

x is what the block itself reads. The factor is `up`'s scale in the spec, so the tree that a layer reads holds `up`
already multiplied. With up = 0 the block is the bare one, bit for bit. As in the paper's formula there are no biases.

Slots: index j owns column j of `down` and row j of `up`.

MAM is this kind beside a prefix: `build_spec((Prefix(length=30), ParallelMLP(bottleneck=512)), t5_config)`.

>>> spec = build_spec(ParallelMLP(bottleneck=16), t5_config)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from hyperflax.adapters import checks
from hyperflax.adapters.kind_config import KindConfig
from hyperflax.adapters.lora import product_gram
from hyperflax.adapters.sites import check_places, mlps, select
from hyperflax.adapters.spec import AdapterSpec, Leaf
from hyperflax.types import Array, T5Config


def parallel_delta(x: Array, slot: Mapping[str, Array]) -> Array:
    """Returns what the slot adds to a feed-forward block of `x` [..., emb], in the dtype of `x`; zero where `up` is."""
    return jax.nn.relu(x @ jnp.asarray(slot["down"], x.dtype)) @ jnp.asarray(slot["up"], x.dtype)


@dataclasses.dataclass(frozen=True)
class ParallelMLP(KindConfig):
    """Settings of the parallel adapter.

    Attributes:
      bottleneck: columns of `down`.
      scale: factor of the addition; 4 in the paper.
      sites: patterns over `encoder/mlp` and `decoder/mlp`.
      layers: numbers of the layers that have it, in either stack; None is all of them.
      down_head_std: start of a generated addition to `down`, relative to `down`'s own start of 1 / sqrt(emb).
      up_head_std: start of a generated `up`.
    """

    bottleneck: int = 16
    scale: float = 4.0
    sites: tuple[str, ...] = ("*",)
    layers: tuple[int, ...] | None = None
    down_head_std: float = 0.1
    up_head_std: float = 0.02

    kind: ClassVar[str] = "parallel_mlp"
    readers: ClassVar[tuple[str, ...]] = ("parallel_mlp",)
    size: ClassVar[str] = "bottleneck"
    refuses: ClassVar[Mapping[str, str]] = {
        "merge": "a second branch with an activation of its own is no change of the block's weights",
        "export to PEFT": "PEFT has no adapter that runs in parallel to a feed-forward block",
    }

    def __post_init__(self) -> None:
        check_places(self)
        checks.size(self)
        checks.numbers(self, "scale", "down_head_std", "up_head_std")

    def spec(self, t5: T5Config) -> AdapterSpec:
        """Returns `down` and `up` for every chosen feed-forward block; `up` starts at zero."""
        places = select(mlps(t5), self.sites, self.layers)
        return AdapterSpec(tuple(leaf for place in places for leaf in self._leaves(place, t5.emb_dim)), (self,))

    def _leaves(self, place: Any, emb: int) -> tuple[Leaf, Leaf]:
        path, where = f"{place.path}/parallel_mlp", {"stack": place.stack, "layer": place.layer}
        std = 1.0 / math.sqrt(emb)
        down = Leaf(
            path=f"{path}/down",
            shape=(emb, self.bottleneck),
            axes=("embed", "rank"),
            slot_axis=1,
            init_std=std,
            head_std=self.down_head_std * std,
            **where,
        )
        up = Leaf(
            path=f"{path}/up",
            shape=(self.bottleneck, emb),
            axes=("rank", "embed"),
            slot_axis=0,
            scale=self.scale,
            head_std=self.up_head_std,
            **where,
        )
        return down, up

    def resized(self, slots: int) -> ParallelMLP:
        return dataclasses.replace(self, bottleneck=slots)

    @classmethod
    def catalogue(cls) -> tuple[ParallelMLP, ...]:
        return (cls(bottleneck=1),)

    @staticmethod
    def gram(slot: Mapping[str, Any]) -> Array:
        """Returns that of `down up`, the map where every unit is active."""
        return product_gram(slot["down"], slot["up"])

    @staticmethod
    def mix_slots(slots: Sequence[Mapping[str, Any]], weights: Sequence[Any]) -> dict[str, Array]:
        """Returns all units side by side, `up` multiplied by the weights: the activation sees none of them."""
        down = jnp.concatenate([slot["down"] for slot in slots], axis=-1)
        weighted = [(weight * slot["up"]).astype(slot["up"].dtype) for slot, weight in zip(slots, weights, strict=True)]
        return {"down": down, "up": jnp.concatenate(weighted, axis=-2)}
