"""What a hypernetwork is: a Flax module that turns one task's episode into one task's adapters.

Everything above (objectives, evaluation, serving) knows only this; everything below (heads, specs) is how one gets
there. A hypernetwork names no adapter kind: it emits whatever its `spec` asks for. It is written for one task; whoever
has many maps over them:

>>> many = jax.vmap(lambda episode: hypernet.apply({"params": params}, episode))(episodes)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from hyperflax.adapters.spec import AdapterSpec
from hyperflax.models.flops import Forward
from hyperflax.types import Array, PyTree


@runtime_checkable
class Hypernetwork(Protocol):
    """A linen module with a `spec`, called with the episode of one task.

    The episode holds `support_tokens` [rows, length] int32 and `task_index` [] int32; a hypernetwork reads what it
    needs. The call returns the adapter tree that `spec.validate` accepts, ready for the base model.
    """

    spec: AdapterSpec

    def flops(self, rows: int, length: int) -> Forward:
        """Returns the operations of one task's adapters from a support of `rows` rows of `length` tokens."""
        ...

    def __call__(self, episode: Mapping[str, Array], *, enable_dropout: bool = False) -> PyTree: ...


@runtime_checkable
class SupportReader(Hypernetwork, Protocol):
    """A hypernetwork in three steps: rows of the support are encoded, each alone; they become one state per slot; the
    states become adapters.

    `__call__` is `write(slot_states(episode))`. Objectives that compare what is generated look at the states between,
    and what was encoded once need not be encoded again.
    """

    def slot_states(self, episode: Mapping[str, Array], *, enable_dropout: bool = False) -> Array:
        """Returns [slots, emb] for one task's episode: `read(encode(tokens), tokens)`."""
        ...

    def encode(self, tokens: Array, *, enable_dropout: bool = False) -> Array:
        """Encodes int32 [rows, length], every row alone, to [rows, length, emb]."""
        ...

    def read(self, encoded: Array, tokens: Array, *, enable_dropout: bool = False) -> Array:
        """Returns the slot states [slots, emb] of one task's encoded rows."""
        ...

    def write(self, states: Array) -> PyTree:
        """Returns the adapters for slot states [slots, emb]."""
        ...
