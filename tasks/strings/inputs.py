"""Random typed inputs: what a column of a spreadsheet holds.

Each type is a function from a random source to one string of at most 64 bytes, usually 8 to 30. The strings of one type
look alike, as those of one column do, in what operations hold on to (a 3-part code has its two hyphens); they differ
in everything else.

>>> sorted(TYPES)[:4]
['address', 'amount', 'camel', 'card']
>>> len(probes("isodate")), probes("isodate")[0].count("-")
(64, 2)
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from hyperflax.errors import DataError

from . import lexicon as lex
from .handwritten import load_handwritten
from .lexicon import Draw

MAX_BYTES = 64
NUM_PROBES = 64
POOL_SIZE = {"train": 4000, "eval": 1000}
_SMALL_EVAL = {"time": 400, "time12": 400}


def _name(d: Draw) -> str:
    first, last = lex.first_name(d), lex.last_name(d)
    r = d.random()
    if r < 0.03:
        last = f"{last}-{lex.last_name(d)}"
    elif r < 0.05:
        last = d.choice(("O'", "Mc", "Mac", "D'")) + last
    elif r < 0.08:
        first, last = d.choice(((d.choice(lex.ACCENTED), last), (first, d.choice(lex.ACCENTED))))
    return f"{first} {last}"


def _rawname(d: Draw) -> str:
    name = _name(d)
    r = d.random()
    if r < 0.4:
        return name.lower()
    if r < 0.75:
        return name.upper()
    return "".join(c.upper() if d.chance(0.5) else c.lower() for c in name)


def _fullname(d: Draw) -> str:
    first, last = _name(d).split(" ", 1)
    middle = f"{d.letters(1)}." if d.chance(0.35) else lex.first_name(d)
    return f"{first} {middle} {last}"


def _words(d: Draw, low: int, high: int) -> list[str]:
    words = [lex.word(d) for _ in range(d.between(low, high))]
    if d.chance(0.06):
        words[d.below(len(words))] = d.choice((d.digits(d.between(1, 3)), d.letters(3), f"{d.letters(1)}{d.digits(2)}"))
    return words


def _headline(d: Draw) -> str:
    words = [w[:1].upper() + w[1:] for w in _words(d, 2, 4)]
    if d.chance(0.3):
        words.insert(1, d.choice(("of", "the", "and", "for", "in", "to", "a", "with")))
    return " ".join(words)


def _date(d: Draw) -> tuple[str, str, str]:
    return f"{d.between(1950, 2035)}", f"{d.between(1, 12):02d}", f"{d.between(1, 28 if d.chance(0.85) else 30):02d}"


def _isodate(d: Draw) -> str:
    return "-".join(_date(d))


def _usdate(d: Draw) -> str:
    year, month, day = _date(d)
    return f"{month}/{day}/{year}"


def _eudate(d: Draw) -> str:
    return ".".join(reversed(_date(d)))


def _longdate(d: Draw) -> str:
    year, month, day = _date(d)
    return f"{int(day)} {lex.MONTHS[int(month) - 1]} {year}"


def _uslongdate(d: Draw) -> str:
    year, month, day = _date(d)
    return f"{lex.MONTHS[int(month) - 1]} {int(day)}, {year}"


def _domain(d: Draw) -> str:
    return d.choice(lex.DOMAINS) if d.chance(0.4) else f"{lex.word(d)}.{d.choice(lex.TLDS)}"


def _user(d: Draw) -> str:
    first, last = lex.first_name(d).lower(), lex.last_name(d).lower()
    return d.choice(
        (f"{first}.{last}", f"{first[0]}{last}", first, f"{first}_{last}", f"{first}{d.digits(2)}", lex.word(d), last)
    )


def _phone(d: Draw) -> str:
    a, b, c = f"{d.between(2, 9)}{d.digits(2)}", d.digits(3), d.digits(4)
    return d.weighted((f"{a}-{b}-{c}", f"({a}) {b}-{c}", f"{a}.{b}.{c}", f"{a} {b} {c}"), (0.4, 0.3, 0.15, 0.15))


def _stem(d: Draw) -> str:
    words = [lex.word(d) for _ in range(d.between(1, 2))]
    if d.chance(0.25):
        words.append(d.choice((d.digits(2), f"v{d.between(1, 9)}", "final", f"20{d.digits(2)}", "draft", "copy")))
    if d.chance(0.3):
        words = [w.capitalize() for w in words]
    return d.choice("__- ").join(words)


def _file(d: Draw) -> str:
    return f"{_stem(d)}.{d.choice(lex.EXTENSIONS)}"


def _street(d: Draw) -> str:
    name = d.choice((lex.last_name(d), lex.word(d).capitalize()))
    return f"{d.between(1, 999 if d.chance(0.7) else 9999)} {name} {d.choice(lex.STREETS)}"


def _amount(d: Draw) -> str:
    symbol = d.choice("$$$$€£")
    return f"{symbol}{d.below(10 ** d.between(2, 5)):,}.{d.digits(2)}"


def _url(d: Draw) -> str:
    host = ("www." if d.chance(0.5) else "") + f"{lex.word(d)}.{d.choice(lex.TLDS)}"
    tail = "/".join(lex.word(d) for _ in range(d.between(1, 2)))
    return f"{d.choice(('https', 'https', 'http'))}://{host}/{tail}"


def _time12(d: Draw) -> str:
    return f"{d.between(1, 12)}:{d.below(60):02d} {d.choice(('AM', 'PM'))}"


def _time(d: Draw) -> str:
    return f"{d.below(24):02d}:{d.below(60):02d}"


def _items(d: Draw, low: int = 3, high: int = 4) -> list[str]:
    kind = d.random()
    make = (
        (lambda: lex.word(d)) if kind < 0.6 else (lambda: lex.first_name(d)) if kind < 0.85 else (lambda: lex.city(d))
    )
    return [make() for _ in range(d.between(low, high))]


def _value(d: Draw) -> str:
    return d.choice((lex.word(d), d.digits(d.between(1, 4)), lex.word(d).capitalize(), f"{d.below(9)}.{d.digits(1)}"))


def _camel(d: Draw) -> str:
    words = [lex.word(d) for _ in range(d.between(2, 3))]
    return words[0] + "".join(w.capitalize() for w in words[1:])


def _card(d: Draw) -> str:
    return f"{d.choice('3456')}{d.digits(3)} {d.digits(4)} {d.digits(4)} {d.digits(4)}"


def _measure(d: Draw) -> str:
    number = f"{d.below(10 ** d.between(1, 4))}" if d.chance(0.5) else f"{d.below(200)}.{d.digits(d.between(1, 2))}"
    return f"{number} {d.choice(lex.UNITS)}"


def _paren(d: Draw) -> str:
    head = d.choice((lex.word(d).capitalize(), _name(d), _headline(d), lex.city(d)))
    return f"{head} ({d.choice((lex.word(d), d.digits(d.between(1, 4)), lex.word(d).capitalize(), d.letters(2)))})"


def _tagged(d: Draw) -> str:
    tag = d.choice(
        ("WARN", "ERROR", "INFO", "DEBUG", "NEW", "OK", "FAIL", lex.word(d).upper(), f"{d.letters(1)}{d.digits(2)}")
    )
    return f"[{tag}] {' '.join(_words(d, 2, 3))}"


TYPES: dict[str, Callable[[Draw], str]] = {
    "name": _name,
    "rawname": _rawname,
    "fullname": _fullname,
    "lastfirst": lambda d: ", ".join(reversed(_name(d).split(" ", 1))),
    "titled": lambda d: f"{d.choice(('Mr.', 'Ms.', 'Mrs.', 'Dr.', 'Prof.', 'Sir'))} {_name(d)}",
    "phrase": lambda d: " ".join(_words(d, 2, 4)),
    "headline": _headline,
    "isodate": _isodate,
    "usdate": _usdate,
    "eudate": _eudate,
    "longdate": _longdate,
    "uslongdate": _uslongdate,
    "datetime": lambda d: f"{_isodate(d)} {_time(d)}",
    "time": _time,
    "time12": _time12,
    "email": lambda d: f"{_user(d)}@{_domain(d)}",
    "workemail": lambda d: f"{lex.first_name(d)}.{lex.last_name(d)}@{_domain(d)}".lower(),
    "contact": lambda d: f"{_name(d)} <{lex.first_name(d).lower()}@{_domain(d)}>",
    "phone": _phone,
    "intphone": lambda d: f"+{d.between(1, 99)} {d.digits(d.between(2, 3))} {d.digits(d.between(3, 4))} {d.digits(4)}",
    "ssn": lambda d: f"{d.digits(3)}-{d.digits(2)}-{d.digits(4)}",
    "card": _card,
    "code": lambda d: (
        f"{d.letters(d.between(2, 4))}-{d.digits(d.between(2, 5))}-{d.letters(1)}{d.digits(d.between(0, 2))}"
    ),
    "serial": lambda d: f"{d.letters(d.between(2, 3))}{d.digits(d.between(3, 6))}",
    "invoice": lambda d: f"{d.letters(d.between(2, 3))}/{d.between(1990, 2030)}/{d.below(3000):04d}",
    "file": _file,
    "path": lambda d: f"/{'/'.join(lex.word(d) for _ in range(d.between(1, 2)))}/{_file(d)}",
    "url": _url,
    "address": lambda d: f"{_street(d)}, {lex.city(d)}",
    "usaddress": lambda d: (
        f"{_street(d)}, {d.choice(lex.CITIES)}, {d.choice(lex.STATES)} {d.between(1, 9)}{d.digits(4)}"
    ),
    "place": lambda d: f"{lex.city(d)}, {d.choice((d.choice(lex.STATES), d.choice(lex.COUNTRIES)))}",
    "amount": _amount,
    "price": lambda d: f"{d.below(10 ** d.between(2, 5))}.{d.digits(2)}",
    "number": lambda d: f"{d.between(1, 9)}{d.digits(d.between(3, 6))}",
    "measure": _measure,
    "list": lambda d: ", ".join(_items(d)),
    "semilist": lambda d: ";".join(_items(d, 3, 3)),
    "pair": lambda d: f"{lex.word(d)}={_value(d)}",
    "labelled": lambda d: f"{lex.word(d).capitalize()}: {' '.join(_words(d, 1, 2))}",
    "snake": lambda d: "_".join(lex.word(d) for _ in range(d.between(2, 3))),
    "slug": lambda d: "-".join(_words(d, 2, 4)).lower(),
    "camel": _camel,
    "paren": _paren,
    "tagged": _tagged,
    "ticket": lambda d: f"#{d.digits(d.between(2, 4))} - {' '.join(_words(d, 2, 3)).capitalize()}",
    "route": lambda d: f"{lex.city(d)} -> {lex.city(d)}",
    "size": lambda d: f"{d.between(2, 1999)}x{d.between(2, 1999)} {d.choice(('cm', 'mm', 'px', 'in', 'ft'))}",
}


def generate(kind: str, draw: Draw) -> str:
    """One random input of a type, at most 64 bytes of UTF-8."""
    if kind not in TYPES:
        raise DataError(f"input type {kind!r}: expected one of {', '.join(sorted(TYPES))}")
    while True:
        text = TYPES[kind](draw)
        if len(text.encode()) <= MAX_BYTES:
            return text


def _distinct(kind: str, draw: Draw, n: int, seen: set[str]) -> tuple[str, ...]:
    """Up to `n` inputs that are not in `seen`; fewer where a type has no more (there are 1,440 times of day)."""
    found: list[str] = []
    misses = 0
    while len(found) < n and misses < 300:
        text = generate(kind, draw)
        if text in seen:
            misses += 1
            continue
        misses = 0
        seen.add(text)
        found.append(text)
    return tuple(found)


@functools.cache
def probes(kind: str) -> tuple[str, ...]:
    """The 64 fixed inputs of a type on which the behaviour of its programs is defined."""
    return _distinct(kind, Draw(f"hyperflax strings probes {kind}"), NUM_PROBES, set())


@functools.cache
def pool(kind: str, name: str = "train") -> tuple[str, ...]:
    """The fixed inputs from which examples are drawn: `train` (about 4,000) or `eval` (about 1,000), disjoint.

    Both leave the probes out; `train` also leaves out the inputs of the hand-written tasks. Times of day are few
    (1,440): about 900 and 400.
    """
    if name not in POOL_SIZE:
        raise DataError(f"pool {name!r}: expected 'train' or 'eval'")
    seen = set(probes(kind))
    if name == "eval":
        size = _SMALL_EVAL.get(kind, POOL_SIZE["eval"])
        return _distinct(kind, Draw(f"hyperflax strings eval {kind}"), size, seen)
    seen.update(pool(kind, "eval"))
    seen.update(text for task in load_handwritten() for text, _ in task.support + task.test)
    return _distinct(kind, Draw(f"hyperflax strings train {kind}"), POOL_SIZE["train"], seen)
