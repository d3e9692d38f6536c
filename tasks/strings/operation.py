"""What an operation is, and its spelling.

An operation is a small pure function on one string with constant parameters. Its spelling is its name and then its
parameters: ints bare, strings in double quotes (backslash escapes a quote and itself). One operation has one spelling.

>>> spell("wrap", ("[", "]")), spell("word", (2,)), spell("upper", ())
('wrap "[" "]"', 'word 2', 'upper')
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

from .columns import Column
from .lexicon import Draw

Param: TypeAlias = int | str
Params: TypeAlias = tuple[Param, ...]
FAMILIES = ("select", "reorder", "recase", "join", "add", "reformat")


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of the language.

    Attributes:
      name: its word in instructions.
      family: one of `FAMILIES`.
      signature: a letter per parameter, `n` for an int, `s` for a string.
      apply: `(text, *params) -> str | None`; None where the operation makes no sense on the text.
      propose: `(column, draw) -> params | None`: parameters that make sense on a column; None where there are none.
      weight: how often users want it on a column of this kind, relative to the other operations.
      summary: a line of documentation.
    """

    name: str
    family: str
    signature: str
    apply: Callable[..., str | None]
    propose: Callable[[Column, Draw], Params | None]
    weight: Callable[[Column], float]
    summary: str


def quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def unquote(token: str) -> str:
    """The inverse of `quote`, for a token with its quotes."""
    out, i, body = [], 0, token[1:-1]
    while i < len(body):
        i += body[i] == "\\"
        out.append(body[i])
        i += 1
    return "".join(out)


def spell(name: str, params: Params) -> str:
    """The canonical text of one step."""
    return " ".join([name, *(quote(p) if isinstance(p, str) else str(p) for p in params)])


def always(weight: float) -> Callable[[Column], float]:
    return lambda column: weight


def no_params(when: Callable[[Column], bool]) -> Callable[[Column, Draw], Params | None]:
    """The proposal of an operation without parameters: apply it where `when` holds."""
    return lambda column, draw: () if when(column) else None
