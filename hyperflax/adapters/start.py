"""Where fine-tuning starts from: an adapter that is there, in the shapes of the one that is to be trained.

| to be trained | start |
|---|---|
| the same place, the same size | as it is |
| LoRA of a higher rank | further columns of `a` at random and rows of zeros in `b`: the same effect, and a gradient |
| LoRA of a lower rank | the nearest product of that rank, by singular values of `a b`; where they are 0, as above |
| a place more | the kind's own start, where that changes nothing: LoRA, parallel adapters, full fine-tuning |
| anything else | refused: it would throw away a part of what is known |

The result is raw, as a producer emits it (see `spec.py`): alpha / rank may differ between the two, the effect does not.

>>> raw = start_from(adapter.tree, adapter.spec, build_spec(LoRA(rank=16), t5_config), jax.random.key(0))
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hyperflax import trees
from hyperflax.adapters.kinds import groups, kind_of
from hyperflax.adapters.spec import AdapterSpec, Leaf
from hyperflax.errors import AdapterError
from hyperflax.types import Array, PyTree

Slot = Mapping[str, np.ndarray]


def start_from(adapters: PyTree, spec: AdapterSpec, target: AdapterSpec, rng: Array) -> dict[str, Any]:
    """Returns the raw tree of `target`, numpy float32, with the effect of an adapter of `spec`.

    Args:
      adapters: materialised, what layers read; no batch dimensions.
      spec: which it fits.
      target: what is to be trained, on the same base model.
      rng: of what is new.

    Raises:
      AdapterError: a place that the adapter has and the target lacks, one that the target has more and whose kind
        cannot start at the identity, a size that the kind cannot change, or masked positions; names the place.
    """
    spec.validate(adapters)
    check_start(spec, target)
    given = {path: np.asarray(x, np.float32) for path, x in spec.flatten(adapters).items()}
    _check_masks(given, spec)
    known = groups(spec)
    # Most starts need nothing new, and drawing it takes longer than all else.
    fresh = functools.cache(lambda: trees.flatten(target.materialise(target.init(rng))))
    started: dict[str, np.ndarray] = {}
    for slot, leaves in groups(target).items():
        values = {leaf.name: given[leaf.path] for leaf in known.get(slot, ())}
        if {name: value.shape for name, value in values.items()} != {leaf.name: leaf.shape for leaf in leaves}:
            new = {leaf.name: np.asarray(fresh()[leaf.path], np.float32) for leaf in leaves}
            values = _fitted(values, new, leaves) if slot in known else new
        started |= {leaf.path: _raw(values[leaf.name], leaf) for leaf in leaves}
    return trees.unflatten(started)


def check_start(spec: AdapterSpec, target: AdapterSpec) -> None:
    """Checks that an adapter of `spec` has nothing that `target` lacks, and that what `target` has more can be without
    effect. Sizes are not looked at.

    Raises:
      AdapterError: names the place.
    """
    known, wanted = groups(spec), groups(target)
    if lost := [slot for slot in known if slot not in wanted]:
        kind = kind_of(known[lost[0]][0]).kind
        raise AdapterError(
            f"the start has {kind} at '{lost[0]}' ({len(lost)} such places), where what is to be trained has nothing"
        )
    for slot, leaves in wanted.items():
        kind = kind_of(leaves[0])
        if slot not in known and not kind.starts_at_identity:
            raise AdapterError(
                f"{kind.kind} at '{slot}': the start has nothing there, and no {kind.kind} is without effect"
            )


def _fitted(slot: Slot, fresh: Slot, leaves: Sequence[Leaf]) -> Slot:
    kind, place = kind_of(leaves[0]), f"{leaves[0].module}/{leaves[0].reader}"
    for leaf in leaves:
        if leaf.resized(slot[leaf.name].shape[leaf.slot_axis]).shape != slot[leaf.name].shape:
            shapes = f"{leaf.shape} and {slot[leaf.name].shape}"
            raise AdapterError(f"leaf '{leaf.path}': shapes {shapes} are of different base models")
    fitted = kind.fit_slot(slot, fresh)
    if fitted is None:
        size = slot[leaves[0].name].shape[leaves[0].slot_axis]
        raise AdapterError(
            f"{kind.kind} at '{place}': expected {kind.size} {size} as the start has, got {leaves[0].slots}; only "
            "a LoRA can start from one of another size"
        )
    return fitted


def _raw(value: np.ndarray, leaf: Leaf) -> np.ndarray:
    if leaf.scale == 0.0:
        raise AdapterError(f"leaf '{leaf.path}': a scale of 0 undoes every start")
    return (value / leaf.scale).astype(np.float32)


def _check_masks(given: Slot, spec: AdapterSpec) -> None:
    for leaf in spec.optional:
        if leaf.path in given and not np.all(given[leaf.path] > 0):
            raise AdapterError(f"leaf '{leaf.path}': masked positions are not trained; expected all of them kept")
