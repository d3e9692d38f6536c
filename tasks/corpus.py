"""Plain text for pretraining: shards of `{"text": ...}` a line, `.jsonl`, `.json` or either with `.gz`, as C4's are.

One task `text` whose examples have an empty input and a document as target; `hyperflax.data.corruption` cuts windows
out of them. Every hundredth document is for validation.

```
export HYPERFLAX_TEXT=~/text HYPERFLAX_VOCABULARY=~/spiece.model
hyperflax cache --module hyperflax_tasks.corpus --mixture text --split train --out caches/text/train
hyperflax cache --module hyperflax_tasks.corpus --mixture text --split validation --out caches/text/validation
```

Run files with text name the folder of both caches, `MIXTURE_OR_TASK_NAME=caches/text`, or read the shards themselves.
"""

from __future__ import annotations

import gzip
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

from hyperflax.data import registry
from hyperflax.data.examples import Example, ExampleStream, InMemorySource, StreamedExample, TaskInfo, tokenise
from hyperflax.data.jsonl import encodable, read_rows
from hyperflax.data.vocabularies import Vocabulary
from hyperflax.errors import ConfigError, DataError

from .natural_instructions import find_vocabulary

ROOT_VARIABLE = "HYPERFLAX_TEXT"
SPLITS = ("train", "validation")
VALIDATION_EVERY = 100


def text_source(root: pathlib.Path | str, split: str, vocabulary: Vocabulary) -> InMemorySource:
    """The documents of a split, tokenised, in memory; errors as `text_stream`."""
    return text_stream(root, split, vocabulary).in_memory()


def text_stream(root: pathlib.Path | str, split: str, vocabulary: Vocabulary) -> ExampleStream:
    """The documents of a split, tokenised as they are read.

    Raises:
      DataError: when it is read: no such split, no shard, one that cannot be read, a line without a text (with file
        and line), or too few documents for one of this split.
    """
    nothing, info = tokenise("", vocabulary), TaskInfo()
    examples = (Example(nothing, tokenise(text, vocabulary)) for text in documents(root, split))
    return ExampleStream(vocabulary, (StreamedExample("text", example, info) for example in examples))


def documents(root: pathlib.Path | str, split: str) -> Iterator[str]:
    """The documents of a split, in the order of the files. Raises DataError as `text_stream`."""
    root = pathlib.Path(root)
    if split not in SPLITS:
        raise DataError(f"text: expected a split out of {SPLITS}, got '{split}'")
    shards = sorted(path for path in root.glob("*") if path.name.removesuffix(".gz").endswith((".jsonl", ".json")))
    if not shards:
        raise DataError(f"{root}: expected shards of documents, *.jsonl or *.json or these with .gz, found none")
    number, found = 0, False
    for shard in shards:
        for line, row in _rows(shard):
            number += 1
            if not isinstance(row.get("text"), str):
                raise DataError(f"{shard}:{line}: expected a string 'text', got the keys {sorted(row)[:8]}")
            if (number % VALIDATION_EVERY == 0) == (split == "validation"):
                found = True
                yield encodable(row["text"], "text", f"{shard}:{line}")
    if not found:
        raise DataError(
            f"{root}: expected documents for the split '{split}' (every {VALIDATION_EVERY}th is for validation, the "
            f"others are for training), found {number} in all"
        )


def _rows(shard: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a shard; DataError where it cannot be read, or is half of a compressed one."""
    try:
        with gzip.open(shard) if shard.suffix == ".gz" else open(shard, "rb") as lines:
            yield from read_rows(lines, str(shard))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{shard}: expected a shard of documents, cannot read it ({error})") from error


def find_root(root: pathlib.Path | str | None = None) -> pathlib.Path:
    """The folder of shards, `HYPERFLAX_TEXT` by default. Raises ConfigError if there is none."""
    found = root or os.environ.get(ROOT_VARIABLE)
    if not found or not pathlib.Path(found).is_dir():
        raise ConfigError(f"text: set {ROOT_VARIABLE} to a folder of jsonl shards with a 'text' each, got {found!r}")
    return pathlib.Path(found)


def register(root: pathlib.Path | str | None = None, vocabulary: Vocabulary | None = None) -> None:
    """Registers `text`, splits `train` and `validation`.

    Raises:
      ConfigError: no folder, by argument or `HYPERFLAX_TEXT`.
    """
    folder = find_root(root)

    def loader(split: str) -> registry.Loader:
        return lambda given: text_stream(folder, split, find_vocabulary(given or vocabulary))

    registry.register_source(
        "text", {split: loader(split) for split in SPLITS}, description="plain documents for pretraining", replace=True
    )
