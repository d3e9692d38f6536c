"""Strings as a source of episodes and of pretraining pairs: tokenised in memory, without TensorFlow.

One program is one task, named by its instruction, which is also the task's definition. Training programs take their
inputs from the training pool; held-out programs take theirs from strings that no training example holds.

>>> from hyperflax_tasks.strings.episodes import source
>>> held_out = source("held_out", examples=24)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

from hyperflax.data.corruption import MixedPairs
from hyperflax.data.episode_config import EpisodeConfig
from hyperflax.data.examples import Example, InMemorySource, TaskExamples, TaskInfo, tokenise
from hyperflax.data.multitask import Induction, TaskPairs
from hyperflax.data.vocabularies import Bytes
from hyperflax.errors import ConfigError

from .inputs import TYPES
from .programs import MAX_DEPTH
from .source import make_examples
from .split import load_split

SplitName = Literal["train", "held_out"]


def source(
    split: SplitName = "train",
    examples: int = 40,
    tasks: int | None = None,
    seed: int = 0,
    kinds: Sequence[str] | None = None,
    max_depth: int = MAX_DEPTH,
) -> InMemorySource:
    """Returns the programs of a split with `examples` examples each.

    Args:
      split: `train` or `held_out`.
      examples: of every program.
      tasks: only so many programs, evenly spread over the chosen ones; all by default.
      seed: of the examples.
      kinds: only programs on these input types; all by default.
      max_depth: only programs of at most so many operations.

    Raises:
      ConfigError: another split, an unknown input type, or a number that is not positive.
    """
    if split not in ("train", "held_out") or min(examples, 1 if tasks is None else tasks, max_depth) < 1:
        got = (split, examples, tasks, max_depth)
        raise ConfigError(f"strings source: expected split 'train' or 'held_out' and positive sizes, got {got}")
    unknown = sorted(set(kinds or ()).difference(TYPES))
    if unknown or (kinds is not None and not kinds):
        raise ConfigError(f"strings source: expected kinds among {', '.join(TYPES)}, got {unknown or kinds}")
    return _source(split, examples, tasks, seed, None if kinds is None else tuple(kinds), max_depth)


@functools.lru_cache(maxsize=4)
def _source(
    split: SplitName, examples: int, tasks: int | None, seed: int, kinds: tuple[str, ...] | None, max_depth: int
) -> InMemorySource:
    everything = load_split().train if split == "train" else load_split().held_out
    programs = tuple(p for p in everything if p.depth <= max_depth and (kinds is None or p.kind in kinds))
    if tasks is not None and tasks < len(programs):
        programs = tuple(programs[i * len(programs) // tasks] for i in range(tasks))
    vocabulary = Bytes()
    pool = "train" if split == "train" else "eval"
    return InMemorySource(
        (
            TaskExamples(
                program.instruction,
                [Example.from_text(x, y, vocabulary) for x, y in make_examples(program, seed, examples, pool)],
                TaskInfo(definition=tokenise(program.instruction, vocabulary)),
            )
            for program in programs
        ),
        vocabulary,
    )


def base_pairs(
    split: SplitName = "train",
    examples: int = 40,
    shots: int = 4,
    inputs_length: int = 192,
    targets_length: int = 96,
    rates: tuple[float, float, float, float] = (0.3, 0.35, 0.33, 0.02),
) -> MixedPairs:
    """Returns what the base model is pretrained on, a mixture of four kinds of pairs.

    Args:
      split, examples: see `source`.
      shots: most examples shown at once; at least one.
      inputs_length, targets_length: bounds of a pair, in tokens.
      rates: of following an instruction, finding the instruction behind examples, continuing examples, and copying an
        input that comes alone; 0 leaves a kind out. The last makes the bare model answer a lone input with a copy.
    """
    tasks = source(split, examples)
    config = EpisodeConfig(
        shots=shots,
        min_shots=1,
        examples=1,
        inputs_length=inputs_length,
        targets_length=targets_length,
        support_length=inputs_length,
        too_long="skip",
        too_few="skip",
        demonstrations="inputs",
    )
    kinds = (
        lambda: TaskPairs(tasks, config.replace(shots=0, min_shots=0, demonstrations="none", definition="inputs")),
        lambda: Induction(tasks, config),
        lambda: TaskPairs(tasks, config),
        lambda: _Copy(tasks, min(inputs_length, targets_length)),
    )
    chosen = [(kind(), rate) for kind, rate in zip(kinds, rates, strict=True) if rate]
    return MixedPairs(*zip(*chosen, strict=True))


class _Copy:
    """A pair source: an input alone, to be copied; of at most `length` tokens with its end of sequence."""

    def __init__(self, tasks: InMemorySource, length: int):
        self.source, self._length = tasks, length

    def __call__(self, rng):
        task = int(rng.integers(len(self.source.task_names)))
        inputs = self.source.example(task, int(rng.integers(self.source.sizes[task]))).inputs
        return [(inputs, inputs)] if len(inputs) < self._length else []
