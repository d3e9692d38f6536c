"""Where an adapter can attach: the projections, attentions, feed-forward blocks and parameters of a T5.

A *site* is a place in one layer named without the layer's number, `decoder/self_attention/query`; together with a layer
it gives a module path of the base model, `decoder/layers_3/self_attention/query`. Configurations choose sites by
shell-style patterns, in which `*` matches any run of characters, `/` included:

>>> config = T5Config(vocab_size=256, num_encoder_layers=1, num_decoder_layers=1)
>>> [place.path for place in select(projections(config), ("decoder/*/query",))]
['decoder/layers_0/encoder_decoder_attention/query', 'decoder/layers_0/self_attention/query']
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Sequence
from typing import Any, TypeVar

from hyperflax.errors import ConfigError
from hyperflax.types import T5Config

STACKS = ("encoder", "decoder")
ATTENTIONS = {"encoder": ("attention",), "decoder": ("encoder_decoder_attention", "self_attention")}


@dataclasses.dataclass(frozen=True)
class Place:
    """One site in one layer."""

    stack: str
    layer: int
    module: str
    """Path inside the layer, `self_attention/query`."""

    @property
    def site(self) -> str:
        """The name that patterns are matched against: `decoder/self_attention/query`."""
        return f"{self.stack}/{self.module}"

    @property
    def path(self) -> str:
        """The module path in the base model: `decoder/layers_3/self_attention/query`."""
        return f"{self.stack}/layers_{self.layer}/{self.module}"


@dataclasses.dataclass(frozen=True)
class Projection(Place):
    """A matrix multiplication with kernel [in_dim, out_dim] and its logical axes."""

    in_dim: int
    out_dim: int
    in_axis: str
    out_axis: str


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of the base model with its logical axes, and the layer that it stands in or nearest to."""

    path: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    stack: str
    layer: int


PlaceT = TypeVar("PlaceT", bound=Place)


def depth(config: T5Config, stack: str) -> int:
    """Returns the number of layers of the stack, `encoder` or `decoder`."""
    return config.num_encoder_layers if stack == "encoder" else config.num_decoder_layers


def attentions(config: T5Config) -> list[Place]:
    """Returns every attention, encoder before decoder, layer by layer."""
    return [
        Place(stack, layer, name)
        for stack in STACKS
        for layer in range(depth(config, stack))
        for name in ATTENTIONS[stack]
    ]


def mlps(config: T5Config) -> list[Place]:
    """Returns every feed-forward block, encoder before decoder, layer by layer."""
    return [Place(stack, layer, "mlp") for stack in STACKS for layer in range(depth(config, stack))]


def projections(config: T5Config) -> list[Projection]:
    """Returns every matrix multiplication inside the layers, with the shapes that T5X gives their kernels."""
    model, joined, mlp = (config.emb_dim, "embed"), (config.joined_kv, "joined_kv"), (config.mlp_dim, "mlp")
    ends = {"query": (model, joined), "key": (model, joined), "value": (model, joined), "out": (joined, model)}
    feed_forward = {**{name: (model, mlp) for name in config.mlp_inputs}, "wo": (mlp, model)}
    found = []
    for stack in STACKS:
        for layer in range(depth(config, stack)):
            modules = {f"{attention}/{name}": pair for attention in ATTENTIONS[stack] for name, pair in ends.items()}
            modules |= {f"mlp/{name}": pair for name, pair in feed_forward.items()}
            for module, ((in_dim, in_axis), (out_dim, out_axis)) in modules.items():
                found.append(Projection(stack, layer, module, in_dim, out_dim, in_axis, out_axis))
    return found


def parameters(config: T5Config) -> list[Parameter]:
    """Returns every parameter of the base model, layers unrolled."""
    wide = config.emb_dim
    embedding = Parameter("token_embedder/embedding", (config.vocab_size, wide), ("vocab", "embed"), "encoder", 0)
    found = [embedding]
    for place in projections(config):
        shape, axes = (place.in_dim, place.out_dim), (place.in_axis, place.out_axis)
        found.append(Parameter(f"{place.path}/kernel", shape, axes, place.stack, place.layer))
    norms = {
        "encoder": ("pre_attention_layer_norm", "pre_mlp_layer_norm"),
        "decoder": ("pre_self_attention_layer_norm", "pre_cross_attention_layer_norm", "pre_mlp_layer_norm"),
    }
    table = {"shape": (config.num_heads, config.num_buckets), "axes": ("heads", "relpos_buckets")}
    for stack in STACKS:
        last = depth(config, stack) - 1
        for layer in range(last + 1):
            module, where = f"{stack}/layers_{layer}", {"stack": stack, "layer": layer}
            found += [Parameter(f"{module}/{name}/scale", (wide,), ("embed",), **where) for name in norms[stack]]
            if config.relative_bias == "per_layer":
                found.append(Parameter(f"{module}/relpos_bias/rel_embedding", **table, **where))
        if config.relative_bias == "shared":
            found.append(Parameter(f"{stack}/relpos_bias/rel_embedding", **table, stack=stack, layer=0))
        found.append(Parameter(f"{stack}/{stack}_norm/scale", (wide,), ("embed",), stack, last))
    if not config.logits_via_embedding:
        shape, axes = (wide, config.vocab_size), ("embed", "vocab")
        found.append(Parameter("decoder/logits_dense/kernel", shape, axes, "decoder", config.num_decoder_layers - 1))
    return found


def select(places: Sequence[PlaceT], patterns: Sequence[str], layers: Sequence[int] | None = None) -> list[PlaceT]:
    """Returns the places whose site matches one of the patterns and whose layer is one of `layers` (None: all).

    Raises:
      ConfigError: a pattern or a layer that chooses nothing; the message lists what there is.
    """
    sites = sorted({place.site for place in places})
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(site, pattern) for site in sites):
            raise ConfigError(f"site pattern {pattern!r} matches no site; the sites are: {', '.join(sites)}")
    chosen = [place for place in places if any(fnmatch.fnmatchcase(place.site, pattern) for pattern in patterns)]
    if layers is None:
        return chosen
    there = {place.layer for place in chosen}
    for layer in layers:
        if layer not in there:
            raise ConfigError(f"layer {layer} is none of the chosen sites' layers, which are {sorted(there)}")
    return [place for place in chosen if place.layer in set(layers)]


def check_places(config: Any) -> None:
    """Checks and normalises the fields `sites` and `layers`, which every kind has, to tuples. Raises ConfigError."""
    name = type(config).__name__
    sites = config.sites
    if isinstance(sites, str) or not isinstance(sites, Sequence) or not sites:
        raise ConfigError(f"{name}.sites: expected a non-empty sequence of patterns, got {sites!r}")
    for pattern in sites:
        if not isinstance(pattern, str) or not pattern:
            raise ConfigError(f"{name}.sites: expected patterns, got {pattern!r}")
    object.__setattr__(config, "sites", tuple(sites))
    layers = config.layers
    if layers is None:
        return
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not layers:
        raise ConfigError(f"{name}.layers: expected None or a non-empty sequence of layer numbers, got {layers!r}")
    for layer in layers:
        if not isinstance(layer, int) or isinstance(layer, bool) or layer < 0:
            raise ConfigError(f"{name}.layers: expected layer numbers from 0, got {layer!r}")
    object.__setattr__(config, "layers", tuple(layers))
