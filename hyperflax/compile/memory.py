"""Bytes that an instruction of a compiled program reads from and writes to the chip's main memory.

What lies in another memory space counts where it is copied there. A fusion that reads a slice of a large array counts
the slice, one that writes a slice in place the slice; what a fusion only passes on counts nothing.
"""

from __future__ import annotations

from hyperflax.compile.hlo import Computation, Instruction, Module, Shape

FREE = (
    "after-all", "bitcast", "constant", "get-tuple-element", "opt-barrier", "parameter", "partition-id", "replica-id",
    "tuple", "while", "conditional", "call", "async-start", "custom-call",
)  # fmt: skip
_SLICES = ("dynamic-slice", "slice", "gather")


def main_memory_bytes(module: Module, computation: Computation, instruction: Instruction) -> int:
    """Returns the bytes of one instruction; what it calls, other than a fusion, is not among them."""
    opcode = instruction.opcode
    if opcode in FREE or opcode.endswith(("-done", "-update")):
        return 0
    if opcode == "copy-start":  # (destination, source, context)
        return sum(_stored(shape) for shape in instruction.shapes[:2])
    operands = [computation[name].shapes for name in instruction.operands]
    written = sum(_stored(shape) for shape in instruction.shapes)
    if opcode.endswith("-start") and len(instruction.shapes) > len(operands):  # the arguments stand in front
        written = sum(_stored(shape) for shape in instruction.shapes[len(operands) :])
    if opcode in _SLICES:
        read = [0 if shapes[0].space else _stored(instruction.shapes[0]) for shapes in operands[:1]]
        return sum(read) + written
    if opcode == "dynamic-update-slice":
        update = operands[1][0]
        return _stored(update) + (0 if instruction.shapes[0].space else update.nbytes)
    if opcode != "fusion":
        return written + sum(_stored(shape) for shapes in operands for shape in shapes)
    (name,) = instruction.called
    fused = module.computations[name]
    total = 0
    for shapes, parameter in zip(operands, fused.parameters, strict=True):
        whole = sum(_stored(shape) for shape in shapes)
        total += min(whole, _read(module, fused, parameter)) if whole else 0
    return total + _written(module, fused, fused.root, instruction.shapes)


def _stored(shape: Shape) -> int:
    return 0 if shape.space else shape.nbytes


def _read(module: Module, computation: Computation, value: Instruction) -> int:
    """Bytes of a fused value that its users read."""
    total = 0
    for user in computation.users[value.name]:
        if user.opcode in _SLICES and user.operands[0] == value.name:
            total += user.shapes[0].nbytes
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == value.name:
            continue
        elif user.opcode in ("bitcast", "get-tuple-element"):
            total += _read(module, computation, user)
        elif user.opcode == "tuple":  # passed on
            continue
        elif user.opcode == "fusion":
            inner = module.computations[user.called[0]]
            for place, operand in enumerate(user.operands):
                if operand == value.name:
                    total += _read(module, inner, inner.parameters[place])
        else:
            return sum(shape.nbytes for shape in value.shapes)
    return total


def _written(module: Module, computation: Computation, value: Instruction, shapes: tuple[Shape, ...]) -> int:
    """Bytes that a fusion writes for one of its results, of the given shapes outside."""
    if value.opcode == "tuple":
        parts = [computation[name] for name in value.operands]
        total, place = 0, 0
        for part in parts:
            width = len(part.shapes)
            total += _written(module, computation, part, shapes[place : place + width])
            place += width
        return total
    if value.opcode == "parameter" or all(shape.space for shape in shapes):
        return 0
    if value.opcode in ("bitcast", "get-tuple-element") and len(computation[value.operands[0]].shapes) == len(shapes):
        return _written(module, computation, computation[value.operands[0]], shapes)
    if value.opcode == "dynamic-update-slice":
        return computation[value.operands[1]].shapes[0].nbytes
    if value.opcode == "fusion":
        inner = module.computations[value.called[0]]
        return _written(module, inner, inner.root, shapes)
    return sum(_stored(shape) for shape in shapes)
