"""Tokenised examples of many tasks: the one interface between where data comes from and where episodes are made.

A source numbers its tasks from 0 and every task's examples from 0. Tokens are int32 **without** end of sequence;
episodes add it. Sources: `InMemorySource` here, `CachedSource` (ArrayRecord), `seqio_source`.

>>> from hyperflax.data.vocabularies import Bytes
>>> source = InMemorySource.from_strings({"upper": [("a", "A"), ("b", "B")]}, Bytes())
>>> source.task_names, source.sizes.tolist(), source.example(0, 1).targets.tolist()
(('upper',), [2], [69])
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from hyperflax.data.vocabularies import Vocabulary
from hyperflax.errors import DataError

_EMPTY = np.zeros(0, np.int32)
_Kind = TypeVar("_Kind")


class Example(NamedTuple):
    """One tokenised example.

    Attributes:
      inputs, targets: int32 `[n]`, without end of sequence.
      options: answer choices for rank classification, int32 each; empty if the task has none.
      references: every accepted answer as text, the target first; empty where the target alone counts.
    """

    inputs: np.ndarray
    targets: np.ndarray
    options: tuple[np.ndarray, ...] = ()
    references: tuple[str, ...] = ()

    @classmethod
    def from_text(
        cls,
        inputs: str,
        targets: str,
        vocabulary: Vocabulary,
        *,
        options: Iterable[str] = (),
        references: Iterable[str] = (),
    ) -> Example:
        """Tokenises an example."""
        choices = tuple(tokenise(option, vocabulary) for option in options)
        return cls(tokenise(inputs, vocabulary), tokenise(targets, vocabulary), choices, tuple(references))


class TaskInfo(NamedTuple):
    """What is known of a task beside its examples.

    Attributes:
      definition: its instruction, int32 `[n]`, empty if there is none.
      positives: demonstrations that came with the task and are not among its examples.
      category: a free label, such as Super-NaturalInstructions' task category.
      data_sets: the public data sets that its examples are made of, as `COLLECTION/DATA SET`: `p3/quartz`. Collections
        that share a data set call it the same, so that training on one is found in a test of another.
      own_name: its name inside its seqio Task, where the source's name for it is `TASK/task`; empty where that is all.
    """

    definition: np.ndarray = _EMPTY
    positives: tuple[Example, ...] = ()
    category: str = ""
    data_sets: tuple[str, ...] = ()
    own_name: str = ""


class ExampleSource(Protocol):
    """Tokenised examples by (task, index), numpy only.

    Attributes:
      vocabulary: of all tokens.
      task_names: unique names; position = task number.
      sizes: int64 `[tasks]`, examples of each task.
      groups: int32 `[tasks]`, the mixture component of each task.
      group_rates: float64 `[components]`, mixing rates, or None: in proportion to min(size, cap).
    """

    vocabulary: Vocabulary
    task_names: tuple[str, ...]
    sizes: np.ndarray
    groups: np.ndarray
    group_rates: np.ndarray | None

    def example(self, task: int, index: int) -> Example:
        """One example."""

    def examples(self, task: int, indices: Sequence[int]) -> list[Example]:
        """Several examples of one task, in the order asked for."""

    def gather(self, requests: Sequence[tuple[int, Sequence[int]]]) -> list[list[Example]]:
        """`examples(task, indices)` for every (task, indices): one bulk read where that is cheaper."""

    def lengths(self, task: int) -> np.ndarray:
        """int32 `[size, 2]`: tokens of inputs and targets of every example of a task."""

    def info(self, task: int) -> TaskInfo:
        """Definition, positive demonstrations and category of a task."""


_NO_INFO = TaskInfo()
_PARTS = ("source", "sources", "stages", "batches", "pairs")  # where batches keep what they are made of, see `Batches`


def sources_of(batches: Any) -> list[ExampleSource]:
    """The sources that training batches are drawn from, through stages and mixtures; [] if they tell nothing."""
    if getattr(batches, "task_names", None):
        return [batches]
    return [source for part in _parts(batches) for source in sources_of(part)]


def untold(batches: Any) -> list[Any]:
    """The parts of training batches that tell no source: functions that draw pairs, and batches or pair sources
    without any of the attributes that `Batches` names.

    >>> from types import SimpleNamespace
    >>> untold(SimpleNamespace(pairs=len))
    [<built-in function len>]
    """
    if getattr(batches, "task_names", None):
        return []
    found = [one for part in _parts(batches) for one in untold(part)]
    silent = not found and not sources_of(batches) and (callable(batches) or hasattr(batches, "batch"))
    return [batches] if silent else found


def parts_of(batches: Any, kind: type[_Kind]) -> list[_Kind]:
    """What is of this class among training batches and all that they are made of."""
    own = [batches] if isinstance(batches, kind) else []
    return [*own, *(found for part in _parts(batches) for found in parts_of(part, kind))]


def _parts(batches: Any) -> list[Any]:
    given = [getattr(batches, name, ()) for name in _PARTS]
    return [part for one in given for part in (one if isinstance(one, list | tuple) else (one,))]


@dataclasses.dataclass
class TaskExamples:
    """A task on its way into a source: its name, its examples and what else is known of it."""

    name: str
    examples: list[Example]
    info: TaskInfo = _NO_INFO
    group: int = 0


class StreamedExample(NamedTuple):
    """An example on its way from a file to a source or a cache; examples of many tasks may be interleaved.

    Attributes:
      task: name of its task. Tasks are numbered in the order in which they first appear.
      example: tokenised.
      info: of its task; only the first example's counts.
      group: mixture component of its task; only the first example's counts.
    """

    task: str
    example: Example
    info: TaskInfo = _NO_INFO
    group: int = 0


class ExampleStream(NamedTuple):
    """What a source is made of, to be held in memory (`in_memory`) or written to a cache as it comes.

    Attributes:
      vocabulary: of the tokens.
      examples: tokenised, and read, when they are iterated over; once.
      group_rates: see `ExampleSource`.

    >>> from hyperflax.data.vocabularies import Bytes
    >>> pairs = [("a", "A"), ("b", "B")]
    >>> examples = (StreamedExample("upper", Example.from_text(*pair, Bytes())) for pair in pairs)
    >>> ExampleStream(Bytes(), examples).in_memory().sizes.tolist()
    [2]
    """

    vocabulary: Vocabulary
    examples: Iterable[StreamedExample]
    group_rates: Sequence[float] | np.ndarray | None = None

    def in_memory(self) -> InMemorySource:
        """The whole of it; errors as `InMemorySource`, and those of reading."""
        return InMemorySource.from_stream(self.examples, self.vocabulary, self.group_rates)


class InMemorySource:
    """All examples in one flat array per feature, with offsets.

    Args:
      tasks: the tasks in order; names must be unique and every task needs an example.
      vocabulary: of the tokens.
      group_rates: see `ExampleSource`.

    Raises:
      DataError: no task, a task without examples, two tasks of one name, a token outside the vocabulary.
    """

    def __init__(
        self,
        tasks: Iterable[TaskExamples],
        vocabulary: Vocabulary,
        group_rates: Sequence[float] | np.ndarray | None = None,
    ):
        names, sizes, groups, infos, lengths = [], [], [], [], []
        tokens: list[np.ndarray] = []
        self._extras: dict[int, tuple[tuple[np.ndarray, ...], tuple[str, ...]]] = {}
        count = 0
        for task in tasks:
            if not task.examples:
                raise DataError(f"task '{task.name}': expected at least one example, got none")
            names.append(task.name)
            sizes.append(len(task.examples))
            groups.append(task.group)
            infos.append(task.info)
            for example in task.examples:
                tokens += (example.inputs, example.targets)
                lengths.append((len(example.inputs), len(example.targets)))
                if example.options or example.references:
                    self._extras[count] = (tuple(example.options), tuple(example.references))
                count += 1
        if not names:
            raise DataError("expected at least one task, got none")
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise DataError(f"expected unique task names, got {twice[:5]} twice")
        self.vocabulary = vocabulary
        self.task_names = tuple(names)
        self.sizes = np.asarray(sizes, np.int64)
        self.groups = np.asarray(groups, np.int32)
        self.group_rates = None if group_rates is None else np.asarray(group_rates, np.float64)
        self._infos = infos
        self._tokens = np.concatenate([np.asarray(piece, np.int32) for piece in tokens])
        if self._tokens.size and not 0 <= self._tokens.min() <= self._tokens.max() < vocabulary.vocab_size:
            low, high = int(self._tokens.min()), int(self._tokens.max())
            raise DataError(f"expected token ids in [0, {vocabulary.vocab_size}), got {low} to {high}")
        self._lengths = np.asarray(lengths, np.int32).reshape(-1, 2)
        self._bounds = np.concatenate([[0], np.cumsum(self._lengths.ravel(), dtype=np.int64)]).tolist()
        self._first = np.concatenate([[0], np.cumsum(self.sizes)]).tolist()

    @classmethod
    def from_strings(
        cls,
        tasks: Mapping[str, Iterable[tuple[str, str]]],
        vocabulary: Vocabulary,
        definitions: Mapping[str, str] | None = None,
    ) -> InMemorySource:
        """Tokenises `{task name: [(input, target), ...]}`; `definitions` gives some tasks an instruction."""
        definitions = definitions or {}
        if unknown := sorted(set(definitions) - set(tasks)):
            raise DataError(f"definitions of tasks that are not there: {unknown[:5]}")
        return cls(
            (
                TaskExamples(
                    name,
                    [Example.from_text(source, target, vocabulary) for source, target in pairs],
                    TaskInfo(definition=tokenise(definitions.get(name, ""), vocabulary)),
                )
                for name, pairs in tasks.items()
            ),
            vocabulary,
        )

    @classmethod
    def from_stream(
        cls,
        stream: Iterable[StreamedExample],
        vocabulary: Vocabulary,
        group_rates: Sequence[float] | np.ndarray | None = None,
    ) -> InMemorySource:
        """Collects a stream, task by task; the order within a task is kept."""
        tasks: dict[str, TaskExamples] = {}
        for name, example, info, group in stream:
            if name not in tasks:
                tasks[name] = TaskExamples(name, [], info, group)
            tasks[name].examples.append(example)
        return cls(tasks.values(), vocabulary, group_rates)

    def example(self, task: int, index: int) -> Example:
        if not 0 <= index < self.sizes[task]:
            raise DataError(f"task '{self.task_names[task]}': expected an index below {self.sizes[task]}, got {index}")
        at = self._first[task] + index
        start, middle, stop = self._bounds[2 * at : 2 * at + 3]
        return Example(self._tokens[start:middle], self._tokens[middle:stop], *self._extras.get(at, ((), ())))

    def examples(self, task: int, indices: Sequence[int]) -> list[Example]:
        return [self.example(task, index) for index in indices]

    def gather(self, requests: Sequence[tuple[int, Sequence[int]]]) -> list[list[Example]]:
        return [self.examples(task, indices) for task, indices in requests]

    def lengths(self, task: int) -> np.ndarray:
        return self._lengths[self._first[task] : self._first[task + 1]]

    def info(self, task: int) -> TaskInfo:
        return self._infos[task]


def stream_of(source: ExampleSource) -> Iterator[StreamedExample]:
    """Every example of a source, task by task."""
    for task, name in enumerate(source.task_names):
        info, group = source.info(task), int(source.groups[task])
        for index in range(int(source.sizes[task])):
            yield StreamedExample(name, source.example(task, index), info, group)


def cumulated(source: ExampleSource, tasks: Sequence[int] | np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Cumulated probabilities, the last one 1, of what is drawn from a source in proportion to its weight.

    The components of a mixture come at its rates, and weights count within each.

    Args:
      source: with its groups and rates.
      tasks: int `[n]`, of which task each thing is.
      weights: float64 `[n]`.

    Raises:
      DataError: every rate is 0.
    """
    if source.group_rates is not None:
        groups = source.groups[tasks]
        totals = np.bincount(groups, weights, minlength=len(source.group_rates))
        weights = weights * (source.group_rates[groups] / totals[groups])
    if not weights.sum() > 0:
        raise DataError(f"expected a positive mixing rate for some task, got {source.group_rates}")
    cumulative = np.cumsum(weights)
    return cumulative / cumulative[-1]


def tokenise(text: str, vocabulary: Vocabulary) -> np.ndarray:
    """int32 ids of a text, without end of sequence."""
    return np.asarray(vocabulary.encode(text), np.int32)
