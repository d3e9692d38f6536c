"""Batches made ahead of their use, by Grain's threads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

_END = 2**62  # as many steps as anyone will ask for


class Batches(Protocol):
    """Whatever has batches by step; `Episodes`, `PackedBatches` and `PaddedBatches` do."""

    def batch(self, step: int) -> Mapping[str, np.ndarray]:
        """The batch of a step, pure in the source's own seed and the step, so that a step number is a position."""


@dataclasses.dataclass
class PrefetchedBatches:
    """The same batches, made by background threads while the device computes.

    Steps asked for in order come out of the queue. Any other step (a resumed run, an evaluation) starts a new queue
    there: what comes back depends on the step alone, never on the queue.

    Attributes:
      batches: what to prefetch.
      threads: of Grain's reader.
      buffer: batches kept ready.
    """

    batches: Batches
    threads: int = 2
    buffer: int = 8

    def __post_init__(self) -> None:
        self._iterator: Iterator[Any] | None = None
        self._next = -1

    def batch(self, step: int) -> Mapping[str, np.ndarray]:
        if self._iterator is None or step != self._next:
            self._iterator = self._start(step)
        batch = next(self._iterator)
        self._next = step + 1
        return batch

    def _start(self, step: int) -> Iterator[Any]:
        import grain  # takes a second to import, so only who prefetches pays

        steps = grain.MapDataset.range(step, _END).map(self.batches.batch)
        options = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=self.buffer)
        return iter(steps.to_iter_dataset(options))
