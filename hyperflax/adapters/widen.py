"""One adapter in the shape of a larger one, with the same effect.

Everything that puts unlike adapters into one array comes down to this: layers that a kind leaves out, ranks and prefix
lengths that differ. What is new is the identity: zeros, and masked where there is a mask to say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hyperflax.adapters.spec import AdapterSpec, Leaf
from hyperflax.errors import AdapterError
from hyperflax.types import Array


def widen(
    flat: Mapping[str, Array], spec: AdapterSpec, target: AdapterSpec, *, xp: ModuleType = jnp
) -> dict[str, Array]:
    """Returns the adapter `flat` of `spec` as one of `target`.

    Args:
      flat: `{path: array}` of an adapter that fits `spec`; leading batch dimensions are kept.
      spec: the adapter's own spec.
      target: has every leaf of `spec`, equal but for a slot axis that may be longer, and possibly more leaves.
      xp: whose arrays these are, jax.numpy or numpy, which compiles nothing.

    Returns:
      `{path: array}` with all leaves of `target`; optional leaves only where they are there or needed.

    Raises:
      AdapterError: `target` lacks a leaf of `spec`, or has it smaller or of another shape.
    """
    check_room(spec, target)
    batch: tuple[int, ...] = ()
    dtype: Any = np.float32
    for leaf in spec.leaves[:1]:
        like = xp.asarray(flat[leaf.path])
        batch, dtype = like.shape[: like.ndim - len(leaf.shape)], like.dtype

    wide = {}
    for leaf in target.leaves:
        wide[leaf.path] = (
            lengthen(flat[leaf.path], leaf, xp) if leaf.path in flat else xp.zeros((*batch, *leaf.shape), dtype)
        )
    had = {f"{leaf.module}/{leaf.reader}": leaf.slots for leaf in spec.leaves}
    for leaf in target.optional:
        slots = had.get(f"{leaf.module}/{leaf.reader}", 0)
        if leaf.path in flat:
            wide[leaf.path] = lengthen(flat[leaf.path], leaf, xp)
        elif slots < leaf.slots:
            kept = xp.ones((*batch, *leaf.resized(slots).shape) if slots else (*batch, 0), dtype)
            wide[leaf.path] = lengthen(kept, leaf, xp)
    return wide


def check_room(spec: AdapterSpec, target: AdapterSpec) -> None:
    """Raises AdapterError, naming the leaf, where an adapter of `spec` cannot be widened to one of `target`."""
    wanted = {leaf.path: leaf for leaf in target.leaves}
    for leaf in spec.leaves:
        to = wanted.get(leaf.path)
        if to is None:
            raise AdapterError(f"leaf '{leaf.path}': there is no such leaf to widen it to")
        if to.slot_axis != leaf.slot_axis or leaf.resized(to.slots).shape != to.shape:
            raise AdapterError(f"leaf '{leaf.path}': shape {leaf.shape} cannot be widened to {to.shape}")
        if to.slots < leaf.slots:
            raise AdapterError(f"leaf '{leaf.path}': {leaf.slots} slots cannot be narrowed to {to.slots}")


def lengthen(array: Array, leaf: Leaf, xp: ModuleType = jnp) -> Array:
    """Returns `array` with zeros in front of its slot axis up to the leaf's size. Leading dimensions are kept.

    In front, because a preceding prefix counts its positions back from the sequence: its last one stays at -1. Ranks
    and prefixes without a bias do not care.
    """
    array = xp.asarray(array)
    axis = array.ndim - len(leaf.shape) + leaf.slot_axis
    missing = leaf.slots - array.shape[axis]
    if not missing:
        return array
    return xp.pad(array, [(missing if dim == axis else 0, 0) for dim in range(array.ndim)])


def shorten(array: Array, leaf: Leaf) -> Array:
    """The inverse of `lengthen`: the last places of the slot axis."""
    axis = array.ndim - len(leaf.shape) + leaf.slot_axis
    return jax.lax.slice_in_dim(array, array.shape[axis] - leaf.slots, None, axis=axis)


def complete(flats: Sequence[Mapping[str, Array]]) -> list[dict[str, Any]]:
    """Returns the mappings with equal keys: an optional leaf that only some have is all ones in the others."""
    every = {path: array for flat in flats for path, array in flat.items()}
    return [{path: flat.get(path, jnp.ones_like(every[path])) for path in sorted(every)} for flat in flats]
