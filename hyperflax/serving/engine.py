"""Continuous batching: many requests, each with an adapter of its own, through one frozen T5.

A request goes to the first lane whose inputs are long enough, takes a row as soon as one is free, and leaves it with
its last token; the others go on meanwhile. What a request gets does not depend on who shared the batch with it.

>>> engine = Engine(model.model, model.base_params, spec, EngineConfig(sources=(32, 128), max_length=64))
>>> engine.compile()
>>> engine.add("dates", adapter.tree, adapter.spec)
>>> requests = [engine.submit(tokens, key) for tokens, key in work]
>>> engine.run()
>>> requests[0].tokens
[45, 88, 1]

Beams and options do not come and go one by one: `search` and `score` take a batch at once (`batches.py`).
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hyperflax.adapters.spec import AdapterSpec
from hyperflax.configs import check_sizes, whole_number
from hyperflax.errors import AdapterError, ConfigError, DataError
from hyperflax.models.beam import Beam
from hyperflax.models.decoding import DecodeResult
from hyperflax.models.session import cast_kernels
from hyperflax.models.t5 import T5
from hyperflax.serving.batches import Batches, not_finite, token_ids
from hyperflax.serving.lane import Choice, Lane, Newcomers, Progress
from hyperflax.serving.pool import AdapterPool, powers
from hyperflax.types import Array, PyTree

BEAM = Beam()
MAX_TEMPERATURE = float(np.finfo(np.float32).max)
MAX_TOPK = int(np.iinfo(np.int32).max)
"""Larger ones do not fit the arrays that rows keep them in."""


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Sizes, which decide about memory and about what is compiled.

    Attributes:
      sources: a lane for inputs of up to so many tokens, for each.
      max_length: tokens of the longest output.
      rows: requests decoded at once in a lane.
      steps: tokens between two looks of the host: fewer start waiting requests sooner, more cost less.
      resident: adapters on the device at once.
      eos_id: the token that ends an output.
    """

    sources: tuple[int, ...] = (32, 128)
    max_length: int = 64
    rows: int = 32
    steps: int = 8
    resident: int = 256
    eos_id: int = 1

    def __post_init__(self) -> None:
        sources = sorted(whole_number("EngineConfig.sources", length) for length in self.sources)
        if not sources:
            raise ConfigError("EngineConfig.sources: expected at least one length of inputs, got none")
        object.__setattr__(self, "sources", tuple(sources))
        check_sizes(self, max_length=1, rows=1, steps=1, resident=1)


@dataclasses.dataclass(eq=False)
class Request:
    """One input on its way.

    Attributes:
      source: its tokens.
      key: its adapter; None runs the bare model.
      limit: tokens decoded at most.
      temperature, topk, topp, seed: see `models.sampling.choose_each`.
      tokens: what has been decoded so far, the end-of-sequence token included.
      log_prob: of all of them.
      done: nothing more will come.
      error: why nothing more came, if something went wrong.
    """

    source: np.ndarray
    key: Hashable | None
    limit: int
    temperature: float = 0.0
    topk: int = 0
    topp: float = 0.0
    seed: int = 0
    tokens: list[int] = dataclasses.field(default_factory=list)
    log_prob: float = 0.0
    done: bool = False
    error: Exception | None = None


