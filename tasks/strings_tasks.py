"""Registers the embedded default data; needs neither seqio nor a file, and is known without being named.

`strings`, splits `train` and `held_out`: generated programs; `fine_tuning`: the held-out ones with more examples, for
whoever trains on each of them (`hyperflax tune datasets`). `strings_handwritten`, split `test`: tasks typed by hand,
whose support stands among their positives:

```
hyperflax evaluate --model strings --mixture strings_handwritten --split test --support positives --out reports/hand
```
"""

from __future__ import annotations

from hyperflax.data import registry
from hyperflax.data.examples import Example, InMemorySource, TaskExamples, TaskInfo, tokenise
from hyperflax.data.vocabularies import Bytes, Vocabulary
from hyperflax.errors import DataError

from .strings.episodes import SplitName, source
from .strings.handwritten import Examples, load_handwritten
from .strings.split import load_split

SPLITS: tuple[SplitName, ...] = ("train", "held_out")
FINE_TUNING = 128  # examples to train on, to hold out and to test


def register(examples: int = 40) -> None:
    """Registers `strings` with so many examples of every program."""
    registry.register_source(
        "strings",
        {**{split: _loader(split, examples) for split in SPLITS}, "fine_tuning": _loader("held_out", FINE_TUNING)},
        description="text transformations as spreadsheet users know them; a task is a program",
        sizes=lambda: _sizes(examples),
        replace=True,
    )
    registry.register_source(
        "strings_handwritten",
        {"test": _handwritten},
        description="tasks as a spreadsheet user types them; for evaluation only",
        sizes=lambda: {"test": (len(load_handwritten()), sum(len(task.test) for task in load_handwritten()))},
        replace=True,
    )


def _loader(split: SplitName, examples: int) -> registry.Loader:
    def load(vocabulary: Vocabulary | None) -> InMemorySource:
        if vocabulary not in (None, Bytes()):
            raise DataError(f"source 'strings': expected {Bytes()!r}, got {vocabulary!r}")
        return source(split, examples)

    return load


def _sizes(examples: int) -> dict[str, tuple[int, int]]:
    programs = {"train": load_split().train, "held_out": load_split().held_out}
    sizes = {split: (len(found), examples * len(found)) for split, found in programs.items()}
    return {**sizes, "fine_tuning": (len(programs["held_out"]), FINE_TUNING * len(programs["held_out"]))}


def _handwritten(vocabulary: Vocabulary | None) -> InMemorySource:
    if vocabulary not in (None, Bytes()):
        raise DataError(f"source 'strings_handwritten': expected {Bytes()!r}, got {vocabulary!r}")
    tokens = Bytes()

    def examples(pairs: Examples) -> list[Example]:
        return [Example.from_text(x, y, tokens) for x, y in pairs]

    return InMemorySource(
        (
            TaskExamples(
                task.name,
                examples(task.test),
                TaskInfo(definition=tokenise(task.intent, tokens), positives=tuple(examples(task.support))),
            )
            for task in load_handwritten()
        ),
        tokens,
    )
