"""MetaICL (Min et al. 2022): tasks with k = 16 shots each under five seeds, in seven settings of train and test tasks.

Expected under the root, as the official scripts write it, `config/` beside the tasks' folders or beside a folder
`data/` that holds them:

- `config/<setting>.json`: `{"train": [task, ...], "test": [task, ...]}`
- `<task>/<task>_16_<seed>_{train,dev,test}.jsonl` for the seeds 100, 13, 21, 42, 87
- `<task>/<task>_16384_100_train.jsonl`: what a training task is learnt from; without it, all that seed 100 has

one JSON object a line: `{"task": ..., "input": ..., "output": ..., "options": [...]}`.

Rules kept here: a seed's 16 training examples are the support, its test file is scored; a test example is answered by
ranking its options by the mean of their tokens' log-probabilities, the output is one of them; a task is a
classification, measured by macro-F1, or multi-choice, measured by accuracy, as `config/tasks/<task>.json` says in
`task_type`; where that is not there, it is a classification if all of its examples have the same options, as the
official evaluation demands of one. Tasks whose folder is not there are left out and counted. A task that the official
list has on both sides (`sick` in non_nli_to_nli) is tested and not trained on.

```
export HYPERFLAX_METAICL=~/MetaICL HYPERFLAX_VOCABULARY=~/spiece.model
hyperflax tasks --module hyperflax_tasks.metaicl
```
"""

from __future__ import annotations

import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from hyperflax.data import registry
from hyperflax.data.examples import Example, ExampleStream, InMemorySource, StreamedExample, TaskInfo
from hyperflax.data.jsonl import encodable, read_rows
from hyperflax.data.vocabularies import Vocabulary
from hyperflax.errors import ConfigError, DataError
from hyperflax.evaluation.suite import Suite

from .data_sets import data_sets
from .natural_instructions import find_vocabulary

_LOG = logging.getLogger("hyperflax.tasks")

ROOT_VARIABLE = "HYPERFLAX_METAICL"
K = 16
INPUTS_LENGTH = 256  # tokens of an example, `max_length_per_example` of the official commands
SEEDS = (100, 13, 21, 42, 87)
TRAIN_FILE = "16384_100_train"  # of a training task, in the official layout
CLASSIFICATION, MULTI_CHOICE = "classification", "multi-choice"

# Test tasks of every setting in the official lists.
SETTINGS = {
    "hr_to_lr": 26,
    "class_to_class": 20,
    "non_class_to_class": 20,
    "qa_to_qa": 22,
    "non_qa_to_qa": 22,
    "non_nli_to_nli": 8,
    "non_paraphrase_to_paraphrase": 4,
}


class TaskExample(NamedTuple):
    """One example as text; `options` is empty where the answer is free."""

    inputs: str
    target: str
    options: tuple[str, ...]


class Setting(NamedTuple):
    """The tasks of one side of a setting.

    Attributes:
      present: their folders, in the order of the list.
      absent: names of those that are not at hand.
    """

    present: tuple[pathlib.Path, ...]
    absent: tuple[str, ...]


def read_setting(root: pathlib.Path | str, setting: str, side: str) -> Setting:
    """The tasks that `config/<setting>.json` lists as `train` or `test`; those of both are for the test alone.

    Raises:
      DataError: no such setting or side, an absent or broken list or a task twice in it, not one of its tasks at hand.
    """
    if setting not in SETTINGS or side not in ("train", "test"):
        raise DataError(
            f"MetaICL: expected a setting out of {tuple(SETTINGS)}, train or test, got '{setting}', '{side}'"
        )
    root = pathlib.Path(root)
    path = root / "config" / f"{setting}.json"
    lists = _read_json(path, "the tasks of a MetaICL setting")
    names = lists.get(side) if isinstance(lists, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: expected a list of task names '{side}', got {names!r:.80}")
    if twice := [name for number, name in enumerate(names) if name in names[:number]]:
        raise DataError(f"{path}: expected each task of '{side}' once, got '{twice[0]}' again")
    if side == "train" and isinstance(tested := lists.get("test"), list):
        if both := [name for name in names if name in tested]:
            _LOG.warning("%s: %s is also a test task and not trained on", path, ", ".join(both))
        names = [name for name in names if name not in both]
    data = root / "data" if (root / "data").is_dir() else root
    present = tuple(data / name for name in names if (data / name).is_dir())
    if not present:
        raise DataError(f"{path}: expected the folder of at least one of the {len(names)} {side} tasks in {data}")
    return Setting(present, tuple(name for name in names if not (data / name).is_dir()))


def _read_json(path: pathlib.Path, what: str) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected {what}, cannot read it ({error})") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: expected JSON, {error.msg} at column {error.colno}") from error


