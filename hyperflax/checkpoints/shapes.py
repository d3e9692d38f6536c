"""Do these parameters fit that T5, and which T5 do these parameters make?

A checkpoint is judged by the table of `adapters.sites`, without building a model; the tests hold the one to the other.

>>> config = infer_t5_config(read_t5x_checkpoint("t5_1_1_small/checkpoint_1000000"))
>>> config.num_heads, config.emb_dim, config.mlp_activations
(6, 512, ('gelu', 'linear'))
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from hyperflax import trees
from hyperflax.adapters.sites import ATTENTIONS, depth, parameters
from hyperflax.errors import CheckpointError, ConfigError
from hyperflax.models.stacking import LAYER_AXIS
from hyperflax.types import PyTree, T5Config

Shape = tuple[int, ...]


def expected_shapes(config: T5Config) -> dict[str, Shape]:
    """Returns `{path: shape}` of every parameter; scanned layers have their axis of layers at 1."""
    shapes: dict[str, Shape] = {}
    for parameter in parameters(config):
        path, shape = parameter.path, parameter.shape
        if config.scan_layers and (layer := f"/layers_{parameter.layer}/") in path:
            path = path.replace(layer, "/layers/")
            shape = (*shape[:LAYER_AXIS], depth(config, parameter.stack), *shape[LAYER_AXIS:])
        shapes[path] = shape
    return dict(sorted(shapes.items()))


def shape_problems(params: PyTree, config: T5Config) -> list[str]:
    """Returns one line for each missing, unexpected or wrongly shaped leaf; none if `params` fits `config`."""
    return leaf_problems(params, expected_shapes(config))


def leaf_problems(params: PyTree, expected: Mapping[str, Shape]) -> list[str]:
    """Returns one line for each leaf of `params` that is missing, unexpected or has another shape than `expected`."""
    found = {path: tuple(np.shape(leaf)) for path, leaf in trees.flatten(params).items()}
    problems = []
    for path in sorted(expected.keys() | found.keys()):
        if path not in found:
            problems.append(f"'{path}': expected shape {expected[path]}, the leaf is missing")
        elif path not in expected:
            problems.append(f"'{path}': unexpected leaf, found shape {found[path]}")
        elif expected[path] != found[path]:
            problems.append(f"'{path}': expected shape {expected[path]}, found {found[path]}")
    return problems


def check_shapes(params: PyTree, config: T5Config, *, where: str = "parameters") -> None:
    """Returns nothing if `params` is the tree of a T5 of this configuration.

    Args:
      params: nested dict of arrays (or of anything with a shape), without an outer `params`.
      config: the model. Scanned layers are hyperflax's, see `from_scalable` for T5X's.
      where: file or directory, for the error.

    Raises:
      CheckpointError: lists every missing, unexpected and wrongly shaped leaf with what was expected and found.
    """
    if problems := shape_problems(params, config):
        lines = "\n  ".join(problems)
        raise CheckpointError(f"{where}: {len(problems)} leaves do not fit the model\n  {lines}")


def check_unseen(found: T5Config, expected: T5Config, *, where: str) -> None:
    """Returns nothing if two models of the same shapes compute alike: in what shapes do not show.

    Raises:
      CheckpointError: other activations or another `max_distance`; names `where`, the file or directory of `found`.
    """
    if other := difference(unseen(found), unseen(expected)):
        name, theirs, ours = other
        raise CheckpointError(f"{where}: {name}: expected {ours}, found {theirs}")


def unseen(config: T5Config) -> dict[str, Any]:
    """Returns how a T5 computes where the shapes of its parameters do not show it.

    >>> unseen(T5Config(..., mlp_activations=("swish", "linear")))
    {'mlp_activations': ('silu', 'linear'), 'max_distance': 128}
    """
    activations = tuple("silu" if name == "swish" else name for name in config.mlp_activations)
    return {"mlp_activations": activations, "max_distance": config.max_distance}


def difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Returns where two descriptions of what parameters mean differ: (name, what is found, what is expected).

    A name that only one of them has tells nothing: an earlier version did not have it. Inside a mapping it does, and
    `name` is the path to the first difference there.

    >>> difference({"order": "forward", "scales": {"lora/b": 1.0}}, {"scales": {"lora/b": 2.0}})
    ('scales.lora/b', 1.0, 2.0)
    """
    for name in [name for name in expected if name in found]:
        theirs, ours = found[name], expected[name]
        if theirs != ours and isinstance(theirs, Mapping) and isinstance(ours, Mapping):
            key = next(key for key in {**ours, **theirs} if theirs.get(key) != ours.get(key))
            return f"{name}.{key}", theirs.get(key), ours.get(key)
        if theirs != ours:
            return name, theirs, ours
    return None


