"""What an LLM replied, checked before it is believed: sizes, types, counts and duplicates.

    {"choices": [{"message": {"content": "..."}}]}                    the server's body
    {"facts": ["...", ...]}                                           its content, asked for facts: up to 200
    {"pairs": [{"question": "...", "answer": "..."}, ... 12 of them]} asked for questions

>>> read_facts('{"facts": ["Io orbits  Jupiter."]}')
['Io orbits Jupiter.']
"""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

import msgspec

from hyperflax.errors import DataError
from hyperflax.tuner.questions.facts import PAIRS_PER_FACT, Fact, Pair, normalise, require_pairs

Reply = TypeVar("Reply")

MAX_FACTS, MAX_STATEMENT, MAX_QUESTION, MAX_ANSWER = 200, 500, 300, 200  # characters
_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", re.DOTALL)


class ReplyError(DataError):
    """A reply that is not what was asked for; the message is fit to be shown to the model."""


class _Message(msgspec.Struct):
    content: str


class _Choice(msgspec.Struct):
    message: _Message


class _Body(msgspec.Struct):
    choices: Annotated[list[_Choice], msgspec.Meta(min_length=1)]


class _Facts(msgspec.Struct):
    facts: Annotated[list[Annotated[str, msgspec.Meta(max_length=MAX_STATEMENT)]], msgspec.Meta(max_length=MAX_FACTS)]


class _Pair(msgspec.Struct):
    question: Annotated[str, msgspec.Meta(max_length=MAX_QUESTION)]
    answer: Annotated[str, msgspec.Meta(max_length=MAX_ANSWER)]


class _Pairs(msgspec.Struct):
    pairs: Annotated[list[_Pair], msgspec.Meta(min_length=PAIRS_PER_FACT, max_length=PAIRS_PER_FACT)]


def read_content(body: bytes) -> str:
    """Returns the text of the first choice in a server's body. Raises ReplyError if there is none."""
    return _decode(body, _Body).choices[0].message.content


def read_facts(content: str) -> list[str]:
    """Returns the statements in a reply, each on one line. Raises ReplyError."""
    statements = [_line(statement, "a fact") for statement in _decode(_unfenced(content), _Facts).facts]
    if empty := [statement for statement in statements if not normalise(statement)]:
        raise ReplyError(f"expected statements in words, got {empty[0]!r}")
    return statements


def read_pairs(content: str, fact: Fact) -> tuple[Pair, ...]:
    """Returns the twelve pairs in a reply, each question and answer on one line. Raises ReplyError."""
    found = _decode(_unfenced(content), _Pairs).pairs
    pairs = tuple(Pair(_line(pair.question, "a question"), _line(pair.answer, "an answer"), fact.id) for pair in found)
    try:
        require_pairs(pairs, fact)
    except DataError as error:
        raise ReplyError(str(error)) from error
    return pairs


def _decode(data: bytes | str, schema: type[Reply]) -> Reply:
    try:
        return msgspec.json.decode(data, type=schema)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ReplyError(f"expected a json object of the asked form ({str(error)[:200]})") from error


def _unfenced(content: Any) -> str:
    """The json inside a Markdown fence, which some models put around all they write."""
    match = _FENCE.fullmatch(content)
    return match[1] if match else content


def _line(text: str, what: str) -> str:
    line = " ".join(text.split())
    if not line.isprintable():
        raise ReplyError(f"expected {what} without control characters, got {line[:60]!r}")
    return line