def read_file(path: pathlib.Path | str, *, scored: bool) -> list[TaskExample]:
    """The examples of one jsonl file, white space around texts dropped.

    Of `scored` ones the output is among the options, where there are some. The official code asks that of no others:
    what is learnt from and what is shown is not ranked.

    Raises:
      DataError: an absent or empty file, a broken line or a scored one whose output is none of its options (with its
        number).
    """
    try:
        with open(path, "rb") as lines:
            examples = [_example(row, f"{path}:{number}", scored) for number, row in read_rows(lines, str(path))]
    except OSError as error:
        raise DataError(f"{path}: expected a file of MetaICL examples, cannot read it ({error.strerror})") from error
    if not examples:
        raise DataError(f"{path}: expected at least one example, got none")
    return examples


def _example(row: dict[str, Any], place: str, scored: bool) -> TaskExample:
    source, target, options = row.get("input"), row.get("output"), row.get("options", [])
    if not isinstance(source, str) or not isinstance(target, str):
        raise DataError(f"{place}: expected the strings 'input' and 'output', got the keys {sorted(row)[:8]}")
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise DataError(f"{place}: expected a list of strings 'options', got {options!r:.80}")
    if scored and options and target not in options:
        raise DataError(f"{place}: expected the output to be an option, got {target!r:.40} and {options!r:.80}")
    source, target = encodable(source, "input", place), encodable(target, "output", place)
    return TaskExample(source.strip(), target.strip(), tuple(encodable(o, "options", place).strip() for o in options))


def task_file(folder: pathlib.Path, part: str) -> pathlib.Path:
    """`<task>/<task>_<part>.jsonl`, where a part is such as `16_100_train`."""
    return folder / f"{folder.name}_{part}.jsonl"


def training_examples(folder: pathlib.Path) -> list[TaskExample]:
    """What a training task is learnt from; errors as `read_file`."""
    if (path := task_file(folder, TRAIN_FILE)).is_file():
        return read_file(path, scored=False)
    paths = [task_file(folder, f"{K}_100_{part}") for part in ("train", "dev", "test")]
    return [example for path in paths for example in read_file(path, scored=False)]


def kind(root: pathlib.Path | str, name: str, examples: Iterable[TaskExample]) -> str:
    """`classification` or `multi-choice`, see the module's docstring.

    A task may be multi-choice and have constant options: the official configuration counts, if it is there.

    Raises:
      DataError: a configuration that says neither.
    """
    path = pathlib.Path(root) / "config" / "tasks" / f"{name}.json"
    if not path.is_file():
        return CLASSIFICATION if len({example.options for example in examples}) == 1 else MULTI_CHOICE
    config = _read_json(path, "the configuration of a MetaICL task")
    found = config.get("task_type") if isinstance(config, dict) else None
    if found not in (CLASSIFICATION, MULTI_CHOICE):
        raise DataError(f"{path}: task_type: expected '{CLASSIFICATION}' or '{MULTI_CHOICE}', got {found!r:.80}")
    return found


def metaicl_source(root: pathlib.Path | str, setting: str, split: str, vocabulary: Vocabulary) -> InMemorySource:
    """One side of a setting in memory.

    Args:
      root: see the module's docstring.
      setting: one of `SETTINGS`.
      split: `train`, or `test_<seed>`: the scored examples are the task's examples, the 16 shots its positives, the
        kind of the task its category.
      vocabulary: of the tokens.

    Raises:
      DataError: see `read_setting` and `read_file`; a test task without options.
    """
    return metaicl_stream(root, setting, split, vocabulary).in_memory()


def metaicl_stream(root: pathlib.Path | str, setting: str, split: str, vocabulary: Vocabulary) -> ExampleStream:
    """`metaicl_source`, as it is read."""
    return ExampleStream(vocabulary, _examples(root, setting, split, vocabulary))


def splits() -> tuple[str, ...]:
    """The names of a setting's splits."""
    return ("train", *(f"test_{seed}" for seed in SEEDS))


class TaskOfSplit(NamedTuple):
    """What a split has of one task.

    Attributes:
      name: of the task.
      examples: to learn from, without options, or scored.
      support: the 16 shots; none of a training task.
      kind: `classification` or `multi-choice`; '' of a training task.
    """

    name: str
    examples: list[TaskExample]
    support: list[TaskExample]
    kind: str


