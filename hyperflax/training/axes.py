"""Logical axis names of parameters: those that a module declares, else T5X's, by the parameter's name.

The T5 keeps plain arrays, and its names are T5X's, so its axes follow from the path wherever the T5 stands (alone, or
inside a hypernetwork). A hypernetwork's own parameters declare theirs with `nn.with_logical_partitioning`.

>>> axes_by_name("encoder/layers_0/mlp/wo/kernel", 2)
('mlp', 'embed')
"""

from __future__ import annotations

import fnmatch

Axes = tuple[str | None, ...]

# First match wins.
T5_AXES: tuple[tuple[str, Axes], ...] = (
    ("*token_embedder/embedding", ("vocab", "embed")),
    ("*relpos_bias/rel_embedding", ("heads", "relpos_buckets")),
    ("*_norm/scale", ("embed",)),
    ("*/query/kernel", ("embed", "joined_kv")),
    ("*/key/kernel", ("embed", "joined_kv")),
    ("*/value/kernel", ("embed", "joined_kv")),
    ("*/out/kernel", ("joined_kv", "embed")),
    ("*mlp/wi*/kernel", ("embed", "mlp")),
    ("*mlp/wo/kernel", ("mlp", "embed")),
    ("*logits_dense/kernel", ("embed", "vocab")),
)
# Where scanned layers stack their parameters.
LAYERS_AXIS = 1


def axes_by_name(path: str, dims: int) -> Axes | None:
    """Returns the axes of a T5 parameter of `dims` dimensions, or None where the name is not a T5's."""
    for pattern, axes in T5_AXES:
        if fnmatch.fnmatchcase(path, pattern):
            if "/layers/" in f"/{path}" and dims == len(axes) + 1:
                axes = (*axes[:LAYERS_AXIS], "layers", *axes[LAYERS_AXIS:])
            return axes if len(axes) == dims else None
    return None
