"""The family `reformat`: dates, times, numbers, digits in a pattern, masks, abbreviations."""

from __future__ import annotations

import re
from collections.abc import Callable

from .columns import Column, split_parts
from .lexicon import MONTHS, Draw
from .operation import Operation, Params, always, no_params

_MONTH_NUMBERS = {name[:n].lower(): i + 1 for i, name in enumerate(MONTHS) for n in (3, len(name))}
_DATE_FIELD = re.compile(r"yyyy|yy|Month|MON|Mon|mm|m|dd|d|q")
_TIME = re.compile(r"(\d{1,2}):(\d\d)(?: ([AP]M))?")
_NUMBER = re.compile(r"\d+(\.\d+)?")
_SHAPES = {
    "ymd": re.compile(r"\d{4}-\d\d-\d\d|\d{4}/\d\d/\d\d"),
    "mdy": re.compile(r"\d\d?/\d\d?/\d{4}|[A-Z][a-z]+ \d\d?, \d{4}"),
    "dmy": re.compile(r"\d\d?\.\d\d?\.\d{4}|\d\d? [A-Z][a-z]+ \d{4}"),
}
_FORMATS = (
    "dd/mm/yyyy", "mm/dd/yyyy", "yyyy-mm-dd", "dd.mm.yyyy", "d Month yyyy", "Month d, yyyy", "d Mon yyyy",
    "Mon d, yyyy", "dd-Mon-yy", "Month yyyy", "Mon yyyy", "Month", "Mon", "mm/yy", "yyyymmdd", "d Month", "Mon d",
    "Qq yyyy", "m/d/yy", "dd-mm-yyyy", "yyyy/mm/dd", "d.m.yy", "Mon-yy", "yyyy Mon dd", "yy-mm", "dd Mon",
    "MON yyyy", "dd MON yy", "mm-dd-yy", "Month d", "yyyy/mm", "yyyy.mm.dd", "d/m/yyyy", "ddmmyy", "Mon 'yy",
    "yyyy-Mon", "mm/yyyy", "yyyy (Mon)", "d.m.",
)  # fmt: skip


def _read_date(text: str, order: str) -> tuple[int, int, int] | None:
    """Year, month and day in a date written in the order `order` (`ymd`, `mdy` or `dmy`); None where it is none."""
    pieces = split_parts(text)
    if len(pieces) < 3:
        return None
    found = {}
    for letter, piece in zip(order, pieces, strict=False):
        if piece.isdigit():
            found[letter] = int(piece)
        elif letter == "m" and piece.lower() in _MONTH_NUMBERS:
            found[letter] = _MONTH_NUMBERS[piece.lower()]
        else:
            return None
    year, month, day = found["y"], found["m"], found["d"]
    return (year, month, day) if 1000 <= year <= 9999 and 1 <= month <= 12 and 1 <= day <= 31 else None


def date(text: str, order: str, form: str) -> str | None:
    got = _read_date(text, order)
    if got is None:
        return None
    year, month, day = got
    name = MONTHS[month - 1]
    values = {"yyyy": f"{year}", "yy": f"{year % 100:02d}", "Month": name, "Mon": name[:3], "MON": name[:3].upper()}
    values |= {"mm": f"{month:02d}", "m": f"{month}", "dd": f"{day:02d}", "d": f"{day}", "q": f"{(month + 2) // 3}"}
    return _DATE_FIELD.sub(lambda match: values[match[0]], form)


def clock(text: str, hours: int) -> str | None:
    """The first time of day in the text, on the 12-hour or the 24-hour clock."""
    match = _TIME.search(text)
    if match is None or int(match[1]) > 23 or int(match[2]) > 59 or (match[3] is None) == (hours == 24):
        return None
    hour = int(match[1])
    if hours == 24:
        new = f"{hour % 12 + (12 if match[3] == 'PM' else 0):02d}:{match[2]}"
    else:
        new = f"{(hour + 11) % 12 + 1}:{match[2]} {'PM' if hour >= 12 else 'AM'}"
    return text[: match.start()] + new + text[match.end() :]


def pattern(text: str, form: str) -> str | None:
    """The digits of the text written into the places `#` of a form; None unless there are as many."""
    digits = [c for c in text if c.isdigit()]
    if len(digits) != form.count("#"):
        return None
    left = iter(digits)
    return "".join(next(left) if c == "#" else c for c in form)


def hide(text: str, mark: str, keep: int) -> str | None:
    """Letters and digits masked, all but the last `keep` ones; punctuation and spaces stay."""
    masked = sum(c.isalnum() for c in text) - keep
    if masked < 1:
        return None
    out, seen = [], 0
    for c in text:
        seen += c.isalnum()
        out.append(mark if c.isalnum() and seen <= masked else c)
    return "".join(out)


def show(text: str, mark: str, keep: int) -> str | None:
    """Letters and digits masked, all but the first `keep` ones."""
    masked = hide(text[::-1], mark, keep)
    return None if masked is None else masked[::-1]


def thousands(text: str, mark: str) -> str | None:
    match = _NUMBER.search(text)
    if match is None:
        return None
    whole, dot, rest = match[0].partition(".")
    return f"{text[: match.start()]}{int(whole):,}".replace(",", mark) + dot + rest + text[match.end() :]


def decimals(text: str, n: int) -> str | None:
    """The first number with exactly n decimals: cut off or filled with zeros, not rounded."""
    match = _NUMBER.search(text)
    if match is None:
        return None
    whole, _, rest = match[0].partition(".")
    new = f"{whole}.{rest[:n].ljust(n, '0')}" if n else whole
    return text[: match.start()] + new + text[match.end() :]


