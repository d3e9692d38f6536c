"""Programs: an input type and a pipeline of one to four operations; their spelling, parsing and running.

>>> program = parse('name | words "$2, $1" | upword 1')
>>> program.run("Ada Lovelace")
'LOVELACE, Ada'
>>> program.instruction
'name | words "$2, $1" | upword 1'
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable

from hyperflax.errors import DataError

from .inputs import MAX_BYTES, TYPES
from .operation import Params, spell, unquote
from .operations import OPERATIONS

MAX_DEPTH = 4
SEPARATOR = " | "
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[^\s"]+')


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation with its parameters."""

    name: str
    params: Params = ()

    @functools.cached_property
    def text(self) -> str:
        return spell(self.name, self.params)

    def apply(self, text: str) -> str | None:
        return OPERATIONS[self.name].apply(text, *self.params)


@dataclasses.dataclass(frozen=True)
class Program:
    """A text transformation.

    Attributes:
      kind: the type of its inputs, a key of `inputs.TYPES`.
      steps: the operations, applied from left to right.
    """

    kind: str
    steps: tuple[Step, ...]

    @functools.cached_property
    def pipeline(self) -> str:
        """The spelling without the input type."""
        return SEPARATOR.join(step.text for step in self.steps)

    @functools.cached_property
    def instruction(self) -> str:
        """The canonical text: input type, then the operations, joined by ` | `."""
        return f"{self.kind}{SEPARATOR}{self.pipeline}"

    @property
    def depth(self) -> int:
        return len(self.steps)

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The ordered pairs of adjacent operations."""
        names = [step.name for step in self.steps]
        return tuple(itertools.pairwise(names))

    @functools.cached_property
    def _calls(self) -> tuple[tuple[Callable[..., str | None], Params], ...]:
        return tuple((OPERATIONS[step.name].apply, step.params) for step in self.steps)

    def try_run(self, text: str) -> str | None:
        """The output, or None where an operation makes no sense or the output is empty or too long."""
        out = text
        for apply, params in self._calls:
            made = apply(out, *params)
            if not made:
                return None
            out = made
        return out if len(out) <= MAX_BYTES // 4 or len(out.encode()) <= MAX_BYTES else None

    def run(self, text: str) -> str:
        """The output. Raises `DataError` where the program is not applicable."""
        out = self.try_run(text)
        if out is None:
            raise DataError(f"program `{self.instruction}`: not applicable to {text!r}")
        return out


def _split_steps(text: str) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    for token in _TOKEN.findall(text):
        if token == "|":
            groups.append([])
        else:
            groups[-1].append(token)
    return groups


def _parse_step(tokens: list[str], text: str) -> Step:
    if not tokens or tokens[0] not in OPERATIONS:
        raise DataError(f"instruction {text!r}: expected an operation, got {' '.join(tokens)!r}")
    name, *rest = tokens
    signature = OPERATIONS[name].signature
    if len(rest) != len(signature):
        raise DataError(f"instruction {text!r}: `{name}` takes {len(signature)} parameters, got {len(rest)}")
    params: list[int | str] = []
    for letter, token in zip(signature, rest, strict=True):
        if letter == "s" and token[0] == '"':
            params.append(unquote(token))
        elif letter == "n" and re.fullmatch(r"-?\d+", token):
            params.append(int(token))
        else:
            expected = "a quoted string" if letter == "s" else "an int"
            raise DataError(f"instruction {text!r}: `{name}` expects {expected}, got {token}")
    return Step(name, tuple(params))


def parse(instruction: str) -> Program:
    """The program that an instruction spells; raises `DataError` unless it is a canonical spelling.

    `parse(p.instruction) == p` for every program, and `parse(text).instruction == text` for every text it accepts.
    """
    head, *groups = _split_steps(instruction)
    kind = " ".join(head)
    if kind not in TYPES:
        raise DataError(f"instruction {instruction!r}: expected an input type first, got {kind!r}")
    if not 1 <= len(groups) <= MAX_DEPTH:
        raise DataError(f"instruction {instruction!r}: expected 1 to {MAX_DEPTH} operations, got {len(groups)}")
    program = Program(kind, tuple(_parse_step(tokens, instruction) for tokens in groups))
    if program.instruction != instruction:
        raise DataError(f"instruction {instruction!r}: its canonical spelling is {program.instruction!r}")
    return program
