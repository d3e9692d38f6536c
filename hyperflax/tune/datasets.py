"""Data sets for the tuner out of any episode source: many tasks at once, written as folders of three jsonl files.

>>> written = write_datasets(source, "data", corpus="strings", train=64, validation=32, test=32, tasks=30, seed=0)
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterator

import numpy as np

from hyperflax.data.examples import ExampleSource
from hyperflax.errors import ConfigError, DataError
from hyperflax.files import atomic_directory

_TASKS = 0x64617461  # purpose of the random stream


def write_datasets(
    source: ExampleSource,
    out: pathlib.Path | str,
    *,
    corpus: str,
    train: int = 64,
    validation: int = 32,
    test: int = 32,
    tasks: int | None = None,
    longest: tuple[int, int] | None = None,
    seed: int = 0,
) -> list[pathlib.Path]:
    """Writes a folder for each of a source's tasks that has enough examples; one that is there is kept.

    Args:
      source: of tasks with their examples.
      out: parent of the folders, named as the tasks.
      corpus: what the data sets are of; a task's category is the source's own, or else its name before the first '|'
        or '/'.
      train, validation, test: numbers of examples, all different.
      tasks: how many at most, drawn by `seed`; None takes all.
      longest: tokens of inputs and of targets, end of sequence not included; longer examples are left out.
      seed: of tasks and examples.

    Returns:
      the folders.

    Raises:
      ConfigError: a number below 1.
      DataError: no task has enough examples.
    """
    numbers = {"train": train, "validation": validation, "test": test, **({} if tasks is None else {"tasks": tasks})}
    for what, number in numbers.items():
        if number < 1:
            raise ConfigError(f"data sets: {what}: expected at least 1, got {number}")
    rng = np.random.default_rng(np.random.SeedSequence([_TASKS, seed]))
    folders: list[pathlib.Path] = []
    for number in rng.permutation(len(source.task_names)).tolist():
        if tasks is not None and len(folders) == tasks:
            break
        pairs = list(_pairs(source, number, longest))
        if len(pairs) < train + validation + test:
            continue
        order = np.random.default_rng(np.random.SeedSequence([_TASKS, seed, number])).permutation(len(pairs))
        name = source.task_names[number]
        folder = pathlib.Path(out) / _file_name(name, number)
        folders.append(folder)
        if folder.is_dir():
            continue
        bounds = np.cumsum([0, train, validation, test])
        with atomic_directory(folder) as temporary:
            for split, begin, end in zip(("train", "validation", "test"), bounds, bounds[1:], strict=False):
                lines = [json.dumps(dict(zip(("input", "target"), pairs[at], strict=True))) for at in order[begin:end]]
                (temporary / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
            info = source.info(number)
            about = {
                "name": folder.name,
                "corpus": corpus,
                "category": info.category or _category(name),
                "task": info.own_name or name,
                "data_sets": list(info.data_sets),
            }
            (temporary / "dataset.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    if not folders:
        raise DataError(f"{corpus}: expected a task with {train + validation + test} different examples, found none")
    return folders


def _pairs(source: ExampleSource, task: int, longest: tuple[int, int] | None) -> Iterator[tuple[str, str]]:
    """A task's examples as text, each input once."""
    seen: set[str] = set()
    for example in source.examples(task, range(int(source.sizes[task]))):
        if longest is not None and (len(example.inputs) > longest[0] or len(example.targets) > longest[1]):
            continue
        source_text, target = (
            source.vocabulary.decode(np.asarray(tokens).tolist()) for tokens in (example.inputs, example.targets)
        )
        if source_text not in seen:
            seen.add(source_text)
            yield source_text, target


def _category(name: str) -> str:
    """The word before a task's first separator: `email | upper` -> `email`, `task001_quoref` -> `task001_quoref`."""
    return re.split(r"\s*[|/]\s*", name, maxsplit=1)[0]


def _file_name(name: str, number: int) -> str:
    """A plain folder name, unique by the task's number."""
    return f"{number:05d}-" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
