"""The families `reorder` and `join`: put pieces in another order; glue and split them."""

from __future__ import annotations

import re

from .columns import Column, split_parts, split_words
from .lexicon import Draw
from .operation import Operation, Params, always, no_params

_REFERENCE = re.compile(r"[$^]([1-9])")
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Za-z])(?=\d)|(?<=\d)(?=[A-Za-z])")
_GLUE = (
    "-",
    "_",
    ".",
    "/",
    "",
    ", ",
    ",",
    ";",
    " - ",
    "+",
    "|",
    ":",
    " & ",
    " / ",
    "#",
    "~",
    "*",
    "=",
    "--",
    " and ",
    "__",
    "\\",
    " > ",
    "; ",
    " | ",
)


def _fill(template: str, pieces: list[str]) -> str | None:
    def piece(match: re.Match[str]) -> str:
        got = pieces[int(match[1]) - 1]
        return got[0] if match[0][0] == "^" else got

    try:
        return _REFERENCE.sub(piece, template)
    except IndexError:
        return None


def words(text: str, template: str) -> str | None:
    return _fill(template, split_words(text))


def parts(text: str, template: str) -> str | None:
    return _fill(template, split_parts(text))


def swap(text: str, mark: str) -> str | None:
    head, found, tail = text.partition(mark)
    return f"{tail}{mark}{head}" if found and head and tail else None


def last_first(text: str, glue: str) -> str | None:
    head, space, tail = text.rpartition(" ")
    return f"{tail}{glue}{head}" if space else None


def first_last(text: str, glue: str) -> str | None:
    head, space, tail = text.partition(" ")
    return f"{tail}{glue}{head}" if space else None


def flip(text: str, mark: str) -> str | None:
    return mark.join(reversed(text.split(mark))) if mark in text else None


def join(text: str, glue: str) -> str:
    return glue.join(text.split())


def join_parts(text: str, glue: str) -> str:
    return glue.join(split_parts(text))


def replace(text: str, old: str, new: str) -> str | None:
    return text.replace(old, new) if old in text else None


def remove(text: str, mark: str) -> str | None:
    return text.replace(mark, "").strip() if mark in text else None


def insert(text: str, n: int, piece: str) -> str | None:
    """Negative n counts from the end: -2 inserts before the last two characters."""
    return f"{text[:n]}{piece}{text[n:]}" if len(text) > abs(n) else None


def spread(text: str, glue: str) -> str:
    return glue.join(text.replace(" ", ""))


def split_humps(text: str, glue: str) -> str | None:
    return _HUMP.sub(lambda match: glue, text)


def no_punctuation(text: str) -> str:
    return " ".join("".join(c for c in text if c.isalnum() or c == " ").split())


_SEPARATORS = (
    " ",
    ", ",
    ".",
    "-",
    "_",
    "",
    "/",
    " - ",
    ": ",
    "; ",
    " & ",
    "|",
    "+",
    ",",
    "=",
    " / ",
    " and ",
    "@",
    "--",
    "~",
)
_SEPARATOR_WEIGHTS = (5, 5, 4, 4, 3, 3, 2, 1.5, 1, 0.6, 0.6, 0.6, 0.6, 1, 0.4, 0.6, 0.6, 0.5, 0.4, 0.4)


def _template(least: int, draw: Draw, short: bool) -> Params | None:
    """A template over two or three of the first pieces, an initial now and then (words of names, not numbers)."""
    if least < 2:
        return None
    count = 2 if least == 2 or draw.chance(0.6) else 3
    order = draw.sample(range(1, min(least, 4) + 1), count)
    out = ""
    for i, n in enumerate(order):
        initial = short and draw.chance(0.3)
        dot = "." if initial and draw.chance(0.6) else ""
        if i and draw.chance(0.12):
            left, right = draw.choice(((" (", ")"), (" [", "]"), ("(", ")"), (" <", ">")))
            out += f"{left}{'^' if initial else '$'}{n}{dot}{right}"
            continue
        glue = draw.weighted(_SEPARATORS, _SEPARATOR_WEIGHTS) if i else ""
        out += f"{glue}{'^' if initial else '$'}{n}{dot}"
    return (out,)


def _swap(column: Column, draw: Draw) -> Params | None:
    marks = [*column.pairs, *column.delimiters, *([" "] if column.spaced and column.most_words == 2 else [])]
    return (draw.choice(marks),) if marks else None


