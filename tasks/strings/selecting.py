"""The family `select`: keep a piece of the string."""

from __future__ import annotations

from .columns import PART, Column, split_parts, split_words
from .lexicon import Draw
from .operation import Operation, Params, always, no_params


def _at(items: list[str], n: int) -> str | None:
    index = n - 1 if n > 0 else n
    return items[index] if -len(items) <= index < len(items) else None


def word(text: str, n: int) -> str | None:
    return _at(split_words(text), n)


def part(text: str, n: int) -> str | None:
    return _at(split_parts(text), n)


def first(text: str, n: int) -> str | None:
    return text[:n] if len(text) > n else None


def last(text: str, n: int) -> str | None:
    return text[-n:] if len(text) > n else None


def skip(text: str, n: int) -> str | None:
    return text[n:].strip() if len(text) > n else None


def cut(text: str, n: int) -> str | None:
    return text[:-n].strip() if len(text) > n else None


def before(text: str, mark: str) -> str | None:
    head, found, _ = text.partition(mark)
    return head.strip() if found else None


def after(text: str, mark: str) -> str | None:
    _, found, tail = text.partition(mark)
    return tail.strip() if found else None


def before_last(text: str, mark: str) -> str | None:
    head, found, _ = text.rpartition(mark)
    return head.strip() if found else None


def after_last(text: str, mark: str) -> str | None:
    _, found, tail = text.rpartition(mark)
    return tail.strip() if found else None


def between(text: str, left: str, right: str) -> str | None:
    _, found, tail = text.partition(left)
    inner, closed, _ = tail.partition(right)
    return inner.strip() if found and closed else None


def field(text: str, n: int, mark: str) -> str | None:
    got = _at(text.split(mark), n)
    return None if got is None else got.strip()


def digits(text: str) -> str:
    return "".join(c for c in text if c.isdigit())


def letters(text: str) -> str:
    return "".join(c for c in text if c.isalpha())


def initials(text: str, dot: str) -> str | None:
    words = PART.findall(text) if " " not in text else split_words(text)
    return "".join(w[0] + dot for w in words)


def from_word(text: str, n: int) -> str | None:
    words = text.split(None, n - 1)
    return words[n - 1].lstrip("-:>").strip() if len(words) >= n else None


def but_last(text: str) -> str | None:
    head, space, _ = text.rpartition(" ")
    return head.rstrip(",;:-<( ") if space else None


def _index(least: int, most: int, draw: Draw) -> Params | None:
    """A position that every row has; from the end only where rows differ in length."""
    if most < 2:
        return None
    choices = list(range(1, min(least, 4) + 1))
    if most > least:
        choices += [-1, -1] + ([-2] if least > 2 else [])
    return (draw.choice(choices),)


def _length(column: Column, draw: Draw) -> Params | None:
    top = min(column.shortest - 1, 6)
    return (draw.weighted(range(1, top + 1), (3, 3, 4, 3, 1, 1)[:top]),) if top > 0 else None


def _short_length(column: Column, draw: Draw) -> Params | None:
    top = min(column.shortest - 2, 4)
    return (draw.weighted(range(1, top + 1), (4, 3, 2, 2)[:top]),) if top > 0 else None


def _mark(column: Column, draw: Draw) -> Params | None:
    marks = [*column.delimiters, *column.delimiters, *([" "] if column.spaced and draw.chance(0.3) else [])]
    return (draw.choice(marks),) if marks else None


def _between(column: Column, draw: Draw) -> Params | None:
    marks = [m for m in '([{<"/-_:@.,=#>)]} ' if all(m in t for t in column.texts)]
    found = []
    for i, left in enumerate(marks):
        for right in marks[:i] + marks[i:]:
            if all(between(t, left, right) for t in column.texts[:16]):
                found.append((left, right))
    return draw.choice(found) if found else None


