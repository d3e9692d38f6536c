"""Random programs that make sense on their input type.

A pipeline is grown on the 64 probes of its type. Each step draws an operation in proportion to its weight on the column
so far, asks it for parameters that fit that column, and keeps it only if the column survives it: every row has a
non-empty output of at most 64 bytes, nearly every row changes, no row ends in a space, and rows stay different.
"""

from __future__ import annotations

from collections import Counter

from .columns import Column
from .inputs import MAX_BYTES, probes
from .lexicon import Draw
from .operations import FAMILIES, OPERATIONS, Operation
from .programs import Program, Step

MIN_CHANGED = 0.75
MIN_DISTINCT = 6
MAX_SHARE = 0.35

# How often users meet the types; the others count 1.
TYPE_WEIGHTS = {
    "name": 1.8, "rawname": 1.2, "fullname": 1.2, "lastfirst": 1.2, "phrase": 1.5, "headline": 1.3, "email": 1.4,
    "workemail": 1.3, "file": 1.3, "phone": 1.2, "address": 1.2, "code": 1.2, "place": 1.1, "time": 0.4,
    "time12": 0.4, "number": 0.6, "size": 0.5, "price": 0.6, "ssn": 0.6, "intphone": 0.7, "card": 0.6,
    "measure": 0.7, "route": 0.7, "slug": 0.8, "snake": 0.8, "camel": 0.8, "semilist": 0.7, "serial": 0.8,
    "invoice": 0.8, "usdate": 0.9, "eudate": 0.9, "longdate": 0.9, "uslongdate": 0.9, "datetime": 0.9, "amount": 0.8,
}  # fmt: skip

_NUMBERS = frozenset({"amount", "price", "number", "measure"})
_DATES = frozenset({"isodate", "usdate", "eudate", "longdate", "uslongdate", "datetime"})
# Operations that would be nonsense elsewhere.
ONLY_FOR = {
    "thousands": _NUMBERS,
    "decimals": _NUMBERS,
    "comma": _NUMBERS,
    "date": _DATES,
    "clock": frozenset({"time", "time12", "datetime"}),
    "pad": frozenset({"number", "ticket", "size", "code", "serial"}),
    "pattern": frozenset({"phone", "intphone", "ssn", "card", "isodate", "eudate", "usdate", "invoice", "number"}),
    "spread": frozenset(
        {"name", "fullname", "code", "serial", "number", "phrase", "time", "headline", "camel", "price"}
    ),
}

# Users cut first, rearrange, then decorate: how a step of one family (row) makes later ones (columns, in the order of
# FAMILIES: select, reorder, recase, join, add, reformat) less likely.
AFTER = {
    "select": (0.5, 1.0, 1.0, 1.0, 1.0, 1.0),
    "reorder": (0.08, 0.0, 1.0, 0.06, 1.0, 0.1),
    "recase": (0.35, 0.6, 0.04, 0.8, 1.0, 0.3),
    "join": (0.08, 0.06, 1.0, 0.15, 1.0, 0.3),
    "add": (0.002, 0.0, 0.04, 0.005, 0.1, 0.002),
    "reformat": (0.1, 0.15, 0.7, 0.4, 1.0, 0.05),
}


def step_column(step: Step, texts: tuple[str, ...]) -> tuple[str, ...] | None:
    """The outputs of a step on every row, or None where some row has none."""
    apply, params = OPERATIONS[step.name].apply, step.params
    out = []
    for text in texts:
        new = apply(text, *params)
        if not new or (len(new) > MAX_BYTES // 4 and len(new.encode()) > MAX_BYTES):
            return None
        out.append(new)
    return tuple(out)


def acceptable(new: tuple[str, ...], *earlier: tuple[str, ...]) -> bool:
    """Whether a column is worth having after `earlier` ones, the inputs included: see the module's docstring."""
    for old in earlier:
        if sum(a != b for a, b in zip(new, old, strict=True)) < MIN_CHANGED * len(new):
            return False
    if any(t[0] == " " or t[-1] == " " for t in new):
        return False
    counts = Counter(new)
    return len(counts) >= MIN_DISTINCT and max(counts.values()) <= MAX_SHARE * len(new)


def sample_program(kind: str, depth: int, draw: Draw) -> tuple[Program, tuple[str, ...]] | None:
    """A random program of a depth and its outputs on the probes; None where this attempt led nowhere."""
    columns = [probes(kind)]
    steps: list[Step] = []
    for done in range(depth):
        column = Column(columns[-1])
        weights = [_weight(op, kind, column, steps, depth - done) for op in OPERATIONS.values()]
        for _ in range(8):
            operation = draw.weighted(list(OPERATIONS.values()), weights)
            params = operation.propose(column, draw)
            if params is None:
                continue
            step = Step(operation.name, params)
            new = step_column(step, columns[-1])
            if new is not None and acceptable(new, *columns):
                break
        else:
            return None
        steps.append(step)
        columns.append(new)
    return Program(kind, tuple(steps)), columns[-1]


def _weight(operation: Operation, kind: str, column: Column, steps: list[Step], left: int) -> float:
    """How much an operation makes sense after the steps so far, with `left` steps to go, itself included."""
    if operation.name in ONLY_FOR and kind not in ONLY_FOR[operation.name]:
        return 0.0
    weight = operation.weight(column)
    for family in dict.fromkeys(OPERATIONS[s.name].family for s in steps):
        weight *= AFTER[family][FAMILIES.index(operation.family)]
    if operation.family == "add" and left > 1:
        weight *= 0.15
    if any(s.name == operation.name for s in steps):
        weight *= 0.3 if operation.family == "select" else 0.0
    return weight
