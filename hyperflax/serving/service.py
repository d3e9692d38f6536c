"""A hypermodel at the service of many callers at once: adapters made, kept and used, whatever the transport.

Two threads own what only one may touch. One makes adapters, the other runs the engine: an adapter that takes seconds to
estimate keeps no answer waiting. Callers live on an asyncio loop, and what they see is small:

>>> service = Service(model, "adapters")
>>> service.start()
>>> made, _ = await service.maker.adapt([("ada lovelace", "Lovelace, A."), ("alan turing", "Turing, A.")])
>>> async for answers in service.predict(["grace hopper"], made.id): ...
>>> [answer.text for answer in answers]
['Hopper, G.']

Nothing waits without bounds: above those of `ServiceConfig` a caller is refused at once (`Overloaded`) and may try
again. What was accepted is answered, unless its own deadline passes.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import logging
import pathlib
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any

import numpy as np

from hyperflax.adapters.widen import check_room
from hyperflax.checkpoints.artefacts import check_base
from hyperflax.data.examples import tokenise
from hyperflax.data.vocabularies import EOS_ID
from hyperflax.errors import AdapterError, DataError, HyperflaxError
from hyperflax.hypermodel import Hypermodel
from hyperflax.serving.bounds import DEFAULT_CONFIG, Closing, Failed, Overloaded, ServiceConfig, lane_lengths
from hyperflax.serving.engine import Engine, EngineConfig, Request
from hyperflax.serving.maker import Maker
from hyperflax.serving.store import AdapterStore, UnknownAdapter

log = logging.getLogger("hyperflax.serving")


@dataclasses.dataclass(frozen=True)
class Answer:
    """What an input has been answered so far.

    Attributes:
      text: decoded so far.
      done: nothing more will come.
      log_prob: of all tokens so far, by the model.
    """

    text: str
    done: bool
    log_prob: float


@dataclasses.dataclass(eq=False)
class _Call:
    """The inputs of one caller, who is told of every step or of the last one alone."""

    requests: list[Request]
    tell: Callable[[Any], None]
    steps: bool
    told: int = -1

    def report(self) -> bool:
        """Tells the caller what is new; returns whether all is answered."""
        done = all(request.done for request in self.requests)
        size = sum(len(request.tokens) for request in self.requests)
        if done or (self.steps and size > self.told):
            self.told = size
            self.tell([(list(r.tokens), r.done, r.log_prob, r.error) for r in self.requests])
        return done


class Service:
    """See the module.

    Args:
      model: the hypermodel.
      folder: of the adapters that are made.
      config: bounds.

    Raises:
      AdapterError: the hypermodel makes adapters that cannot be served beside others (full fine-tuning).
      CheckpointError: the folder cannot be made, or may not be read and written in.
    """

    def __init__(self, model: Hypermodel, folder: pathlib.Path | str, config: ServiceConfig = DEFAULT_CONFIG):
        self.model, self.config = model, config
        model.check_plain_inputs()
        self.store = AdapterStore(folder)
        self.maker = Maker(model, self.store, config, self._admit)
        episodes = model.config.episodes
        sizes = EngineConfig(
            sources=lane_lengths(episodes.inputs_length),
            max_length=episodes.targets_length,
            rows=config.rows,
            resident=config.resident,
        )
        self.engine = Engine(model.model, model.base_params, model.config.spec, sizes, fetch=self._host)
        self.failure: BaseException | None = None
        self.waiting = 0
        self._compiled = self._closing = False
        self._entering, self._gate = 0, threading.Condition()
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._hosted: collections.OrderedDict[str, None] = collections.OrderedDict()
        self._calls: list[_Call] = []
        self._thread = threading.Thread(target=self._run, name="hyperflax-engine", daemon=True)

    @property
    def ready(self) -> bool:
        """Everything is compiled, and nothing has failed or ended."""
        return self._compiled and self.failure is None and self._thread.is_alive()

    # Its life

    def start(self) -> None:
        """Starts the engine's thread, which compiles first; `ready` tells when that is done."""
        self._thread.start()

    def stop(self, seconds: float | None = None) -> bool:
        """Takes nothing more, and ends both threads after what was accepted is answered; returns whether they ended.

        Args:
          seconds: how long to wait in all. Neither a compilation nor an estimate can be broken off.
        """
        end = None if seconds is None else time.monotonic() + seconds
        with self._gate:
            self._closing = True
            self._gate.wait_for(lambda: not self._entering, seconds)
        made = self.maker.stop(None if end is None else max(0.0, end - time.monotonic()))
        self._inbox.put(None)
        if self._thread.ident is not None:
            self._thread.join(None if end is None else max(0.0, end - time.monotonic()))
        return made and not self._thread.is_alive()

    # What callers ask for; on the event loop

    async def predict(
        self, inputs: Sequence[str], adapter: str | None = None, *, steps: bool = False, **options: Any
    ) -> AsyncGenerator[list[Answer], None]:
        """Yields the answers to all inputs, in their order: once, when all are done, or also on the way.

        Leaving the loop early (a deadline, a caller who has gone) ends the decoding.

        Args:
          inputs: texts, at least one.
          adapter: id; None is the bare model.
          steps: yield what there is after every few tokens.
          options: `max_length`, `temperature`, `topk`, `topp`, `seed`; see `Engine.submit`.

        Raises:
          UnknownAdapter: no such adapter, or it was removed meanwhile.
          AdapterError: it was made for another base model, or by a hypermodel whose adapters do not fit among these.
          CheckpointError: its files are damaged, or cannot be read.
          DataError: no input, more than may ever wait, or one that is too long; names its number.
          ConfigError: an option out of range.
          Overloaded, Closing, Failed: it was not accepted.
        """
        held = len(inputs)
        if held > self.config.waiting:  # however long the caller waits, there is never room
            raise DataError(f"inputs: expected at most {self.config.waiting} at once, got {held}")
        loop = asyncio.get_running_loop()
        latest, news = None, asyncio.Event()  # who reads slowly finds the latest alone: no others take memory

        def release() -> None:
            nonlocal held
            self.waiting -= held
            held = 0

        def leave() -> None:
            # With the engine done with it, not before: what waits in its inbox takes memory, too.
            self._end(call)
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(release)

        def arrive(item: Any) -> None:
            nonlocal latest
            # The engine is done with it, whether or not the caller ever reads it: others may have its place.
            if isinstance(item, BaseException) or all(done for _, done, *_ in item):
                release()
            latest = item
            news.set()

        def tell(item: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits any more
                loop.call_soon_threadsafe(arrive, item)

        call = _Call([], tell, steps)
        with self._admit(self.waiting + held <= self.config.waiting, f"{self.waiting} inputs are waiting, {held} more"):
            self.waiting += held
            try:
                tokens = await asyncio.to_thread(self._read, inputs, adapter)
            except BaseException:
                release()
                raise
            self._inbox.put(lambda: self._begin(call, tokens, adapter, options))
        try:
            while True:
                await news.wait()
                news.clear()
                item: Any = latest
                if isinstance(item, BaseException):
                    raise item
                if errors := [error for *_, error in item if error]:
                    raise errors[0]
                yield await asyncio.to_thread(self._answers, item)
                if all(done for _, done, *_ in item):
                    return
        finally:
            self._inbox.put(leave)

    async def remove(self, adapter: str) -> None:
        """Forgets an adapter; inputs that wait for it get an error. Raises as `AdapterStore.remove` does."""
        await asyncio.to_thread(self.store.remove, adapter)
        self._inbox.put(lambda: self._drop(adapter))

    def unusable(self, adapter: str) -> str | None:
        """Why this service cannot use an adapter of its folder, where others may keep theirs; None if it can.

        Raises:
          UnknownAdapter: no such adapter.
          CheckpointError: its file is damaged.
        """
        found, own = self.store.origin(adapter), self.model.parts
        try:
            check_base(found, own.base_fingerprint)
            check_room(found.spec, own.spec)
        except AdapterError as error:
            made_by = found.metadata.hypermodel or "no hypermodel"
            return f"adapter {adapter} was made by {made_by}, this service runs {own.id}: {error}"
        return None

    @contextlib.contextmanager
    def _admit(self, room: bool, told: str) -> Iterator[None]:
        """Around the acceptance of work: the end waits for it, so that the threads know of all that was accepted."""
        with self._gate:
            if self._closing or self.failure is not None:
                raise Closing() if self.failure is None else Failed()
            if not room:
                raise Overloaded(f"{told}: try again later")
            self._entering += 1
        try:
            yield
        finally:
            with self._gate:
                self._entering -= 1
                self._gate.notify_all()

    # What may take longer than the event loop should stand still, in threads of no name

    def _read(self, inputs: Sequence[str], adapter: str | None) -> list[list[int]]:
        """Every input with its end-of-sequence token; raises what is wrong with them, or with the adapter."""
        if not inputs:
            raise DataError("inputs: expected at least one, got none")
        most = self.engine.config.sources[-1]
        rows = [[*tokenise(text, self.model.config.vocabulary).tolist(), EOS_ID] for text in inputs]
        for number, row in enumerate(rows):
            if len(row) > most:
                raise DataError(f"input {number}: expected at most {most - 1} tokens, got {len(row) - 1}")
        if adapter is not None and adapter not in self.store:
            raise UnknownAdapter(f"no adapter with the id {adapter!r}")
        # One in memory has been looked at.
        if adapter is not None and adapter not in self._hosted and (told := self.unusable(adapter)):
            raise AdapterError(told)
        return rows

    def _answers(self, rows: Sequence[tuple[list[int], bool, float, Any]]) -> list[Answer]:
        decode = self.model.config.vocabulary.decode
        return [Answer(decode(ids), done, log_prob) for ids, done, log_prob, _ in rows]

    # In the engine's thread

    def _run(self) -> None:
        ending = False
        try:
            self.engine.compile()
            self._compiled = True
            while True:
                # With nothing to decode it sleeps until somebody asks.
                while not self._inbox.empty() or (self.engine.idle and not ending):
                    task = self._inbox.get()
                    if task is None:
                        ending = True
                    else:
                        task()
                if self.engine.idle:
                    return
                self.engine.turn()
                self._calls = [call for call in self._calls if not call.report()]
        except Exception as error:
            log.exception("the engine has failed")
            self.failure = error
            for call in self._calls:
                call.tell(Failed())
            while not (ending and self._inbox.empty()):
                if (task := self._inbox.get()) is None:
                    ending = True
                else:
                    task()  # callers who asked meanwhile: `_begin` refuses them

    def _begin(self, call: _Call, tokens: list[list[int]], adapter: str | None, options: dict[str, Any]) -> None:
        self._calls.append(call)  # before all else: should the engine fail here, its caller is told as well
        try:
            if self.failure is not None:
                raise Failed()
            for number, row in enumerate(tokens):
                # Equal inputs of a request are drawn apart, and an equal request gets equal answers.
                seed = int(np.random.SeedSequence((options.get("seed", 0), number)).generate_state(1)[0])
                call.requests.append(self.engine.submit(row, adapter, **{**options, "seed": seed}))
        except Exception as error:  # one caller's, and no reason to end what others have begun
            if not isinstance(error, HyperflaxError):
                log.exception("a request could not be queued")
            self._end(call)
            call.tell(error)

    def _end(self, call: _Call) -> None:
        """Nobody waits for it any more."""
        if self.failure is None:
            for request in call.requests:
                if not request.done:
                    self.engine.cancel(request)
        self._calls = [other for other in self._calls if other is not call]

    def _host(self, key: str) -> None:
        """Sees to it that the engine has the adapter; the one used longest ago gives way.

        Rows that join together ask for at most `resident` adapters, and `hosted` is no fewer: none of theirs does.
        """
        if key in self._hosted:
            self._hosted.move_to_end(key)
            return
        adapter = self.store.load(key)
        if len(self._hosted) == self.config.hosted:
            self._drop(next(iter(self._hosted)))
        self.engine.add(key, adapter.tree, adapter.spec)
        self._hosted[key] = None

    def _drop(self, key: str) -> None:
        if key in self._hosted:
            del self._hosted[key]
            self.engine.pool.remove(key)
