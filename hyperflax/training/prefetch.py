"""The next batches, made in a thread while the device works.

>>> with Prefetcher(batches, start=500, stop=1500, place=partitioner.place_batch) as source:
...     for step, batch, tokens in source:
...         ...
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from hyperflax.data.batches import Batches
from hyperflax.types import Batch

COUNTED_FEATURES = ("support_tokens", "encoder_input_tokens", "decoder_target_tokens")


class Prefetcher:
    """Iterates over (step, placed batch, number of tokens that are not padding).

    An exception of the source surfaces at the step that it happened at.

    Args:
      batches: the source.
      start, stop: range of steps.
      place: puts a batch on the devices.
      depth: batches kept ready.

    Attributes:
      waited: seconds for which the consumer has waited for a batch so far, the first one not counted.
    """

    def __init__(
        self,
        batches: Batches,
        *,
        start: int,
        stop: int,
        place: Callable[[Mapping[str, np.ndarray]], Batch],
        depth: int = 2,
    ) -> None:
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self.waited = 0.0
        self._thread = threading.Thread(
            target=self._run, args=(batches, start, stop, place), name="prefetch", daemon=True
        )
        self._thread.start()

    def __iter__(self) -> Iterator[tuple[int, Batch, int]]:
        first = True
        while True:
            start = time.monotonic()
            kind, value = self._queue.get()
            # While the first batch is made, the first step is not compiled yet either.
            self.waited += time.monotonic() - start if not first else 0.0
            first = False
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value

    def close(self) -> None:
        """Stops the thread."""
        self._closed.set()
        self._thread.join(timeout=10)

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, batches: Batches, start: int, stop: int, place: Callable[..., Batch]) -> None:
        try:
            for step in range(start, stop):
                batch = batches.batch(step)
                tokens = sum(int(np.count_nonzero(batch[name])) for name in COUNTED_FEATURES if name in batch)
                if not self._put(("batch", (step, place(batch), tokens))):
                    return
            self._put(("end", None))
        except BaseException as error:
            self._put(("error", error))

    def _put(self, item: tuple[str, Any]) -> bool:
        """Waits for room, but not for ever: the consumer may be gone."""
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
