"""Texts, the facts in them, and questions about the facts.

>>> fact = Fact("Paris is the capital of France.", source="capitals")
>>> fact.id == Fact("  paris is the Capital of France", source="another").id
True
>>> Pair("What is the capital of France?", "Paris", fact.id).key
'what is the capital of france'
"""

from __future__ import annotations

import hashlib
import pathlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from hyperflax.errors import CheckpointError, DataError
from hyperflax.files import read_bytes

PAIRS_PER_FACT = 12
MAX_TEXT_BYTES = 16 * 2**20
"""A long book has one or two million bytes."""

# A hyphen before a number may be a minus sign, and stays.
_PUNCTUATION = re.compile(r"[.,;:!?¿¡\"'`´“”„‘’«»()\[\]…_‐‑‒–—]|(?<=\w)-|-(?!\d)")
_SENTENCE_END = re.compile(r"(?<=[.!?]) (?=[^a-z])")
_BLANK_LINE = re.compile(r"\n[ \t\r]*\n")


class Text(NamedTuple):
    """A text and what it is called."""

    name: str
    content: str

    @property
    def sha256(self) -> str:
        return digest(self.content)


class Fact(NamedTuple):
    """One statement that can be understood without the text around it.

    Attributes:
      statement: a sentence.
      source: the name of the text that says so.
    """

    statement: str
    source: str

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits; statements that differ in case, spaces or the full stop share them."""
        statement = unicodedata.normalize("NFKC", self.statement).casefold()
        return digest(" ".join(statement.split()).rstrip(".!? "))[:12]


class Pair(NamedTuple):
    """A question, its answer, and the id of the fact that it is about."""

    question: str
    answer: str
    fact: str

    @property
    def key(self) -> str:
        """Equal for questions that count as the same."""
        return normalise(self.question)


class Extraction(NamedTuple):
    """What an extractor took from a text: facts, and sentences that it could not read."""

    facts: Sequence[Fact]
    unread: Sequence[str] = ()


class Extractor(Protocol):
    """What makes questions of texts."""

    def describe(self) -> dict[str, Any]:
        """Returns json that says which extractor this is, without anything secret."""

    def facts(self, text: Text) -> Extraction:
        """Returns the facts of a text, in its order."""

    def pairs(self, fact: Fact) -> Sequence[Pair]:
        """Returns `PAIRS_PER_FACT` pairs about a fact; no two of them have the same `key`."""


def normalise(text: str) -> str:
    """Lower case, single spaces, no punctuation. Signs with a meaning stay, so that C, C# and C++ are three.

    >>> normalise("What's “C++”?") == normalise("what s c++")
    True
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_PUNCTUATION.sub(" ", text).split())


def digest(text: str) -> str:
    """SHA-256 of a text's UTF-8 bytes, in hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def sentences(content: str) -> Iterator[str]:
    """Yields the sentences of a text, each on one line.

    >>> list(sentences("Perl files end in .pl. Lua\\nis old.\\n\\nA heading\\n\\nC is older."))
    ['Perl files end in .pl.', 'Lua is old.', 'A heading', 'C is older.']
    """
    for paragraph in _BLANK_LINE.split(content):
        if words := " ".join(paragraph.split()):
            yield from _SENTENCE_END.split(words)


def require_pairs(pairs: Sequence[Pair], fact: Fact) -> Sequence[Pair]:
    """Returns `pairs` if they are as `Extractor.pairs` promises.

    Raises:
      DataError: another number of pairs, an empty question or answer, another fact's id, or two equal questions.
    """
    where = f"fact '{fact.statement[:60]}'"
    if len(pairs) != PAIRS_PER_FACT:
        raise DataError(f"{where}: expected {PAIRS_PER_FACT} pairs, got {len(pairs)}")
    seen: dict[str, str] = {}
    for pair in pairs:
        if not pair.key or not pair.answer.strip() or pair.fact != fact.id:
            raise DataError(f"{where}: expected a question and an answer about it, got {pair!r:.120}")
        if pair.key in seen:
            raise DataError(f"{where}: expected {PAIRS_PER_FACT} different questions, got {pair.question!r:.80} twice")
        seen[pair.key] = pair.question
    return pairs


def read_text(path: pathlib.Path | str) -> Text:
    """Reads a UTF-8 file; the text is called as the file, without suffix.

    Raises:
      DataError: no such file, more than `MAX_TEXT_BYTES`, or no UTF-8.
    """
    path = pathlib.Path(path)
    try:
        return Text(path.stem, read_bytes(path, limit=MAX_TEXT_BYTES).decode("utf-8-sig"))
    except CheckpointError as error:
        raise DataError(str(error)) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text ({error})") from error