def read_split(root: pathlib.Path | str, setting: str, split: str) -> Iterator[TaskOfSplit]:
    """The tasks of one of `splits()`, one after the other.

    Raises:
      DataError: as `metaicl_source`.
    """
    if split not in splits():
        raise DataError(f"MetaICL: expected a split out of {splits()}, got '{split}'")
    side, _, seed = split.partition("_")
    for folder in read_setting(root, setting, side).present:
        if side == "train":
            examples = [example._replace(options=()) for example in training_examples(folder)]
            yield TaskOfSplit(folder.name, examples, [], "")
            continue
        support = read_file(task_file(folder, f"{K}_{seed}_train"), scored=False)
        path = task_file(folder, f"{K}_{seed}_test")
        scored = read_file(path, scored=True)
        if not all(len(example.options) > 1 for example in scored):
            raise DataError(f"{path}: expected at least two options in every line of a test task")
        yield TaskOfSplit(folder.name, scored, support, kind(root, folder.name, [*support, *scored]))


def _examples(root: pathlib.Path | str, setting: str, split: str, vocabulary: Vocabulary) -> Iterator[StreamedExample]:
    def tokens(example: TaskExample) -> Example:
        return Example.from_text(example.inputs, example.target, vocabulary, options=example.options)

    for task in read_split(root, setting, split):
        info = TaskInfo(
            positives=tuple(map(tokens, task.support)),
            category=task.kind,
            data_sets=data_sets("metaicl", [task.name]),
        )
        for example in task.examples:
            yield StreamedExample(task.name, tokens(example), info)


def find_root(root: pathlib.Path | str | None = None) -> pathlib.Path:
    """The folder of tasks: the argument, else the environment variable.

    Raises:
      ConfigError: neither is given, or it has no `config` folder.
    """
    found = root or os.environ.get(ROOT_VARIABLE)
    if not found or not (pathlib.Path(found) / "config").is_dir():
        raise ConfigError(f"MetaICL: set {ROOT_VARIABLE} to a folder with MetaICL's tasks and config/, got {found!r}")
    return pathlib.Path(found)


def suite(setting: str, root: pathlib.Path | str | None = None) -> Suite:
    """The official evaluation of a setting: options ranked, macro-F1 or accuracy, mean over five seeds of support.

    Raises:
      ConfigError: no root.
      DataError: see `read_setting`.
    """
    found = find_root(root)
    present, absent = read_setting(found, setting, "test")
    missing = [f"not at hand: {', '.join(absent)}"] if absent else []
    if (listed := len(present) + len(absent)) < SETTINGS[setting]:
        missing.insert(0, f"config/{setting}.json lists {listed} of {SETTINGS[setting]} test tasks")

    def loader(seed: int) -> Callable[[Vocabulary], InMemorySource]:
        return lambda vocabulary: metaicl_source(found, setting, f"test_{seed}", vocabulary)

    return Suite(
        name=f"metaicl/{setting}",
        sources={f"seed {seed}": loader(seed) for seed in SEEDS},
        unit="test tasks",
        official=SETTINGS[setting],
        metric="accuracy",
        support="positives",
        shots=K,
        inputs_length=INPUTS_LENGTH,
        ranked="mean",
        category_metrics={CLASSIFICATION: "macro_f1"},
        mixed=True,
        missing=tuple(missing),
    )


def register(root: pathlib.Path | str | None = None, vocabulary: Vocabulary | None = None) -> None:
    """Registers `metaicl_<setting>` for every setting: splits `train`, `test_100`, `test_13`, ...

    No file is read before a split is loaded: one of a setting that is not at hand says then what it lacks.

    Args:
      root: of the tasks; by default what `HYPERFLAX_METAICL` says.
      vocabulary: if a run gives none; by default T5's, from the file that `HYPERFLAX_VOCABULARY` names.

    Raises:
      ConfigError: no root.
    """
    found = find_root(root)

    def loader(setting: str, split: str) -> registry.Loader:
        return lambda given: metaicl_stream(found, setting, split, find_vocabulary(given or vocabulary))

    for setting in SETTINGS:
        registry.register_source(
            f"metaicl_{setting}",
            {split: loader(setting, split) for split in splits()},
            description=f"MetaICL, setting {setting}; the test splits are the seeds",
            replace=True,
        )
