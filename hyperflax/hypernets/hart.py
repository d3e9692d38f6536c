"""HART: adapters generated layer by layer, each layer's from the states of the one before.

    h_0 = slots        h_l = D(h_{l-1}, encoded support)        heads: h_l -> adapters of layer l

One decoder D, without causal mask, is applied again and again, and attends to the encoded support every time. HyperT5
asks for all layers at once and so ignores how the parameters of one layer depend on those of another (Liang et al.
2023, HART, section 3). The recurrence is a scan, so compile time does not grow with the base model's depth, and the
support's keys and values are computed once for all steps.

The paper's text is not public. Known from reviews that quote it: the recurrence, the cross-attention at every step,
each demonstration encoded alone. Ours to choose, hence fields: the order of layers, the decoder steps for a layer, and
states that are carried along and that no head reads.

>>> network = HART(HARTConfig(t5_config), spec)
>>> params = network.init(rng, {"support_tokens": tokens})["params"]
>>> adapters = network.apply({"params": params}, {"support_tokens": tokens})
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from hyperflax.adapters.spec import AdapterSpec
from hyperflax.errors import ConfigError
from hyperflax.hypernets.hyper_t5 import HyperT5, HyperT5Config
from hyperflax.types import Array


@dataclasses.dataclass(frozen=True)
class HARTConfig(HyperT5Config):
    """Shape of a HART: that of a HyperT5, whose decoder is applied again and again, and how it walks the layers.

    Attributes:
      order: `forward` walks the encoder's layers and then the decoder's; `backward` the other way round.
      steps_per_layer: applications of the decoder for a layer.
      extra_slots: states carried from layer to layer beside those that the heads read.
    """

    order: Literal["forward", "backward"] = "forward"
    steps_per_layer: int = 1
    extra_slots: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in ("forward", "backward"):
            raise ConfigError(f"HARTConfig.order: expected 'forward' or 'backward', got {self.order!r}")
        for name, least in (("steps_per_layer", 1), ("extra_slots", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"HARTConfig.{name}: expected at least {least}, got {getattr(self, name)!r}")

    def num_slots(self, spec: AdapterSpec) -> int:
        """As many as the layer with most, and the extra ones."""
        return max(spec.num_slots(*layer) for layer in spec.layers()) + self.extra_slots

    def passes(self, spec: AdapterSpec) -> int:
        """Some for every layer that has adapters."""
        return len(spec.layers()) * self.steps_per_layer


class HART(HyperT5):
    """Generates the adapters that `spec` describes from one task's support, one layer after the other."""

    config: HARTConfig  # pyrefly: ignore[bad-override-mutable-attribute]  # no field of a module is ever assigned

    def read(self, encoded: Array, tokens: Array, *, enable_dropout: bool = False) -> Array:
        """Returns the state of every slot of every layer, [slots, emb], in the spec's order."""
        config, tokens = self.config, tokens.reshape(1, -1)
        memory = self.t5.read(encoded.reshape(1, -1, encoded.shape[-1]))

        def next_layer(network: HART, hidden: Array, _: None) -> tuple[Array, Array]:
            for _step in range(config.steps_per_layer):
                hidden = network.t5.decode_embeddings(
                    hidden,
                    memory,
                    tokens,
                    bidirectional=config.slot_bias == "bidirectional",
                    enable_dropout=enable_dropout,
                )
            return hidden, hidden[0]

        layers = self.spec.layers()
        walk = nn.scan(
            next_layer,
            variable_broadcast="params",
            split_rngs={"params": False, "dropout": True},
            length=len(layers),
            reverse=config.order == "backward",
        )
        _, states = walk(self, jnp.asarray(self.slots, config.t5.dtype)[None], None)
        return jnp.concatenate([states[i, : self.spec.num_slots(*layer)] for i, layer in enumerate(layers)])
