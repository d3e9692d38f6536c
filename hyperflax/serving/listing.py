"""Which adapters there are and in which order, in memory: a page of a hundred thousand costs no look at the disk.

>>> listing = Listing()
>>> listing.put("0b...", 1), listing.put("1c...", 2), listing.put("2d...", 3)
>>> listing.page(2)
Page(ids=['2d...', '1c...'], next='1c...', total=3)
>>> listing.page(2, after="1c...")
Page(ids=['0b...'], next=None, total=3)
"""

from __future__ import annotations

import bisect
import threading
from typing import NamedTuple


class Page(NamedTuple):
    """A part of a list.

    Attributes:
      ids: the newest first.
      next: after which the next page begins; None if this is the last one.
      total: how many there are on all pages.
    """

    ids: list[str]
    next: str | None
    total: int


class Listing:
    """Ids in the order in which they were made; for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._created: dict[str, int] = {}
        self._order: list[tuple[int, str]] = []  # the oldest first: a new one is appended, and moves no other

    def __len__(self) -> int:
        return len(self._created)

    def __contains__(self, key: str) -> bool:
        return key in self._created

    def created(self, key: str) -> int | None:
        """When it was made, in nanoseconds since 1970; None if it is not listed."""
        return self._created.get(key)

    def put(self, key: str, created: int | None) -> None:
        """Lists an adapter as made at this time, in nanoseconds since 1970; None takes it off the list."""
        with self._lock:
            if (before := self._created.pop(key, None)) is not None:
                del self._order[bisect.bisect_left(self._order, (before, key))]
            if created is not None:
                self._created[key] = created
                bisect.insort(self._order, (created, key))

    def page(self, limit: int, after: str | None = None) -> Page:
        """Returns up to `limit` ids, the newest first, from the one that follows `after`.

        Raises:
          KeyError: `after` is not listed, so that nothing can follow it.
        """
        with self._lock:
            end = len(self._order)
            if after is not None:
                end = bisect.bisect_left(self._order, (self._created[after], after))
            start = max(0, end - limit)
            ids = [key for _, key in reversed(self._order[start:end])]
            return Page(ids, ids[-1] if start else None, len(self._order))
