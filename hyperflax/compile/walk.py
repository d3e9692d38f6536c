"""Walks a compiled program as it runs: operations, bytes of memory, communication; loops count as often as they turn.

XLA's own cost analysis counts the body of a loop once. Here it counts by the number of its turns, which is read from
the loop's condition; one that may end early, such as decoding, counts with the most turns that it can take.

Communication counts as overlapped where the program shows it: products that run between the start and the end of a
collective. Where several are under way, they share those products.

>>> work = walk(parse(compiled.as_text()), devices=256)
>>> work.flops, work.nbytes, [collective.kind for collective in work.collectives]
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from hyperflax.compile.collectives import Collective, first_group, kind_of, received_bytes
from hyperflax.compile.hlo import Computation, Instruction, Module
from hyperflax.compile.memory import main_memory_bytes
from hyperflax.compile.products import product_flops

PRODUCTS = ("dot", "convolution")
# What TPU fusions around a part of a collective that runs beside products hold besides.
_START, _DONE = "AsyncCollectiveStart", "AsyncCollectiveDone"


@dataclasses.dataclass
class Work:
    """What one chip does.

    Attributes:
      flops: operations of matrix products.
      nbytes: of main memory, read and written.
      collectives: in the order of the program.
      loops: turns of every loop by its name; None where the program does not say, counted as 1.
    """

    flops: int = 0
    nbytes: int = 0
    collectives: list[Collective] = dataclasses.field(default_factory=list)
    loops: dict[str, int | None] = dataclasses.field(default_factory=dict)

    def add(self, other: Work, times: int = 1) -> None:
        """Adds what another part does `times` times."""
        self.flops += times * other.flops
        self.nbytes += times * other.nbytes
        self.collectives += [dataclasses.replace(one, times=times * one.times) for one in other.collectives]
        self.loops |= other.loops


def walk(module: Module, devices: int) -> Work:
    """Returns the work of one of `devices` chips."""
    return _Walker(module, devices).run(module.entry)


class _Walker:
    def __init__(self, module: Module, devices: int) -> None:
        self.module, self.devices = module, devices

    def run(self, computation: Computation) -> Work:
        """The work of a computation that is not fused, whose instructions run one after the other."""
        work = Work()
        seen: set[str] = set()
        under_way: dict[str, int] = {}  # channel or name -> place in work.collectives
        for instruction in computation:
            part, started, done = self._instruction(computation, instruction, seen)
            for key in done:
                under_way.pop(key, None)
            for place in under_way.values():
                one = work.collectives[place]
                share = one.overlapped_flops + part.flops // len(under_way)
                work.collectives[place] = dataclasses.replace(one, overlapped_flops=share)
            for number, key in enumerate(started):
                under_way[key] = len(work.collectives) + number
            work.add(part)
        return work

    def _instruction(
        self, computation: Computation, instruction: Instruction, seen: set[str]
    ) -> tuple[Work, list[str], list[str]]:
        """Returns the work of one instruction, and the collectives that it starts and ends."""
        opcode = instruction.opcode
        work = Work(nbytes=main_memory_bytes(self.module, computation, instruction))
        if opcode == "while":
            turns = loop_turns(self.module, computation, instruction)
            work.add(self.run(self.module.computations[instruction.called[0]]), 1 if turns is None else turns)
            work.loops[instruction.name] = turns
            return work, [], []
        if opcode == "conditional":
            branches = [self.run(self.module.computations[name]) for name in instruction.called]
            work.add(max(branches, key=lambda branch: (branch.flops, branch.nbytes)))
            return work, [], []
        if opcode.endswith("-done"):
            return work, [], list(instruction.operands[:1])
        if opcode in ("call", "async-start"):
            for name in instruction.called:
                work.add(self.run(self.module.computations[name]))
            return work, [instruction.name] * len(work.collectives) if opcode == "async-start" else [], []
        inside = list(self._inside(computation, instruction))
        work.flops = sum(
            product_flops(one, [home[name].shapes[0] for name in one.operands[:2]])
            for home, one in inside
            if one.opcode in PRODUCTS
        )
        channels = []
        for home, one in inside:
            if (kind := kind_of(one)) is None:
                continue
            channel = one.attribute("channel_id") or one.name
            channels.append(channel)
            if channel not in seen:
                work.collectives.append(self._collective(kind, home, one))
            seen.add(channel)
        targets = {one.attribute("custom_call_target") for _, one in inside if one.opcode == "custom-call"}
        targets = {target.strip('"') for target in targets if target}
        if opcode.endswith("-start") and work.collectives:
            return work, [instruction.name], []
        started = channels[: len(work.collectives)] if _START in targets else []
        return work, started, channels if _DONE in targets else []

    def _inside(self, computation: Computation, instruction: Instruction) -> Iterator[tuple[Computation, Instruction]]:
        """Yields the instruction, or those of a fusion and of the fusions in it, with where they stand."""
        if instruction.opcode != "fusion":
            yield computation, instruction
            return
        for name in instruction.called:
            fused = self.module.computations[name]
            for one in fused:
                yield from self._inside(fused, one)

    def _collective(self, kind: str, home: Computation, instruction: Instruction) -> Collective:
        arguments = sum(shape.nbytes for name in instruction.operands for shape in home[name].shapes)
        results = sum(shape.nbytes for shape in instruction.shapes)
        if instruction.opcode.endswith("-start"):  # beside the result stands the argument
            results -= arguments
        group = first_group(instruction, self.devices)
        if kind == "all-reduce" and home.name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # TPU fuses the sum with the choice of a part
        received = received_bytes(kind, results if kind == "all-gather" else arguments, len(group))
        source = re.search(r'op_name="([^"]*)"', instruction.attributes)
        return Collective(kind, group, received, 1, source[1] if source else instruction.name)


def loop_turns(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """Returns how often a loop's body runs at most, or None where its condition does not compare with a constant.

    A condition `counter < limit` of a counter that starts at a constant and grows by one, as `lax.scan` and
    `lax.fori_loop` make it; other conditions beside it can only end the loop earlier.
    """
    condition = module.computations[loop.required("condition")]
    start = computation[loop.operands[0]]

    def value(where: Computation | _Joined, one: Instruction) -> int | None:
        """The constant behind an instruction of the condition, or of what is given to the loop."""
        if one.opcode == "constant":
            return int(one.arguments) if re.fullmatch(r"-?\d+", one.arguments) else None
        if one.opcode in ("copy", "bitcast"):
            return value(where, where[one.operands[0]])
        return None

    def given(one: Instruction) -> Instruction | None:
        """What is given to the loop for an element of its state."""
        if one.opcode != "get-tuple-element" or start.opcode != "tuple":
            return None
        return computation[start.operands[int(one.required("index"))]]

    bounds = []
    for home, one in _comparisons(module, condition):
        left, right = (home[name] for name in one.operands)
        if one.attribute("direction") == "GT":
            left, right = right, left
        elif one.attribute("direction") != "LT":
            continue
        limit = value(home, right)
        if limit is None and (outer := given(right)) is not None:
            limit = value(computation, outer)
        outer = given(left)
        first = value(computation, outer) if outer is not None else None
        if limit is not None:
            bounds.append(limit - (first or 0))
    return min(bounds) if bounds else None


def _comparisons(module: Module, computation: Computation) -> Iterator[tuple[Computation | _Joined, Instruction]]:
    for one in computation:
        if one.opcode == "compare":
            yield computation, one
        elif one.opcode == "fusion":
            # A fused comparison's operands are parameters: seen as what the fusion is given.
            fused = module.computations[one.called[0]]
            for inner in fused:
                if inner.opcode == "compare":
                    outer = [_argument(computation, one, fused, name) for name in inner.operands]
                    names = tuple(found.name for found in outer)
                    yield _Joined(computation, outer), dataclasses.replace(inner, operands=names)


class _Joined:
    """Instructions of a computation and of a fusion in it, by name."""

    def __init__(self, computation: Computation, others: list[Instruction]) -> None:
        self._computation, self._others = computation, {one.name: one for one in others}

    def __getitem__(self, name: str) -> Instruction:
        return self._others[name] if name in self._others else self._computation[name]


def _argument(outer: Computation, fusion: Instruction, fused: Computation, name: str) -> Instruction:
    one = fused[name]
    return outer[fusion.operands[int(one.arguments)]] if one.opcode == "parameter" else one
