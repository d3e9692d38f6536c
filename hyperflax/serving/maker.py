"""Makes adapters, one after the other in a thread of its own, and keeps them in a store.

Callers live on an asyncio loop. Who leaves does not take the adapter with him, and equal requests share one:

>>> maker = Maker(model, AdapterStore("adapters"), DEFAULT_CONFIG, admit)
>>> made, new = await maker.adapt([("ada lovelace", "Lovelace, A."), ("alan turing", "Turing, A.")])
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

from hyperflax.errors import AdapterError, HyperflaxError
from hyperflax.evaluation.estimate import estimate
from hyperflax.evaluation.metrics import example_metric
from hyperflax.hypermodel import Hypermodel
from hyperflax.serving.bounds import Full, Overloaded, ServiceConfig
from hyperflax.serving.listing import Listing
from hyperflax.serving.store import AdapterStore, Made, UnknownAdapter

log = logging.getLogger("hyperflax.serving")


class Maker:
    """See the module.

    Args:
      model: the hypermodel.
      store: where adapters are kept.
      config: bounds.
      admit: entered to accept work, with whether there is room and what fills it; raises Overloaded, Closing or Failed.

    Attributes:
      made: adapters made so far.
    """

    def __init__(
        self,
        model: Hypermodel,
        store: AdapterStore,
        config: ServiceConfig,
        admit: Callable[[bool, str], contextlib.AbstractContextManager[None]],
    ):
        self.model, self.store, self.config, self.admit = model, store, config, admit
        self.made = 0
        # Hashes of all parameters: taken here, where nobody waits yet, and not on the event loop at the first request.
        self._parts = model.parts.id, model.base_fingerprint
        self._ended = False
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "hyperflax-adapt")
        self._asked: set[asyncio.Future[tuple[Made, bool]]] = set()
        self._making: dict[str, asyncio.Future[tuple[Made, bool]]] = {}

    @property
    def adapting(self) -> int:
        """Adapters that wait to be made, or are being made."""
        return len(self._making)

    @property
    def kept(self) -> int:
        """Adapters on disk; 0 until the folder has been read, or if it cannot be."""
        listed = self.store.listed
        return len(listed.result()) if listed.done() and listed.exception() is None else 0

    async def listed(self) -> Listing:
        """All adapters, in memory; waits until the folder has been read."""
        return await asyncio.shield(asyncio.wrap_future(self.store.listed))

    async def adapt(
        self,
        examples: Sequence[tuple[str, str]],
        *,
        definition: str | None = None,
        refine_steps: int = 0,
        supports: int = 1,
        with_estimate: bool = True,
        metric: str = "exact_match",
    ) -> tuple[Made, bool]:
        """Makes an adapter, or finds the one that was made of equal examples in the same way.

        With an estimate it takes longer, and needs two examples; see `evaluation.estimate`. One by another metric is
        made anew. Where an adapter made for the estimate diverges, the one that was asked for is kept without: an
        equal one would diverge again, and is not made.

        Returns:
          what is known of the adapter, which is on disk by then, and whether it was made now.

        Raises:
          DataError, ConfigError: as `Hypermodel.adapt` does; a metric that is none, or scores no example alone.
          AdapterError: the adapter is not finite, was removed meanwhile (UnknownAdapter), or is not on disk (NotSaved).
          CheckpointError: one of these examples is there, and its file is damaged.
          Overloaded, Full, Closing, Failed: it was not accepted.
        """
        # Those as well who ask for one that is under way, or who have left since.
        if len(self._asked) >= self.config.waiting:
            raise Overloaded(f"{len(self._asked)} callers wait for adapters: try again later")
        options = {"definition": definition, "refine_steps": refine_steps, "supports": supports}
        asked = asyncio.ensure_future(self._adapt(list(examples), with_estimate, metric, options))
        self._asked.add(asked)  # the loop itself would forget it
        asked.add_done_callback(self._asked.discard)
        # A caller who leaves does not take the adapter with him.
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            asked.add_done_callback(_tell_log)
            raise

    async def _adapt(
        self, examples: list[tuple[str, str]], with_estimate: bool, metric: str, options: dict[str, Any]
    ) -> tuple[Made, bool]:
        example_metric(metric)
        with_estimate = with_estimate and len(examples) > 1
        listing, most = await self.listed(), self.config.kept
        key = await asyncio.to_thread(self.store.identify, *self._parts, examples, **options)

        def enough(made: Made) -> bool:
            if not with_estimate or made.no_estimate is not None:
                return True
            return made.estimate is not None and made.estimate.get("metric") == metric

        while True:
            known = await asyncio.to_thread(self._known, key)
            if known is not None and enough(known):
                return known, False
            if key not in self._making:
                break
            # For somebody else, who may have asked for more, and is told alone if that fails.
            await asyncio.wait([self._making[key]])
        waiting = self.adapting
        with self.admit(waiting < self.config.adapting, f"{waiting} adapters are waiting to be made"):
            # One that is there may get its estimate; those that are being made count before they are there.
            if key not in listing and len(listing) + sum(other not in listing for other in self._making) >= most:
                told = f"{most} adapters are kept, and no more may be"
                raise Full(f"{told}: delete some, or raise the bound (--max_adapters)")
            wanted = metric if with_estimate else None
            work = self._make, key, examples, options, wanted
            making = asyncio.get_running_loop().run_in_executor(self._thread, *work)
        self._making[key] = making
        making.add_done_callback(lambda _: self._making.pop(key))
        return await asyncio.shield(making)

    def stop(self, seconds: float | None = None) -> bool:
        """Ends the thread after what was accepted is made; returns whether it ended within so many seconds."""
        with contextlib.suppress(TimeoutError, RuntimeError):
            self._thread.submit(lambda: None).result(seconds)
            self._thread.shutdown()
            self._ended = True
        return self._ended

    def _known(self, key: str) -> Made | None:
        """What is known of an adapter, if it is there."""
        try:
            return self.store.about(key)
        except UnknownAdapter:
            return None

    def _make(
        self, key: str, examples: list[tuple[str, str]], options: dict[str, Any], metric: str | None
    ) -> tuple[Made, bool]:
        """Makes an adapter unless it is there, and its estimate by a metric, if there is to be one."""
        made, new = self._known(key), False
        if made is None:
            adapter = self.model.adapt(examples, **options)
            # Looked for again: a service that shares the folder may have made it meanwhile, with an estimate.
            made = self._known(key)
            if made is None:
                warnings = adapter.metadata.provenance.get("warnings", [])
                made, new = Made(key, len(examples), warnings=warnings, **options), True
                self.store.save(made, adapter)
                self.made += 1
        if metric is not None:
            try:
                found = estimate(self.model, examples, metric=metric, **options)
            except AdapterError as error:  # of an adapter made for the estimate; the one that was asked for is there
                made = dataclasses.replace(made, no_estimate=str(error))
            else:
                made = dataclasses.replace(made, estimate=found.to_json())
            self.store.describe(made)
        return made, new


def _tell_log(asked: asyncio.Future[tuple[Made, bool]]) -> None:
    """What went wrong with an adapter whose caller has left."""
    if not asked.cancelled() and (error := asked.exception()) is not None:
        unexpected = not isinstance(error, HyperflaxError)
        log.warning("an adapter that nobody waits for: %s", error, exc_info=error if unexpected else None)
