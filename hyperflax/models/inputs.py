"""What decoding and scoring are given: encoder inputs, and adapters that the base model reads.

Flax ignores a variable that no layer asks for, so adapters whose paths are misspelt would be the bare model in silence.

>>> check_inputs(model.config, tokens, adapters)
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax.numpy as jnp

from hyperflax import trees
from hyperflax.adapters.checks import nearest
from hyperflax.adapters.kinds import catalogue, kind_of
from hyperflax.adapters.layers import SCANNED
from hyperflax.adapters.sites import depth
from hyperflax.errors import AdapterError, HyperflaxError
from hyperflax.types import Array, PyTree, T5Config

SHOWN = 3


def check_inputs(config: T5Config, tokens: Array, adapters: PyTree | None) -> None:
    """Checks that encoder inputs and adapters go together, and that the base model reads every leaf.

    Args:
      config: of the base model.
      tokens: [..., source]; beside adapters [example, source], or [task, example, source] where each task has its own.
      adapters: None, or a tree in the form that the base model reads, see `adapters.layers.arrange`.

    Raises:
      HyperflaxError: tokens of another number of dimensions.
      AdapterError: names leaves that nothing reads, or one of another shape.
    """
    if tokens.ndim < 2:
        raise HyperflaxError(f"encoder_input_tokens: expected [..., example, source], got shape {tokens.shape}")
    if adapters is None:
        return
    if tokens.ndim > 3:
        raise HyperflaxError(f"encoder_input_tokens: expected [task, example, source], got shape {tokens.shape}")
    flat, readable = trees.flatten(adapters), readable_leaves(config)
    if unread := [path for path in flat if path not in readable]:
        told = ", ".join(f"'{path}'{nearest(path, readable)}" for path in unread[:SHOWN])
        more = f" and {len(unread) - SHOWN} more" if len(unread) > SHOWN else ""
        raise AdapterError(f"adapters: nothing in this base model reads the leaf {told}{more}")
    for path, leaf in flat.items():
        expected, shape = (*tokens.shape[:-2], *readable[path]), jnp.shape(leaf)
        if len(shape) != len(expected) or any(
            size != found for size, found in zip(expected, shape, strict=True) if isinstance(size, int)
        ):
            raise AdapterError(
                f"adapters leaf '{path}': expected shape ({', '.join(map(str, expected))}) beside encoder_input_tokens "
                f"{tokens.shape}, got {shape}"
            )


@functools.cache
def readable_leaves(config: T5Config) -> Mapping[str, tuple[int | str, ...]]:
    """Returns `{path: shape}` of every leaf that a base model can read, for one task; layers scanned where they are.

    The axis of slots is free and holds the name of its size, `rank`.
    """
    found: dict[str, tuple[int | str, ...]] = {}
    for leaf in catalogue(config).leaves.values():
        size = kind_of(leaf).size
        shape = tuple(size if axis == leaf.slot_axis else length for axis, length in enumerate(leaf.shape))
        if config.scan_layers and leaf.in_layer:
            found[f"{leaf.stack}/{SCANNED}/{leaf.local}"] = (depth(config, leaf.stack), *shape)
        else:
            found[leaf.path] = shape
    return found
