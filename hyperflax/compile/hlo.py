"""Reads the text of a compiled XLA program: computations, their instructions, shapes and memory spaces.

Only what the analysis needs is read: names, opcodes, operands, shapes, and the attributes as text. The text is that of
`compiled.as_text()`; instructions stand in the order in which they run where the module says `is_scheduled=true`.

>>> module = parse(compiled.as_text())
>>> [instruction.opcode for instruction in module.entry]
['parameter', 'fusion', ...]
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

from hyperflax.errors import HyperflaxError

_BITS = {"pred": 8, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "c64": 64, "c128": 128, "bf16": 16, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"(?P<dtype>[a-z]\w*)\[(?P<dims>[\d,<=]*)\](?P<layout>\{[^{}]*\})?")
_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%(?P<name>[\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?P<root>ROOT )?%(?P<name>[\w.\-]+) = ")
_OPERAND = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array of a program.

    Attributes:
      dtype: `bf16`, `f32`, ...
      dims: sizes.
      space: memory space; 0 is the chip's main memory.
    """

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def nbytes(self) -> int:
        bits = _BITS.get(self.dtype) or int(re.sub(r"\D.*", "", self.dtype[1:]) or 0)
        return self.size * bits // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
      name, opcode: of it.
      shapes: of its result; several if that is a tuple.
      operands: names of the instructions that it reads.
      arguments: the text between its parentheses, for literals and parameter numbers.
      attributes: the text behind them.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    arguments: str
    attributes: str

    def attribute(self, name: str) -> str | None:
        """Returns an attribute's text up to the next comma or space: `index`, `calls`, `dim_labels`."""
        match = re.search(rf"\b{name}=([^\s,]+)", self.attributes)
        return match[1].lstrip("%") if match else None

    def required(self, name: str) -> str:
        """Like `attribute`. Raises HyperflaxError where there is none."""
        text = self.attribute(name)
        if text is None:
            raise HyperflaxError(
                f"{self.opcode} '{self.name}': expected an attribute '{name}', got '{self.attributes}'"
            )
        return text

    def sizes(self, name: str) -> tuple[int, ...]:
        """Returns an attribute of the form `name={0,1}`; empty where it is absent."""
        match = re.search(rf"\b{name}=\{{([\d,]*)\}}", self.attributes)
        return tuple(int(size) for size in match[1].split(",") if size) if match else ()

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it runs: a fusion's, a call's, a loop's body, all branches."""
        names = re.findall(r"\b(?:calls|to_apply|body|true_computation|false_computation)=%([\w.\-]+)", self.attributes)
        branches = re.search(r"\bbranch_computations=\{([^}]*)\}", self.attributes)
        return (*names, *(_OPERAND.findall(branches[1]) if branches else ()))


class Computation:
    """Instructions in the order in which they run.

    Attributes:
      name: of it.
      instructions: by name.
      root: its result.
    """

    def __init__(self, name: str, instructions: list[Instruction], root: str) -> None:
        self.name = name
        self.instructions = {instruction.name: instruction for instruction in instructions}
        self.root = self.instructions[root]

    def __iter__(self):
        return iter(self.instructions.values())

    def __getitem__(self, name: str) -> Instruction:
        return self.instructions[name]

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Who reads each instruction."""
        found: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self:
            for operand in dict.fromkeys(instruction.operands):
                found[operand].append(instruction)
        return found

    @functools.cached_property
    def parameters(self) -> list[Instruction]:
        """By number."""
        found = [instruction for instruction in self if instruction.opcode == "parameter"]
        return sorted(found, key=lambda instruction: int(instruction.arguments))


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: computations by name, and the one that starts."""

    computations: dict[str, Computation]
    entry: Computation


def parse(text: str) -> Module:
    """Reads a program.

    Raises:
      HyperflaxError: the text is no program, or one of its lines is in a form that is not known; names the line.
    """
    computations: dict[str, Computation] = {}
    entry = name = root = None
    lines: list[Instruction] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if match := _COMPUTATION.match(line):
            name, lines, root = match["name"], [], None
            entry = name if match["entry"] else entry
        elif name is not None and line.startswith("}"):
            computations[name] = Computation(name, lines, root or lines[-1].name)
            name = None
        elif name is not None and (match := _INSTRUCTION.match(line)):
            try:
                lines.append(_instruction(match["name"], line[match.end() :]))
            except (ValueError, IndexError) as error:
                raise HyperflaxError(f"HLO line {number}: cannot read {line[:200]!r} ({error})") from error
            root = match["name"] if match["root"] else root
    if entry is None:
        raise HyperflaxError(f"HLO: expected the text of a program, with an ENTRY, got {text[:200]!r}")
    return Module(computations, computations[entry])


def _instruction(name: str, text: str) -> Instruction:
    """Reads `bf16[2,3]{1,0:T(8,128)} fusion(%a, %b), kind=kLoop, calls=%c`."""
    end = _closing(text) if text.startswith("(") else text.index(" ")
    opcode, _, rest = text[end:].strip().partition("(")
    closing = _closing("(" + rest) - 1
    arguments = rest[: closing - 1]
    return Instruction(
        name, opcode, shapes(text[:end]), tuple(_OPERAND.findall(arguments)), arguments, rest[closing:].lstrip(", ")
    )


def _closing(text: str) -> int:
    """Returns the place behind the parenthesis that closes the one at the start."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place + 1
    raise ValueError("a parenthesis is not closed")


def shapes(text: str) -> tuple[Shape, ...]:
    """Returns the arrays of a type: one, or those of a tuple."""
    found = []
    for match in _SHAPE.finditer(re.sub(r"/\*.*?\*/", "", text)):
        space = re.search(r"S\((\d+)\)", match["layout"] or "")
        dims = tuple(int(size.lstrip("<=")) for size in match["dims"].split(",") if size)
        found.append(Shape(match["dtype"], dims, int(space[1]) if space else 0))
    return tuple(found)
