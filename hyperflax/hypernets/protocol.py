"""What a hypernetwork is: a Flax module that turns one task's episode into one task's adapters.

Everything above (objectives, evaluation, serving) knows only this; everything below (heads, specs) is how one gets
there. A hypernetwork names no adapter kind: it emits whatever its `spec` asks for. It is written for one task; whoever
has many maps over them:

>>> many = jax.vmap(lambda episode: hypernet.apply({"params": params}, episode))(episodes)

Every hypernetwork has what `Hypernetwork` lists. The rest is optional: `SupportReader` is for one that works in steps,
`ParameterTable` for one that takes long to trace, and a T5 among its parameters is called `t5`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from flax import linen as nn

from hyperflax import trees
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.errors import ConfigError
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


@runtime_checkable
class ParameterTable(Hypernetwork, Protocol):
    """A hypernetwork that says which parameters it has, for others are traced whole to learn it."""

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns `{path: shape}` of every parameter."""
        ...


def parameter_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Returns `{path: shape}` of every parameter of a hypernetwork; nothing is computed."""
    if isinstance(network, ParameterTable):
        return network.parameter_shapes()
    episode = {"support_tokens": np.ones((1, 1), np.int32), "task_index": np.int32(0)}
    made = jax.eval_shape(lambda: nn.unbox(network.init(jax.random.key(0), episode)["params"]))
    return {path: leaf.shape for path, leaf in trees.flatten(made).items()}


def support_of(episode: Mapping[str, Array]) -> Array:
    """Returns an episode's `support_tokens`. Raises ConfigError where they are not those of one task."""
    if (tokens := episode.get("support_tokens")) is None:
        raise ConfigError(f"support_tokens: expected [rows, length] of one task, got {sorted(episode)} alone")
    if tokens.ndim != 2:
        raise ConfigError(f"support_tokens: expected [rows, length] of one task, got {tuple(tokens.shape)}")
    return tokens
