"""HART: adapters generated layer by layer, each layer's from the states of the one before.

    h_0 = 0        x_l = z_l + W h_{l-1}        h_l = D(x_l, encoded support)        heads: h_l -> adapters of layer l

One decoder D, without causal mask, is applied again and again, and attends to the encoded support every time. HyperT5
asks for all layers at once and so ignores how the parameters of one layer depend on those of another (Liang et al.
2023, HART, section 3). The recurrence is a scan, so compile time does not grow with the base model's depth, and the
support's keys and values are computed once for all steps.

The paper's text is not public. Known from reviews that quote it: h_l = D(h_{l-1}) with h_1 = D(z), the cross-attention
at every step, each demonstration encoded alone. That recurrence is `feedback="direct"`. It forgets which slot is which:
D, without position bias, treats all slots alike, and they grow together from layer to layer. In a trained one they
agree from the second layer on (cosine 1.00), so that a LoRA of any rank is written as if its rank were one. By default,
therefore, each layer has slots z_l of its own, and what the layer before passes on goes through a map W that starts at
zero: a new HART writes its layers apart, and learns what one of them should know of the other. docs/claims.md compares
the two. Ours to choose as well, hence fields: the order of layers, the decoder steps for a layer, and states that are
carried along and that no head reads.

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
from hyperflax.configs import check_sizes
from hyperflax.errors import ConfigError
from hyperflax.hypernets.hyper_t5 import HyperT5, HyperT5Config
from hyperflax.models.flops import Forward
from hyperflax.models.matmul import project
from hyperflax.models.parameters import param
from hyperflax.types import Array


@dataclasses.dataclass(frozen=True)
class HARTConfig(HyperT5Config):
    """Shape of a HART: that of a HyperT5, whose decoder is applied again and again, and how it walks the layers.

    Attributes:
      feedback: how the states of a layer enter the next one's: `projected` or `direct`, see the module.
      order: `forward` walks the encoder's layers and then the decoder's; `backward` the other way round.
      steps_per_layer: applications of the decoder for a layer.
      extra_slots: states carried from layer to layer beside those that the heads read.
    """

    feedback: Literal["projected", "direct"] = "projected"
    order: Literal["forward", "backward"] = "forward"
    steps_per_layer: int = 1
    extra_slots: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("feedback", ("projected", "direct")), ("order", ("forward", "backward"))):
            if (value := getattr(self, name)) not in known:
                raise ConfigError(f"HARTConfig.{name}: expected '{known[0]}' or '{known[1]}', got {value!r}")
        check_sizes(self, steps_per_layer=1, extra_slots=0)

    def width(self, spec: AdapterSpec) -> int:
        """How many slots the decoder reads at once: as many as the layer with most, and the extra ones."""
        return max(spec.num_slots(*layer) for layer in spec.layers()) + self.extra_slots

    def num_slots(self, spec: AdapterSpec) -> int:
        """How many slot embeddings are learned: those of every layer, or of the first."""
        return self.width(spec) * (len(spec.layers()) if self.feedback == "projected" else 1)

    def passes(self, spec: AdapterSpec) -> int:
        """Some for every layer that has adapters."""
        return len(spec.layers()) * self.steps_per_layer

    def flops(self, spec: AdapterSpec, rows: int, length: int) -> Forward:
        """Returns the operations of one task's adapters from a support of `rows` rows of `length` tokens."""
        fed_back = 2 * self.width(spec) * self.t5.emb_dim**2 * self.passes(spec) if self.feedback == "projected" else 0
        return super().flops(spec, rows, length) + Forward(fed_back, 0)


class HART(HyperT5):
    """Generates the adapters that `spec` describes from one task's support, one layer after the other."""

    config: HARTConfig  # pyrefly: ignore[bad-override-mutable-attribute]  # no field of a module is ever assigned

    def setup(self) -> None:
        super().setup()
        if self.config.feedback == "projected":
            init = nn.with_logical_partitioning(nn.initializers.zeros, ("embed", "slot_values"))
            self.feedback = param(self, "feedback", init, (self.config.t5.emb_dim,) * 2)

    def read(self, encoded: Array, tokens: Array, *, enable_dropout: bool = False) -> Array:
        """Returns the state of every slot of every layer, [slots, emb], in the spec's order."""
        config, layers, tokens = self.config, self.spec.layers(), tokens.reshape(1, -1)
        memory = self.t5.read(encoded.reshape(1, -1, encoded.shape[-1]))
        slots = jnp.asarray(self.slots, config.t5.dtype).reshape(-1, 1, config.width(self.spec), config.t5.emb_dim)
        if config.feedback == "projected":
            start, own_slots = jnp.zeros_like(slots[0]), slots
        else:
            start, own_slots = slots[0], None

        def next_layer(network: HART, hidden: Array, own: Array | None) -> tuple[Array, Array]:
            for _step in range(config.steps_per_layer):
                if own is not None:
                    hidden = own + project(hidden, jnp.asarray(network.feedback, hidden.dtype))
                hidden = network.t5.decode_embeddings(
                    hidden,
                    memory,
                    tokens,
                    bidirectional=config.slot_bias == "bidirectional",
                    enable_dropout=enable_dropout,
                )
            return hidden, hidden[0]

        walk = nn.scan(
            next_layer,
            variable_broadcast="params",
            split_rngs={"params": False, "dropout": True},
            length=len(layers),
            reverse=config.order == "backward",
        )
        _, states = walk(self, start, own_slots)
        return jnp.concatenate([states[i, : self.spec.num_slots(*layer)] for i, layer in enumerate(layers)])
