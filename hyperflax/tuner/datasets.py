"""Data sets that pipelines are run on: training, held-out and test examples of one task, and what describes them.

A folder `train.jsonl`, `validation.jsonl`, `test.jsonl` is a data set, and so is a file, of which parts are then held
out; where an input stands in several of its lines, the first is taken. `dataset.json` in the folder may give `name`,
`corpus`, `category` and `task`; corpora and categories are what an evaluation of the tuner leaves out. A list
`data_sets` may say what public data sets its examples are made of.

Meta-features, all of them of the training and held-out examples, never of the test split:

| name | what |
|---|---|
| log_train, log_held_out | natural logarithms of the numbers of examples |
| input_mean, input_max, target_mean, target_max | lengths in tokens |
| label_entropy | of the distribution of whole targets, in nats, over the logarithm of their number: 1 if all differ |
| distinct_targets | share of different targets |
| copied | mean share of a target's tokens that stand in its input |
| equal_length | share of examples whose target is as long as the input |
| overlap | share of the held-out inputs' distinct tokens that stand in the training inputs |
| bare_exact, bare_loss, generated_exact, generated_loss | scores on the held-out examples before any training |
| task_0 .. task_15 | the hypermodel's task embedding: its slot states, averaged and projected at random |

>>> data = read("invoices")
>>> data.hash, len(data.train)
('…', 64)
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
import pathlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hyperflax.data.batches import text_batch
from hyperflax.data.episode_config import EpisodeConfig
from hyperflax.data.examples import tokenise
from hyperflax.data.finetuning import FEWEST, hold_out
from hyperflax.data.jsonl import Line, read_lines
from hyperflax.data.vocabularies import Vocabulary
from hyperflax.errors import DataError
from hyperflax.json_files import read_json

SPLITS = ("train", "validation", "test")
FEWEST_IN_FILE = FEWEST + 2  # two are tested, and of the others, which `hold_out` wants `FEWEST` of, a part is held out
TASK_DIMENSIONS = 16


@dataclasses.dataclass(frozen=True)
class DataSet:
    """One task's examples in three disjoint parts.

    Attributes:
      name: unique among the data sets of a table. corpus, category: where it is from.
      train, validation, test: what is trained on, what chooses, what is reported.
      task: the name by which a hypermodel's training data may know it. data_sets: what its examples are made of, by
        which training data of another collection may, see `TaskInfo`.
    """

    name: str
    train: tuple[Line, ...]
    validation: tuple[Line, ...]
    test: tuple[Line, ...]
    corpus: str = ""
    category: str = ""
    task: str = ""
    data_sets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "data_sets", tuple(self.data_sets))
        for split in SPLITS:
            object.__setattr__(self, split, tuple(getattr(self, split)))
            if not getattr(self, split):
                raise DataError(f"data set '{self.name}': expected at least one example in '{split}', got none")

    @functools.cached_property
    def hash(self) -> str:
        """Of all examples and the part that each is in; 16 hexadecimal digits."""
        text = json.dumps([[(line.input, line.target) for line in getattr(self, split)] for split in SPLITS])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def arrays(self, split: str, vocabulary: Vocabulary, config: EpisodeConfig) -> dict[str, np.ndarray]:
        """Returns a part's examples as rows [n + 1, length], the last one padding of weight 0.

        Rows of all parts have one length: the config's, or half or a quarter of it where every example fits. So short
        examples are not paid for as long ones, and few programs are compiled for many data sets.

        Raises:
          DataError: an example that is too long, with its place.
        """
        pairs = {
            name: [
                (tokenise(line.input, vocabulary), tokenise(line.target, vocabulary)) for line in getattr(self, name)
            ]
            for name in SPLITS
        }
        inputs, targets = zip(*itertools.chain(*pairs.values()), strict=True)
        lines: Sequence[Line] = getattr(self, split)
        return text_batch(
            pairs[split],
            inputs_length=_shortened(config.inputs_length, inputs),
            targets_length=_shortened(config.targets_length, targets),
            batch_size=len(lines) + 1,
            names=[line.at for line in lines],
        )

    def text_features(self, vocabulary: Vocabulary) -> dict[str, float]:
        """Returns the meta-features that the text alone gives; see the module's table."""
        pairs = [
            (tokenise(line.input, vocabulary), tokenise(line.target, vocabulary))
            for line in (*self.train, *self.validation)
        ]
        inputs, targets = (np.array([len(part) for part in parts], np.float64) for parts in zip(*pairs, strict=True))
        counts = np.array(list(Counter(tuple(target) for _, target in pairs).values()), np.float64)
        shares = counts / counts.sum()
        entropy = -float(np.sum(shares * np.log(shares)))
        known = {token for tokens, _ in pairs[: len(self.train)] for token in tokens}
        asked = {token for tokens, _ in pairs[len(self.train) :] for token in tokens}
        copied = [np.isin(target, given).mean() for given, target in pairs if len(target)]
        return {
            "log_train": math.log(len(self.train)),
            "log_held_out": math.log(len(self.validation)),
            "input_mean": float(inputs.mean()),
            "input_max": float(inputs.max()),
            "target_mean": float(targets.mean()),
            "target_max": float(targets.max()),
            "label_entropy": entropy / math.log(len(pairs)),
            "distinct_targets": len(counts) / len(pairs),
            "copied": float(np.mean(copied)) if copied else 0.0,
            "equal_length": float(np.mean(inputs == targets)),
            "overlap": len(known & asked) / max(1, len(asked)),
        }


