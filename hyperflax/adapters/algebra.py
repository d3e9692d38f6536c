"""Operations on whole adapters: stack, unite, pad, interpolate, merge.

All take materialised trees (what layers read) with their spec, and validate at the entry. Nothing is mutated.

>>> both = stack([first, second], spec)                           # leaves [2, ...]: two tasks in one batch
>>> mean, mean_spec = interpolate([first, second], [0.5, 0.5], spec)    # LoRA of twice the rank, exact
>>> model.apply({"params": merge(frozen, mean, mean_spec)}, ...)       # the same function without adapters
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from hyperflax import trees
from hyperflax.adapters.checks import is_number, nearest
from hyperflax.adapters.kind_config import KindConfig
from hyperflax.adapters.kinds import groups, kind_of, refuse
from hyperflax.adapters.spec import AdapterSpec, Leaf
from hyperflax.adapters.widen import complete, widen
from hyperflax.errors import AdapterError
from hyperflax.types import Array, PyTree


def stack(adapters: Sequence[PyTree], spec: AdapterSpec) -> dict[str, Any]:
    """Returns one tree with a leading task axis from several adapters of the same spec.

    Raises:
      AdapterError: no adapters, or one that does not fit the spec.
    """
    for adapter in adapters:
        spec.validate(adapter)
    return trees.unflatten(_stacked([spec.flatten(adapter) for adapter in adapters]))


def unstack(adapters: PyTree, spec: AdapterSpec) -> list[dict[str, Any]]:
    """The inverse of `stack`: leaves [task, ...] to a list of trees. Raises AdapterError on a tree of other leaves."""
    spec.validate(adapters, batch_dims=1)
    flat = spec.flatten(adapters)
    tasks = next(iter(flat.values())).shape[0]
    return [trees.unflatten({path: array[task] for path, array in flat.items()}) for task in range(tasks)]


def stack_padded(adapters: Sequence[PyTree], specs: Sequence[AdapterSpec]) -> tuple[dict[str, Any], AdapterSpec]:
    """Stacks adapters of unlike specs on one base model: other ranks, lengths, sites, layers or kinds.

    Args:
      adapters: one tree per adapter.
      specs: each one's own spec.

    Returns:
      the tree with leaves [task, ...] and its spec: every leaf that any spec has, at the largest size. It keeps `kinds`
      only where all specs have the same kinds up to size.

    Raises:
      AdapterError: an adapter that does not fit its spec, or two specs of different base models.
    """
    if len(adapters) != len(specs):
        raise AdapterError(f"stack_padded: expected one spec per adapter, got {len(adapters)} and {len(specs)}")
    for adapter, spec in zip(adapters, specs, strict=True):
        spec.validate(adapter)
    room = union(specs)
    flats = [widen(spec.flatten(tree), spec, room) for tree, spec in zip(adapters, specs, strict=True)]
    return trees.unflatten(_stacked(flats)), room


def union(specs: Sequence[AdapterSpec]) -> AdapterSpec:
    """Returns the spec into which an adapter of any of these can be widened: every leaf, at its largest size.

    Scale and starts are the first one's. It keeps `kinds` only where all specs have the same kinds up to size.

    Raises:
      AdapterError: two specs of different base models.
    """

    def largest(every: list[Leaf]) -> tuple[Leaf, ...]:
        found: dict[str, Leaf] = {}
        for leaf in every:
            known = found.setdefault(leaf.path, leaf)
            if known.slot_axis != leaf.slot_axis or known.resized(1).shape != leaf.resized(1).shape:
                raise AdapterError(f"leaf '{leaf.path}': shapes {known.shape} and {leaf.shape} are of different models")
            found[leaf.path] = known.resized(max(known.slots, leaf.slots))
        return tuple(found.values())

    sizes: dict[KindConfig, int] = {}
    for config in (config for spec in specs for config in spec.kinds):
        key = config.resized(1)
        sizes[key] = max(sizes.get(key, 0), getattr(config, config.size))
    alike = all({config.resized(1) for config in spec.kinds} == set(sizes) for spec in specs)
    return AdapterSpec(
        largest([leaf for spec in specs for leaf in spec.leaves]),
        tuple(config.resized(size) for config, size in sizes.items()) if alike else (),
        optional=largest([leaf for spec in specs for leaf in spec.optional]),
    )


def pad(
    adapters: PyTree, spec: AdapterSpec, *, rank: int | None = None, length: int | None = None, batch_dims: int = 0
) -> tuple[dict[str, Any], AdapterSpec]:
    """Returns the adapter with a larger rank or a longer prefix of the same effect, and its spec.

    What is added stands in front: zero rows, and masked positions before those of the prefix.

    Args:
      adapters: a tree that fits `spec`, leaves [*batch, *shape].
      spec: its spec.
      rank, length: new sizes of LoRA and of prefixes; None leaves a kind as it is.
      batch_dims: number of leading dimensions before the spec's shapes.

    Raises:
      AdapterError: the tree does not fit, or a new size is smaller than the old one.
    """
    spec.validate(adapters, batch_dims)
    sizes = {"rank": rank, "length": length}
    target = _resized(spec, lambda kind, slots: slots if sizes.get(kind.size) is None else sizes[kind.size])
    return trees.unflatten(widen(spec.flatten(adapters), spec, target)), target


def interpolate(
    adapters: Sequence[PyTree], weights: Sequence[Any] | Array, spec: AdapterSpec, *, batch_dims: int = 0
) -> tuple[dict[str, Any], AdapterSpec]:
    """Returns the adapter whose effect on every projection is the weighted sum of the given ones' effects.

    Not the sum of parameters: (sum w a)(sum w b) has cross terms. LoRA concatenates ranks and folds the weights into
    `b`, which is exact for any weights, negative ones and ones that do not sum to 1 included. Prefixes refuse.

    Args:
      adapters: n trees that fit `spec`, leaves [*batch, *shape].
      weights: n numbers, or an array [n].
      spec: of each of them.
      batch_dims: number of leading dimensions before the spec's shapes.

    Returns:
      the tree, of n times the rank, and its spec.

    Raises:
      AdapterError: a kind that cannot (named, with the reason), a tree that does not fit, or weights that do not count.
    """
    if not len(adapters) or len(adapters) != len(weights):
        raise AdapterError(f"interpolate: expected one weight per adapter, got {len(adapters)} and {len(weights)}")
    for weight in weights:
        if isinstance(weight, int | float) and not is_number(weight):
            raise AdapterError(f"interpolate: expected finite weights, got {weight!r}")
    refuse(spec, "interpolate")
    for adapter in adapters:
        spec.validate(adapter, batch_dims)
    flats = [spec.flatten(adapter) for adapter in adapters]
    mixed: dict[str, Array] = {}
    for slot, leaves in groups(spec).items():
        parts = [_slot(flat, slot, leaves) for flat in flats]
        merged = kind_of(leaves[0]).mix_slots(parts, list(weights))
        mixed |= {f"{slot}/{name}": array for name, array in merged.items()}
    return trees.unflatten(mixed), _resized(spec, lambda kind, slots: slots * len(adapters))


def merge(params: PyTree, adapters: PyTree, spec: AdapterSpec) -> dict[str, Any]:
    """Returns base parameters that do, without adapters, what `params` do with them.

    Sums are taken in float32 and given in the kernel's dtype, so a bfloat16 base loses what bfloat16 cannot hold.

    Args:
      params: the frozen tree, layers unrolled (`.../layers_0/...`) or scanned (`.../layers/...`, layer axis 1).
      adapters: one adapter, no batch dimensions, that fits `spec`.
      spec: its spec; only kinds that are changes of weights (LoRA, full) can be merged.

    Raises:
      AdapterError: a kind that cannot (named, with the reason), a tree that does not fit its spec, or a base model that
        lacks a parameter or has it in another shape (the leaf is named).
    """
    refuse(spec, "merge")
    spec.validate(adapters)
    flat = spec.flatten(adapters)
    merged = trees.flatten(params)
    for slot, leaves in groups(spec).items():
        kind = kind_of(leaves[0])
        path, layer = _kernel(merged, leaves[0])
        kernel = jnp.asarray(merged[path] if layer is None else merged[path][:, layer])
        _check_kernel(path, kernel, leaves)
        kernel = kind.merge_slot(kernel, _slot(flat, slot, leaves))
        merged[path] = kernel if layer is None else jnp.asarray(merged[path]).at[:, layer].set(kernel)
    return trees.unflatten(merged)


def _stacked(flats: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    if not flats:
        raise AdapterError("stack: expected at least one adapter")
    rows = complete(flats)
    return {path: jnp.stack([jnp.asarray(row[path]) for row in rows]) for path in rows[0]}


def _slot(flat: Mapping[str, Array], slot: str, leaves: Sequence[Leaf]) -> dict[str, Array]:
    return {leaf.name: jnp.asarray(flat[f"{slot}/{leaf.name}"]) for leaf in leaves}


def _resized(spec: AdapterSpec, size: Callable[[type[KindConfig] | KindConfig, int], Any]) -> AdapterSpec:
    """The spec with every slot axis of n made `size(kind, n)`."""
    return AdapterSpec(
        tuple(leaf.resized(size(kind_of(leaf), leaf.slots)) for leaf in spec.leaves),
        tuple(config.resized(size(config, getattr(config, config.size))) for config in spec.kinds),
        optional=tuple(leaf.resized(size(kind_of(leaf), leaf.slots)) for leaf in spec.optional),
    )


def _kernel(params: Mapping[str, Array], leaf: Leaf) -> tuple[str, int | None]:
    """Returns the path of the parameter that the leaf changes, and the layer's index where layers are scanned."""
    unrolled = kind_of(leaf).parameter(leaf)
    if unrolled in params:
        return unrolled, None
    scanned = f"{leaf.stack}/layers/{unrolled.split('/', 2)[-1]}"
    if leaf.in_layer and scanned in params:
        return scanned, leaf.layer
    raise AdapterError(f"leaf '{leaf.path}': the base model has no '{unrolled}'{nearest(unrolled, params)}")


def _check_kernel(path: str, kernel: Array, leaves: Sequence[Leaf]) -> None:
    """Checks each leaf's dimensions other than the slots against the kernel's. Raises AdapterError."""
    for leaf in leaves:
        rest = leaf.shape[: leaf.slot_axis] + leaf.shape[leaf.slot_axis + 1 :]
        # A leaf without slots has either the kernel's shape or, as a factor, that of one of its two sides.
        side = kernel.shape[1 - leaf.slot_axis :][:1] if kernel.ndim == 2 else None
        if rest not in (kernel.shape, side):
            raise AdapterError(f"leaf '{leaf.path}': shape {leaf.shape} does not fit '{path}', which is {kernel.shape}")
