"""HyperT5: a T5 that reads a support and writes adapters (Phang et al. 2022, HyperTuning, section 3).

    support_tokens [rows, length] -> T5 encoder, each row alone -> [rows * length, emb]
    slot embeddings [slots, emb]  -> T5 decoder without causal mask, cross-attending to all rows -> [slots, emb]
                                  -> heads -> adapters of one task

How many rows the support has is the data's choice: all examples packed into one row are encoded jointly; one example
per row is fusion in decoder, where examples do not see each other in the encoder and cost grows linearly with shots.

The slots are learned embeddings with no order of their own, so the relative-position bias between them is a choice:
`slot_bias="none"` (default) or `"bidirectional"`. T5's own decoder buckets are one-sided and would send every later
slot to bucket 0. Neither is stated in the paper.

The T5 inside has T5X's parameter tree under `t5`, without an output projection, so a pretrained T5 initialises it:

>>> hypernet = HyperT5(HyperT5Config(t5=T5Config(...)), spec)
>>> params = hypernet.init(rng, {"support_tokens": support})["params"]
>>> params = initialise_from_t5(params, t5_params)
>>> adapters = hypernet.apply({"params": params}, {"support_tokens": support})
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from hyperflax import trees
from hyperflax.adapters.sites import parameters
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.errors import CheckpointError, ConfigError
from hyperflax.hypernets.heads import Heads, HeadsConfig, heads_flops, total_slots
from hyperflax.hypernets.protocol import support_of
from hyperflax.models import flops
from hyperflax.models.flops import Forward
from hyperflax.models.parameters import param, traced_shapes
from hyperflax.models.t5 import T5
from hyperflax.types import Array, PyTree, T5Config


@dataclasses.dataclass(frozen=True)
class HyperT5Config:
    """Shape of a HyperT5.

    Attributes:
      t5: the T5 that encodes the support and decodes the slots; its size is free, it need not be the base model's.
      heads: the MLP heads.
      slot_bias: relative-position bias between slots, `none` or `bidirectional`.
    """

    t5: T5Config
    heads: HeadsConfig = dataclasses.field(default_factory=HeadsConfig)
    slot_bias: Literal["none", "bidirectional"] = "none"

    def __post_init__(self) -> None:
        if self.slot_bias not in ("none", "bidirectional"):
            name = type(self).__name__
            raise ConfigError(f"{name}.slot_bias: expected 'none' or 'bidirectional', got {self.slot_bias!r}")

    def num_slots(self, spec: AdapterSpec) -> int:
        """How many slot embeddings are learned: one for every slot of the spec."""
        return total_slots(spec)

    def width(self, spec: AdapterSpec) -> int:
        """How many slots the decoder reads at once: all of them."""
        return self.num_slots(spec)

    def passes(self, spec: AdapterSpec) -> int:
        """How often the decoder runs."""
        return 1

    def uses(self, path: str) -> bool:
        """Whether a parameter of the T5, `decoder/decoder_norm/scale`, is one of the hypernetwork's.

        It has no use for logits, nor, where slots have no position bias, for the decoder's.
        """
        unused = {"logits_dense"} if self.slot_bias == "bidirectional" else {"logits_dense", "relpos_bias"}
        return not (path.startswith("decoder/") and unused & set(path.split("/")))

    def flops(self, spec: AdapterSpec, rows: int, length: int) -> Forward:
        """Returns the operations of one task's adapters from a support of `rows` rows of `length` tokens."""
        decoded = flops.decoder(self.t5, 1, self.width(spec), rows * length, passes=self.passes(spec))
        return flops.encoder(self.t5, rows, length) + decoded + heads_flops(self.heads, spec, self.t5.emb_dim)


