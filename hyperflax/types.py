"""Words shared by every room: pytrees, arrays, and the shape of a T5.

`T5Config` stands here, below adapters and models, because an adapter kind needs the base model's dimensions to say
which leaves it has, and the model needs the adapter kinds to apply them.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeAlias

import jax

from hyperflax.configs import check_sizes
from hyperflax.errors import ConfigError

Array: TypeAlias = jax.Array
PyTree: TypeAlias = Any
Batch: TypeAlias = dict[str, Any]

MAX_LAYERS = 9999
"""A stack that claims more is a mistake, or a file that wants its reader to count for years."""
ACTIVATIONS = ("gelu", "linear", "relu", "sigmoid", "silu", "swish")
"""Those of T5 and of the gated blocks compared by Shazeer 2020, by T5X's names; `silu` and `swish` are one function."""


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Shape and numerics of a T5, with the field names of T5X's `T5Config`.

    `mlp_activations` tells the family: `("gelu", "linear")` is T5 1.1 (gated, parameters `wi_0`, `wi_1`), `("relu",)`
    is T5 1.0 (parameter `wi`). T5 1.0 also sets `logits_via_embedding=True`.

    >>> base = T5Config(32128, emb_dim=768, num_heads=12, num_encoder_layers=12, num_decoder_layers=12, mlp_dim=2048)
    >>> base.joined_kv, base.mlp_inputs  # T5 1.1 base
    (768, ('wi_0', 'wi_1'))

    Attributes:
      vocab_size: rows of the embedding table, padding to a multiple of 128 included.
      emb_dim: width of the residual stream.
      num_heads, head_dim: heads and their width; `num_heads * head_dim` need not equal `emb_dim`.
      num_encoder_layers, num_decoder_layers: depth of the two stacks.
      mlp_dim: hidden width of the feed-forward block.
      mlp_activations: one activation per input projection, multiplied together; names from `ACTIVATIONS`.
      dropout_rate: used only where a call says `enable_dropout=True`.
      logits_via_embedding: the output projection is the transposed embedding, divided by sqrt(emb_dim).
      dtype: compute dtype; parameters stay float32 (or what the checkpoint holds) and are cast.
      float32_attention_logits: attention scores in float32 whatever `dtype` is.
      scan_layers: layers are one `lax.scan` over stacked parameters; compile time no longer grows with depth.
      remat: recompute a layer's activations in the backward pass.
      relative_bias: one table per stack (`shared`, T5X's minimal T5) or one per layer (`per_layer`, scalable_t5).
      num_buckets, max_distance: of the relative position bias (Raffel et al. 2020, section 2.1). The encoder halves the
        buckets by direction, and half of a direction's hold one distance each: hence at least 4 buckets, and a
        `max_distance` beyond the decoder's `num_buckets // 2` distances of that sort.

    Raises:
      ConfigError: a value out of range; names the field.
    """

    vocab_size: int
    emb_dim: int = 512
    num_heads: int = 6
    num_encoder_layers: int = 8
    num_decoder_layers: int = 8
    head_dim: int = 64
    mlp_dim: int = 1024
    mlp_activations: tuple[str, ...] = ("gelu", "linear")
    dropout_rate: float = 0.0
    logits_via_embedding: bool = False
    dtype: str = "float32"
    float32_attention_logits: bool = False
    scan_layers: bool = False
    remat: bool = False
    relative_bias: Literal["shared", "per_layer"] = "shared"
    num_buckets: int = 32
    max_distance: int = 128

    def __post_init__(self) -> None:
        names = self.mlp_activations
        if not isinstance(names, tuple | list) or not names or any(name not in ACTIVATIONS for name in names):
            known = ", ".join(ACTIVATIONS)
            raise ConfigError(f"T5Config.mlp_activations: expected one or more of {known} in a tuple, got {names!r}")
        object.__setattr__(self, "mlp_activations", tuple(names))
        sizes = ("vocab_size", "emb_dim", "num_heads", "head_dim", "mlp_dim", "num_buckets", "max_distance")
        depths = ("num_encoder_layers", "num_decoder_layers")
        check_sizes(self, **dict.fromkeys((*sizes, *depths), 1))
        for name in depths:
            if (value := getattr(self, name)) > MAX_LAYERS:
                raise ConfigError(f"T5Config.{name}: expected at most {MAX_LAYERS:,}, got {value:,}")
        if self.num_buckets < 4:
            raise ConfigError(f"T5Config.num_buckets: expected at least 4, got {self.num_buckets}")
        if self.max_distance <= self.num_buckets // 2:
            raise ConfigError(
                f"T5Config.max_distance: expected more than {self.num_buckets // 2}, half of num_buckets, got "
                f"{self.max_distance}"
            )
        if not 0.0 <= self.dropout_rate < 1.0:
            raise ConfigError(f"T5Config.dropout_rate: expected a number in [0, 1), got {self.dropout_rate!r}")
        if self.relative_bias not in ("shared", "per_layer"):
            raise ConfigError(f"T5Config.relative_bias: expected 'shared' or 'per_layer', got {self.relative_bias!r}")
        if self.dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"T5Config.dtype: expected 'float32' or 'bfloat16', got {self.dtype!r}")

    @property
    def joined_kv(self) -> int:
        """Width of the attention projections: `num_heads * head_dim`."""
        return self.num_heads * self.head_dim

    @property
    def mlp_inputs(self) -> tuple[str, ...]:
        """Names of the feed-forward input projections, as T5X names them."""
        if len(self.mlp_activations) == 1:
            return ("wi",)
        return tuple(f"wi_{i}" for i in range(len(self.mlp_activations)))

    def replace(self, **changes: Any) -> T5Config:
        return dataclasses.replace(self, **changes)
