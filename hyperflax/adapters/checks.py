"""What a spec and a tree must satisfy, and how a violation is told.

Split from `spec.py` because messages take more room than rules. A leaf's path must be found in a message as it stands
in the tree, so that it can be searched for.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from hyperflax.configs import check_sizes
from hyperflax.errors import AdapterError, ConfigError

if TYPE_CHECKING:
    from hyperflax.adapters.kind_config import KindConfig
    from hyperflax.adapters.spec import Leaf

_KEY = r"[A-Za-z][A-Za-z0-9_]{0,63}"
_PATH = re.compile(rf"(encoder|decoder)/layers_(0|[1-9][0-9]{{0,3}})(/{_KEY}){{3,6}}")
_OUTSIDE = re.compile(rf"((encoder|decoder)(?!/layers)|token_embedder)(/{_KEY}){{2,3}}")
_MAX_SIZE = 2**31 - 1
_SHOWN = 3


def is_int(value: Any) -> bool:
    """An int that is not a bool: json's `true` is not a length."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """A finite float or int that is not a bool."""
    return (isinstance(value, float) or is_int(value)) and abs(value) <= sys.float_info.max


def size(config: KindConfig) -> None:
    """Checks the field that the kind calls its size. Raises ConfigError."""
    check_sizes(config, **{config.size: 1})


def numbers(config: KindConfig, *names: str) -> None:
    """Checks fields that hold a number of 0 or more, and makes floats of them. Raises ConfigError."""
    for name in names:
        value = getattr(config, name)
        if not is_number(value) or value < 0:
            raise ConfigError(f"{type(config).__name__}.{name}: expected a finite number, 0 or more, got {value!r}")
        object.__setattr__(config, name, float(value))


def leaf(leaf: Leaf) -> None:
    """Checks one leaf's own fields. Raises AdapterError."""

    def require(holds: bool, field: str, expected: str) -> None:
        if not holds:
            raise AdapterError(f"leaf {leaf.path!r}: {field}: expected {expected}, got {getattr(leaf, field)!r}")

    path = leaf.path if isinstance(leaf.path, str) else ""
    inside, outside = _PATH.fullmatch(path), _OUTSIDE.fullmatch(path)
    require(bool(inside or outside), "path", "'[encoder|decoder/layers_N/]MODULE/READER/NAME'")
    if stack := inside[1] if inside else outside and outside[2]:  # the token embedding stands in no stack
        require(leaf.stack == stack, "stack", f"{stack!r} as in the path")
    require(leaf.stack in ("encoder", "decoder"), "stack", "'encoder' or 'decoder'")
    if inside:
        require(is_int(leaf.layer) and leaf.layer == int(inside[2]), "layer", f"{inside[2]} as in the path")
    require(is_int(leaf.layer) and 0 <= leaf.layer < 10_000, "layer", "a layer's number")
    sizes = all(is_int(size) and 0 < size <= _MAX_SIZE for size in leaf.shape)
    require(sizes and 0 < len(leaf.shape) <= 8, "shape", "one to eight positive ints")
    names = all(isinstance(axis, str) and re.fullmatch(_KEY, axis) for axis in leaf.axes)
    require(names and len(leaf.axes) == len(leaf.shape), "axes", f"{len(leaf.shape)} axis names")
    require(is_int(leaf.slot_axis) and 0 <= leaf.slot_axis < len(leaf.shape), "slot_axis", "a dimension of the shape")
    require(is_number(leaf.scale), "scale", "a finite number")
    require(is_number(leaf.init_std) and leaf.init_std >= 0, "init_std", "a finite number, 0 or more")
    require(is_number(leaf.head_std) and leaf.head_std >= 0, "head_std", "a finite number, 0 or more")


def nearest(path: str, known: Iterable[str]) -> str:
    """Returns ` (did you mean 'X'?)`, or nothing where no known path is near."""
    close = difflib.get_close_matches(path, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


def paths(flat: Mapping[str, Any], required: Sequence[str], optional: Sequence[str]) -> None:
    """Checks that `flat` has all required paths, any of the optional ones and no others.

    Raises:
      AdapterError: unknown paths first, since a misspelt path is also a missing one.
    """
    known = {*required, *optional}
    missing = [path for path in required if path not in flat]
    unknown = sorted(path for path in flat if path not in known)
    if unknown:
        candidates = missing or sorted(known)
        told = "; ".join(f"unknown leaf '{path}'{nearest(path, candidates)}" for path in unknown[:_SHOWN])
        raise AdapterError(f"adapters: {told}{_more(unknown)}; the spec has {len(required)} leaves")
    if missing:
        told = ", ".join(f"'{path}'" for path in missing[:_SHOWN])
        raise AdapterError(f"adapters: missing leaf {told}{_more(missing)}")


def _more(entries: Sequence[str]) -> str:
    return f" and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""


def arrays(values: Mapping[Leaf, Any], batch_dims: int) -> None:
    """Checks shapes and dtypes, and that the leading dimensions agree. Raises AdapterError."""
    batch: tuple[int, ...] | None = None
    for entry, value in values.items():
        if not hasattr(value, "shape") or not hasattr(value, "dtype"):
            raise AdapterError(f"leaf '{entry.path}': expected an array, got {type(value).__name__}")
        shape = tuple(value.shape)
        if len(shape) != batch_dims + len(entry.shape) or shape[batch_dims:] != entry.shape:
            leading = f" after {batch_dims} leading dimensions" if batch_dims else ""
            raise AdapterError(f"leaf '{entry.path}': expected shape {entry.shape}{leading}, got {shape}")
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise AdapterError(f"leaf '{entry.path}': expected a floating dtype, got {value.dtype}")
        if batch is not None and shape[:batch_dims] != batch:
            raise AdapterError(
                f"leaf '{entry.path}': expected leading dimensions {batch} as in other leaves, got {shape[:batch_dims]}"
            )
        batch = shape[:batch_dims]