class HyperT5(nn.Module):
    """Generates the adapters that `spec` describes from one task's support, in one forward pass."""

    config: HyperT5Config
    spec: AdapterSpec

    def setup(self) -> None:
        self.t5 = T5(self.config.t5)
        self.slots = param(
            self,
            "slots",
            nn.with_logical_partitioning(nn.initializers.normal(1.0), ("slot", "embed")),
            (self.config.num_slots(self.spec), self.config.t5.emb_dim),
        )
        self.heads = Heads(self.config.heads, self.spec)

    def flops(self, rows: int, length: int) -> Forward:
        """Returns the operations of one task's adapters from a support of `rows` rows of `length` tokens."""
        return self.config.flops(self.spec, rows, length)

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns `{path: shape}` of every parameter, layers unrolled.

        The heads are traced; the T5's shapes stand in a table, and tracing it would take longer.
        """
        config = self.config
        states = np.zeros((total_slots(self.spec), config.t5.emb_dim), np.float32)
        t5 = {f"t5/{place.path}": place.shape for place in parameters(config.t5) if config.uses(place.path)}
        return traced_shapes(self, states, method="write") | t5

    def __call__(self, episode: Mapping[str, Array], *, enable_dropout: bool = False) -> PyTree:
        """Returns the adapters for `episode["support_tokens"]` [rows, length] int32 (0 = padding)."""
        return self.write(self.slot_states(episode, enable_dropout=enable_dropout))

    def write(self, states: Array) -> PyTree:
        """Returns the adapters for slot states [slots, emb]."""
        return self.heads(states)

    def slot_states(self, episode: Mapping[str, Array], *, enable_dropout: bool = False) -> Array:
        """Returns the decoder's state of every slot, [slots, emb]: what the heads read, and a task's embedding."""
        tokens = support_of(episode)
        return self.read(self.encode(tokens, enable_dropout=enable_dropout), tokens, enable_dropout=enable_dropout)

    def encode(self, tokens: Array, *, enable_dropout: bool = False) -> Array:
        """Encodes int32 [rows, length], every row alone, to [rows, length, emb]."""
        return self.t5.encode(tokens, enable_dropout=enable_dropout)

    def read(self, encoded: Array, tokens: Array, *, enable_dropout: bool = False) -> Array:
        """Returns the slot states from what `encode` made of the tokens.

        The rows are laid end to end, and the decoder attends to all of them: fusion in decoder (Izacard and Grave
        2021).
        """
        encoded, tokens = encoded.reshape(1, -1, encoded.shape[-1]), tokens.reshape(1, -1)
        hidden = self.t5.decode_embeddings(
            jnp.asarray(self.slots)[None],
            encoded,
            tokens,
            bidirectional=self.config.slot_bias == "bidirectional",
            enable_dropout=enable_dropout,
        )
        return hidden[0]


def initialise_from_t5(params: PyTree, t5_params: PyTree) -> PyTree:
    """Returns hypernetwork parameters whose T5 is a copy of `t5_params`; slots and heads stay as they are.

    Raises:
      ConfigError: there is no T5 in the hypernetwork.
      CheckpointError: a parameter of the hypernetwork's T5 is absent from `t5_params` or has another shape there, or
        that T5 has more layers.
    """
    if "t5" not in params:
        raise ConfigError(
            "the hypernetwork has no T5 that could start as a copy of another: expected 't5' among its parameters, got "
            f"{sorted(params)}; start it at random (start='random') or whole from a model directory"
        )
    source, own = trees.flatten(t5_params), trees.flatten(params["t5"])
    without = {"logits_dense", "relpos_bias"}  # what a hypernetwork may have no use for, see `HyperT5Config.uses`
    if more := [path for path in source if path not in own and not without & set(path.split("/"))]:
        raise CheckpointError(f"t5/{more[0]}: the hypernetwork has no such parameter, the T5 to start from has")

    def pick(path: str, leaf: Array) -> Array | np.ndarray:
        if path not in source:
            raise CheckpointError(f"t5/{path}: the T5 to start from has no such parameter")
        if source[path].shape != leaf.shape:
            raise CheckpointError(f"t5/{path}: the hypernetwork expects {leaf.shape}, the T5 has {source[path].shape}")
        return source[path].astype(leaf.dtype)  # what lies on the host stays there

    return {**params, "t5": trees.map_with_path(pick, params["t5"])}
