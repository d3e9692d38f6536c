"""The three layouts of one T5's parameters, and the ways between them.

    unrolled   encoder/layers_0/attention/query/kernel [embed, heads * kv]           T5X's minimal T5, and ours
    scanned    encoder/layers/attention/query/kernel [embed, layers, heads * kv]     ours, `scan_layers`
    scalable   encoder/encoder/attention/query/kernel [embed, layers, heads, kv]     T5X's scalable_t5

Values never change. scalable_t5 has a position bias per layer and the minimal T5 one per stack: the way there repeats
the stack's, the way back exists only where all layers have equal ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hyperflax import trees
from hyperflax.adapters.sites import STACKS, depth
from hyperflax.checkpoints.lazy import LazyArray
from hyperflax.checkpoints.shapes import from_scalable, infer_t5_config, is_scalable
from hyperflax.errors import CheckpointError
from hyperflax.models.stacking import LAYER_AXIS, group_layers, unstack_layers
from hyperflax.types import PyTree, T5Config

_BIAS = "relpos_bias/rel_embedding"


def unrolled(params: PyTree, **known: Any) -> tuple[dict[str, Any], T5Config]:
    """Returns parameters of any layout as unrolled layers, and their configuration.

    Args:
      params: nested dict.
      known: fields of the configuration that shapes do not tell, see `infer_t5_config`.

    Raises:
      CheckpointError: no T5 has these leaves; every one that does not fit is listed.
    """
    if is_scalable(params):
        params = from_scalable(params)
    config = infer_t5_config(params, **known)
    if config.scan_layers:
        params = unstack_layers(params, config)
    return params, config.replace(scan_layers=False)


def to_minimal(params: PyTree, config: T5Config) -> tuple[dict[str, Any], T5Config]:
    """Returns unrolled parameters with one position bias per stack, as T5X's minimal T5 has it.

    Args:
      params: unrolled layers.
      config: theirs.

    Raises:
      CheckpointError: the layers of a stack have different biases; names the first one that differs.
    """
    if config.relative_bias == "shared":
        return params, config
    flat = trees.flatten(params)
    for stack in STACKS:
        tables = [flat.pop(f"{stack}/layers_{layer}/{_BIAS}") for layer in range(depth(config, stack))]
        for layer, table in enumerate(tables):
            if not np.array_equal(table, tables[0]):
                raise CheckpointError(
                    f"leaf '{stack}/layers_{layer}/{_BIAS}': differs from layer 0's. T5X's minimal T5 has one position "
                    "bias for all layers of a stack, so this model cannot take its form; scalable_t5's can hold it"
                )
        flat[f"{stack}/{_BIAS}"] = tables[0]
    return trees.unflatten(flat), config.replace(relative_bias="shared")


def to_scalable(params: PyTree, config: T5Config) -> dict[str, Any]:
    """Returns unrolled parameters in scalable_t5's layout; a shared position bias is repeated for every layer.

    The layers' leaves are lazy: `np.asarray` makes one of them, so that no second tree comes about as they are written.
    """
    flat = trees.flatten(params)
    if config.relative_bias == "shared":
        for stack in STACKS:
            table = flat.pop(f"{stack}/{_BIAS}")
            flat |= {f"{stack}/layers_{layer}/{_BIAS}": table for layer in range(depth(config, stack))}
    flat, groups = group_layers(trees.unflatten(flat), config)
    for path, layers in groups.items():
        stack, _, rest = path.split("/", 2)
        flat[f"{stack}/{stack}/{rest}"] = _stacked(layers, rest.split("/")[-2], config)
    return trees.unflatten(flat)


def _stacked(layers: list[Any], owner: str, config: T5Config) -> LazyArray:
    """The leaf of scalable_t5 that these layers make: their axis stands second, attention has heads apart from kv."""
    shape = tuple(layers[0].shape)
    heads = (config.num_heads, config.head_dim)
    if owner in ("query", "key", "value"):
        shape = (shape[0], *heads)
    elif owner == "out":
        shape = (*heads, shape[1])

    def make() -> np.ndarray:
        return np.stack([np.asarray(layer).reshape(shape) for layer in layers], axis=LAYER_AXIS)

    return LazyArray((*shape[:LAYER_AXIS], len(layers), *shape[LAYER_AXIS:]), np.dtype(layers[0].dtype), make)
