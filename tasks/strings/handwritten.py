"""Thirty tasks as a spreadsheet user types them, kept out of the making of every model here.

They were written before anything was trained. No line comes from the generator, no training example is taken from
them; they measure what a model does with strings and wishes that nobody generated.

>>> task = load_handwritten()[0]
>>> task.name, task.support[0]
('surname_first', ('Grace Hopper', 'Hopper, Grace'))
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib

from hyperflax.errors import DataError

PATH = pathlib.Path(__file__).resolve().parent / "handwritten.jsonl"
Examples = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class HandwrittenTask:
    """A task with its name, what the user wants in words, the examples shown and those to be done."""

    name: str
    intent: str
    support: Examples
    test: Examples


@functools.cache
def load_handwritten(path: pathlib.Path = PATH) -> tuple[HandwrittenTask, ...]:
    """Reads the tasks; raises `DataError` with file and line where one is broken."""
    tasks = []
    for number, line in enumerate(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"), 1):
        try:
            row = json.loads(line)
            support, test = (tuple((e["input"], e["target"]) for e in row[part]) for part in ("support", "test"))
            tasks.append(HandwrittenTask(row["name"], row["intent"], support, test))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(f"{path}:{number}: expected a task with name, intent, support and test: {error}") from error
    return tuple(tasks)
