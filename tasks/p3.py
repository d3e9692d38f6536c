"""P3, the Public Pool of Prompts, with T0's split (Sanh et al. 2022): a folder a prompt-task, with P3's field names.

Expected under the root: `<prompt-task>/train.jsonl` of the training mixture, `<prompt-task>/validation.jsonl` of the
held-out data sets, one JSON object a line:

```
{"inputs_pretokenized": "...", "targets_pretokenized": "...", "answer_choices": ["...", "..."]}
```

A prompt-task is a data set under one prompt template, its folder `<data set>_<template>`. Rules kept here: white space
around texts is dropped (P3's targets start with a space); nothing is learnt from an example without a target, or
without an input, which T0 leaves out as well; a held-out example has answer choices and its target is one of them; held
out are T0's evaluation templates, and other prompts of those data sets are neither evaluated nor trained on, no more
than what T0+ and T0++ add. Where a held-out prompt-task has a `train.jsonl`, its first lines are its positives, from
which supports are taken.

Reading needs neither seqio nor TensorFlow; the same as seqio Tasks: `hyperflax_tasks.seqio_tasks`.

```
export HYPERFLAX_P3=~/p3 HYPERFLAX_VOCABULARY=~/spiece.model
hyperflax tasks --module hyperflax_tasks.p3
```
"""

from __future__ import annotations

import itertools
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from hyperflax.data import registry
from hyperflax.data.examples import Example, ExampleStream, InMemorySource, StreamedExample, TaskInfo
from hyperflax.data.jsonl import encodable, read_rows
from hyperflax.data.vocabularies import Vocabulary
from hyperflax.errors import ConfigError, DataError
from hyperflax.evaluation.suite import Suite

from . import p3_split
from .data_sets import data_sets
from .natural_instructions import find_vocabulary

ROOT_VARIABLE = "HYPERFLAX_P3"
SPLITS = ("train", "held_out")
POSITIVES = 64  # first lines of a held-out prompt-task's train.jsonl that serve as its positives


class PromptExample(NamedTuple):
    """One example as text; `choices` is empty in the training mixture."""

    inputs: str
    target: str
    choices: tuple[str, ...] = ()


def prompt_tasks(root: pathlib.Path | str, split: str) -> list[pathlib.Path]:
    """The folders of a split, by name: `train` is T0's training mixture, `held_out` its main evaluation.

    Raises:
      DataError: no such split, or not one folder of it.
    """
    if split not in SPLITS:
        raise DataError(f"P3: expected a split out of {SPLITS}, got '{split}'")
    root = pathlib.Path(root)
    if split == "held_out":
        found = [
            path.parent for path in root.glob("*/validation.jsonl") if p3_split.held_out_data_set(path.parent.name)
        ]
    else:
        folders = (path.parent for path in root.glob("*/train.jsonl"))
        found = [folder for folder in folders if p3_split.is_trained_on(folder.name)]
    if not found:
        file = "train" if split == "train" else "validation"
        raise DataError(f"{root}: expected folders <prompt-task>/{file}.jsonl of the {split} split, found none")
    return sorted(found)


def read_file(path: pathlib.Path | str, *, choices: bool) -> Iterator[PromptExample]:
    """The examples of one jsonl file; with `choices`, their answer choices, among which the target must be.

    Without, those that lack a target or an input are left out.

    Raises:
      DataError: an absent file, an empty one, or a broken line (with its number).
    """
    try:
        with open(path, "rb") as lines:
            number = 0
            for number, row in read_rows(lines, str(path)):
                example = _example(row, f"{path}:{number}", choices)
                if choices or (example.inputs and example.target):
                    yield example
    except OSError as error:
        raise DataError(f"{path}: expected a file of P3 examples, cannot read it ({error.strerror})") from error
    if not number:
        raise DataError(f"{path}: expected at least one example, got none")


def _example(row: dict[str, Any], place: str, choices: bool) -> PromptExample:
    keys = ("inputs_pretokenized", "targets_pretokenized")
    if not all(isinstance(row.get(key), str) for key in keys):
        raise DataError(
            f"{place}: expected the strings 'inputs_pretokenized' and 'targets_pretokenized', got the keys "
            f"{sorted(row)[:8]}"
        )
    source, target = (encodable(row[key], key, place).strip() for key in keys)
    if not choices:
        return PromptExample(source, target)
    given = row.get("answer_choices")
    if not isinstance(given, list) or len(given) < 2 or not all(isinstance(choice, str) for choice in given):
        raise DataError(f"{place}: expected at least two strings in 'answer_choices', got {given!r:.80}")
    options = tuple(encodable(choice, "answer_choices", place).strip() for choice in given)
    if target not in options:
        raise DataError(f"{place}: expected the target to be an answer choice, got {target!r:.40} and {options!r:.80}")
    return PromptExample(source, target, options)


def read_split(
    root: pathlib.Path | str, split: str, max_examples: int | None = None
) -> Iterator[tuple[str, PromptExample]]:
    """(prompt-task, example) of a split, at most `max_examples` of each prompt-task; errors as the two above."""
    held_out = split == "held_out"
    for folder in prompt_tasks(root, split):
        path = folder / ("validation.jsonl" if held_out else "train.jsonl")
        for example in itertools.islice(read_file(path, choices=held_out), max_examples):
            yield folder.name, example


