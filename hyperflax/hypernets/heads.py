"""Heads: slot states onto the leaves of any adapter spec.

A hypernetwork's decoder ends in one state per *slot*. The slots of a spec are laid out layer by layer (encoder, then
decoder); a layer has as many slots as its longest slot axis (the rank of a LoRA, the length of a prefix), and slot j
of a layer emits index j of every leaf of that layer: the rank-1 factors of all its projections, one key and value for
each of its attentions. So a spec with L layers of rank r needs L * r states, whatever and however many its sites are.

    states [slots, emb] -> RMS norm -> MLP (gelu) -> one linear map per leaf -> raw leaves

What a layer finally reads is `scale * (static + head)`: `static` is learned and the same for all tasks (random for
LoRA's `a` and for a prefix, absent where `init_std` is 0), `head` depends on the support.

Layers with the same leaves form a group whose heads run as one batched product. With `sharing="per_layer"` every layer
has a head of its own; with `"shared"` a group has one, and only the slot states tell its layers apart, which is what
large base models need (HINT's public replica of HyperTuning shares its heads over layers).

Source: Phang et al. 2022 (HyperTuning), section 3: MLP heads over slot outputs. Norm before the heads, sharing and the
small output scale are read in public replicas, not in the paper.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from hyperflax.adapters.spec import AdapterSpec, Leaf
from hyperflax.configs import check_sizes
from hyperflax.errors import AdapterError, ConfigError
from hyperflax.models import flops
from hyperflax.models.parameters import param
from hyperflax.types import Array, PyTree

# E[gelu(x)^2] for x ~ N(0, 1): divides out what the activation does to the variance of a head's output.
GELU_SECOND_MOMENT = 0.425


@dataclasses.dataclass(frozen=True)
class HeadsConfig:
    """Shape of the heads.

    Attributes:
      hidden: width of the MLP between norm and output.
      sharing: `per_layer` gives every layer its own head, `shared` gives one to all layers with equal leaves.
    """

    hidden: int = 256
    sharing: Literal["per_layer", "shared"] = "per_layer"

    def __post_init__(self) -> None:
        check_sizes(self, hidden=1)
        if self.sharing not in ("per_layer", "shared"):
            raise ConfigError(f"HeadsConfig.sharing: expected 'per_layer' or 'shared', got {self.sharing!r}")


@dataclasses.dataclass(frozen=True)
class Group:
    """Layers with the same leaves: `layers` in spec order, `leaves[i][j]` = leaf j of layer i, `slots` per layer."""

    layers: tuple[tuple[str, int], ...]
    leaves: tuple[tuple[Leaf, ...], ...]
    slots: int

    @property
    def name(self) -> str:
        return "_".join((self.layers[0][0], str(self.layers[0][1])))


def slot_size(leaf: Leaf) -> int:
    """Number of values of `leaf` that one slot emits."""
    return math.prod(leaf.shape) // leaf.shape[leaf.slot_axis]


def group_layers(spec: AdapterSpec) -> tuple[Group, ...]:
    """Groups the layers of `spec` whose leaves agree in everything but the layer number."""
    groups: dict[tuple, list[tuple[str, int]]] = {}
    for stack, layer in spec.layers():
        leaves = spec.leaves_of(stack, layer)
        signature = (stack, tuple((leaf.local, leaf.shape, leaf.slot_axis, leaf.head_std) for leaf in leaves))
        groups.setdefault(signature, []).append((stack, layer))
    return tuple(
        Group(
            layers=tuple(layers),
            leaves=tuple(spec.leaves_of(*layer) for layer in layers),
            slots=spec.num_slots(*layers[0]),
        )
        for layers in groups.values()
    )


def slot_offsets(spec: AdapterSpec) -> dict[tuple[str, int], int]:
    """First slot of every layer in the order in which a decoder lays them out."""
    offsets, total = {}, 0
    for stack, layer in spec.layers():
        offsets[(stack, layer)] = total
        total += spec.num_slots(stack, layer)
    return offsets


def total_slots(spec: AdapterSpec) -> int:
    """Number of slots of the whole spec."""
    return sum(spec.num_slots(stack, layer) for stack, layer in spec.layers())


class Heads(nn.Module):
    """Maps slot states to the adapter tree that `spec` describes.

    Example:
      >>> heads = Heads(HeadsConfig(hidden=64), spec)
      >>> adapters = heads.apply({"params": params}, states)    # states [total_slots(spec), emb]
    """

    config: HeadsConfig
    spec: AdapterSpec

    @nn.compact
    def __call__(self, states: Array) -> PyTree:
        """Args: states [slots, emb]. Returns: the adapters of one task, as the base model reads them."""
        expected = total_slots(self.spec)
        if states.ndim != 2 or states.shape[0] != expected:
            raise AdapterError(f"slot states: expected [{expected}, emb] for this spec, got {tuple(states.shape)}")
        norm = param(
            self, "norm_scale", nn.with_logical_partitioning(nn.initializers.ones, ("embed",)), states.shape[-1:]
        )
        states = normalise(states) * jnp.asarray(norm, states.dtype)
        offsets = slot_offsets(self.spec)
        raw: dict[str, Array] = {}
        for group in group_layers(self.spec):
            rows = jnp.stack([states[offsets[layer] : offsets[layer] + group.slots] for layer in group.layers])
            raw.update(self._emit(group, rows))
        static = {
            leaf.path: param(
                self,
                "static_" + leaf.path.replace("/", "."),
                nn.with_logical_partitioning(nn.initializers.normal(leaf.init_std), leaf.axes),
                leaf.shape,
            )
            for leaf in self.spec.leaves
            if leaf.init_std > 0
        }
        total = {path: value + static[path] if path in static else value for path, value in raw.items()}
        return self.spec.materialise(self.spec.unflatten(total))

    def _emit(self, group: Group, rows: Array) -> dict[str, Array]:
        """Args: rows [layers, slots, emb] of one group. Returns: path -> raw leaf."""
        heads = len(group.layers) if self.config.sharing == "per_layer" else 1
        emb, hidden = rows.shape[-1], self.config.hidden
        name = group.name
        kernel_in = param(
            self,
            f"{name}_in",
            nn.with_logical_partitioning(nn.initializers.normal(1.0 / math.sqrt(emb)), ("head", "embed", "mlp")),
            (heads, emb, hidden),
        )
        bias_in = param(
            self, f"{name}_bias", nn.with_logical_partitioning(nn.initializers.zeros, ("head", "mlp")), (heads, hidden)
        )
        sizes = [slot_size(leaf) for leaf in group.leaves[0]]
        stds = [leaf.head_std / math.sqrt(hidden * GELU_SECOND_MOMENT) for leaf in group.leaves[0]]
        kernel_out = param(
            self,
            f"{name}_out",
            nn.with_logical_partitioning(columns_normal(sizes, stds), ("head", "mlp", "slot_values")),
            (heads, hidden, sum(sizes)),
        )
        rows = rows if heads > 1 else rows.reshape(1, -1, emb)
        states = nn.gelu(rows @ kernel_in.astype(rows.dtype) + bias_in[:, None].astype(rows.dtype))
        values = (states @ kernel_out.astype(rows.dtype)).reshape(len(group.layers), group.slots, sum(sizes))
        # Adapters are parameters: float32, as fresh ones are, whatever was computed in. Layers cast what they read.
        values = values.astype(jnp.float32)
        # `split`, not slices: its gradient is one concatenation, that of n slices is n full-size arrays, summed.
        columns = jax.lax.split(values, sizes, axis=2)
        raw = {}
        for column, leaves in zip(columns, zip(*group.leaves, strict=True), strict=True):
            made = jnp.unstack(to_leaves(column, leaves[0]))
            raw.update((leaf.path, value) for leaf, value in zip(leaves, made, strict=True))
        return raw


def heads_flops(config: HeadsConfig, spec: AdapterSpec, emb: int) -> flops.Forward:
    """Operations of the heads for one task, whose slot states have `emb` values each."""
    total = 0
    for group in group_layers(spec):
        values = sum(slot_size(leaf) for leaf in group.leaves[0])
        total += 2 * len(group.layers) * group.slots * config.hidden * (emb + values)
    return flops.Forward(total, 0)


def to_leaves(values: Array, leaf: Leaf) -> Array:
    """Args: values [layers, slots, slot_size]. Returns: a raw leaf of `leaf`'s shape for every layer, stacked.

    Slots beyond the leaf's own axis are dropped.
    """
    length = leaf.shape[leaf.slot_axis]
    rest = leaf.shape[: leaf.slot_axis] + leaf.shape[leaf.slot_axis + 1 :]
    return jnp.moveaxis(values[:, :length].reshape(-1, length, *rest), 1, leaf.slot_axis + 1)


def normalise(states: Array, epsilon: float = 1e-6) -> Array:
    """RMS norm over the last axis, computed in float32."""
    wide = states.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + epsilon)).astype(states.dtype)


def columns_normal(sizes: list[int], stds: list[float]):
    """Initialiser: N(0, stds[i]^2) in the i-th run of `sizes[i]` output columns."""

    def init(rng: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
        scale = jnp.concatenate([jnp.full((size,), std, dtype) for size, std in zip(sizes, stds, strict=True)])
        return jax.random.normal(rng, shape, dtype) * scale

    return init
