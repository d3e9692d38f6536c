"""Logical axes of every parameter, with T5X's names, for partitioning rules to map onto a mesh.

Parameters are plain arrays; their axes follow from their names, so a rule book needs no boxes in the tree:

>>> parameter_axes("encoder/layers_0/attention/query/kernel")
('embed', 'joined_kv')
"""

from __future__ import annotations

from hyperflax.models.stacking import LAYER_AXIS

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
