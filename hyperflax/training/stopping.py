"""When a run should stop early: a wall-clock limit, SIGTERM (what schedulers send before they take a machine away), or
a validation loss that falls no more.

>>> with StopRequest(max_seconds=3600) as stop:
...     while not stop.requested(): ...
"""

from __future__ import annotations

import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import jax
import numpy as np

from hyperflax.errors import ConfigError
from hyperflax.types import PyTree

RESUME_EXIT_CODE = 75
"""How a process ends that SIGTERM stopped and that saved its run: the same command goes on with it.

It is EX_TEMPFAIL of sysexits.h, "try again later". 0 would tell a launcher that the run is done; 143, what a shell
says of a process that SIGTERM killed, that nothing was saved."""


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """Keeps the best parameters, and ends a run that gets no better. The start of the run is evaluated like the rest.

    Both decisions follow from the evaluations so far, which a resumed run reads from its log: nothing else is saved.

    Attributes:
      patience: evaluations in a row without a lower loss than the best before them, after which the run ends.
      keep: (params, step), called after every evaluation whose loss is lower than all before it.
    """

    patience: int
    keep: Callable[[PyTree, int], None]

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ConfigError(f"EarlyStopping.patience: expected at least 1, got {self.patience!r}")

    @staticmethod
    def improved(losses: Sequence[float]) -> bool:
        """Whether the last loss is lower than all before it. One that is not finite is `math.inf`, and never is."""
        return losses[-1] < min(losses[:-1], default=math.inf)

    def exhausted(self, losses: Sequence[float]) -> bool:
        """Whether so many losses have come after the lowest one, the first of equal ones."""
        return bool(losses) and len(losses) - 1 - losses.index(min(losses)) >= self.patience


class StopRequest:
    """Catches SIGTERM while open, where it runs in the main thread; a second SIGTERM has its usual effect.

    Args:
      max_seconds: counted from now; None for no limit.

    Attributes:
      terminated: whether SIGTERM had come when `requested` last asked, to any of the processes: all have one answer.
    """

    def __init__(self, max_seconds: float | None = None) -> None:
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self._previous: Any = None
        self._signalled = self.terminated = False

    def requested(self) -> bool:
        """Returns whether to stop. With several processes all must ask at the same step, and all get one answer."""
        late = self._deadline is not None and time.monotonic() >= self._deadline
        if jax.process_count() == 1:
            self.terminated = self._signalled
            return self.terminated or late
        from jax.experimental import multihost_utils

        answers = multihost_utils.process_allgather(np.array([late, self._signalled])).reshape(-1, 2)
        self.terminated = bool(answers[:, 1].any())
        return bool(answers.any())

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True
        self._restore()

    def _restore(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None
