"""A small seqio Task with a feature `task`, whose tasks take turns where it is not shuffled."""

from __future__ import annotations

from collections.abc import Iterator

from hyperflax.data.vocabularies import Bytes
from hyperflax_tasks.text_task import add_text_task

VOCABULARY = Bytes(extra_ids=5)
NAME = "t5x_letters"
EXAMPLES = 40
TASKS = {
    "upper": str.upper,
    "reverse": lambda text: text[::-1],
    "first": lambda text: text[0],
    "twice": lambda text: text + text,
    "last": lambda text: text[-1],
}


def rows() -> Iterator[dict[str, str]]:
    for number in range(EXAMPLES):
        for place, (name, change) in enumerate(TASKS.items()):
            text = "".join(chr(ord("a") + (number * (place + 3) + at * (number + 2)) % 26) for at in range(3))
            yield {"inputs": text, "targets": change(text), "task": name, "definition": name}


def register() -> None:
    add_text_task(NAME, "train", rows, lambda: EXAMPLES * len(TASKS), VOCABULARY, ("task", "definition"))
