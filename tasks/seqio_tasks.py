"""hyperflax's data as seqio Tasks, for T5X and for everyone whose pipeline is seqio.

`register()` adds, as far as the data is there:

- `strings_train`, `strings_held_out`: the embedded default data; features inputs, targets and the strings task and
  definition. Bytes.
- `natural_instructions_train`, `natural_instructions_test`: features inputs, targets and the strings task, definition,
  category, positive_inputs, positive_targets, data_sets, references. `HYPERFLAX_NATURAL_INSTRUCTIONS` and
  `HYPERFLAX_VOCABULARY` say where checkout and vocabulary are.
- `metaicl_SETTING_train`, `metaicl_SETTING_test_SEED`: features inputs, targets, the strings task and category,
  data_sets, positive_inputs, positive_targets and options (the last three empty in training). `HYPERFLAX_METAICL` says
  where the tasks are; a setting none of whose tasks is there is left out.
- `p3_PROMPT_TASK`, for every prompt-task of T0's training mixture: features inputs, targets, the string task and
  data_sets; `p3_train`: the Mixture of them with T0's rates; `p3_held_out`: features inputs, targets, the strings task
  and category, data_sets, positive_inputs, positive_targets (both empty where a prompt-task has no training examples)
  and options. `HYPERFLAX_P3` says where the prompt-tasks are; a side none of whose prompt-tasks is there is left out,
  and so is a prompt-task without a target in all of its examples.
- `text_train`, `text_validation`: the documents of `hyperflax_tasks.corpus`; features inputs (empty) and targets.
  `HYPERFLAX_TEXT` and `HYPERFLAX_VOCABULARY` say where their files and the vocabulary are.

They are made by `hyperflax_tasks.text_task`, which says how they are shuffled.
"""

from __future__ import annotations

import functools
import itertools
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from hyperflax.data.seqio_source import import_seqio
from hyperflax.data.vocabularies import Bytes, Vocabulary
from hyperflax.errors import DataError
from hyperflax_tasks import corpus, metaicl, p3, p3_split
from hyperflax_tasks import natural_instructions as ni
from hyperflax_tasks.data_sets import data_sets
from hyperflax_tasks.strings import load_split, make_examples
from hyperflax_tasks.text_task import add_text_task


def register() -> None:
    """Registers every Task whose data is there."""
    register_strings()
    if os.environ.get(ni.ROOT_VARIABLE):
        register_natural_instructions()
    if os.environ.get(p3.ROOT_VARIABLE):
        register_p3()
    if os.environ.get(metaicl.ROOT_VARIABLE):
        register_metaicl()
    if os.environ.get(corpus.ROOT_VARIABLE) and os.environ.get(ni.VOCABULARY_VARIABLE):
        register_text()


def register_strings(examples: int = 40) -> None:
    """Registers the strings Tasks with so many examples of every program.

    Raises:
      MissingExtraError: seqio is not installed.
    """
    for split, pool in (("train", "train"), ("held_out", "eval")):

        def rows(split: str = split, pool: str = pool) -> Iterator[dict[str, Any]]:
            for program in getattr(load_split(), split):
                text = program.instruction
                for source, target in make_examples(program, 0, examples, pool):
                    yield {"inputs": source, "targets": target, "task": text, "definition": text}

        def count(split: str = split) -> int:
            return examples * len(getattr(load_split(), split))

        add_text_task(f"strings_{split}", split, rows, count, Bytes(), ("task", "definition"))


def register_natural_instructions(
    root: pathlib.Path | str | None = None, vocabulary: Vocabulary | None = None, max_instances: int | None = None
) -> None:
    """Registers Super-NaturalInstructions' two Tasks; arguments as `natural_instructions.register`.

    Raises:
      ConfigError: no root, no vocabulary.
      MissingExtraError: seqio is not installed.
    """
    found, vocabulary = ni.find_root(root), ni.find_vocabulary(vocabulary)
    text, texts = ("task", "definition", "category"), ("positive_inputs", "positive_targets", "data_sets", "references")
    for split in ni.SPLITS:

        def rows(split: str = split) -> Iterator[dict[str, Any]]:
            for task in ni.read_split(found, split, max_instances):
                of_task = {
                    "task": task.name,
                    "definition": task.definition,
                    "category": task.category,
                    "positive_inputs": [a for a, _ in task.positives],
                    "positive_targets": [b for _, b in task.positives],
                    "data_sets": list(data_sets("natural_instructions", task.sources)),
                }
                for source, outputs in task.instances:
                    yield {"inputs": source, "targets": outputs[0], "references": list(outputs), **of_task}

        def count(split: str = split) -> int:
            return sum(len(task.instances) for task in ni.read_split(found, split, max_instances))

        add_text_task(f"natural_instructions_{split}", split, rows, count, vocabulary, text, texts)


