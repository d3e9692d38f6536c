"""Registers the embedded default data: source `strings`, splits `train` and `held_out`. Needs neither seqio nor a file.

```
hyperflax tasks --module hyperflax_tasks.strings_tasks
```
"""

from __future__ import annotations

from hyperflax.data import registry
from hyperflax.data.examples import InMemorySource
from hyperflax.data.vocabularies import Bytes, Vocabulary
from hyperflax.errors import DataError

from .strings.episodes import SplitName, source
from .strings.split import load_split

SPLITS: tuple[SplitName, ...] = ("train", "held_out")


def register(examples: int = 40) -> None:
    """Registers `strings` with so many examples of every program."""
    registry.register_source(
        "strings",
        {split: _loader(split, examples) for split in SPLITS},
        description="text transformations as spreadsheet users know them; a task is a program",
        sizes=lambda: _sizes(examples),
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
    return {split: (len(found), examples * len(found)) for split, found in programs.items()}
