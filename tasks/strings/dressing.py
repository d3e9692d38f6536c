"""The families `recase` and `add`: change letters' case; add constants around and into the string."""

from __future__ import annotations

from .columns import Column, split_parts
from .lexicon import FIRST_NAMES, Draw, made_up
from .lexicon import word as some_word
from .operation import Operation, Params, always, no_params


def title(text: str) -> str:
    """Each run of letters starts with a capital; the rest is lower case. Apostrophes do not start a word."""
    out, inside = [], False
    for c in text:
        out.append(c.lower() if inside else c.upper())
        inside = c.isalnum() or (c in "'’" and inside)
    return "".join(out)


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:].lower()


def cap(text: str) -> str:
    return text[:1].upper() + text[1:]


def camel(text: str) -> str | None:
    parts = [p.lower() for p in split_parts(text)]
    return parts[0] + "".join(p.capitalize() for p in parts[1:]) if parts else None


def pascal(text: str) -> str:
    return "".join(p.capitalize() for p in split_parts(text))


def up_word(text: str, n: int) -> str | None:
    words = text.split(" ")
    index = n - 1 if n > 0 else n
    if not -len(words) <= index < len(words):
        return None
    words[index] = words[index].upper()
    return " ".join(words)


def prefix(text: str, piece: str) -> str:
    return piece + text


def suffix(text: str, piece: str) -> str:
    return text + piece


def wrap(text: str, left: str, right: str) -> str:
    return f"{left}{text}{right}"


def each(text: str, left: str, right: str) -> str:
    return " ".join(f"{left}{w}{right}" for w in text.split())


def twice(text: str, glue: str) -> str:
    return f"{text}{glue}{text}"


def pad(text: str, n: int) -> str | None:
    return text.rjust(n, "0") if text.isdigit() else None


_BRACKETS = (
    ("(", ")"), ("[", "]"), ("{", "}"), ("<", ">"), ('"', '"'), ("'", "'"), ("*", "*"), ("_", "_"), ("`", "`"),
    ("**", "**"), ("~", "~"), ("[[", "]]"), ("<b>", "</b>"), ("--", "--"), ("/", "/"), ("(", ")."), ("- ", " -"),
    ("«", "»"), ("#", "#"), ("<<", ">>"), ("{{", "}}"), ("=", "="), ("|", "|"), ("%", "%"), ("@", "@"), ("+", "+"),
    ("!", "!"), ("$", "$"), (":", ":"), ("((", "))"), ("^", "^"),
)  # fmt: skip
_TEXT_PREFIXES = (
    "Dr. ", "Mr. ", "Ms. ", "Hello ", "Dear ", "Re: ", "the ", "The ", "@", "#", "- ", "* ", "> ", "user_", "www.",
    "new ", "to ", "by ", "Name: ", "c/o ", "Attn: ", "!", "$", "~", "/", "my-", "x-", "To: ", "Hi ", "No ", "re:",
    "+", "_", ".",
)  # fmt: skip
_TEXT_SUFFIXES = (
    "!", "?", ".", ",", ":", ";", " Inc.", " Ltd", "...", "@acme.com", "@mail.com", "@corp.org", ".com", ".org",
    ".txt", ".pdf", ".jpg", "_v2", "_final", " Jr.", " PhD", " LLC", " (new)", " *", "/", "-", "_", "s", "'s",
    " Co.", ".io", "-old", ".csv", " team", "!!", " ok", "@x.io", ".net", " & co", ".md",
)  # fmt: skip
_DIGIT_PREFIXES = (
    "#", "No. ", "$", "ID", "ID-", "+", "+1 ", "0", "00", "1-", "Nr. ", "~", "-", "EUR ", "€", "x", "Tel: ", "Q",
    "US$", "v", "20", "Room ", "A", "#0", ">", "=",
)  # fmt: skip
_DIGIT_SUFFIXES = (
    "%", " USD", " EUR", ".00", ".0", " kg", " km", "th", "+", " pcs", " h", "0", "00", "x", " units", "-", "/", "k",
    " $", " €", " cm", "px", "°", " AD", "!", ".", ":", " m", "st",
)  # fmt: skip