class Engine:
    """See the module. Not for several threads at once.

    Args:
      model, params: the base model, layers unrolled.
      spec: the largest adapter there will be, of several specs their `adapters.algebra.union`.
      config: sizes.
      fetch: called with the key of every adapter that is about to be used, and adds it if it is not there; it may drop
        others meanwhile, but for the `resident` ones that it was asked for last. Without it all are added before.
    """

    def __init__(
        self,
        model: T5,
        params: PyTree,
        spec: AdapterSpec,
        config: EngineConfig = EngineConfig(),
        fetch: Callable[[Any], None] | None = None,
    ):
        self.model, self.config, self.fetch = model, config, fetch
        self.params = cast_kernels(jax.tree.map(jnp.asarray, params), model.config)
        self.pool = AdapterPool(spec, model.config, config.resident)
        sizes = {"rows": config.rows, "length": config.max_length, "steps": config.steps, "eos_id": config.eos_id}
        self._lanes = [_Queue(Lane(model, spec, source=source, **sizes), self) for source in config.sources]
        self._batches = Batches(self)

    def compile(self, beams: Sequence[Beam] = (), options: Sequence[tuple[int, int]] = ()) -> None:
        """Compiles everything that `run` needs, for all adapters; and what `search` and `score` do, where asked.

        Args:
          beams: of `search`, with outputs of the engine's `max_length`.
          options: of `score`, how many and of how many tokens. Each counts for all that round up to the same powers of
            two: (4, 8) for 3 or 4 options, the longest of 5 to 8 tokens.
        """
        self.pool.compile(min(self.config.rows, self.config.resident))
        for lane in self._lanes:
            lane.compile()
        self._batches.compile(beams, options)

    def add(self, key: Hashable, tree: PyTree, spec: AdapterSpec) -> None:
        """Takes an adapter in under a key, or replaces it. Raises AdapterError, see `AdapterPool.add`."""
        self.pool.add(key, tree, spec)

    def submit(
        self,
        source: Sequence[int] | np.ndarray,
        key: Hashable | None = None,
        *,
        max_length: int | None = None,
        temperature: float = 0.0,
        topk: int = 0,
        topp: float = 0.0,
        seed: int = 0,
    ) -> Request:
        """Queues an input.

        Args:
          source: its tokens, end-of-sequence token included.
          key: of an adapter that was added, or can be fetched; None runs the bare model.
          max_length: tokens decoded at most; by default the engine's.
          temperature, topk, topp: 0 is greedy, and no limit.
          seed: of the draws; an equal request gets an equal answer.

        Raises:
          AdapterError: there is no such adapter.
          DataError: no tokens, more than the longest lane takes, several inputs at once, or what is no token id.
          ConfigError: a limit or a setting out of range, or no whole number where it counts something.
        """
        tokens, limit = self.tokens_of(source), self._limit(max_length)
        topk, seed = whole_number("topk", topk, 0), whole_number("seed", seed, 0)
        if self.fetch is None and key is not None and key not in self.pool:
            raise AdapterError(f"no adapter with the key {key!r}")
        # NaN is in no range.
        in_range = 0 <= temperature <= MAX_TEMPERATURE and topk <= MAX_TOPK and 0 <= topp <= 1
        if not in_range or seed >= 2**32:
            raise ConfigError(
                f"expected a temperature in [0, {MAX_TEMPERATURE:.3g}], topk in [0, {MAX_TOPK}], topp in [0, 1] and a "
                f"seed of 32 bits, got {temperature}, {topk}, {topp} and {seed}"
            )
        request = Request(tokens, key, limit, temperature, topk, topp, seed)
        self.lane_of(len(tokens)).waiting.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """Ends a request where it stands; its row is free at the next turn."""
        for lane in self._lanes:
            lane.cancel(request)

    @property
    def idle(self) -> bool:
        """Nobody waits and nobody decodes."""
        return not any(lane.waiting or lane.taken for lane in self._lanes)

    def turn(self) -> list[Request]:
        """Lets waiting requests join, decodes a few tokens, and returns the requests that are done now."""
        return [request for lane in self._lanes if lane.waiting or lane.taken for request in lane.turn()]

    def run(self) -> None:
        """Goes on until nobody waits and nobody decodes."""
        while not self.idle:
            self.turn()

    def search(
        self,
        sources: Sequence[np.ndarray],
        keys: Sequence[Hashable | None],
        beam: Beam = BEAM,
        max_length: int | None = None,
    ) -> DecodeResult:
        """Decodes a batch by beam search; numpy leaves [input, ...]. Compiled for each beam and each `max_length`.

        Raises as `submit` does, what `fetch` raises, and AdapterError where logits are not finite; names the keys.
        """
        return self._batches.search(sources, keys, beam, self._limit(max_length))

    def score(self, sources: Sequence[np.ndarray], keys: Sequence[Hashable | None], options: np.ndarray) -> np.ndarray:
        """Returns the log-probability of every option, float32 [input, option].

        Args:
          sources, keys: as in `submit`, one of each per input.
          options: int [input, option, length], end-of-sequence token included, 0 is padding. Their number and length
            are rounded up to powers of two, so that few sizes are compiled.

        Raises as `search` does.
        """
        return self._batches.score(sources, keys, options)

    def bring(self, key: Hashable | None) -> Exception | None:
        """Sees to it that an adapter is there; returns why it is not."""
        if key is None:
            return None
        try:
            if self.fetch is not None:
                self.fetch(key)
        except Exception as error:  # whatever it is, it concerns those alone who ask for this adapter
            return error
        return None if key in self.pool else AdapterError(f"the adapter {key!r} was removed")

    def _limit(self, max_length: int | None) -> int:
        limit = self.config.max_length if max_length is None else whole_number("max_length", max_length)
        if limit > self.config.max_length:
            raise ConfigError(f"max_length: expected 1 to {self.config.max_length}, got {limit}")
        return limit

    def tokens_of(self, source: Sequence[int] | np.ndarray, name: str = "source") -> np.ndarray:
        """Returns one input's tokens, int32 [length]. Raises DataError if they are not of that form; names `name`."""
        tokens = np.asarray(source)
        if tokens.ndim != 1:
            raise DataError(f"{name}: expected the tokens of one input, [length], got shape {list(tokens.shape)}")
        return token_ids(name, tokens, self.model.config.vocab_size)

    def lane_of(self, length: int) -> _Queue:
        """The first lane that takes inputs of so many tokens. Raises DataError if there is none."""
        for lane in self._lanes:
            if 1 <= length <= lane.lane.source:
                return lane
        raise DataError(f"expected 1 to {self.config.sources[-1]} input tokens, got {length}")


