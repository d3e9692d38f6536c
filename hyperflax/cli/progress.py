"""A bar for long copies, on stderr where somebody looks at it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def byte_bar(what: str) -> Iterator[Callable[[int], None]]:
    """Yields a function to call with numbers of bytes; nothing is shown where stderr is no terminal."""
    from tqdm import tqdm

    with tqdm(desc=what, unit="B", unit_scale=True, disable=None, leave=False) as bar:

        def add(count: int) -> None:
            bar.update(count)

        yield add
