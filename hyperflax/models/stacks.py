"""Encoder and decoder: a layer of each, and the stacks of them, unrolled or scanned.

Every method of a layer has the signature `(x, cache, context) -> (x, cache)`, so that one `nn.scan` serves them all:
x is carried, the cache is sliced by layer, the context is the same for every layer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.extend.core import jaxpr_as_fun

from hyperflax.models.attention import Attention
from hyperflax.models.layers import DENSE_INIT, Mlp, Projection, RMSNorm, channels_whole
from hyperflax.models.masks import Trailing
from hyperflax.models.relative_bias import PositionBias, RelativeBias
from hyperflax.types import Array, T5Config

BiasKind = Literal["bidirectional", "causal", "none"]
LayerCache = Any
"""What a layer keeps between decoding steps: `{"self": {...}, "cross": {...}}`, or None."""


@struct.dataclass
class Context:
    """What all layers of a stack share in one call.

    Attributes:
      mask: of self-attention, see `masks.py`; None allows everything.
      bias: the stack's position bias; None where there is none, or where each layer has its own.
      encoded: [batch, source, emb], for the decoder.
      cross_mask: bool [batch, 1, query, source].
      trailing, cross_trailing: what the two masks say where all padding trails, see `masks.py`; None: something else.
      index: position of the token while decoding, an int32 scalar.
      place: where the cache holds it, see `PositionBias`; None: at `index`.
      ancestors: see `Attention.step_self`.
      length: number of self-attention positions; while decoding, of the cache.
      rows, width: layout of the cache that is started.
      start, latest_start: where self-attention's positions begin, see `PositionBias`.
      bias_kind: which position bias a layer with its own table is to use.
      deterministic: no dropout.
    """

    mask: Array | None = None
    bias: PositionBias | None = None
    encoded: Any = None
    cross_mask: Any = None
    trailing: Trailing | None = None
    cross_trailing: Trailing | None = None
    index: Array | None = None
    place: Array | None = None
    ancestors: Array | None = None
    start: Array | None = None
    latest_start: int = struct.field(pytree_node=False, default=0)
    length: int = struct.field(pytree_node=False, default=0)
    rows: int = struct.field(pytree_node=False, default=0)
    width: int = struct.field(pytree_node=False, default=1)
    bias_kind: BiasKind = struct.field(pytree_node=False, default="none")
    deterministic: bool = struct.field(pytree_node=False, default=True)


def _position_bias(module: RelativeBias, context: Context) -> PositionBias | None:
    if context.bias_kind == "none":
        return None
    bias = module(context.length, context.bias_kind == "bidirectional", context.index, context.place)
    return bias.replace(start=context.start, latest_start=context.latest_start)


class Layer(nn.Module):
    """What encoder and decoder layers share."""

    config: T5Config

    def setup(self) -> None:
        self.dropout = nn.Dropout(self.config.dropout_rate, broadcast_dims=(-2,))
        if self.config.relative_bias == "per_layer":
            self.relpos_bias = RelativeBias(self.config)

    def bias(self, context: Context) -> Any:
        """The stack's `PositionBias`, or this layer's own; None where there is none."""
        return context.bias if self.config.relative_bias == "shared" else _position_bias(self.relpos_bias, context)


class EncoderLayer(Layer):
    """Self-attention and feed-forward block, each with a norm before and a residual around."""

    def setup(self) -> None:
        super().setup()
        self.pre_attention_layer_norm = RMSNorm(self.config.dtype)
        self.attention = Attention(self.config)
        self.pre_mlp_layer_norm = RMSNorm(self.config.dtype)
        self.mlp = Mlp(self.config)

    def __call__(self, x: Array, cache: LayerCache, context: Context) -> tuple[Array, LayerCache]:
        """[batch, length, emb] -> the same."""
        deterministic = context.deterministic
        x = channels_whole(x)
        y = self.pre_attention_layer_norm(x)
        y = self.attention(y, y, context.mask, self.bias(context), deterministic, context.trailing)
        x = x + self.dropout(y, deterministic=deterministic)
        y = self.mlp(self.pre_mlp_layer_norm(x), deterministic)
        return x + self.dropout(y, deterministic=deterministic), cache


class DecoderLayer(Layer):
    """Self-attention, cross-attention and feed-forward block."""

    def setup(self) -> None:
        super().setup()
        self.pre_self_attention_layer_norm = RMSNorm(self.config.dtype)
        self.self_attention = Attention(self.config)
        self.pre_cross_attention_layer_norm = RMSNorm(self.config.dtype)
        self.encoder_decoder_attention = Attention(self.config)
        self.pre_mlp_layer_norm = RMSNorm(self.config.dtype)
        self.mlp = Mlp(self.config)

    def __call__(self, x: Array, cache: LayerCache, context: Context) -> tuple[Array, LayerCache]:
        """[rows, length, emb] -> the same. `rows` may be a multiple of the encoder's: several targets per input.

        Given a cache, its `cross` part stands for `context.encoded`.
        """
        deterministic = context.deterministic
        x = channels_whole(x)
        y = self.pre_self_attention_layer_norm(x)
        y = self.self_attention(y, y, context.mask, self.bias(context), deterministic, context.trailing)
        x = x + self.dropout(y, deterministic=deterministic)
        y = self.pre_cross_attention_layer_norm(x)
        if cache is None:
            y = y.reshape(context.encoded.shape[0], -1, y.shape[-1])
            y = self.encoder_decoder_attention(
                y, context.encoded, context.cross_mask, None, deterministic, context.cross_trailing
            )
        else:
            y = self.encoder_decoder_attention.step_cross(y, cache["cross"], context.cross_mask, deterministic)
        x = x + self.dropout(y.reshape(x.shape), deterministic=deterministic)
        y = self.mlp(self.pre_mlp_layer_norm(x), deterministic)
        return x + self.dropout(y, deterministic=deterministic), cache

    def start(self, x: Array, cache: LayerCache, context: Context) -> tuple[Array, LayerCache]:
        """Returns x unchanged and a cache of `context.length` positions, cross-attention computed."""
        return x, {
            "self": self.self_attention.start_self(context.rows, context.width, context.length),
            "cross": self.encoder_decoder_attention.start_cross(context.encoded),
        }

    def step(self, x: Array, cache: LayerCache, context: Context) -> tuple[Array, LayerCache]:
        """One token of each decode: [example, decodes, emb] -> the same, and the new `self` part of the cache."""
        y = self.pre_self_attention_layer_norm(x)
        y, written = self.self_attention.step_self(y, cache["self"], self.bias(context), context.ancestors)
        x = x + y
        y = self.pre_cross_attention_layer_norm(x)
        x = x + self.encoder_decoder_attention.step_cross(y, cache["cross"], context.cross_mask)
        return x + self.mlp(self.pre_mlp_layer_norm(x)), written


def _scanned(layer: type[Layer], depth: int, methods: tuple[str, ...]) -> type[Layer]:
    return nn.scan(
        layer,
        variable_axes={"params": 1, "adapters": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast),
        length=depth,
        methods=methods,
    )


@functools.cache
def _jitted(layer: type[Layer], config: T5Config, method: str) -> Any:
    return jax.jit(functools.partial(layer(config, parent=None).apply, method=method))


def _traced_once(layer: Layer, method: str, *arguments: Any) -> tuple[Array, LayerCache]:
    """Returns what a layer's method does, from a trace that all layers of its kind share.

    Layers of a stack differ in their variables only. Tracing each of them anew was most of the time until a small
    model's first answer, when its programs were compiled before. The traced operations are put where the layer stands;
    a call of the jitted function would be another program, whose gradient is slower.
    """
    inputs = (layer.variables, *arguments)
    traced = _jitted(type(layer), layer.config, method).trace(*inputs)
    outputs = jaxpr_as_fun(traced.jaxpr)(*jax.tree.leaves(inputs))
    return jax.tree.unflatten(jax.tree.structure(traced.out_info), outputs)


class Stack(nn.Module):
    """Layers and the bias that they share."""

    config: T5Config

    def build(self, layer: type[Layer], depth: int, methods: tuple[str, ...] = ("__call__",)) -> Any:
        """Returns the layers: a list, or one scanned module. Called in `setup`."""
        cfg = self.config
        if cfg.remat:
            layer = nn.remat(layer, prevent_cse=not cfg.scan_layers, methods=("__call__",))
        return _scanned(layer, depth, methods)(cfg) if cfg.scan_layers else [layer(cfg) for _ in range(depth)]

    def run(
        self, x: Array, context: Context, method: str = "__call__", caches: Mapping[str, LayerCache] | None = None
    ) -> tuple[Array, dict[str, LayerCache]]:
        """Sends x through `method` of every layer. Caches are keyed as the layers are: `layers_0`, ... or `layers`."""
        if self.config.relative_bias == "shared":
            context = dataclasses.replace(context, bias=_position_bias(self.relpos_bias, context))
        if self.config.scan_layers:
            x, cache = getattr(self.layers, method)(x, None if caches is None else caches["layers"], context)
            return x, {"layers": cache}
        made = {}
        for number, layer in enumerate(self.layers):
            name = f"layers_{number}"
            cache = None if caches is None else caches[name]
            if self._alike(context):
                with jax.named_scope(name):
                    x, made[name] = _traced_once(layer, method, x, cache, context)
            else:
                x, made[name] = getattr(layer, method)(x, cache, context)
        return x, made

    def _alike(self, context: Context) -> bool:
        """Whether layers differ in nothing but their variables.

        They do where parameters are made, activations are captured or dropout draws; rematerialised layers are of a
        class that was made for this one stack.
        """
        recorded = any(map(self.is_mutable_collection, ("params", "intermediates")))
        return context.deterministic and not recorded and not self.config.remat


class Encoder(Stack):
    """[batch, length, emb] embeddings -> encoded, the same shape."""

    def setup(self) -> None:
        cfg = self.config
        if cfg.relative_bias == "shared":
            self.relpos_bias = RelativeBias(cfg)
        self.layers = self.build(EncoderLayer, cfg.num_encoder_layers)
        self.encoder_norm = RMSNorm(cfg.dtype)
        self.embed_dropout = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))
        self.dropout = nn.Dropout(cfg.dropout_rate)

    def soft_prompt(self) -> Mapping[str, Array] | None:
        """Returns the slot `soft_prompt` of the `adapters` collection, None where there is none."""
        return self.get_variable("adapters", "soft_prompt")

    def __call__(
        self, x: Array, mask: Array | None, deterministic: bool = True, trailing: Trailing | None = None
    ) -> Array:
        """Runs all layers and the final norm; `mask` and `trailing` as in `masks.py`."""
        x = self.embed_dropout(x, deterministic=deterministic)
        context = Context(
            mask=mask, trailing=trailing, length=x.shape[1], bias_kind="bidirectional", deterministic=deterministic
        )
        if (kept := (self.soft_prompt() or {}).get("mask")) is not None:
            # Masked positions of a soft prompt have no effect, so they do not keep a prefix away from the input either.
            first = jnp.argmax(jnp.append(kept > 0, True)).astype(jnp.int32)
            context = dataclasses.replace(context, start=first, latest_start=kept.shape[0])
        x, _ = self.run(x, context)
        return self.dropout(self.encoder_norm(x), deterministic=deterministic)


class Decoder(Stack):
    """[rows, length, emb] embeddings and the encoded source -> hidden states, the same shape."""

    def setup(self) -> None:
        cfg = self.config
        if cfg.relative_bias == "shared":
            self.relpos_bias = RelativeBias(cfg)
        self.layers = self.build(DecoderLayer, cfg.num_decoder_layers, ("__call__", "start", "step"))
        self.decoder_norm = RMSNorm(cfg.dtype)
        if not cfg.logits_via_embedding:
            self.logits_dense = Projection(cfg.vocab_size, "float32", DENSE_INIT)
        self.dropout = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))

    def __call__(self, x: Array, context: Context, caches: Mapping[str, LayerCache] | None = None) -> Array:
        """Runs all layers and the final norm; `caches` from `start` save computing cross-attention's keys again."""
        deterministic = context.deterministic
        x = self.dropout(x, deterministic=deterministic)
        x, _ = self.run(x, dataclasses.replace(context, length=x.shape[1]), caches=caches)
        return self.dropout(self.decoder_norm(x), deterministic=deterministic)

    def start(self, context: Context) -> dict[str, LayerCache]:
        """Returns the caches of all layers, empty but for prefixes and cross-attention."""
        return self.run(context.encoded, context, "start")[1]

    def step(self, x: Array, caches: Mapping[str, LayerCache], context: Context) -> tuple[Array, dict[str, LayerCache]]:
        """One token of each decode: [example, decodes, emb] -> hidden states and the new `self` caches."""
        x, written = self.run(x, context, "step", caches)
        return self.decoder_norm(x), written

    def logits(self, hidden: Array) -> Array:
        """[..., emb] -> [..., vocab] float32, for models that do not tie."""
        return self.logits_dense(hidden)
