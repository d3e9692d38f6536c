"""The kinds there are, and what needs to know all of them.

>>> spec = build_spec((LoRA(rank=4), Prefix(length=8)), t5_config)
>>> check_spec(spec, t5_config)
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

from hyperflax.adapters.checks import nearest
from hyperflax.adapters.full import Full
from hyperflax.adapters.kind_config import KindConfig
from hyperflax.adapters.lora import LoRA
from hyperflax.adapters.parallel_mlp import ParallelMLP
from hyperflax.adapters.prefix import Prefix
from hyperflax.adapters.soft_prompt import SoftPrompt
from hyperflax.adapters.spec import AdapterSpec, Leaf
from hyperflax.errors import AdapterError, ConfigError
from hyperflax.types import T5Config

KINDS: Mapping[str, type[KindConfig]] = {
    "lora": LoRA,
    "prefix": Prefix,
    "soft_prompt": SoftPrompt,
    "parallel_mlp": ParallelMLP,
    "full": Full,
}


def build_spec(kinds: KindConfig | Sequence[KindConfig], t5_config: T5Config) -> AdapterSpec:
    """Returns the spec of one kind, or of several at once, on a base model.

    Args:
      kinds: settings, `LoRA(...)`, or a sequence of them.
      t5_config: the base model's shape.

    Raises:
      ConfigError: no kind at all, something that is not a kind, or a site pattern that matches nothing.
      AdapterError: two kinds claim the same leaf.
    """
    configs = list(kinds) if isinstance(kinds, Sequence) else [kinds]
    if not configs:
        raise ConfigError(f"build_spec: expected at least one of {', '.join(kind.__name__ for kind in KINDS.values())}")
    spec = AdapterSpec(())
    for config in configs:
        if not isinstance(config, tuple(KINDS.values())):
            raise ConfigError(f"build_spec: expected settings of a kind ({', '.join(KINDS)}), got {config!r}")
        spec = spec + config.spec(t5_config)
    return spec


def kind_of(leaf: Leaf) -> type[KindConfig]:
    """Returns the kind whose slots the leaf belongs to. Raises AdapterError where none is."""
    for kind in KINDS.values():
        if leaf.reader in kind.readers:
            return kind
    known = sorted(reader for kind in KINDS.values() for reader in kind.readers)
    raise AdapterError(f"leaf '{leaf.path}': expected one of {known} before the last key, got '{leaf.reader}'")


def groups(spec: AdapterSpec) -> dict[str, list[Leaf]]:
    """Returns `{path of a slot: its leaves}`: `.../query/lora` -> `a`, `b`; optional leaves are not among them."""
    found: dict[str, list[Leaf]] = {}
    for leaf in spec.leaves:
        found.setdefault(f"{leaf.module}/{leaf.reader}", []).append(leaf)
    return found


def refuse(spec: AdapterSpec, operation: str) -> None:
    """Raises AdapterError, with the place and the reason, where a kind of the spec refuses the operation."""
    for slot, leaves in groups(spec).items():
        kind = kind_of(leaves[0])
        if reason := kind.refuses.get(operation):
            raise AdapterError(f"{kind.kind} at '{slot}' refuses to {operation}: {reason}")


class Catalogue(NamedTuple):
    """Every leaf that a base model can read, of size 1, in unrolled layers.

    Attributes:
      leaves: by path, optional ones among them.
      siblings: names of the leaves that go together, by path of their slot: `.../query/lora` -> `a`, `b`.
    """

    leaves: Mapping[str, Leaf]
    siblings: Mapping[str, Set[str]]


@functools.cache
def catalogue(t5_config: T5Config) -> Catalogue:
    """Returns what a base model can read; built once for each, for it is asked with every adapter.

    >>> sorted(catalogue(T5Config(vocab_size=384)).siblings["encoder/layers_0/attention/query/lora"])
    ['a', 'b']
    """
    leaves: dict[str, Leaf] = {}
    siblings: dict[str, Set[str]] = {}
    for kind in KINDS.values():
        for config in kind.catalogue():
            full = config.spec(t5_config)
            leaves |= {leaf.path: leaf for leaf in (*full.leaves, *full.optional)}
            siblings |= {slot: {leaf.name for leaf in group} for slot, group in groups(full).items()}
    return Catalogue(leaves, siblings)


def check_spec(spec: AdapterSpec, t5_config: T5Config) -> None:
    """Checks that every leaf is read by some layer of the base model and has the shape which that layer expects.

    Raises:
      AdapterError: names the first leaf that this base model has no place for, has in another shape, or lacks.
    """
    known_leaves, siblings = catalogue(t5_config)
    for leaf in (*spec.leaves, *spec.optional):
        known = known_leaves.get(leaf.path)
        if known is None:
            raise AdapterError(
                f"leaf '{leaf.path}': nothing in this base model reads it{nearest(leaf.path, known_leaves)}"
            )
        if known.slot_axis != leaf.slot_axis or known.resized(leaf.slots).shape != leaf.shape:
            expected = [
                kind_of(leaf).size if axis == known.slot_axis else size for axis, size in enumerate(known.shape)
            ]
            raise AdapterError(
                f"leaf '{leaf.path}': this base model expects shape ({', '.join(map(str, expected))}), got {leaf.shape}"
            )
    optional, slots = {f"{leaf.module}/{leaf.reader}": leaf for leaf in spec.optional}, groups(spec)
    for slot in optional.keys() - slots.keys():
        raise AdapterError(f"leaf '{optional[slot].path}': the spec has it and none of the leaves that it goes with")
    for slot, leaves in slots.items():
        for name in sorted(siblings[slot] - {leaf.name for leaf in leaves}):
            raise AdapterError(f"leaf '{slot}/{name}': the spec has its siblings and lacks it")
        for leaf in (*leaves[1:], *([optional[slot]] if slot in optional else [])):
            if leaf.slots != leaves[0].slots:
                size = kind_of(leaf).size
                raise AdapterError(
                    f"leaf '{leaf.path}': expected {size} {leaves[0].slots} as '{leaves[0].path}' has, got {leaf.slots}"
                )