def _random_constant(draw: Draw, at_front: bool) -> str:
    """A short constant that nobody listed: letters, digits, symbols, with or without a separator."""
    kind = draw.below(6)
    if kind == 0:
        core = draw.letters(draw.between(1, 3))
    elif kind == 1:
        core = draw.digits(draw.between(1, 3))
    elif kind == 2:
        core = made_up(draw, 3, 5)
    elif kind == 3:
        core = some_word(draw)[:6]
    elif kind == 4:
        core = draw.choice((draw.choice(FIRST_NAMES)[:5], some_word(draw)[:5].capitalize()))
    else:
        return "".join(draw.choice("!#$%&*+-./:;<=>?@^_~|") for _ in range(draw.between(1, 2)))
    glue = draw.weighted(("-", "_", " ", ".", "/", ":", ": ", "#", "+", "="), (4, 3, 5, 2, 1.5, 1, 1.5, 0.5, 0.5, 0.5))
    if draw.chance(0.15):
        return core
    return core + glue if at_front else glue + core


def _prefix(column: Column, draw: Draw) -> Params | None:
    if draw.chance(0.5):
        return (_random_constant(draw, True),)
    return (draw.choice(_TEXT_PREFIXES if column.has_letters else _DIGIT_PREFIXES),)


def _suffix(column: Column, draw: Draw) -> Params | None:
    if draw.chance(0.5):
        return (_random_constant(draw, False),)
    return (draw.choice(_TEXT_SUFFIXES if column.has_letters else _DIGIT_SUFFIXES),)


def _wrap(column: Column, draw: Draw) -> Params | None:
    if draw.chance(0.15):
        return (_random_constant(draw, True), _random_constant(draw, False))
    return draw.choice(_BRACKETS[: 6 if draw.chance(0.5) else len(_BRACKETS)])


def _each(column: Column, draw: Draw) -> Params | None:
    if column.least_words < 2 or column.most_words > 4:
        return None
    pairs = (
        ("#", ""),
        ("@", ""),
        ("", ","),
        ("", "."),
        ("+", ""),
        ("", ";"),
        ("*", ""),
        ("-", ""),
        ("$", ""),
        *_BRACKETS[:12],
    )
    return draw.choice(pairs)


def _pad(column: Column, draw: Draw) -> Params | None:
    if not column.all_digits or column.longest > 6:
        return None
    return (draw.between(max(2, column.longest), column.longest + 2),)


OPERATIONS = (
    Operation("upper", "recase", "", str.upper, no_params(lambda c: c.has_letters), always(2.6), "capitals"),
    Operation("lower", "recase", "", str.lower, no_params(lambda c: c.has_letters), always(2.6), "lower case"),
    Operation("title", "recase", "", title, no_params(lambda c: c.has_letters), always(2.2), "each word capitalised"),
    Operation(
        "sentence",
        "recase",
        "",
        sentence,
        no_params(lambda c: c.has_letters),
        always(1.2),
        "a capital first, then lower case",
    ),
    Operation(
        "cap", "recase", "", cap, no_params(lambda c: c.has_letters), lambda c: 0.7, "a capital first, the rest kept"
    ),
    Operation(
        "camel",
        "recase",
        "",
        camel,
        no_params(lambda c: c.has_letters and c.least_parts > 1),
        always(0.8),
        "words run together, capitals inside",
    ),
    Operation(
        "pascal",
        "recase",
        "",
        pascal,
        no_params(lambda c: c.has_letters and c.least_parts > 1),
        always(0.8),
        "words run together, each capitalised",
    ),
    Operation(
        "upword",
        "recase",
        "n",
        up_word,
        lambda c, d: (d.choice((1, 2, -1) if c.most_words > 2 else (1, 2)),) if c.spaced and c.has_letters else None,
        lambda c: 1.2 if c.least_words > 1 else 0.0,
        "the n-th word in capitals",
    ),
    Operation("prefix", "add", "s", prefix, _prefix, always(1.7), "a constant in front"),
    Operation("suffix", "add", "s", suffix, _suffix, always(1.7), "a constant at the end"),
    Operation("wrap", "add", "ss", wrap, _wrap, always(1.2), "constants on both sides"),
    Operation(
        "each",
        "add",
        "ss",
        each,
        _each,
        lambda c: 0.8 if c.least_words > 1 else 0.0,
        "constants on both sides of each word",
    ),
    Operation(
        "twice",
        "add",
        "s",
        twice,
        lambda c, d: (d.choice(("-", " ", "/", "_", ", ", ":", "", ".", " & ", "=")),),
        lambda c: 0.35 if c.longest <= 12 else 0.0,
        "the string twice, with a mark between",
    ),
    Operation(
        "pad", "add", "n", pad, _pad, lambda c: 4.0 if c.shortest < c.longest else 0.8, "zeros in front, up to n digits"
    ),
)