def _flip(column: Column, draw: Draw) -> Params | None:
    marks = [*column.pairs, *column.delimiters, *([" "] if column.spaced and column.most_words <= 5 else [])]
    marks = [m for m in marks if all(t.count(m) >= 2 for t in column.texts[:8])]
    return (draw.choice(marks),) if marks else None


def _glue(draw: Draw) -> str:
    return draw.weighted(
        _GLUE, (6, 5, 4, 3, 5, 3, 2, 2, 2, 1, 1, 1, 1, 1, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.5, 0.7, 1, 1)
    )


def _replace(column: Column, draw: Draw) -> Params | None:
    marks = [*column.pairs, *column.delimiters]
    if not marks:
        return None
    old = draw.choice(marks)
    new = " " if draw.chance(0.3) else _glue(draw)
    return (old, new) if new not in ("", old) else None


def _remove(column: Column, draw: Draw) -> Params | None:
    marks = [*column.delimiters, *([" "] if column.spaced else [])]
    return (draw.choice(marks),) if marks else None


def _insert(column: Column, draw: Draw) -> Params | None:
    top = min(column.shortest - 1, 4)
    if top < 1:
        return None
    n = draw.between(1, top)
    return (n if draw.chance(0.6) else -n, draw.choice(("-", ".", "/", " ", ":", "_", "-", ".", " - ", ", ", "x")))


OPERATIONS = (
    Operation(
        "words",
        "reorder",
        "s",
        words,
        lambda c, d: _template(c.least_words, d, c.has_letters),
        lambda c: 5.0 if c.least_words > 1 else 0.0,
        "words in a template: $2 the second, ^2 its first letter",
    ),
    Operation(
        "parts",
        "reorder",
        "s",
        parts,
        lambda c, d: _template(c.least_parts, d, c.has_letters and not c.has_digits),
        lambda c: 3.5 if c.least_parts > 1 and c.delimiters else 0.0,
        "runs of letters and digits in a template",
    ),
    Operation("swap", "reorder", "s", swap, _swap, always(0.8), "what stands before and after the first mark, swapped"),
    Operation(
        "lastfirst",
        "reorder",
        "s",
        last_first,
        lambda c, d: (d.choice((", ", " ", ", ", "_", "-", ": ", "/", " - ")),),
        lambda c: 1.0 if c.most_words > 2 and c.spaced else 0.0,
        "the last word moved to the front",
    ),
    Operation(
        "firstlast",
        "reorder",
        "s",
        first_last,
        lambda c, d: (d.choice((", ", " ", ", ", "_", "-", ": ", "/", " - ")),),
        lambda c: 1.0 if c.most_words > 2 and c.spaced else 0.0,
        "the first word moved to the end",
    ),
    Operation("flip", "reorder", "s", flip, _flip, always(0.8), "the fields between marks in reverse order"),
    Operation(
        "join",
        "join",
        "s",
        join,
        lambda c, d: (_glue(d),),
        lambda c: 2.6 if c.spaced else 0.0,
        "words joined by another mark",
    ),
    Operation(
        "joinparts",
        "join",
        "s",
        join_parts,
        lambda c, d: (" " if d.chance(0.3) else _glue(d),),
        lambda c: 1.5 if c.least_parts > 1 and c.delimiters else 0.0,
        "runs of letters and digits joined by a mark",
    ),
    Operation(
        "replace", "join", "ss", replace, _replace, lambda c: 2.2 if c.delimiters else 0.0, "one mark by another"
    ),
    Operation(
        "remove", "join", "s", remove, _remove, lambda c: 1.3 if c.delimiters or c.spaced else 0.0, "a mark left out"
    ),
    Operation(
        "insert",
        "join",
        "ns",
        insert,
        _insert,
        lambda c: (1.8 if c.has_digits else 0.15) if c.most_words == 1 and c.longest <= 12 else 0.0,
        "a mark put in after n characters; negative n counts from the end",
    ),
    Operation(
        "spread",
        "join",
        "s",
        spread,
        lambda c, d: (d.choice((" ", "-", ".", " ", "/")),),
        lambda c: 1.2 if c.longest <= 6 else 0.0,
        "a mark between all characters",
    ),
    Operation(
        "humps",
        "join",
        "s",
        split_humps,
        lambda c, d: (d.choice((" ", "-", "_", " ", ".", "/", " - ")),) if c.humps else None,
        always(3.0),
        "a mark where lower case meets a capital or letters meet digits",
    ),
    Operation(
        "nopunct",
        "join",
        "",
        no_punctuation,
        no_params(lambda c: bool(c.delimiters)),
        always(1.0),
        "punctuation left out",
    ),
)