def infer_t5_config(params: PyTree, **known: Any) -> T5Config:
    """Returns the configuration of the T5 that these parameters belong to.

    Shapes do not tell everything: gated feed-forward blocks are taken as T5 1.1's GELU, plain ones as ReLU, and
    `max_distance`, `dropout_rate` and the compute dtype keep their defaults.

    Args:
      params: unrolled, scanned, or T5X's scalable layout.
      known: fields to set instead, such as `mlp_activations=("silu", "linear")`.

    Raises:
      CheckpointError: no T5 has these leaves; every one that does not fit is listed.
    """
    if is_scalable(params):
        params = from_scalable(params)
    shapes = {path: tuple(np.shape(leaf)) for path, leaf in trees.flatten(params).items()}
    scanned = "encoder/layers/attention/query/kernel" in shapes
    per_layer = not any(path == "encoder/relpos_bias/rel_embedding" for path in shapes)
    first = "encoder/layers" if scanned else "encoder/layers_0"
    gated = f"{first}/mlp/wi_0/kernel" in shapes

    def shape(path: str, rank: int) -> Shape:
        if path not in shapes or len(shapes[path]) != rank or 0 in shapes[path]:
            raise CheckpointError(f"parameters: expected the leaf '{path}' with {rank} axes, found {shapes.get(path)}")
        return shapes[path]

    vocab_size, emb_dim = shape("token_embedder/embedding", 2)
    num_heads, *_, num_buckets = shape(
        f"{first if per_layer else 'encoder'}/relpos_bias/rel_embedding", 3 if per_layer and scanned else 2
    )
    joined = shape(f"{first}/attention/query/kernel", 3 if scanned else 2)[-1]
    if joined % num_heads:
        raise CheckpointError(f"parameters: {joined} attention features cannot be divided among {num_heads} heads")
    fields: dict[str, Any] = {
        "vocab_size": vocab_size,
        "emb_dim": emb_dim,
        "num_heads": num_heads,
        "head_dim": joined // num_heads,
        "num_encoder_layers": _depth(shapes, "encoder", scanned),
        "num_decoder_layers": _depth(shapes, "decoder", scanned),
        "mlp_dim": shape(f"{first}/mlp/wi{'_0' if gated else ''}/kernel", 3 if scanned else 2)[-1],
        "mlp_activations": ("gelu", "linear") if gated else ("relu",),
        "logits_via_embedding": "decoder/logits_dense/kernel" not in shapes,
        "scan_layers": scanned,
        "relative_bias": "per_layer" if per_layer else "shared",
        "num_buckets": num_buckets,
    }
    try:
        config = T5Config(**{**fields, **known})
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"parameters: {error}") from error
    check_shapes(params, config)
    return config


def _depth(shapes: Mapping[str, Shape], stack: str, scanned: bool) -> int:
    if scanned:
        layers = [shape[1] for path, shape in shapes.items() if path.startswith(f"{stack}/layers/") and len(shape) > 1]
        return layers[0] if layers else 0
    found = {match[1] for path in shapes if (match := re.match(rf"{stack}/layers_([0-9]+)/", path))}
    return len(found)


def is_scalable(params: PyTree) -> bool:
    """Whether the tree has the layout of T5X's scalable_t5: `encoder/encoder/...`."""

    def has_own_name(stack: str) -> bool:
        return isinstance(params.get(stack), Mapping) and stack in params[stack]

    return isinstance(params, Mapping) and has_own_name("encoder") and has_own_name("decoder")


def from_scalable(params: PyTree) -> dict[str, Any]:
    """Brings T5X's scalable_t5 parameters to hyperflax's scanned layout; values do not change.

    `encoder/encoder/attention/query/kernel` [embed, layers, heads, kv] becomes `encoder/layers/attention/query/kernel`
    [embed, layers, heads * kv], and `out` [heads, layers, kv, embed] becomes [heads * kv, layers, embed]. The result
    fits a T5Config with `scan_layers=True, relative_bias="per_layer"`.

    Raises:
      CheckpointError: names the leaf that has another rank than scalable_t5 gives it.
    """
    return trees.unflatten(dict(moved_from_scalable(path, leaf) for path, leaf in trees.flatten(params).items()))


def moved_from_scalable(path: str, leaf: Any) -> tuple[str, Any]:
    """Returns one leaf's name and array in the scanned layout; see `from_scalable`."""
    name, heads = of_scalable(path, np.shape(leaf))
    return name, leaf if heads is None else join_heads(leaf, heads)


def of_scalable(path: str, shape: Shape) -> tuple[str, tuple[int, int] | None]:
    """Returns what a leaf of scalable_t5 is called in hyperflax's scanned layout, and its axes of heads and of kv.

    The axes are None where there are no heads. Any other leaf keeps its name. Raises as `from_scalable` does.
    """
    stack, _, rest = path.partition("/")
    if stack not in ATTENTIONS or not rest.startswith(f"{stack}/"):
        return path, None
    name = rest.removeprefix(f"{stack}/")
    heads = None
    if name.split("/")[0] in ATTENTIONS[stack]:
        if len(shape) != 4:
            raise CheckpointError(f"leaf '{path}': expected four axes as in scalable_t5, found {shape}")
        heads = (0, 2) if name.endswith("/out/kernel") else (2, 3)
    return f"{stack}/layers/{name}", heads


def join_heads(array: Any, axes: tuple[int, int]) -> Any:
    """Returns an array, of numpy or jax, whose axes of heads and of kv are one, where that of heads was."""
    heads, kv = axes
    array = array.swapaxes(heads + 1, kv)
    return array.reshape(*array.shape[:heads], array.shape[heads] * array.shape[heads + 1], *array.shape[heads + 2 :])
