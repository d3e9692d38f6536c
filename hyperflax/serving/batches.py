"""Beams and options of a batch, every input with an adapter of its own: what does not come and go row by row.

A batch is taken in parts of at most `EngineConfig.rows` inputs and `resident` adapters. The inputs of a part are padded
to a lane's length and to a power of two rows, options to powers of two in number and in length. So there are few
programs, whatever batches come, and all of them can be compiled ahead.

>>> batches = Batches(engine)
>>> batches.compile(beams=[Beam()], options=[(4, 8)])
>>> batches.score(sources, keys, options)     # [input, option], of options [input, 3, 6]
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from hyperflax.errors import AdapterError, ConfigError, DataError
from hyperflax.models.beam import Beam
from hyperflax.models.decoding import DecodeResult, decode
from hyperflax.models.scoring import score_options
from hyperflax.serving.pool import powers
from hyperflax.types import Array, PyTree

if TYPE_CHECKING:
    from hyperflax.serving.engine import Engine

Keys = Sequence[Hashable | None]
Sources = Sequence[np.ndarray]


def token_ids(name: str, given: np.ndarray, vocab_size: int) -> np.ndarray:
    """Returns token ids as int32, of the same shape.

    Raises:
      DataError: other numbers than whole ones, or one that is in no vocabulary of that size; names `name`.

    >>> token_ids("source", np.array([3, 99]), 64)
    Traceback (most recent call last):
    hyperflax.errors.DataError: source: expected token ids in [0, 64), got 99
    """
    got = None
    if given.size and not np.issubdtype(given.dtype, np.integer):
        got = given.dtype
    elif (wrong := given[(given < 0) | (given >= vocab_size)]).size:
        got = wrong[0]
    if got is not None:
        raise DataError(f"{name}: expected token ids in [0, {vocab_size}), got {got}")
    return given.astype(np.int32)


def not_finite(keys: Iterable[Hashable | None]) -> AdapterError:
    """What is wrong with adapters, by key, under which no token is the likeliest; None is the bare model."""
    beside = dict.fromkeys("no adapter" if key is None else f"the adapter {key!r}" for key in keys)
    return AdapterError(f"the base model's logits are not finite with {', '.join(beside)}")


class Batches:
    """What `Engine.compile`, `search` and `score` do with batches; arguments and errors are named there."""

    def __init__(self, engine: Engine):
        self._engine = engine

    def compile(self, beams: Sequence[Beam], options: Sequence[tuple[int, int]]) -> None:
        if any(min(size) < 1 for size in options):
            raise ConfigError(f"options: expected numbers and lengths of at least 1, got {list(options)}")
        config = self._engine.config
        for rows in powers(config.rows):
            for source in config.sources:
                tokens = np.zeros((rows, source), np.int32)  # no input in any row: a search ends before its first step
                adapters = self._adapters([None] * rows)
                for beam in beams:
                    self._search(tokens, adapters, beam, config.max_length)
                for size in options:
                    self._score(tokens, adapters, np.zeros((0, *size), np.int32))

    def search(self, sources: Sources, keys: Keys, beam: Beam, length: int) -> DecodeResult:
        return self._in_parts(
            sources, keys, lambda part, tokens, adapters: self._search(tokens, adapters, beam, length)
        )

    def score(self, sources: Sources, keys: Keys, options: np.ndarray) -> np.ndarray:
        options = np.asarray(options)
        if options.ndim != 3 or len(options) != len(sources) or 0 in options.shape[1:]:
            raise DataError(f"options: expected int [{len(sources)}, option, length], got {list(options.shape)}")
        options = token_ids("options", options, self._engine.model.config.vocab_size)
        number = options.shape[1]
        scores = self._in_parts(
            sources, keys, lambda part, tokens, adapters: self._score(tokens, adapters, options[part])
        )
        return scores[:, :number]

    def _search(self, tokens: np.ndarray, adapters: PyTree, beam: Beam, length: int) -> DecodeResult:
        engine = self._engine
        settings = {"max_length": length, "method": beam, "eos_id": engine.config.eos_id}
        return decode(engine.model, engine.params, jnp.asarray(tokens[:, None]), adapters=adapters, **settings)

    def _score(self, tokens: np.ndarray, adapters: PyTree, options: np.ndarray) -> Array:
        rows, number, length = options.shape
        padded = np.zeros((len(tokens), 1, powers(number)[-1], powers(length)[-1]), np.int32)
        padded[:rows, 0, :number, :length] = options
        inputs, given = jnp.asarray(tokens[:, None]), jnp.asarray(padded)
        return score_options(self._engine.model, self._engine.params, inputs, given, adapters)

    def _in_parts(self, sources: Sources, keys: Keys, run: Callable[[slice, np.ndarray, PyTree], Any]) -> Any:
        """Returns what `run(part, tokens [row, source], adapters)` makes of all parts, numpy leaves [input, ...].

        It returns leaves [row, 1, ...]: an adapter for each input is a task for each.
        """
        if len(sources) == 0 or len(sources) != len(keys):  # asked of their length: they may be an array
            raise DataError(f"expected one key per input, and at least one input, got {len(sources)} and {len(keys)}")
        sources = [self._engine.tokens_of(source, f"sources[{number}]") for number, source in enumerate(sources)]
        widths = [self._engine.lane_of(len(source)).lane.source for source in sources]
        found = []
        for part in _parts(keys, self._engine.config.rows, self._engine.pool.slots):
            inputs = sources[part]
            tokens = np.zeros((powers(len(inputs))[-1], max(widths[part])), np.int32)
            for row, source in zip(tokens, inputs, strict=False):
                row[: len(source)] = source
            adapters = self._adapters([*keys[part], *[None] * (len(tokens) - len(inputs))])
            result = jax.device_get(run(part, tokens, adapters))
            found.append(jax.tree.map(lambda leaf, inputs=inputs: leaf[: len(inputs), 0], result))
        whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *found)
        wrong = np.any([~np.isfinite(leaf).reshape(len(keys), -1).all(1) for leaf in jax.tree.leaves(whole)], axis=0)
        if wrong.any():
            raise not_finite(key for key, bad in zip(keys, wrong, strict=True) if bad)
        return whole

    def _adapters(self, keys: Keys) -> PyTree:
        """Leaves [row, ...], by key."""
        if self._engine.fetch is not None:
            for key in dict.fromkeys(key for key in keys if key is not None):
                self._engine.fetch(key)
        pool = self._engine.pool
        slots = pool.slots_of(keys)  # before the leaves: bringing an adapter gives up their buffers
        return _take(pool.leaves, slots)


def _parts(keys: Keys, rows: int, adapters: int) -> Iterator[slice]:
    """Yields the batch in parts, as long as so many rows and adapters allow."""
    start, held = 0, set()
    for row, key in enumerate(keys):
        more = held | {key} - {None}
        if row - start == rows or len(more) > adapters:
            yield slice(start, row)
            start, more = row, {key} - {None}
        held = more
    yield slice(start, len(keys))


@jax.jit
def _take(leaves: PyTree, slots: Array) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.take(leaf, slots, axis=0, mode="clip"), leaves)
