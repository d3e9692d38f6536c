"""The one description that couples adapters, hypernetworks and the base model.

An `AdapterSpec` lists the leaves of an adapter: where each is read, its shape, how it starts, and how a hypernetwork
orders them (`stack`, `layer`, `slot_axis`). It is hashable, so it can be a static argument of `jax.jit` and a field of
a linen module. It knows no kind by name, and asks two things of every kind:

- all zeros, optional leaves included, changes nothing; the same holds for a single index of the slot axis;
- an optional leaf (a prefix's mask) that is absent reads as all ones. No producer generates optional leaves.

A producer emits *raw* arrays; `materialise` multiplies each by its leaf's `scale` (LoRA's alpha / rank), and the tree
that the layers read is pure data. Leaves are always those of unrolled layers, one per layer; see `layers.py` for the
scanned form. A leaf may also stand outside of all layers (a soft prompt, a change of the embedding); it then names the
layer with which a hypernetwork is to write it.

>>> spec = build_spec(LoRA(rank=4), t5_config)
>>> raw = spec.init(jax.random.key(0))
>>> model.apply({"params": frozen, "adapters": spec.materialise(raw)}, ...)
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from hyperflax import trees
from hyperflax.adapters import checks
from hyperflax.adapters.kind_config import KindConfig
from hyperflax.adapters.sites import STACKS
from hyperflax.errors import AdapterError
from hyperflax.types import Array, PyTree


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of an adapter, for one task and one layer.

    Attributes:
      path: place in the `adapters` collection: base module, reader, name: `encoder/layers_0/attention/query/lora/a`.
      shape: without task or layer axes.
      axes: logical axis names, one per dimension.
      stack, layer: `encoder` or `decoder`, and the layer's number; both also stand in the path if it leads to a layer.
      slot_axis: the dimension that slots enumerate: LoRA's rank, a prefix's positions.
      scale: factor from a producer's raw array to the value that the layer reads.
      init_std: standard deviation of the learned static part at the start; 0 starts at zeros.
      head_std: standard deviation of a hypernetwork head's raw output at the start.
    """

    path: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    stack: str
    layer: int
    slot_axis: int
    scale: float = 1.0
    init_std: float = 0.0
    head_std: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "axes", tuple(self.axes))
        checks.leaf(self)

    @property
    def name(self) -> str:
        """The last key of the path, `a`."""
        return self.path.rsplit("/", 1)[1]

    @property
    def reader(self) -> str:
        """The key by which a layer finds its slot, `lora`."""
        return self.path.rsplit("/", 2)[1]

    @property
    def module(self) -> str:
        """Path of the base module that reads the leaf, `encoder/layers_0/attention/query`."""
        return self.path.rsplit("/", 2)[0]

    @property
    def in_layer(self) -> bool:
        """Whether the path leads into a layer; `encoder/soft_prompt/embedding` does not."""
        return self.path.startswith(f"{self.stack}/layers_{self.layer}/")

    @property
    def local(self) -> str:
        """The path inside its layer, equal for all layers of a stack: `attention/query/lora/a`. Outside, the path."""
        return self.path.split("/", 2)[2] if self.in_layer else self.path

    @property
    def slots(self) -> int:
        """Number of slot indices: `shape[slot_axis]`."""
        return self.shape[self.slot_axis]

    def resized(self, slots: int) -> Leaf:
        """The same leaf with another rank or length."""
        shape = (*self.shape[: self.slot_axis], slots, *self.shape[self.slot_axis + 1 :])
        return dataclasses.replace(self, shape=shape)

    def moved(self, layer: int) -> Leaf:
        """The same leaf in another layer; one outside of all layers stays where it is."""
        if not self.in_layer:
            return self
        return dataclasses.replace(self, path=f"{self.stack}/layers_{layer}/{self.local}", layer=layer)


def _order(leaf: Leaf) -> tuple[int, int, str]:
    return STACKS.index(leaf.stack), leaf.layer, leaf.path


