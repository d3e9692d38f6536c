"""Communication of a compiled program: which chips of a group talk, how many bytes each receives, over which links.

    all-gather       (n - 1) / n of the result          all-reduce           twice that of its argument
    reduce-scatter   (n - 1) / n of the argument        all-to-all           (n - 1) / n of its argument
    collective-permute   its argument

These are the bytes that a chip receives with ring algorithms, the least that is possible (Chan et al. 2007, Collective
communication: theory, practice, and experience, section 3).
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from hyperflax.compile.hlo import Instruction
from hyperflax.errors import HyperflaxError

_MESH = r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute", "collective-broadcast")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program, and how often it runs.

    Attributes:
      kind: one of `KINDS`.
      group: numbers of the devices of one group, in the program's own order.
      received: bytes that a chip receives each time.
      times: how often it runs.
      source: what it stands for in the program, XLA's `op_name`.
      overlapped_flops: operations of the products that run between its start and its end, each time; 0 where nothing
        in the program shows that any do.
    """

    kind: str
    group: tuple[int, ...]
    received: int
    times: int
    source: str
    overlapped_flops: int = 0


def kind_of(instruction: Instruction) -> str | None:
    """Returns the kind of a collective, started or done at once; None for any other instruction."""
    opcode = instruction.opcode.removesuffix("-start")
    return opcode if opcode in KINDS else None


def received_bytes(kind: str, nbytes: int, size: int) -> int:
    """Returns what a chip of a group of `size` receives for `nbytes`: of the result for `all-gather`, else the
    argument.

    >>> received_bytes("all-reduce", 1000, 4)
    1500
    """
    if kind in ("collective-permute", "collective-broadcast"):
        return nbytes
    return (2 if kind == "all-reduce" else 1) * nbytes * (size - 1) // size


def first_group(instruction: Instruction, devices: int) -> tuple[int, ...]:
    """Returns the device numbers of the first group.

    Four forms are known: lists, `[groups,size]<=[shape]T(order)`, `mesh['a'=2,'b'=4], device_ids=([2,4]T(1,0)) {'a'}`,
    and pairs of a permute.

    Raises:
      HyperflaxError: another form.
    """
    text = instruction.attributes
    if match := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", text):
        return int(match[1]), int(match[2])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return tuple(int(number) for number in match[1].split(","))
    if re.search(r"replica_groups=\{\}", text):
        return tuple(range(devices))
    if match := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        return tuple(_iota(match[2], match[3]).reshape(_ints(match[1]))[0].tolist())
    if mesh := re.search(_MESH, text):
        axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        sizes = tuple(axes.values())
        ids = _iota(mesh[2], mesh[3]) if mesh[2] else np.arange(np.prod(sizes))
        chosen = set(re.findall(r"'([^']+)'", mesh[4]))
        index = tuple(slice(None) if name in chosen else 0 for name in axes)
        return tuple(ids.reshape(sizes)[index].ravel().tolist())
    raise HyperflaxError(f"HLO: expected replica groups in a known form, got {instruction.name}: {text[:200]}")


def _iota(dims: str, order: str | None) -> np.ndarray:
    sizes = _ints(dims)
    numbers = np.arange(np.prod(sizes)).reshape(sizes)
    return (numbers.transpose(_ints(order)) if order else numbers).ravel()


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))
