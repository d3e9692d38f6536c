"""When a run should stop early: a wall-clock limit, or SIGTERM (what schedulers send before they take a machine away).

>>> with StopRequest(max_seconds=3600) as stop:
...     while not stop.requested(): ...
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

import jax
import numpy as np


class StopRequest:
    """Catches SIGTERM while open, where it runs in the main thread; a second SIGTERM has its usual effect.

    Args:
      max_seconds: counted from now; None for no limit.
    """

    def __init__(self, max_seconds: float | None = None) -> None:
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self._previous: object = None
        self.terminated = False

    def requested(self) -> bool:
        """Returns whether to stop. With several processes all must ask at the same step, and all get one answer."""
        late = self._deadline is not None and time.monotonic() >= self._deadline
        stop = self.terminated or late
        if jax.process_count() == 1:
            return stop
        from jax.experimental import multihost_utils

        answers = multihost_utils.process_allgather(np.array([stop, self.terminated])).reshape(-1, 2)
        self.terminated = bool(answers[:, 1].any())
        return bool(answers[:, 0].any())

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.terminated = True
        self._restore()

    def _restore(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None
