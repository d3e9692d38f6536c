"""Full fine-tuning as an adapter: one additive leaf for every parameter of the base model.

    p_read = p + sum_j delta_j        delta [terms, *shape of p]; delta = 0 is the bare parameter, bit for bit

So the frozen tree stays frozen, one base model serves many fully fine-tuned tasks, and merging is a sum. A leaf is
called as the parameter it changes, with the reader between: `encoder/encoder_norm/full/scale` changes
`encoder/encoder_norm/scale`. Training has one term; several are what interpolation makes, exactly.

Parameters outside of all layers are written with the first layer that reads them (embedding, position bias) or the last
layer before them (final norms, output projection).

>>> spec = build_spec(Full(), t5_config)        # as many leaves and values as the base model
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp

from hyperflax.adapters import checks
from hyperflax.adapters.kind_config import KindConfig
from hyperflax.adapters.prefix import row_gram
from hyperflax.adapters.sites import parameters
from hyperflax.adapters.spec import AdapterSpec, Leaf
from hyperflax.types import Array, T5Config


def changed(parameter: Array, delta: Array) -> Array:
    """Returns the float32 sum of a parameter and all terms of `delta` [terms, *shape of the parameter]."""
    return jnp.asarray(parameter, jnp.float32) + jnp.sum(jnp.asarray(delta, jnp.float32), axis=0)


@dataclasses.dataclass(frozen=True)
class Full(KindConfig):
    """Settings of full fine-tuning.

    Attributes:
      terms: deltas that are summed; more than one comes of interpolation.
      head_std: start of a generated delta.
    """

    terms: int = 1
    head_std: float = 0.001

    kind: ClassVar[str] = "full"
    readers: ClassVar[tuple[str, ...]] = ("full",)
    size: ClassVar[str] = "terms"
    refuses: ClassVar[Mapping[str, str]] = {
        "export to PEFT": "PEFT has no form for a change of every parameter; export it merged",
    }

    def __post_init__(self) -> None:
        checks.size(self)
        checks.numbers(self, "head_std")

    def spec(self, t5: T5Config) -> AdapterSpec:
        leaves = []
        for parameter in parameters(t5):
            module, _, name = parameter.path.rpartition("/")
            leaves.append(
                Leaf(
                    path=f"{module}/full/{name}",
                    shape=(self.terms, *parameter.shape),
                    axes=("term", *parameter.axes),
                    stack=parameter.stack,
                    layer=parameter.layer,
                    slot_axis=0,
                    head_std=self.head_std,
                )
            )
        return AdapterSpec(tuple(leaves), (self,))

    def resized(self, slots: int) -> Full:
        return dataclasses.replace(self, terms=slots)

    @classmethod
    def catalogue(cls) -> tuple[Full, ...]:
        return (cls(),)

    @staticmethod
    def gram(slot: Mapping[str, Any]) -> Array:
        """Returns that of the summed delta, as a matrix of rows [..., columns]."""
        (delta,) = slot.values()
        total = jnp.sum(jnp.asarray(delta, jnp.float32), axis=0)
        rows = total.reshape(-1, total.shape[-1])
        return row_gram(rows if rows.shape[0] <= rows.shape[1] else rows.T)

    @staticmethod
    def parameter(leaf: Leaf) -> str:
        return f"{leaf.module}/{leaf.name}"

    @staticmethod
    def merge_slot(kernel: Array, slot: Mapping[str, Any]) -> Array:
        """Returns the sum, in the parameter's dtype."""
        (delta,) = slot.values()
        return changed(kernel, delta).astype(kernel.dtype)

    @staticmethod
    def mix_slots(slots: Sequence[Mapping[str, Any]], weights: Sequence[Any]) -> dict[str, Array]:
        """Returns all terms, each times its weight."""
        (name,) = slots[0]
        weighted = [(weight * slot[name]).astype(slot[name].dtype) for slot, weight in zip(slots, weights, strict=True)]
        # Counted from behind, for batch dimensions may stand in front: all parameters but norms' scales are matrices.
        return {name: jnp.concatenate(weighted, axis=-2 if name == "scale" else -3)}
