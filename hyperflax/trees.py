"""Nested dicts addressed by path.

Parameters, adapters and checkpoints are nested dicts whose leaves are arrays. Everywhere in hyperflax a leaf is named
by its path, the keys joined with '/': `encoder/layers_0/attention/query/kernel`.

>>> flatten({"b": {"c": 2}, "a": 1})
{'a': 1, 'b/c': 2}
>>> unflatten({"a": 1, "b/c": 2})
{'a': 1, 'b': {'c': 2}}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hyperflax.errors import HyperflaxError

SEPARATOR = "/"


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `{path: leaf}`, sorted by path. Anything that is not a mapping is a leaf; empty mappings vanish."""
    flat: dict[str, Any] = {}

    def visit(node: Any, prefix: str) -> None:
        if isinstance(node, Mapping):
            for key, child in node.items():
                if not isinstance(key, str) or SEPARATOR in key or not key:
                    raise HyperflaxError(f"key {key!r} under '{prefix}': expected a non-empty string without '/'")
                visit(child, f"{prefix}{SEPARATOR}{key}" if prefix else key)
        elif prefix:
            flat[prefix] = node
        else:
            raise HyperflaxError(f"expected a nested mapping, got {type(node).__name__}")

    visit(tree, "")
    return dict(sorted(flat.items()))


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`. Raises if one path is a prefix of another."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split(SEPARATOR)
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise HyperflaxError(f"path '{path}': '{parent}' is already a leaf")
        if name in node:
            raise HyperflaxError(f"path '{path}' is given twice, as a leaf and as a parent of other leaves")
        node[name] = leaf
    return tree


def map_with_path(fn: Callable[[str, Any], Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """Applies `fn(path, leaf)` to every leaf and keeps the structure."""
    return unflatten({path: fn(path, leaf) for path, leaf in flatten(tree).items()})


def path_of(keys: tuple[Any, ...]) -> str:
    """Returns the path of what JAX names by keys; attributes and indices become parts of it, as dict keys do."""
    from jax.tree_util import keystr  # here: everything else of this module does without JAX

    return keystr(keys, simple=True, separator=SEPARATOR)
