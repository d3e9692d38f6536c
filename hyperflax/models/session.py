"""One decoding run seen from its loop: rows in, logits out; tasks, adapters and caches stay in here.

The loop works on flat rows [examples, decodes]. Where adapters have a task axis, `jax.vmap` goes around the start and
around each single step, never around the loop: with one index for all rows a cache update stays a slice written in
place, and a task that ends early costs no select over everybody's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from hyperflax import trees
from hyperflax.models.t5 import T5
from hyperflax.types import Array, PyTree, T5Config

Caches = dict[str, Any]


class Session:
    """Decodes `decodes` sequences for each of the inputs.

    Args:
      model, params: the base model.
      adapters: None, one adapter, or leaves with a task axis in front.
      tokens: encoder input tokens, int [example, source]; [task, example, source] if the adapters have a task axis.
      length: tokens decoded at most.
      decodes: sequences per input.
      shared: the sequences of an input read each other's cache, as beams do.
    """

    def __init__(
        self, model: T5, params: PyTree, adapters: PyTree | None, tokens: Array, length: int, decodes: int, shared: bool
    ):
        self.model, self.length, self.decodes = model, length, decodes
        self.examples = tokens.size // tokens.shape[-1]
        self.empty = ~jnp.any(tokens != 0, axis=-1).reshape(-1, 1)
        """bool [examples, 1]: inputs without a token, rows that fill a batch up; nobody waits for them."""
        self._params = cast_kernels(params, model.config, adapters)
        self._adapters, self._tokens = adapters, tokens
        caches = self._map(self._start, tokens, shared=shared and decodes > 1)
        self._cross = {name: cache["cross"] for name, cache in caches.items()}
        self.start = {name: cache["self"] for name, cache in caches.items()}
        """The part of the caches that steps change."""

    def step(self, caches: Caches, tokens: Array, index: Array, ancestors: Array | None = None) -> tuple[Array, Caches]:
        """One token of every row.

        Args:
          caches: `start`, or what the last step returned.
          tokens: int [examples, decodes], the decoder's inputs at `index`.
          index: int32 scalar.
          ancestors: int32 [examples, decodes, length], see `Attention.step_self`.

        Returns:
          Logits float32 [examples, decodes, vocab] and the new caches.
        """
        lead = self._tokens.shape[:-1]
        tokens = tokens.reshape(*lead, self.decodes)
        full = {name: {"self": own, "cross": self._cross[name]} for name, own in caches.items()}
        mapped = [self._tokens, full, tokens]
        if ancestors is not None:
            mapped.append(ancestors.reshape(*lead, self.decodes, self.length))
        logits, written = self._map(self._step, *mapped, index=index)
        return logits.reshape(self.examples, self.decodes, -1), written

    def _start(self, adapters: PyTree, encoder_tokens: Array, *, shared: bool) -> Caches:
        sizes = {"length": self.length, "decodes": self.decodes, "shared": shared}
        return self.model.apply(self._variables(adapters), encoder_tokens, **sizes, method="start_cache")

    def _step(
        self,
        adapters: PyTree,
        encoder_tokens: Array,
        caches: Caches,
        tokens: Array,
        ancestors: Array | None = None,
        *,
        index: Array,
    ) -> tuple[Array, Caches]:
        inputs = (caches, encoder_tokens, tokens, index)
        options = {"length": self.length, "ancestors": ancestors, "method": "step"}
        return self.model.apply(self._variables(adapters), *inputs, **options)

    def _variables(self, adapters: PyTree) -> dict[str, PyTree]:
        return {"params": self._params} if adapters is None else {"params": self._params, "adapters": adapters}

    def _map(self, fn: Callable[..., Any], *mapped: Any, **same: Any) -> Any:
        """Calls `fn(adapters, *mapped, **same)`, for every task if there are tasks."""

        def call(*args: Any) -> Any:
            return fn(*args, **same)

        return (jax.vmap(call) if self._tokens.ndim == 3 else call)(self._adapters, *mapped)


def cast_kernels(params: PyTree, config: T5Config, adapters: PyTree | None = None) -> PyTree:
    """Casts to the compute dtype, once, what layers would cast in every step, see `kernel_dtype`.

    Arrays on the host stay there. Given adapters with `full` slots, nothing is cast: a layer adds those to parameters
    and casts the sum, which of rounded parameters would be another one.
    """
    if config.dtype == "float32" or (adapters is not None and changes_parameters(trees.flatten(adapters))):
        return params

    def cast(path: str, x: Array) -> Array:
        dtype = kernel_dtype(path, config)
        return x if dtype is None else x.astype(jnp.dtype(dtype))

    return trees.map_with_path(cast, params)


def changes_parameters(paths: Iterable[str]) -> bool:
    """Whether adapters with leaves at these paths have `full` slots, see `adapters/full.py`."""
    return any("/full/" in path for path in paths)


def kernel_dtype(path: str, config: T5Config) -> str | None:
    """Returns the dtype that layers cast a parameter to, None if they read it as it is: scales, position biases, the
    output projection, and the embedding table where it is that projection."""
    embedding = path == "token_embedder/embedding" and not config.logits_via_embedding
    kernel = path.endswith("/kernel") and "logits_dense" not in path
    return config.dtype if kernel or embedding else None
