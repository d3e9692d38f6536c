"""Super-NaturalInstructions (Wang et al. 2022) from a checkout of its official repository.

Expected under the root: `tasks/*.json`, one file a task, and `splits/default/{train,test}_tasks.txt`, one task name a
line. Official rules kept here: of a test task only the first 100 instances count; the definition is the first one
listed. An instance's target is its first output, all its outputs are accepted answers.

Reading needs neither seqio nor TensorFlow:

```
export HYPERFLAX_NATURAL_INSTRUCTIONS=~/natural-instructions
hyperflax tasks --module hyperflax_tasks.natural_instructions
```

The same examples as seqio Tasks, for T5X and other seqio users: `hyperflax_tasks.seqio_tasks`.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from hyperflax.data import registry
from hyperflax.data.examples import Example, ExampleStream, InMemorySource, StreamedExample, TaskInfo, tokenise
from hyperflax.data.jsonl import encodable
from hyperflax.data.vocabularies import SentencePiece, Vocabulary
from hyperflax.errors import ConfigError, DataError
from hyperflax.evaluation.metrics import NI_EXACT_MATCH_CATEGORIES
from hyperflax.evaluation.suite import Suite

from .data_sets import data_sets

ROOT_VARIABLE = "HYPERFLAX_NATURAL_INSTRUCTIONS"
VOCABULARY_VARIABLE = "HYPERFLAX_VOCABULARY"
SPLITS = ("train", "test")
OFFICIAL_TEST_INSTANCES = 100
SHORTEST_TEST_TASK = 84  # instances: one of them has no more
OFFICIAL_TEST_TASKS = 119  # of the English default split
TARGETS_LENGTH = 128  # tokens that the official evaluation generates, its `max_target_length`


class TaskFile(NamedTuple):
    """One task file.

    Attributes:
      name: of the file, without suffix.
      definition, category: the first ones listed.
      sources: the data sets that its instances are made of, as the file names them.
      positives: (input, output) demonstrations.
      instances: (input, outputs) pairs; at least one output each.
    """

    name: str
    definition: str
    category: str
    sources: tuple[str, ...]
    positives: tuple[tuple[str, str], ...]
    instances: tuple[tuple[str, tuple[str, ...]], ...]


def read_task_file(path: pathlib.Path | str) -> TaskFile:
    """Reads one `tasks/*.json`. White space around texts is dropped.

    Raises:
      DataError: an absent file, broken JSON (with its line), a missing key, a definition or category that is no text,
        no instance, an instance without input or output (with its line).
    """
    path = pathlib.Path(path)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a Natural Instructions task file, cannot read it ({error})") from error
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: expected JSON, {error.msg} at column {error.colno}") from error
    if not isinstance(row, dict):
        raise DataError(f"{path}:1: expected a JSON object, got {type(row).__name__}")
    for key in ("Definition", "Categories", "Positive Examples", "Instances"):
        if not isinstance(row.get(key), list | str):
            raise DataError(f"{path}: expected the keys of a Natural Instructions task, '{key}' is missing")
    if not row["Instances"]:
        raise DataError(f"{path}: expected at least one instance, got none")
    return TaskFile(
        name=path.stem,
        definition=_first(row, "Definition", path),
        category=_first(row, "Categories", path),
        sources=_sources(row.get("Source", [])),
        positives=tuple(_positive(item, path, text, n) for n, item in enumerate(row["Positive Examples"])),
        instances=tuple(_instance(item, path, text, n) for n, item in enumerate(row["Instances"])),
    )


def _sources(value: Any) -> tuple[str, ...]:
    """The data sets in `Source`: a text or a list of them, some with several names in one; a file may have none."""
    texts = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    names = (name.strip() for text in texts if isinstance(text, str) for name in re.split("[,;]", text))
    return tuple(filter(None, names))


def _first(row: dict[str, Any], key: str, path: pathlib.Path) -> str:
    """A text, or the first of a list of them; '' of an empty list."""
    value = row[key]
    first = value if isinstance(value, str) else value[0] if value else ""
    if not isinstance(first, str):
        raise DataError(f"{path}: expected a text or a list of texts as '{key}', got {value!r:.80}")
    return encodable(first, key, str(path)).strip()


def _positive(item: Any, path: pathlib.Path, text: str, number: int) -> tuple[str, str]:
    source = item.get("input") if isinstance(item, dict) else None
    target = item.get("output") if isinstance(item, dict) else None
    if isinstance(target, list) and target:  # a few files list the output
        target = target[0]
    if not isinstance(source, str) or not isinstance(target, str):
        raise DataError(f"{_place(path, text, item)}: positive example {number}: expected an input and an output")
    at = f"{path}: positive example {number}"
    return encodable(source, "input", at).strip(), encodable(target, "output", at).strip()


def _instance(item: Any, path: pathlib.Path, text: str, number: int) -> tuple[str, tuple[str, ...]]:
    source = item.get("input") if isinstance(item, dict) else None
    outputs = item.get("output") if isinstance(item, dict) else None
    outputs = [outputs] if isinstance(outputs, str) else outputs
    fine = isinstance(source, str) and isinstance(outputs, list) and all(isinstance(o, str) for o in outputs)
    if not fine or not outputs:  # an output may be empty: some tasks remove characters
        raise DataError(f"{_place(path, text, item)}: instance {number}: expected an input and at least one output")
    at = f"{path}: instance {number}"
    return encodable(source, "input", at).strip(), tuple(encodable(o, "output", at).strip() for o in outputs)


def _place(path: pathlib.Path, text: str, item: Any) -> str:
    """`file:line` of an item with an id, else the file."""
    name = item.get("id") if isinstance(item, dict) else None
    at = text.find(json.dumps(name)) if name else -1
    return str(path) if at < 0 else f"{path}:{text.count(chr(10), 0, at) + 1}"


def task_files(root: pathlib.Path | str, split: str) -> list[pathlib.Path]:
    """The task files of a split, in the order of its list.

    Raises:
      DataError: no such split, an absent list, or a listed task without a file or for the second time (with its line).
    """
    root = pathlib.Path(root)
    if split not in SPLITS:
        raise DataError(f"Natural Instructions: expected a split out of {SPLITS}, got '{split}'")
    listing = root / "splits" / "default" / f"{split}_tasks.txt"
    try:
        lines = listing.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{listing}: expected the official list of {split} tasks, cannot read it ({error})") from error
    paths = []
    for number, line in enumerate(lines, start=1):
        if name := line.strip():
            path = root / "tasks" / f"{name}.json"
            if not path.is_file():
                raise DataError(f"{listing}:{number}: expected the task file {path}, there is none")
            if path in paths:
                raise DataError(f"{listing}:{number}: expected each task once, got '{name}' again")
            paths.append(path)
    if not paths:
        raise DataError(f"{listing}: expected at least one task name, got none")
    return paths


def read_split(root: pathlib.Path | str, split: str, max_instances: int | None = None) -> Iterator[TaskFile]:
    """The tasks of a split, with at most `max_instances` instances each; test tasks never more than their first 100."""
    most = max_instances if split != "test" else min(OFFICIAL_TEST_INSTANCES, max_instances or OFFICIAL_TEST_INSTANCES)
    for path in task_files(root, split):
        task = read_task_file(path)
        yield task._replace(instances=task.instances[:most])


def natural_instructions_source(
    root: pathlib.Path | str, split: str, vocabulary: Vocabulary, max_instances: int | None = None
) -> InMemorySource:
    """The tasks of a split in memory, tokenised; definition and positives are in every task's info.

    Raises:
      DataError: see `task_files` and `read_task_file`.
    """
    return _stream(read_split(root, split, max_instances), vocabulary).in_memory()


def _stream(tasks: Iterable[TaskFile], vocabulary: Vocabulary) -> ExampleStream:
    return ExampleStream(vocabulary, _examples(tasks, vocabulary))


def _examples(tasks: Iterable[TaskFile], vocabulary: Vocabulary) -> Iterator[StreamedExample]:
    def tokens(pair: tuple[str, str], references: Sequence[str] = ()) -> Example:
        return Example.from_text(*pair, vocabulary, references=references)

    for task in tasks:
        info = TaskInfo(
            definition=tokenise(task.definition, vocabulary),
            positives=tuple(map(tokens, task.positives)),
            category=task.category,
            data_sets=data_sets("natural_instructions", task.sources),
        )
        for source, outputs in task.instances:
            yield StreamedExample(task.name, tokens((source, outputs[0]), outputs), info)


def find_root(root: pathlib.Path | str | None = None) -> pathlib.Path:
    """The checkout: the argument, else the environment variable.

    Raises:
      ConfigError: neither is given, or it is no folder.
    """
    found = root or os.environ.get(ROOT_VARIABLE)
    if not found:
        raise ConfigError(f"Natural Instructions: set {ROOT_VARIABLE} to a checkout of allenai/natural-instructions")
    if not pathlib.Path(found).is_dir():
        raise ConfigError(f"Natural Instructions: expected a checkout at {found}, there is no such folder")
    return pathlib.Path(found)


def find_vocabulary(vocabulary: Vocabulary | None = None) -> Vocabulary:
    """The vocabulary: the argument, else T5's from the file that the environment variable names.

    Raises:
      ConfigError: neither is given.
    """
    if vocabulary is not None:
        return vocabulary
    if file := os.environ.get(VOCABULARY_VARIABLE):
        return SentencePiece(file)
    raise ConfigError(f"Natural Instructions: give a vocabulary, or set {VOCABULARY_VARIABLE} to T5's spiece.model")


def register(
    root: pathlib.Path | str | None = None, vocabulary: Vocabulary | None = None, max_instances: int | None = None
) -> None:
    """Registers `natural_instructions_train` (split train) and `natural_instructions_test` (split test).

    Args:
      root: of the checkout; by default what `HYPERFLAX_NATURAL_INSTRUCTIONS` says.
      vocabulary: if a run gives none; by default T5's, from the file that `HYPERFLAX_VOCABULARY` names.
      max_instances: kept of a task.

    Raises:
      ConfigError: no root.
    """
    found = find_root(root)
    for split in SPLITS:
        registry.register_source(
            f"natural_instructions_{split}",
            {split: _loader(found, split, vocabulary, max_instances)},
            description=f"Super-NaturalInstructions, English default split, {split} tasks",
            sizes=functools.partial(_sizes, found, split),
            replace=True,
        )


def suite(root: pathlib.Path | str | None = None) -> Suite:
    """The official evaluation: the first 100 instances of 119 test tasks, support from the positive examples, ROUGE-L;
    in the table of categories exact match where the benchmark has it.

    Raises:
      ConfigError: no root.
    """
    tasks = list(read_split(find_root(root), "test"))
    sizes = {task.name: len(task.instances) for task in tasks}
    short = {name: size for name, size in sizes.items() if size < OFFICIAL_TEST_INSTANCES}
    if list(short.values()) == [SHORTEST_TEST_TASK]:  # the official files have one such
        short = {}
    missing = [f"{name}: {size} of {OFFICIAL_TEST_INSTANCES} instances" for name, size in short.items()]
    if len(tasks) < OFFICIAL_TEST_TASKS:
        missing.insert(0, f"splits/default/test_tasks.txt lists {len(tasks)} of {OFFICIAL_TEST_TASKS} test tasks")
    return Suite(
        name="natural_instructions",
        sources={"test": lambda vocabulary: _stream(tasks, vocabulary).in_memory()},
        unit="test tasks",
        official=OFFICIAL_TEST_TASKS,
        metric="rouge_l",
        support="positives",
        shots=2,
        targets_length=TARGETS_LENGTH,
        category_metrics=dict.fromkeys(NI_EXACT_MATCH_CATEGORIES, "exact_match_normalised"),
        missing=tuple(missing),
    )


def _loader(root: pathlib.Path, split: str, default: Vocabulary | None, most: int | None) -> registry.Loader:
    return lambda vocabulary: _stream(read_split(root, split, most), find_vocabulary(vocabulary or default))


def _sizes(root: pathlib.Path, split: str) -> dict[str, tuple[int, None]]:
    """How many tasks the list has; to count their instances would be to read all of them."""
    return {split: (len(task_files(root, split)), None)}
