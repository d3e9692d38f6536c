"""Adapters for scanned layers.

With `T5Config.scan_layers` a stack's layers are one module, applied by `lax.scan`, and its adapter leaves have a layer
axis in front: `encoder/layers_0/attention/query/lora/a` [in, rank] for each layer becomes
`encoder/layers/attention/query/lora/a` [layers, in, rank]. Specs keep speaking of unrolled leaves. A layer that a kind
leaves out holds the identity; ranks or lengths that differ between layers are widened to the largest. Leaves outside of
all layers stay as they are.

>>> model.apply({"params": frozen, "adapters": stack_layers(adapters, spec, t5_config)}, ...)
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from hyperflax import trees
from hyperflax.adapters import checks
from hyperflax.adapters.sites import STACKS, depth
from hyperflax.adapters.spec import AdapterSpec, Leaf
from hyperflax.adapters.widen import complete, shorten, widen
from hyperflax.errors import AdapterError
from hyperflax.types import Array, PyTree, T5Config

SCANNED = "layers"


def arrange(adapters: PyTree, spec: AdapterSpec, t5_config: T5Config, batch_dims: int = 0) -> dict[str, Any]:
    """Returns the tree in the form that this base model reads: as it is, or stacked where layers are scanned."""
    return stack_layers(adapters, spec, t5_config, batch_dims) if t5_config.scan_layers else adapters


def stack_layers(adapters: PyTree, spec: AdapterSpec, t5_config: T5Config, batch_dims: int = 0) -> dict[str, Any]:
    """Returns the adapter with one leaf per stack and place, its layer axis after the batch dimensions.

    Args:
      adapters: a tree that fits `spec`, leaves [*batch, *shape].
      spec: of the unrolled leaves.
      t5_config: gives the number of layers of each stack.
      batch_dims: number of leading dimensions before the spec's shapes.

    Returns:
      a tree with leaves [*batch, layers, *shape].

    Raises:
      AdapterError: the tree does not fit the spec, or the spec has layers that the base model lacks.
    """
    spec.validate(adapters, batch_dims)
    full = _every_layer(spec, t5_config)
    flat = widen(spec.flatten(adapters), spec, full)
    every = [leaf for leaf in (*full.leaves, *full.optional) if leaf.path in flat]
    stacked: dict[str, Array] = {leaf.path: flat[leaf.path] for leaf in every if not leaf.in_layer}
    inside = [leaf for leaf in every if leaf.in_layer]
    for stack in STACKS:
        per_layer = [
            {leaf.local: flat[leaf.path] for leaf in inside if (leaf.stack, leaf.layer) == (stack, layer)}
            for layer in range(depth(t5_config, stack))
        ]
        rows = complete(per_layer)
        for local in rows[0]:
            stacked[f"{stack}/{SCANNED}/{local}"] = jnp.stack([row[local] for row in rows], axis=batch_dims)
    return trees.unflatten(stacked)


def unstack_layers(adapters: PyTree, spec: AdapterSpec, t5_config: T5Config, batch_dims: int = 0) -> dict[str, Any]:
    """The inverse of `stack_layers`: back to the spec's leaves. Masks that stacking added stay, as ones.

    Raises:
      AdapterError: a leaf of the stacked form is missing, unknown or has another number of layers.
    """
    flat = trees.flatten(adapters)
    checks.paths(
        flat, sorted({_scanned(leaf) for leaf in spec.leaves}), sorted({_scanned(leaf) for leaf in spec.optional})
    )
    unstacked = {}
    for leaf in (*spec.leaves, *spec.optional):
        path = _scanned(leaf)
        if path not in flat:
            continue
        array = jnp.asarray(flat[path])
        if not leaf.in_layer:
            unstacked[path] = array
            continue
        layers = depth(t5_config, leaf.stack)
        if array.ndim != batch_dims + 1 + len(leaf.shape) or array.shape[batch_dims] != layers or leaf.layer >= layers:
            raise AdapterError(f"leaf '{path}': expected {layers} layers at axis {batch_dims}, got shape {array.shape}")
        unstacked[leaf.path] = shorten(jax.lax.index_in_dim(array, leaf.layer, batch_dims, keepdims=False), leaf)
    tree = trees.unflatten(unstacked)
    spec.validate(tree, batch_dims)
    return tree


def _scanned(leaf: Leaf) -> str:
    return f"{leaf.stack}/{SCANNED}/{leaf.local}" if leaf.in_layer else leaf.path


def _every_layer(spec: AdapterSpec, t5_config: T5Config) -> AdapterSpec:
    """The spec in which every layer of a stack has what any of them has, at the largest size."""

    def spread(leaves: tuple[Leaf, ...]) -> tuple[Leaf, ...]:
        largest: dict[tuple[str, str], Leaf] = {}
        for leaf in leaves:
            if leaf.layer >= depth(t5_config, leaf.stack):
                layers = depth(t5_config, leaf.stack)
                raise AdapterError(f"leaf '{leaf.path}': the base model's {leaf.stack} has {layers} layers")
            key = (leaf.stack, leaf.local)
            if key not in largest or largest[key].slots < leaf.slots:
                largest[key] = leaf
        moved = (leaf.moved(layer) for leaf in largest.values() for layer in range(depth(t5_config, leaf.stack)))
        return tuple(dict.fromkeys(moved))

    return AdapterSpec(spread(spec.leaves), optional=spread(spec.optional))