def read_positives(folder: pathlib.Path) -> list[PromptExample]:
    """The first `POSITIVES` training examples of a held-out prompt-task; none if they are not at hand."""
    path = folder / "train.jsonl"
    return list(itertools.islice(read_file(path, choices=False), POSITIVES)) if path.is_file() else []


def p3_source(
    root: pathlib.Path | str, split: str, vocabulary: Vocabulary, max_examples: int | None = None
) -> InMemorySource:
    """The prompt-tasks of a split in memory; the category of a held-out one is its data set.

    Raises:
      DataError: see `prompt_tasks` and `read_file`.
    """
    return p3_stream(root, split, vocabulary, max_examples).in_memory()


def p3_stream(
    root: pathlib.Path | str, split: str, vocabulary: Vocabulary, max_examples: int | None = None
) -> ExampleStream:
    """`p3_source`, as it is read."""
    return ExampleStream(vocabulary, _examples(root, split, vocabulary, max_examples))


def _examples(
    root: pathlib.Path | str, split: str, vocabulary: Vocabulary, most: int | None
) -> Iterator[StreamedExample]:
    def tokens(example: PromptExample) -> Example:
        return Example.from_text(example.inputs, example.target, vocabulary, options=example.choices)

    infos: dict[str, TaskInfo] = {}
    for name, example in read_split(root, split, most):
        if name not in infos:
            shown = read_positives(pathlib.Path(root) / name) if split == "held_out" else []
            infos[name] = TaskInfo(
                positives=tuple(map(tokens, shown)),
                category=p3_split.held_out_data_set(name) or "",
                data_sets=data_sets("p3", [p3_split.data_set(name)]),
            )
        yield StreamedExample(name, tokens(example), infos[name])


def find_root(root: pathlib.Path | str | None = None) -> pathlib.Path:
    """The folder of prompt-tasks: the argument, else the environment variable.

    Raises:
      ConfigError: neither is given, or it is no folder.
    """
    found = root or os.environ.get(ROOT_VARIABLE)
    if not found or not pathlib.Path(found).is_dir():
        raise ConfigError(f"P3: set {ROOT_VARIABLE} to a folder of prompt-tasks, got {found!r}")
    return pathlib.Path(found)


def suite(root: pathlib.Path | str | None = None) -> Suite:
    """T0's main evaluation: answer choices ranked, accuracy per prompt, mean (and median) over the prompts of each of
    the 11 data sets, mean over data sets.

    The support is taken from the positives if all prompt-tasks have some, else from the validation examples, which are
    then not scored; the report says so.

    Raises:
      ConfigError: no root.
      DataError: see `prompt_tasks`.
    """
    found = find_root(root)
    folders = prompt_tasks(found, "held_out")
    pooled = all((folder / "train.jsonl").is_file() for folder in folders)
    missing = [] if pooled else ["the support is taken from the validation examples, which are then not scored"]
    at_hand = {name: _lines(folders, name) for name in p3_split.HELD_OUT}
    if absent := [name for name, lines in at_hand.items() if not lines]:
        missing.append(f"not at hand: {', '.join(absent)}")
    for name, lines in at_hand.items():
        templates, official = len({template for _, template in lines}), len(p3_split.HELD_OUT[name].templates)
        if 0 < templates < official:
            missing.append(f"{name}: {templates} of {official} templates")
        if short := [given for given in lines if given[0] < p3_split.official_examples(name, given[1])]:
            (count, template), others = min(short), len(short) - 1
            of = p3_split.official_examples(name, template)
            beside = f", too few under {others} others" if others else ""
            missing.append(f"{name}: {count:,} of {of:,} examples under {template}{beside}")
    return Suite(
        name="p3",
        sources={"held_out": lambda vocabulary: p3_source(found, "held_out", vocabulary)},
        unit="data sets",
        official=len(p3_split.HELD_OUT),
        metric="accuracy",
        support="positives" if pooled else "examples",
        ranked="sum",
        grouped=True,
        missing=tuple(missing),
    )


def _lines(folders: Sequence[pathlib.Path], name: str) -> list[tuple[int, str]]:
    """(validation examples, template) of every prompt-task of a held-out data set that is at hand."""
    return [
        (sum(1 for line in (folder / "validation.jsonl").read_bytes().splitlines() if line.strip()), template)
        for folder in folders
        if (template := p3_split.template(folder.name, name))
    ]


def register(
    root: pathlib.Path | str | None = None, vocabulary: Vocabulary | None = None, max_examples: int | None = None
) -> None:
    """Registers `p3` with the splits `train` (T0's training mixture) and `held_out` (with answer choices).

    Args:
      root: of the prompt-tasks; by default what `HYPERFLAX_P3` says.
      vocabulary: if a run gives none; by default T5's, from the file that `HYPERFLAX_VOCABULARY` names.
      max_examples: kept of a prompt-task.

    Raises:
      ConfigError: no root.
    """
    found = find_root(root)

    def loader(split: str) -> registry.Loader:
        return lambda given: p3_stream(found, split, find_vocabulary(given or vocabulary), max_examples)

    registry.register_source(
        "p3",
        {split: loader(split) for split in SPLITS},
        description="prompted data sets (P3) with T0's split; a task is a data set under one prompt",
        replace=True,
    )
