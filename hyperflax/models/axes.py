"""Logical axes of every parameter, with T5X's names, for partitioning rules to map onto a mesh.

Parameters are plain arrays; their axes follow from their names, so a rule book needs no boxes in the tree:

>>> logical_axes(config)["encoder"]["layers_0"]["attention"]["query"]["kernel"]
('embed', 'joined_kv')
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from hyperflax import trees
from hyperflax.models.stacking import LAYER_AXIS
from hyperflax.models.t5 import T5
from hyperflax.types import T5Config

Axes = tuple[str, ...]

_AXES: dict[str, Axes] = {
    "token_embedder/embedding": ("vocab", "embed"),
    "relpos_bias/rel_embedding": ("heads", "relpos_buckets"),
    "logits_dense/kernel": ("embed", "vocab"),
    "query/kernel": ("embed", "joined_kv"),
    "key/kernel": ("embed", "joined_kv"),
    "value/kernel": ("embed", "joined_kv"),
    "out/kernel": ("joined_kv", "embed"),
    "wo/kernel": ("mlp", "embed"),
}
"""By the last two parts of the path; beside them, `wi...` kernels and norm scales."""


def parameter_axes(path: str) -> Axes:
    """Returns the axes of one parameter: `decoder/layers/mlp/wi_0/kernel` -> ('embed', 'layers', 'mlp').

    Raises:
      KeyError: a path that is no parameter of a T5.
    """
    parts = path.split("/")
    owner, name = parts[-2:]
    if name == "scale":
        axes: Axes = ("embed",)
    elif name == "kernel" and owner.startswith("wi"):
        axes = ("embed", "mlp")
    else:
        axes = _AXES[f"{owner}/{name}"]
    return (*axes[:LAYER_AXIS], "layers", *axes[LAYER_AXIS:]) if "layers" in parts else axes


def logical_axes(config: T5Config) -> dict:
    """Returns the tree of axis-name tuples, one for every parameter of `T5(config)`."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    params = jax.eval_shape(T5(config).init, jax.random.key(0), tokens, tokens)["params"]
    return trees.unflatten({path: parameter_axes(path) for path in trees.flatten(params)})
