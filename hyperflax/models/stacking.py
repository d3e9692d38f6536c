"""Scanned and unrolled layers are the same parameters, arranged differently.

    encoder/layers_0/mlp/wo/kernel [mlp, emb], encoder/layers_1/..., ...     unrolled
    encoder/layers/mlp/wo/kernel   [mlp, layers, emb]                        scanned (`T5Config.scan_layers`)

The layer axis of a parameter is 1, also of vectors ([emb, layers]), as in T5X's scalable T5. Where all layers of a
stack share one position bias it stays where it is; with `relative_bias="per_layer"` it is one more parameter of the
layers.
Adapters have their layer axis in front: see `hyperflax.adapters.layers`.

>>> scanned = stack_layers(params, config)
>>> T5(config.replace(scan_layers=True)).apply({"params": scanned}, ...)    # the same logits
"""

from __future__ import annotations

import re
from typing import Any

import jax.numpy as jnp
import numpy as np

from hyperflax import trees
from hyperflax.adapters import sites
from hyperflax.errors import CheckpointError
from hyperflax.types import Array, PyTree, T5Config

LAYER_AXIS = 1
_UNROLLED = re.compile(r"(encoder|decoder)/layers_(\d+)/(.+)")
_SCANNED = re.compile(r"(encoder|decoder)/layers/(.+)")


def stack_layers(params: PyTree, config: T5Config) -> dict:
    """Unrolled parameters to scanned ones.

    Args:
      params: tree of a T5, or of one with fewer parts (a hypernetwork's trunk).
      config: gives the number of layers.

    Raises:
      CheckpointError: a layer lacks a parameter that another has, or there are more or fewer layers than expected.
    """
    flat, groups = group_layers(params, config)
    for path, layers in groups.items():
        # What lies on the host stays there: the largest models fit no single device.
        stack = np.stack if all(isinstance(x, np.ndarray) for x in layers) else jnp.stack
        flat[path] = stack(layers, axis=LAYER_AXIS)
    return trees.unflatten(flat)


def group_layers(params: PyTree, config: T5Config) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Returns what stacking makes of unrolled parameters, not stacked yet.

    Returns:
      `{path: leaf}` of what belongs to no layer, and `{scanned path: the layers' leaves in order}`.

    Raises:
      CheckpointError: as `stack_layers`.
    """
    flat: dict[str, Any] = {}
    found: dict[str, dict[int, Any]] = {}
    for path, x in trees.flatten(params).items():
        if match := _UNROLLED.fullmatch(path):
            stack, layer, rest = match.groups()
            found.setdefault(f"{stack}/layers/{rest}", {})[int(layer)] = x
        else:
            flat[path] = x
    groups = {}
    for path, layers in found.items():
        depth = sites.depth(config, path.partition("/")[0])
        if sorted(layers) != list(range(depth)):
            raise CheckpointError(f"parameter '{path}': expected layers 0 to {depth - 1}, got {sorted(layers)}")
        groups[path] = [layers[layer] for layer in range(depth)]
    return flat, groups


def unstack_layers(params: PyTree, config: T5Config) -> dict:
    """The inverse of `stack_layers`.

    Raises:
      CheckpointError: a stacked parameter has another number of layers than the config.
    """
    flat: dict[str, Array] = {}
    for path, x in trees.flatten(params).items():
        if match := _SCANNED.fullmatch(path):
            stack, rest = match.groups()
            depth = sites.depth(config, stack)
            if x.ndim <= LAYER_AXIS or x.shape[LAYER_AXIS] != depth:
                raise CheckpointError(
                    f"parameter '{path}': expected {depth} layers on axis {LAYER_AXIS}, got shape {tuple(x.shape)}"
                )
            for layer in range(depth):
                flat[f"{stack}/layers_{layer}/{rest}"] = x[:, layer]
        else:
            flat[path] = x
    return trees.unflatten(flat)