def read(path: pathlib.Path | str, seed: int = 0) -> DataSet:
    """Reads a data set from a folder of three files, or from one file of which a fifth each is held out and tested.

    Args:
      path: see the module's text. seed: of what is held out of a single file.

    Raises:
      DataError: a missing or broken file, too few different inputs, or one that stands in two parts; names the place.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        of_input: dict[str, Line] = {}
        for line in read_lines(path):
            of_input.setdefault(line.input, line)
        lines = list(of_input.values())
        if len(lines) < FEWEST_IN_FILE:
            raise DataError(
                f"{path}: expected at least {FEWEST_IN_FILE} different inputs, of which parts are held out and tested, "
                f"got {len(lines)}; give more, or a folder of {', '.join(f'{split}.jsonl' for split in SPLITS)}"
            )
        train, test = hold_out(lines, 0.2, seed)
        train, validation = hold_out(train, 0.25, seed + 1)
        return check(DataSet(path.stem, tuple(train), tuple(validation), tuple(test), corpus=path.stem, task=path.stem))
    train, validation, test = (read_lines(path / f"{split}.jsonl") for split in SPLITS)
    whole = pathlib.Path(os.path.abspath(path))  # "." has no name, and what "*" finds here no parent's
    about: dict[str, Any] = {"name": whole.name, "corpus": whole.parent.name, "category": "", "task": whole.name}
    about |= {"data_sets": []}
    if (path / "dataset.json").is_file():
        given = read_json(path / "dataset.json")
        if wrong := sorted(key for key, value in given.items() if key not in about or not _fits(value, about[key])):
            raise DataError(
                f"{path}/dataset.json: expected texts for some of name, corpus, category, task, and a list of texts "
                f"for data_sets, got '{wrong[0]}'"
            )
        about |= given
    return check(DataSet(about.pop("name"), tuple(train), tuple(validation), tuple(test), **about))


def _fits(value: Any, example: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return isinstance(value, type(example)) and all(isinstance(text, str) for text in texts)


def check(data: DataSet) -> DataSet:
    """Returns the data set. Raises DataError where an input of one part stands in another one."""
    seen: dict[str, str] = {}
    for split in SPLITS:
        for line in getattr(data, split):
            there = seen.setdefault(line.input, split)
            if there != split:
                raise DataError(f"{line.at}: this input of '{split}' also stands in '{there}' of '{data.name}'")
    return data


def check_distinct(datasets: Sequence[DataSet]) -> None:
    """Raises DataError where two data sets have one name, or one content."""
    for key in ("name", "hash"):
        seen: dict[str, str] = {}
        for data in datasets:
            if (value := getattr(data, key)) in seen:
                raise DataError(f"data sets: '{seen[value]}' and '{data.name}' have the same {key}")
            seen[value] = data.name


def _shortened(limit: int, texts: Iterable[np.ndarray]) -> int:
    """The limit, or half or a quarter of it, rounded up, if that holds the longest text and its end."""
    longest = max(map(len, texts)) + 1
    return min((length for length in (-(-limit // 4), -(-limit // 2)) if longest <= length), default=limit)


def task_embedding(slot_states: np.ndarray) -> dict[str, float]:
    """Returns `task_0` ... : slot states [slots, width] averaged, and projected to few dimensions at random.

    The projection depends on the width alone, so it is the same for all data sets of a hypermodel.
    """
    mean = np.asarray(slot_states, np.float64).mean(axis=0)
    projection = np.random.default_rng(0).standard_normal((len(mean), TASK_DIMENSIONS)) / math.sqrt(len(mean))
    return {f"task_{number}": float(value) for number, value in enumerate(mean @ projection)}