def _field(column: Column, draw: Draw) -> Params | None:
    marks = [m for m in column.delimiters if m in ",;/-_.:|"]
    if not marks:
        return None
    mark = draw.choice(marks)
    counts = [t.count(mark) + 1 for t in column.texts]
    got = _index(min(counts), max(counts), draw)
    return (*got, mark) if got else None


def _count_weight(column: Column, low: float, high: float) -> float:
    """Counting characters is natural on short unspaced strings only."""
    return high if column.most_words == 1 and column.longest <= 16 else low


OPERATIONS = (
    Operation(
        "word",
        "select",
        "n",
        word,
        lambda c, d: _index(c.least_words, c.most_words, d),
        lambda c: 4.0 if c.spaced else 0.0,
        "the n-th word; negative n counts from the end",
    ),
    Operation(
        "part",
        "select",
        "n",
        part,
        lambda c, d: _index(c.least_parts, c.most_parts, d),
        lambda c: 2.5 if c.delimiters or not c.some_letters else 0.7,
        "the n-th run of letters and digits",
    ),
    Operation("first", "select", "n", first, _length, lambda c: _count_weight(c, 0.4, 1.6), "the first n characters"),
    Operation("last", "select", "n", last, _length, lambda c: _count_weight(c, 0.4, 1.6), "the last n characters"),
    Operation(
        "skip",
        "select",
        "n",
        skip,
        _short_length,
        lambda c: _count_weight(c, 0.2, 0.7),
        "all but the first n characters",
    ),
    Operation(
        "cut", "select", "n", cut, _short_length, lambda c: _count_weight(c, 0.2, 0.6), "all but the last n characters"
    ),
    Operation(
        "before",
        "select",
        "s",
        before,
        _mark,
        lambda c: 3.0 if c.delimiters else 0.3,
        "what stands before the first mark",
    ),
    Operation(
        "after", "select", "s", after, _mark, lambda c: 3.0 if c.delimiters else 0.3, "what stands after the first mark"
    ),
    Operation(
        "beforelast",
        "select",
        "s",
        before_last,
        _mark,
        lambda c: 1.0 if c.delimiters else 0.0,
        "what stands before the last mark",
    ),
    Operation(
        "afterlast",
        "select",
        "s",
        after_last,
        _mark,
        lambda c: 1.0 if c.delimiters else 0.0,
        "what stands after the last mark",
    ),
    Operation(
        "between",
        "select",
        "ss",
        between,
        _between,
        lambda c: 1.6 if len(c.delimiters) > 1 else 0.2,
        "what stands between two marks",
    ),
    Operation(
        "field", "select", "ns", field, _field, lambda c: 1.5 if c.delimiters else 0.0, "the n-th field between marks"
    ),
    Operation(
        "digits",
        "select",
        "",
        digits,
        no_params(lambda c: c.has_digits and not c.all_digits),
        always(1.5),
        "only the digits",
    ),
    Operation(
        "letters",
        "select",
        "",
        letters,
        no_params(lambda c: c.has_letters),
        lambda c: 1.0 if c.has_digits else 0.2,
        "only the letters",
    ),
    Operation(
        "initials",
        "select",
        "s",
        initials,
        lambda c, d: (d.weighted(("", ".", "-", " "), (5, 4, 0.4, 0.0)),) if c.has_letters else None,
        lambda c: 1.8 if c.least_words > 1 else 0.2,
        "the first letter of each word, each followed by a mark",
    ),
    Operation(
        "fromword",
        "select",
        "n",
        from_word,
        lambda c, d: (d.between(2, min(3, c.least_words)),) if c.least_words > 1 else None,
        lambda c: 0.9 if c.most_words > 2 else 0.0,
        "from the n-th word on",
    ),
    Operation(
        "butlast",
        "select",
        "",
        but_last,
        no_params(lambda c: c.spaced),
        lambda c: 0.9 if c.most_words > 2 else 0.0,
        "all but the last word",
    ),
)
