"""Soft prompt: learned embeddings before those of the input (Lester et al. 2021, The Power of Scale, section 2).

    encoder([p_1 .. p_length; embed(input)])        p [length, emb]

They stand in the sequence: the encoder's position bias counts them, and the decoder attends to what becomes of them. An
optional leaf `mask` [length], 1 = keep and 0 = nobody attends, makes prompts of different lengths one shape; a masked
position has no effect, and with every position masked the model is the bare one up to the order of summation.

The prompt stands outside of all layers, at `encoder/soft_prompt`; a hypernetwork writes it with the encoder's first.

>>> spec = build_spec(SoftPrompt(length=20), t5_config)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp

from hyperflax.adapters import checks
from hyperflax.adapters.kind_config import KindConfig
from hyperflax.adapters.prefix import row_gram
from hyperflax.adapters.spec import AdapterSpec, Leaf
from hyperflax.types import Array, T5Config


def prepend(x: Array, slot: Mapping[str, Array] | None) -> Array:
    """Returns [batch, length + source, emb]: the prompt before `x` [batch, source, emb], in the dtype of `x`."""
    if slot is None:
        return x
    prompt = jnp.asarray(slot["embedding"], x.dtype)
    return jnp.concatenate([jnp.broadcast_to(prompt, (x.shape[0], *prompt.shape)), x], axis=1)


def prepend_mask(real: Array, slot: Mapping[str, Array] | None) -> Array:
    """Returns bool [batch, length + source]: the prompt's own mask before `real` [batch, source]."""
    if slot is None:
        return real
    kept = slot["mask"] > 0 if "mask" in slot else jnp.ones(slot["embedding"].shape[0], bool)
    return jnp.concatenate([jnp.broadcast_to(kept, (real.shape[0], *kept.shape)), real], axis=1)


@dataclasses.dataclass(frozen=True)
class SoftPrompt(KindConfig):
    """Settings of a soft prompt.

    Attributes:
      length: positions.
      init_std: start of the learned static embeddings; T5's own token embeddings start at 1.
      head_std: start of what a hypernetwork adds to them.
    """

    length: int = 20
    init_std: float = 0.5
    head_std: float = 0.1

    kind: ClassVar[str] = "soft_prompt"
    readers: ClassVar[tuple[str, ...]] = ("soft_prompt",)
    size: ClassVar[str] = "length"
    starts_at_identity: ClassVar[bool] = False
    refuses: ClassVar[Mapping[str, str]] = {
        "merge": "no change of the weights adds positions to the input",
        "interpolate": "its effect passes through the whole encoder, and no prompt turns that into a weighted sum of "
        "effects",
    }

    def __post_init__(self) -> None:
        checks.size(self)
        checks.numbers(self, "init_std", "head_std")

    def spec(self, t5: T5Config) -> AdapterSpec:
        """Returns `embedding` [length, emb] and the optional `mask`."""
        where = {"stack": "encoder", "layer": 0, "slot_axis": 0}
        embedding = Leaf(
            path="encoder/soft_prompt/embedding",
            shape=(self.length, t5.emb_dim),
            axes=("prefix", "embed"),
            init_std=self.init_std,
            head_std=self.head_std,
            **where,
        )
        mask = Leaf(path="encoder/soft_prompt/mask", shape=(self.length,), axes=("prefix",), **where)
        return AdapterSpec((embedding,), (self,), optional=(mask,))

    def resized(self, slots: int) -> SoftPrompt:
        return dataclasses.replace(self, length=slots)

    @classmethod
    def catalogue(cls) -> tuple[SoftPrompt, ...]:
        return (cls(length=1),)

    @staticmethod
    def gram(slot: Mapping[str, Any]) -> Array:
        """Returns that of the embeddings, [length, length]; a masked position counts as zero."""
        return row_gram(slot["embedding"], slot.get("mask"))
