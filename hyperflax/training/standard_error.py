"""Standard error of a run, which goes on, and above all is saved, where nobody reads it any more.

A Ctrl-C that a run is to be saved after also ends the `tee` that it writes to, and a terminal may be closed.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def read_or_not() -> Iterator[None]:
    """What is written to standard error within, and after it, goes nowhere once it cannot be written."""
    try:
        yield
    except OSError:
        # What is buffered would fail again, when the process ends at the latest, and change its exit code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


class StandardError:
    """A file for `print` and tqdm."""

    def write(self, text: str) -> None:
        with read_or_not():
            sys.stderr.write(text)

    def flush(self) -> None:
        with read_or_not():
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)
