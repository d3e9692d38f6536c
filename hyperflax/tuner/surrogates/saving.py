"""Fitted surrogates in directories.

    DIR/surrogate.json        format, version, the surrogate's class and configuration
    DIR/fitted.safetensors    params/..., scaling/..., kept/queries/..., kept/values, task/queries/..., task/values

Nothing is pickled. A directory from elsewhere is checked before it is believed: every key, shape and type, that numbers
are finite, and that the parameters are those of the configuration.

>>> save("surrogates/ni", surrogate, fitted)
>>> surrogate, fitted = load("surrogates/ni")
"""

from __future__ import annotations

import dataclasses
import pathlib
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from hyperflax import configs
from hyperflax.checkpoints.tensors import load_tree, save_tree
from hyperflax.errors import CheckpointError, DataError, HyperflaxError
from hyperflax.files import atomic_directory
from hyperflax.json_files import read_schema, write_json
from hyperflax.tuner.surrogates.cost import MLPCost
from hyperflax.tuner.surrogates.deep_kernel import DeepKernelGP
from hyperflax.tuner.surrogates.protocol import CostSurrogate, Fitted, PerformanceSurrogate
from hyperflax.types import PyTree

FORMAT, VERSION = "hyperflax-surrogate", 1
CONFIG, ARRAYS = "surrogate.json", "fitted.safetensors"

KINDS: Mapping[str, type] = {"DeepKernelGP": DeepKernelGP, "MLPCost": MLPCost}
"""Every surrogate by the name that stands in `surrogate.json`."""

Node = TypeVar("Node")
Surrogate = PerformanceSurrogate | CostSurrogate


@dataclasses.dataclass(frozen=True)
class Header:
    """What `surrogate.json` holds; `surrogate` is a key of `KINDS`."""

    format: str
    schema_version: int
    surrogate: str
    config: dict[str, Any]


def save(path: pathlib.Path | str, surrogate: Surrogate, fitted: Fitted, *, overwrite: bool = False) -> None:
    """Writes a surrogate and what it has learnt, atomically.

    Args:
      path: the directory.
      surrogate: one of `KINDS`.
      fitted: what its `fit`, `condition` or `refit` returned.
      overwrite: replace a directory of an earlier surrogate.

    Raises:
      CheckpointError: `path` exists and may not be replaced, or holds other files.
      DataError: `fitted` is not of this surrogate.
    """
    name = type(surrogate).__name__
    if KINDS.get(name) is not type(surrogate):
        raise CheckpointError(f"{path}: not written, expected one of {sorted(KINDS)}, got {name}")
    surrogate.check(fitted)
    with atomic_directory(path, overwrite=overwrite, owned=(CONFIG, ARRAYS)) as folder:
        write_json(folder / CONFIG, configs.to_json(Header(FORMAT, VERSION, name, configs.to_json(surrogate))))
        save_tree(folder / ARRAYS, _to_tree(fitted))


def load(path: pathlib.Path | str) -> tuple[Surrogate, Fitted]:
    """Returns (surrogate, fitted) as `save` was given them, bit for bit.

    Raises:
      CheckpointError: names the file and key, what was expected and what came.
    """
    folder = pathlib.Path(path)
    header = read_schema(folder / CONFIG, Header, file_format=FORMAT, version=VERSION)
    if header.surrogate not in KINDS:
        raise CheckpointError(
            f"{folder / CONFIG}: key 'surrogate': expected one of {sorted(KINDS)}, got {header.surrogate!r}"
        )
    try:
        surrogate = configs.from_json(KINDS[header.surrogate], header.config, f"{folder / CONFIG}: config")
        fitted = _from_tree(Fitted, load_tree(folder / ARRAYS), "")
        if not len(fitted.kept):
            raise DataError("kept: expected at least one row of the table, got none")
        fitted.require_sizes(fitted.task.queries)
        if fitted.scaling.meta_mean.shape != (fitted.kept.queries.sizes[2],):
            raise DataError(f"scaling: expected {fitted.kept.queries.sizes[2]} meta-features")
        surrogate.check(fitted)
    except CheckpointError:
        raise
    except HyperflaxError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return surrogate, fitted


def _to_tree(node: Any) -> Any:
    if not dataclasses.is_dataclass(node):
        return node
    return {field.name: _to_tree(getattr(node, field.name)) for field in dataclasses.fields(node)}


def _from_tree(cls: type[Node], tree: Any, place: str) -> Node:
    """The inverse of `_to_tree`: a dataclass of arrays, of trees of arrays, and of such dataclasses."""
    names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if not isinstance(tree, Mapping) or tree.keys() != names:
        found = sorted(tree) if isinstance(tree, Mapping) else "an array"
        raise DataError(f"{ARRAYS}: '{place}': expected the keys {sorted(names)}, got {found}")
    values = {}
    for name, hint in typing.get_type_hints(cls).items():
        value = tree[name]
        if dataclasses.is_dataclass(hint):
            value = _from_tree(hint, value, f"{place}{name}/")
        elif isinstance(value, Mapping) != (hint is PyTree):
            raise DataError(f"{ARRAYS}: '{place}{name}': expected {'a tree' if hint is PyTree else 'an array'}")
        values[name] = value
    return cls(**values)
