"""Adapters of many tasks: all of them in host memory, those in use in slots on the device.

A pool has one spec, the largest adapter that it can hold. Unlike adapters become alike by widening
(`adapters/widen.py`): other kinds, sites, ranks and lengths are zeros and masked positions, which change nothing. Slot
0 holds no adapter at all, for rows that run the bare model. Where another adapter needs a slot, the one that was used
longest ago gives its own up; rows that are decoding have copies of theirs and do not mind.

>>> pool = AdapterPool(build_spec((LoRA(rank=16), Prefix(length=32)), t5_config), t5_config, slots=256)
>>> pool.add("dates", adapter.tree, adapter.spec)
>>> slots = pool.slots_of(["dates", None, "dates"])      # [7, 0, 7]
>>> rows = jax.tree.map(lambda leaf: leaf[slots], pool.leaves)
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hyperflax import trees
from hyperflax.adapters.kinds import check_spec, groups, kind_of
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.adapters.widen import widen
from hyperflax.errors import AdapterError, ConfigError
from hyperflax.types import Array, PyTree, T5Config

BARE = 0


def powers(largest: int) -> list[int]:
    """1, 2, 4, ... up to the first power of two that is no smaller: the sizes that are compiled."""
    return [1 << exponent for exponent in range((largest - 1).bit_length() + 1)]


class AdapterPool:
    """Adapters by key.

    Args:
      spec: what a slot has room for.
      t5_config: of the base model, layers unrolled.
      slots: adapters on the device at once.

    Raises:
      AdapterError: the spec does not fit the base model, or has the kind `full`: as many values as the base itself
        belong merged into a base of their own.
      ConfigError: no slots, or scanned layers.
    """

    def __init__(self, spec: AdapterSpec, t5_config: T5Config, slots: int = 256):
        if slots < 1:
            raise ConfigError(f"AdapterPool.slots: expected at least 1, got {slots}")
        if t5_config.scan_layers:
            raise ConfigError("AdapterPool: expected unrolled layers, got scan_layers=True")
        check_spec(spec, t5_config)
        for slot, leaves in groups(spec).items():
            if kind_of(leaves[0]).kind == "full":
                raise AdapterError(f"full at '{slot}': a change of every parameter is merged, not served beside others")
        self.spec, self.slots = spec, slots
        self._every = (*spec.leaves, *spec.optional)
        self._host: dict[Hashable, dict[str, np.ndarray]] = {}
        self._resident: collections.OrderedDict[Hashable, int] = collections.OrderedDict()
        """Key -> slot, the one used longest ago first."""
        self._free = list(range(slots, BARE, -1))
        self._leaves = {leaf.path: jnp.zeros((slots + 1, *leaf.shape), jnp.float32) for leaf in self._every}

    @property
    def leaves(self) -> PyTree:
        """The adapters on the device, leaves [slots + 1, ...]. Writing a slot later gives up these buffers."""
        return trees.unflatten(self._leaves)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._host

    def __len__(self) -> int:
        return len(self._host)

    @property
    def nbytes(self) -> int:
        """Bytes of one adapter."""
        return sum(4 * int(np.prod(leaf.shape)) for leaf in self._every)

    def add(self, key: Hashable, tree: PyTree, spec: AdapterSpec) -> None:
        """Takes an adapter in, or replaces the one with this key.

        Raises:
          AdapterError: it does not fit its spec, or has a leaf that this pool has no room for.
        """
        if key is None:
            raise AdapterError("the key None stands for no adapter")
        spec.validate(tree)
        flat: dict[str, Any] = {path: np.asarray(leaf, np.float32) for path, leaf in spec.flatten(tree).items()}
        wide: dict[str, Any] = widen(flat, spec, self.spec, xp=np)
        self._host[key] = {
            leaf.path: wide[leaf.path] if leaf.path in wide else np.ones(leaf.shape, np.float32) for leaf in self._every
        }
        self._leave(key)

    def remove(self, key: Hashable) -> None:
        """Forgets an adapter. Raises AdapterError if there is none."""
        if self._host.pop(key, None) is None:
            raise AdapterError(f"no adapter with the key {key!r}")
        self._leave(key)

    def slots_of(self, keys: Sequence[Hashable | None]) -> np.ndarray:
        """Makes the adapters resident and returns their slots, int32 [keys]; None is the bare model's.

        Raises:
          AdapterError: a key that is not there, or more different adapters than slots.
        """
        wanted = dict.fromkeys(key for key in keys if key is not None)
        if unknown := [key for key in wanted if key not in self._host]:
            raise AdapterError(f"no adapter with the key {unknown[0]!r}")
        if len(wanted) > self.slots:
            raise AdapterError(f"{len(wanted)} different adapters at once: expected at most {self.slots} (slots)")
        missing = [key for key in wanted if key not in self._resident]
        for key in wanted:
            if key in self._resident:
                self._resident.move_to_end(key)
        for key in missing:
            self._resident[key] = self._free.pop() if self._free else self._resident.popitem(last=False)[1]
        try:
            self._bring(missing)
        except BaseException:
            for key in missing:  # whose slots hold something else
                self._leave(key)
            raise
        return np.array([BARE if key is None else self._resident[key] for key in keys], np.int32)

    def compile(self, adapters: int) -> None:
        """Compiles the writing of up to so many adapters at once, so that none waits for it later."""
        for count in powers(adapters):
            slots = np.full(count, BARE, np.int32)
            nothing = {leaf.path: np.zeros((count, *leaf.shape), np.float32) for leaf in self._every}
            self._leaves = _write(self._leaves, slots, nothing)

    def _leave(self, key: Hashable) -> None:
        slot = self._resident.pop(key, None)
        if slot is not None:
            self._free.append(slot)

    def _bring(self, keys: Sequence[Hashable]) -> None:
        if not keys:
            return
        count = powers(len(keys))[-1]
        # Padding repeats the last one, so that few numbers of adapters are compiled.
        padded = [*keys, *[keys[-1]] * (count - len(keys))]
        slots = np.array([self._resident[key] for key in padded], np.int32)
        values = {leaf.path: np.stack([self._host[key][leaf.path] for key in padded]) for leaf in self._every}
        self._leaves = _write(self._leaves, slots, values)


@functools.partial(jax.jit, donate_argnums=0)
def _write(leaves: dict[str, Array], slots: Array, values: dict[str, Array]) -> dict[str, Array]:
    return {path: leaf.at[slots].set(values[path]) for path, leaf in leaves.items()}