def comma_decimal(text: str) -> str | None:
    return text.translate(str.maketrans(".,", ",."))


def unpad(text: str) -> str:
    return re.sub(r"(?<!\d)0+(?=\d)", "", text)


def clip(text: str, n: int) -> str:
    return " ".join(w[:n] for w in text.split())


def _date(column: Column, draw: Draw) -> Params | None:
    for order, shape in _SHAPES.items():
        if all(shape.match(t) for t in column.texts):
            return (order, draw.choice(_FORMATS))
    return None


def _clock(column: Column, draw: Draw) -> Params | None:
    matches = [match for t in column.texts if (match := _TIME.search(t))]
    if len(matches) < len(column.texts):
        return None
    return (24,) if all(m[3] for m in matches) else (12,)


_PATTERNS = {
    10: (
        "(###) ###-####", "###-###-####", "###.###.####", "+1 ### ### ####", "### ### ####", "###/#######",
        "(###)#######", "+1-###-###-####", "### #######", "1 (###) ### ####", "## ## ## ## ##", "###-#######",
        "[###] ###-####", "### - ### - ####",
    ),
    9: (
        "###-##-####", "### ### ###", "### ## ####", "###.###.###", "#########", "##-#######", "###/##/####",
    ),
    8: (
        "####-##-##", "## ## ## ##", "####/####", "##.##.####", "#### ####", "####.##.##", "##-##-####",
    ),
    16: (
        "####-####-####-####", "####.####.####.####", "####/####/####/####", "######## ########",
        "####_####_####_####",
    ),
    4: (
        "##:##", "##-##", "##.##", "##/##", "# ###", "##h##",
    ),
    12: (
        "####-##-## ##:##", "######-######", "#### #### ####", "###-###-###-###",
    ),
}  # fmt: skip


def _pattern(column: Column, draw: Draw) -> Params | None:
    if len(column.digit_counts) != 1:
        return None
    n = next(iter(column.digit_counts))
    if n in _PATTERNS and draw.chance(0.7):
        return (draw.choice(_PATTERNS[n]),)
    if not 4 <= n <= 16:
        return None
    glue, out, left = draw.choice(("-", " ", ".", "/", "_", ":")), [], n
    while left:
        size = min(left, draw.choice((2, 3, 4)))
        out.append("#" * size)
        left -= size
    return (glue.join(out),)


def _mask(column: Column, draw: Draw) -> Params | None:
    if column.shortest < 6 or column.longest > 24:
        return None
    return (draw.choice("***xX#.-?•" if draw.chance(0.1) else "***xX#.-?"), draw.weighted((1, 2, 3, 4), (1, 2, 2, 4)))


def _is_number(column: Column) -> bool:
    return all(re.fullmatch(r"[$€£]?[\d,]+(\.\d+)?( \D+)?", t) for t in column.texts)


def _thousands(column: Column, draw: Draw) -> Params | None:
    if not _is_number(column) or "," in "".join(column.texts) or column.longest > 9:
        return None
    return (draw.weighted((",", " ", ".", "'"), (5, 2, 1, 1)),)


def _padded(column: Column) -> bool:
    return sum(bool(re.search(r"(?<!\d)0\d", t)) for t in column.texts) > 0.3 * len(column.texts)


def _on_numbers(high: float) -> Callable[[Column], float]:
    return lambda c: high if _is_number(c) else 0.0


OPERATIONS = (
    Operation(
        "date",
        "reformat",
        "ss",
        date,
        _date,
        lambda c: 20.0 if c.has_digits else 0.0,
        "a date, read in one order of year, month and day, in another form",
    ),
    Operation(
        "clock",
        "reformat",
        "n",
        clock,
        _clock,
        lambda c: 8.0 if c.has_digits else 0.0,
        "a time of day on the 12-hour or the 24-hour clock",
    ),
    Operation(
        "pattern",
        "reformat",
        "s",
        pattern,
        _pattern,
        lambda c: 4.0 if c.has_digits else 0.0,
        "the digits written into a form",
    ),
    Operation(
        "hide",
        "reformat",
        "sn",
        hide,
        _mask,
        lambda c: 1.5 if c.has_digits else 0.4,
        "letters and digits masked, all but the last n",
    ),
    Operation(
        "show",
        "reformat",
        "sn",
        show,
        _mask,
        lambda c: 0.8 if c.has_digits else 0.4,
        "letters and digits masked, all but the first n",
    ),
    Operation("thousands", "reformat", "s", thousands, _thousands, always(3.0), "digits grouped in threes"),
    Operation(
        "decimals",
        "reformat",
        "n",
        decimals,
        lambda c, d: (d.choice((0, 1, 2, 2, 3)),),
        _on_numbers(2.0),
        "a number with n decimals, cut off or filled with zeros",
    ),
    Operation(
        "comma", "reformat", "", comma_decimal, no_params(_is_number), _on_numbers(4.0), "point and comma exchanged"
    ),
    Operation("unpad", "reformat", "", unpad, no_params(_padded), always(2.0), "zeros in front of numbers left out"),
    Operation(
        "clip",
        "reformat",
        "n",
        clip,
        lambda c, d: (d.between(1, 4),) if c.has_letters else None,
        lambda c: 0.8 if c.least_words > 1 else 0.1,
        "each word cut to n characters",
    ),
)