@dataclasses.dataclass(frozen=True)
class AdapterSpec:
    """The leaves of an adapter, encoder before decoder, layer by layer, then by path.

    Attributes:
      leaves: what a producer emits.
      kinds: the configurations that the leaves came from; informative, equal leaves work the same without them.
      optional: leaves that a tree may hold besides, absent meaning all ones (a prefix's mask).
    """

    leaves: tuple[Leaf, ...]
    kinds: tuple[KindConfig, ...] = ()
    optional: tuple[Leaf, ...] = ()

    def __post_init__(self) -> None:
        for field in ("leaves", "optional"):
            object.__setattr__(self, field, tuple(sorted(getattr(self, field), key=_order)))
        object.__setattr__(self, "kinds", tuple(sorted(self.kinds, key=lambda kind: (kind.kind, repr(kind)))))
        seen: set[str] = set()
        for leaf in (*self.leaves, *self.optional):
            if leaf.path in seen:
                raise AdapterError(f"leaf '{leaf.path}' is given twice: two kinds claim the same place")
            seen.add(leaf.path)

    def __add__(self, other: AdapterSpec) -> AdapterSpec:
        """Both at once. Raises AdapterError where the two claim the same leaf."""
        return AdapterSpec(
            self.leaves + other.leaves, self.kinds + other.kinds, optional=self.optional + other.optional
        )

    # Trees

    def flatten(self, tree: PyTree) -> dict[str, Array]:
        """Returns `{path: array}` in the spec's order, optional leaves that are there last.

        Raises:
          AdapterError: the tree has other leaves than the spec.
        """
        flat = trees.flatten(tree)
        checks.paths(flat, [leaf.path for leaf in self.leaves], [leaf.path for leaf in self.optional])
        return {leaf.path: flat[leaf.path] for leaf in (*self.leaves, *self.optional) if leaf.path in flat}

    def unflatten(self, mapping: Mapping[str, Array]) -> dict[str, Any]:
        """The inverse of `flatten`: `{path: array}` to the nested tree. Raises AdapterError on a wrong path."""
        checks.paths(mapping, [leaf.path for leaf in self.leaves], [leaf.path for leaf in self.optional])
        return trees.unflatten(mapping)

    def validate(self, tree: PyTree, batch_dims: int = 0) -> None:
        """Checks every path, shape and dtype. A layer ignores a misspelt path in silence; this does not.

        Args:
          tree: nested dict of arrays (or of anything with `shape` and `dtype`).
          batch_dims: number of leading dimensions, equal for all leaves, before the spec's shapes.

        Raises:
          AdapterError: names the leaf, what was expected and what came, and the nearest spelling of a wrong path.
        """
        if not isinstance(tree, Mapping):
            raise AdapterError(f"adapters: expected a nested dict of arrays, got {type(tree).__name__}")
        flat = self.flatten(tree)
        checks.arrays(
            {leaf: flat[leaf.path] for leaf in (*self.leaves, *self.optional) if leaf.path in flat}, batch_dims
        )

    def init(self, rng: Array) -> dict[str, Any]:
        """Returns the raw static tree, float32; each leaf's values depend on `rng` and its own path alone."""
        flat = {}
        for leaf in self.leaves:
            flat[leaf.path] = jnp.zeros(leaf.shape, jnp.float32)
            if leaf.init_std:
                key = jax.random.fold_in(rng, zlib.crc32(leaf.path.encode()))
                flat[leaf.path] = leaf.init_std * jax.random.normal(key, leaf.shape, jnp.float32)
        return trees.unflatten(flat)

    def materialise(self, raw: PyTree) -> dict[str, Any]:
        """Returns the tree that layers read: every raw array times its leaf's scale. Batch dimensions pass through."""
        flat = self.flatten(raw)
        scales = {leaf.path: leaf.scale for leaf in self.leaves if leaf.scale != 1.0}
        return trees.unflatten({path: x * scales[path] if path in scales else x for path, x in flat.items()})

    @property
    def scales(self) -> dict[str, float]:
        """The factor of each leaf, by path: parameters of the same shapes are other adapters under others."""
        return {leaf.path: leaf.scale for leaf in self.leaves}

    def identity(self) -> dict[str, Any]:
        """Returns the tree that changes nothing: zeros, prefixes masked."""
        every = (*self.leaves, *self.optional)
        return trees.unflatten({leaf.path: jnp.zeros(leaf.shape, jnp.float32) for leaf in every})

    # What a hypernetwork asks

    def layers(self) -> list[tuple[str, int]]:
        """Returns the (stack, layer) pairs that have leaves, encoder before decoder."""
        return list(dict.fromkeys((leaf.stack, leaf.layer) for leaf in self.leaves))

    def leaves_of(self, stack: str, layer: int) -> tuple[Leaf, ...]:
        """Returns the leaves of one layer."""
        return tuple(leaf for leaf in self.leaves if (leaf.stack, leaf.layer) == (stack, layer))

    def num_slots(self, stack: str, layer: int) -> int:
        """Returns how many slots the layer needs: the largest size of a slot axis among its leaves."""
        return max((leaf.slots for leaf in self.leaves_of(stack, layer)), default=0)

    @property
    def num_parameters(self) -> int:
        """Number of values in one adapter, optional leaves not counted."""
        return sum(math.prod(leaf.shape) for leaf in self.leaves)

    # Json

    def to_json(self) -> dict[str, Any]:
        """Returns plain data that `json.dumps` takes and `from_json` reads back to an equal spec."""
        from hyperflax.adapters import serialise

        return serialise.spec_to_json(self)

    @classmethod
    def from_json(cls, data: Any) -> AdapterSpec:
        """Reads what `to_json` wrote. The data may come from anywhere: every key, type and range is checked.

        Raises:
          AdapterError: names the entry, what was expected and what came.
        """
        from hyperflax.adapters import serialise  # it knows the kinds, which are built on this file

        return serialise.spec_from_json(data)
