"""When a run should stop early: a wall-clock limit, SIGTERM (what schedulers send before they take a machine away),
Ctrl-C, or a validation loss that falls no more.

>>> with StopRequest(max_seconds=3600) as stop:
...     while not stop.requested(): ...
"""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import jax
import numpy as np

from hyperflax.configs import check_sizes
from hyperflax.training.standard_error import read_or_not
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
        check_sizes(self, patience=1)

    @staticmethod
    def improved(losses: Sequence[float]) -> bool:
        """Whether the last loss is lower than all before it. One that is not finite is `math.inf`, and never is."""
        return losses[-1] < min(losses[:-1], default=math.inf)

    def exhausted(self, losses: Sequence[float]) -> bool:
        """Whether so many losses have come after the lowest one, the first of equal ones."""
        return bool(losses) and len(losses) - 1 - losses.index(min(losses)) >= self.patience


class StopRequest:
    """Catches SIGTERM and Ctrl-C while open, where it runs in the main thread; the next one has its usual effect.

    Ctrl-C is caught where it would raise KeyboardInterrupt. A shell has what it starts in the background ignore it, and
    that stays so.

    Args:
      max_seconds: counted from now; None for no limit.

    Attributes:
      signal: what had come when `requested` last asked, to any of the processes, 0 for nothing: all have one answer.
    """

    def __init__(self, max_seconds: float | None = None) -> None:
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self._previous: dict[int, Any] = {}
        self._caught = self.signal = 0

    def requested(self) -> bool:
        """Returns whether to stop. With several processes all must ask at the same step, and all get one answer."""
        late = self._deadline is not None and time.monotonic() >= self._deadline
        if jax.process_count() == 1:
            self.signal = self._caught
            return bool(self.signal) or late
        from jax.experimental import multihost_utils

        answers = multihost_utils.process_allgather(np.array([late, self._caught])).reshape(-1, 2)
        self.signal = int(answers[:, 1].max())  # SIGTERM, 15, before Ctrl-C, 2
        return bool(answers.any())

    def leave(self) -> None:
        """Raises what a process ends with that a signal stopped and that is saved; does nothing if there was none.

        Raises:
          SystemExit: with `RESUME_EXIT_CODE`, after SIGTERM.
          KeyboardInterrupt: after Ctrl-C.
        """
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal:
            sys.exit(RESUME_EXIT_CODE)

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._catch(signal.SIGTERM)
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                self._catch(signal.SIGINT)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _catch(self, number: signal.Signals) -> None:
        self._previous[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._caught = number
        self._restore()
        # Not by print, which the signal may have interrupted.
        name = signal.Signals(number).name
        with read_or_not():
            os.write(2, f"\n{name}: the run is going to be saved and end; another one ends it at once\n".encode())

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            # What was not installed from Python cannot be put back by it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