class _Queue:
    """A lane, who is in it and who waits for it."""

    def __init__(self, lane: Lane, engine: Engine):
        self.lane, self._engine = lane, engine
        self.waiting: collections.deque[Request] = collections.deque()
        self.taken: dict[int, Request] = {}
        self._rows, self._progress = lane.empty(engine.params)

    def turn(self) -> list[Request]:
        done = self._join()
        if not self.taken:
            return done
        self._progress = self.lane.advance(self._engine.params, self._rows, self._progress)
        seen: Progress = jax.device_get(self._progress._replace(caches=None))
        for row, request in list(self.taken.items()):
            request.tokens = seen.tokens[row, : seen.age[row]].tolist()
            request.log_prob = float(seen.log_probs[row])
            if not math.isfinite(request.log_prob):  # no token was the likeliest
                request.error = not_finite([request.key])
                request.tokens = []
            if seen.ended[row] or request.error:
                request.done = True
                done.append(self.taken.pop(row))
        return done

    def _join(self) -> list[Request]:
        """Gives free rows to those who wait; returns the requests whose adapter is not to be had."""
        free = [row for row in range(self.lane.rows) if row not in self.taken]
        joined: dict[int, Request] = {}
        failed: dict[Hashable | None, Exception] = {}  # who is lost takes no row: others may ask for the same one
        lost = []
        while self.waiting and len(joined) < len(free):
            request = self.waiting[0]
            keys = {other.key for other in joined.values()} | {request.key}
            if len(keys - {None}) > self._engine.pool.slots:
                break  # it joins at the next turn, when those before it have copies of their adapters
            self.waiting.popleft()
            request.error = failed.get(request.key) or self._engine.bring(request.key)
            if request.error is None:
                joined[free[len(joined)]] = request
            else:
                failed[request.key] = request.error
                request.done = True
                lost.append(request)
        if joined:
            self._admit(joined, powers(len(joined))[-1])
        return lost

    def _admit(self, requests: Mapping[int, Request], size: int) -> None:
        """Lets the requests, by row, join, as one of the sizes that are compiled."""
        joining = list(requests.values())

        def padded(values: Iterable[Any], dtype: type, fill: int = 0) -> Array:
            return jnp.asarray(np.array([*values, *[fill] * (size - len(joining))], dtype))

        tokens = np.zeros((size, self.lane.source), np.int32)
        for row, request in zip(tokens, joining, strict=False):
            row[: len(request.source)] = request.source
        new = Newcomers(
            row=padded(requests, np.int32, self.lane.rows),
            slot=padded(self._engine.pool.slots_of([request.key for request in joining]), np.int32),
            tokens=jnp.asarray(tokens),
            limit=padded([request.limit for request in joining], np.int32),
            choice=Choice(
                temperature=padded([request.temperature for request in joining], np.float32),
                topk=padded([request.topk for request in joining], np.int32),
                topp=padded([request.topp for request in joining], np.float32),
                seed=padded([request.seed for request in joining], np.uint32),
            ),
        )
        leaves = self._engine.pool.leaves
        self._rows, self._progress = self.lane.admit(self._engine.params, leaves, self._rows, self._progress, new)
        self.taken |= requests

    def cancel(self, request: Request) -> None:
        if request in self.waiting:
            self.waiting.remove(request)
            request.done = True
        for row in [row for row, other in self.taken.items() if other is request]:
            self._end(row)
            del self.taken[row]
            request.done = True

    def compile(self) -> None:
        for size in powers(self.lane.rows):
            self._admit({}, size)
        self._end(0)
        self._progress = self.lane.advance(self._engine.params, self._rows, self._progress)

    def _end(self, row: int) -> None:
        self._progress = self._progress._replace(ended=self._progress.ended.at[row].set(True))