def register_p3(root: pathlib.Path | str | None = None, vocabulary: Vocabulary | None = None) -> None:
    """Registers P3's training prompt-tasks, a Task each, their Mixture, and one Task of all held-out prompt-tasks.

    What there are no prompt-tasks of is left out.

    The Mixture `p3_train` has the rates of `p3_split.mixing_rate`, of however many examples there are; prompt-tasks of
    data sets that T0's list does not have are mixed in proportion to their examples, `p3_split.CAP` at most.

    Args:
      root, vocabulary: as for `p3.register`.

    Raises:
      ConfigError: no root, no vocabulary.
      MissingExtraError: seqio is not installed.

    ```
    register_p3("data/p3")
    seqio.get_mixture_or_task("p3_train").get_dataset({"inputs": 1024, "targets": 256}, split="train")
    ```
    """
    found, vocabulary = p3.find_root(root), ni.find_vocabulary(vocabulary)
    for split, add in {"train": _add_p3_mixture, "held_out": _add_p3_held_out}.items():
        try:
            folders = p3.prompt_tasks(found, split)
        except DataError:  # none
            continue
        add(folders, vocabulary)


def _add_p3_mixture(folders: Sequence[pathlib.Path], vocabulary: Vocabulary) -> None:
    seqio = import_seqio()
    by_examples = functools.partial(seqio.mixing_rate_num_examples, maximum=p3_split.CAP)
    rates = []
    for folder in folders:
        if not any(True for _ in p3.read_file(folder / "train.jsonl", choices=False)):
            continue  # not one of its examples has a target

        def rows(path: pathlib.Path = folder / "train.jsonl") -> Iterator[dict[str, Any]]:
            name = path.parent.name
            of_task = {"task": name, "data_sets": list(data_sets("p3", [p3_split.data_set(name)]))}
            for example in p3.read_file(path, choices=False):
                yield {"inputs": example.inputs, "targets": example.target, **of_task}

        def count(path: pathlib.Path = folder / "train.jsonl") -> int:
            return sum(1 for _ in p3.read_file(path, choices=False))

        name = "p3_" + re.sub(r"[^\w.]", "_", folder.name)  # what seqio accepts, P3's own names as they are
        add_text_task(name, "train", rows, count, vocabulary, ("task",), ("data_sets",), handed_on=("task",))
        rates.append((name, p3_split.mixing_rate(folder.name) or by_examples))
    if "p3_train" in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.remove("p3_train")
    seqio.MixtureRegistry.add("p3_train", rates)


def _add_p3_held_out(folders: Sequence[pathlib.Path], vocabulary: Vocabulary) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        for folder in folders:
            positives = p3.read_positives(folder)
            of_task = {
                "task": folder.name,
                "category": p3_split.held_out_data_set(folder.name) or "",
                "data_sets": list(data_sets("p3", [p3_split.data_set(folder.name)])),
                "positive_inputs": [example.inputs for example in positives],
                "positive_targets": [example.target for example in positives],
            }
            for example in p3.read_file(folder / "validation.jsonl", choices=True):
                yield {
                    "inputs": example.inputs, "targets": example.target, "options": list(example.choices), **of_task
                }  # fmt: skip

    def count() -> int:
        return sum(1 for folder in folders for _ in p3.read_file(folder / "validation.jsonl", choices=True))

    text, texts = ("task", "category"), ("positive_inputs", "positive_targets", "data_sets", "options")
    add_text_task("p3_held_out", "held_out", rows, count, vocabulary, text, texts)


def register_metaicl(root: pathlib.Path | str | None = None, vocabulary: Vocabulary | None = None) -> None:
    """Registers a Task for each split of each setting of MetaICL; arguments as `metaicl.register`.

    Raises:
      ConfigError: no root, no vocabulary.
      MissingExtraError: seqio is not installed.
    """
    found, vocabulary = metaicl.find_root(root), ni.find_vocabulary(vocabulary)
    text, texts = ("task", "category"), ("positive_inputs", "positive_targets", "data_sets", "options")
    for setting, split in itertools.product(metaicl.SETTINGS, metaicl.splits()):
        try:
            metaicl.read_setting(found, setting, split.partition("_")[0])
        except DataError:  # no list, or none of its tasks
            continue

        def rows(setting: str = setting, split: str = split) -> Iterator[dict[str, Any]]:
            for task in metaicl.read_split(found, setting, split):
                of_task = {
                    "task": task.name,
                    "category": task.kind,
                    "data_sets": list(data_sets("metaicl", [task.name])),
                    "positive_inputs": [example.inputs for example in task.support],
                    "positive_targets": [example.target for example in task.support],
                }
                for example in task.examples:
                    yield {
                        "inputs": example.inputs, "targets": example.target, "options": list(example.options), **of_task
                    }  # fmt: skip

        def count(setting: str = setting, split: str = split) -> int:
            return sum(len(task.examples) for task in metaicl.read_split(found, setting, split))

        add_text_task(f"metaicl_{setting}_{split}", split, rows, count, vocabulary, text, texts)


def register_text(root: pathlib.Path | str | None = None, vocabulary: Vocabulary | None = None) -> None:
    """Registers plain text's two Tasks; arguments as `corpus.register`.

    Raises:
      ConfigError: no root, no vocabulary.
      MissingExtraError: seqio is not installed.
    """
    found, vocabulary = corpus.find_root(root), ni.find_vocabulary(vocabulary)
    for split in corpus.SPLITS:

        def rows(split: str = split) -> Iterator[dict[str, Any]]:
            return ({"inputs": "", "targets": text} for text in corpus.documents(found, split))

        add_text_task(f"text_{split}", split, rows, None, vocabulary)
