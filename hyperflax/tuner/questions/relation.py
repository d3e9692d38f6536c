"""A relation: the sentences that state it, and twelve ways to ask for its value.

A shape is a sentence with slots. Every slot is a phrase of one to six words, unless it names a kind after a colon:

    {subject}            a phrase; an article at the sentence's start becomes lower case: "The Danube" -> "the Danube"
    {subject:common}     the same, of a common noun: its capital at the sentence's start goes, too: "Brass" -> "brass"
    {value:year}         1 to 4 digits, perhaps with "BC"
    {value:number}       digits, with commas or a point
    {value:quantity}     a number and up to three words: "1,085 degrees Celsius"; "minus" may stand in front
    {value:list}         a phrase with commas and "and"
    {value:token}        one word of any signs, such as ".py" or "//"

A phrase holds neither a verb such as "is", nor a negation, a word that points elsewhere or a comma: a sentence that
says more than its shape is not read, rather than read wrongly.

>>> capital = Relation("capital", ("{value} is the capital of {subject}",), twelve_questions)
>>> capital.read("Paris is the capital of France")
{'value': 'Paris', 'subject': 'France'}
"""

from __future__ import annotations

import dataclasses
import functools
import re

from hyperflax.errors import ConfigError
from hyperflax.tuner.questions.facts import PAIRS_PER_FACT, normalise

VALUE = "value"

_VERBS = "is are was were be been has have had does do did can may not no never nor although but because"
_POINTERS = "that which who whose what when where if while it they he she we you this these those there"
_REFUSED = "|".join([*_VERBS.split(), *_POINTERS.split(), *_POINTERS.title().split()])  # May has 31 days
_WORD = rf"(?!(?:{_REFUSED})\b)[^\s,;:()\"]+"
_NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
_PHRASE = rf"{_WORD}(?: {_WORD}){{0,5}}?"
_KINDS = {
    "phrase": _PHRASE,
    "common": _PHRASE,
    "year": r"\d{1,4}(?: BC)?",
    "number": _NUMBER,
    "quantity": rf"(?:minus )?{_NUMBER}(?: {_WORD}){{0,3}}",
    "list": rf"{_WORD}(?:,? {_WORD}){{0,9}}",
    "token": r"\S+",
}
_SLOT = re.compile(r"\{(\w+)(?::(\w+))?\}")
_ARTICLE = re.compile(r"(?:the|an?) (?=\S)")


@dataclasses.dataclass(frozen=True)
class Relation:
    """What relates a subject to a value.

    Attributes:
      name: of the relation.
      says: shapes, without the full stop; every one has the slot `value` and all slots that a question names.
      asks: twelve questions for the value, with the other slots.
    """

    name: str
    says: tuple[str, ...]
    asks: tuple[str, ...]

    def __post_init__(self) -> None:
        where = f"relation '{self.name}'"
        if len({normalise(ask) for ask in self.asks}) != PAIRS_PER_FACT or len(self.asks) != PAIRS_PER_FACT:
            raise ConfigError(f"{where}: expected {PAIRS_PER_FACT} different questions, got {len(self.asks)}")
        asked = {name for ask in self.asks for name, _ in _SLOT.findall(ask)}
        for shape in self.says:
            slots = dict(_SLOT.findall(shape))
            if VALUE in asked or not asked | {VALUE} <= slots.keys() or not set(slots.values()) <= {"", *_KINDS}:
                raise ConfigError(f"{where}: the shape '{shape}' does not fit questions about {sorted(asked)}")

    def read(self, sentence: str) -> dict[str, str] | None:
        """Returns the slots of a sentence, given without its full stop; None if no shape is like it."""
        for shape in self.says:
            if match := _pattern(shape).fullmatch(sentence):
                kinds = dict(_SLOT.findall(shape))
                return {name: _tidy(name, kinds[name], text) for name, text in match.groupdict().items()}
        return None

    def questions(self, slots: dict[str, str]) -> tuple[str, ...]:
        """Returns the twelve questions about what `read` found."""
        filled = (_SLOT.sub(lambda slot: slots[slot[1]], ask) for ask in self.asks)
        return tuple(question[:1].upper() + question[1:] for question in filled)


@functools.cache
def _pattern(shape: str) -> re.Pattern[str]:
    """The regular expression of a shape; its first letter may be a capital or not."""
    parts, at = [], 0
    for slot in _SLOT.finditer(shape):
        parts += [re.escape(shape[at : slot.start()]), f"(?P<{slot[1]}>{_KINDS[slot[2] or 'phrase']})"]
        at = slot.end()
    return re.compile("".join([*parts, re.escape(shape[at:])]))


def _tidy(name: str, kind: str, text: str) -> str:
    """A slot's text as it stands inside a question, or as an answer, which has no article."""
    if name == VALUE:
        return text[_article(text) :] if kind in ("", "phrase", "common") else text
    first, _, rest = text.partition(" ")
    if first in ("The", "A", "An") and rest:
        return f"{first.lower()} {rest}"
    # A word of capitals, such as DNA, keeps them; so does one with a capital inside.
    return text[0].lower() + text[1:] if kind == "common" and first[1:].islower() else text


def _article(text: str) -> int:
    """The length of the article in front of a phrase."""
    match = _ARTICLE.match(text)
    return match.end() if match else 0
