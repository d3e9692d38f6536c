"""What the strings of one column have in common, and so which operation makes sense on it.

A spreadsheet user selects by what he sees in every row: a delimiter that is always there, a second word, digits. A
`Column` holds those facts about the 64 strings of a pipeline so far; operations propose their parameters from it.

>>> column = Column(("a-1", "bc-22"))
>>> column.delimiters, column.least_words, column.has_letters
(('-',), 1, True)
"""

from __future__ import annotations

import functools
import re

PART = re.compile(r"[^\W_]+")
_EDGES = ',;:()[]<>"'


def split_words(text: str) -> list[str]:
    """Words as a reader sees them: split at white space, without commas, colons and brackets at their edges."""
    return [w for w in (raw.strip(_EDGES) for raw in text.split()) if w]


def split_parts(text: str) -> list[str]:
    """Maximal runs of letters and digits: `ann.lee@x.com` has four."""
    return PART.findall(text)


class Column:
    """The facts about a tuple of strings; every fact is computed once, on demand."""

    def __init__(self, texts: tuple[str, ...]):
        self.texts = texts

    @functools.cached_property
    def delimiters(self) -> tuple[str, ...]:
        """Characters other than letters, digits and space that every string holds, sorted."""
        common = set.intersection(*map(set, self.texts))
        return tuple(sorted(c for c in common if not c.isalnum() and c != " "))

    @functools.cached_property
    def pairs(self) -> tuple[str, ...]:
        """Delimiters longer than one character that every string holds: comma and space, arrows, `://`."""
        return tuple(p for p in (", ", " - ", ": ", " -> ", "://", "; ", " (") if all(p in t for t in self.texts))

    @functools.cached_property
    def spaced(self) -> bool:
        return all(" " in t for t in self.texts)

    @functools.cached_property
    def least_words(self) -> int:
        return min(len(split_words(t)) for t in self.texts)

    @functools.cached_property
    def most_words(self) -> int:
        return max(len(split_words(t)) for t in self.texts)

    @functools.cached_property
    def least_parts(self) -> int:
        return min(len(split_parts(t)) for t in self.texts)

    @functools.cached_property
    def most_parts(self) -> int:
        return max(len(split_parts(t)) for t in self.texts)

    @functools.cached_property
    def shortest(self) -> int:
        return min(map(len, self.texts))

    @functools.cached_property
    def longest(self) -> int:
        return max(map(len, self.texts))

    @functools.cached_property
    def has_letters(self) -> bool:
        """Every string holds a letter."""
        return all(any(c.isalpha() for c in t) for t in self.texts)

    @functools.cached_property
    def some_letters(self) -> bool:
        """Some string holds a letter."""
        return any(any(c.isalpha() for c in t) for t in self.texts)

    @functools.cached_property
    def has_digits(self) -> bool:
        return all(any(c.isdigit() for c in t) for t in self.texts)

    @functools.cached_property
    def all_digits(self) -> bool:
        return all(t.isdigit() for t in self.texts)

    @functools.cached_property
    def digit_counts(self) -> set[int]:
        return {sum(c.isdigit() for c in t) for t in self.texts}

    @functools.cached_property
    def humps(self) -> bool:
        """Most strings have an inner change of case or from letters to digits, as `userName` and `AB12` do."""
        return sum(bool(re.search(r"[a-z][A-Z]|[A-Za-z]\d|\d[A-Za-z]", t)) for t in self.texts) >= 0.9 * len(self.texts)
