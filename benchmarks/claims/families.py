"""The families of tasks that claims are tried on: where their training tasks, held-out tasks and texts come from.

`strings` is embedded and needs nothing. `strings_demo` is the half of it that `hyperflax demo` trains on: one or two
operations on names, mail addresses, phone numbers and dates. That half can be learnt from the base's T5 in some hundred
steps; of all of "strings" 2,800 steps reach 21%. `natural_instructions` needs a
checkout (`HYPERFLAX_NATURAL_INSTRUCTIONS`), text (`HYPERFLAX_TEXT`) and T5's `spiece.model` (`HYPERFLAX_VOCABULARY`).

"strings" has no text of its own. Its hyperpretraining reads documents of one program's examples, a line each:

    ann.lee@web.de -> ANN.LEE

which is text in the base's own domain, but closer to the tasks than C4 is to P3: a gain there is an upper bound.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.claims.experiments import Base
from hyperflax.cli import demo
from hyperflax.data.batches import Batches
from hyperflax.data.corruption import MixedPairs, SpanCorruption
from hyperflax.data.curriculum import Curriculum
from hyperflax.data.episode_config import EpisodeConfig
from hyperflax.data.examples import Example, ExampleSource, InMemorySource, TaskExamples, tokenise
from hyperflax.data.multitask import TaskPairs
from hyperflax.data.text import PackedBatches
from hyperflax.data.vocabularies import Bytes, Vocabulary
from hyperflax.training.optimizers import Optimizer, adafactor, adamw
from hyperflax.training.schedules import warmup_cosine
from hyperflax_tasks import corpus, natural_instructions
from hyperflax_tasks.strings import episodes as strings


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of tasks.

    Attributes:
      name: in the table, in folders, on the command line.
      metric: of its tasks.
      vocabulary, training, held_out, text: what there is of it; called when it is needed.
      base_batches, base_optimizer: how a base model for it is pretrained.
      first: the first examples of a held-out task are the scored ones, as its benchmark has it.
      missing: what of it is not at hand, in words; empty if it can be run.
    """

    name: str
    metric: str
    vocabulary: Callable[[], Vocabulary]
    training: Callable[[], ExampleSource]
    held_out: Callable[[], ExampleSource]
    text: Callable[[], ExampleSource]
    base_batches: Callable[[Base], Batches]
    base_optimizer: Callable[[Base], Optimizer]
    first: bool = False
    missing: Callable[[], str] = lambda: ""


def _strings_base(base: Base) -> Batches:
    """Two stages: copying and following instructions first, then reading examples, too.

    A base that starts from another one's layers needs the second alone.
    """

    def pairs(**options) -> PackedBatches:
        lengths = {"inputs_length": base.inputs_length, "targets_length": base.targets_length}
        return PackedBatches(strings.base_pairs("train", **lengths, **options), base.batch_size, **lengths)

    if not base.copying:
        return pairs()
    return Curriculum([pairs(rates=(0.85, 0, 0, 0.15)), pairs()], [base.copying])


def _strings_optimizer(base: Base) -> Optimizer:
    return adamw(warmup_cosine(1e-3, min(200, base.steps - 1), base.steps))


@functools.lru_cache(maxsize=1)
def _strings_text(**programs_of: Any) -> InMemorySource:
    vocabulary = Bytes()
    arrow, end, nothing = (tokenise(text, vocabulary) for text in (" -> ", "\n", ""))
    programs = strings.source("train", 24, tasks=8192, **programs_of)

    def document(task: int) -> np.ndarray:
        examples = programs.examples(task, range(int(programs.sizes[task])))
        return np.concatenate([piece for e in examples for piece in (e.inputs, arrow, e.targets, end)])

    documents = [Example(nothing, document(task)) for task in range(len(programs.task_names))]
    return InMemorySource([TaskExamples("text", documents)], vocabulary)


def _natural_base(base: Base) -> Batches:
    """The mixture of runs/natural_instructions_base.gin."""
    lengths = {"inputs_length": base.inputs_length, "targets_length": base.targets_length}
    config = EpisodeConfig(
        shots=2,
        min_shots=0,
        examples=1,
        demonstrations="inputs",
        definition="inputs",
        support_length=base.inputs_length,
        task_cap=100,
        too_long="truncate",
        too_few="skip",
        **lengths,
    )
    text = SpanCorruption(_text(), base.inputs_length - 6)
    pairs = MixedPairs((text, TaskPairs(_natural("train"), config)), (0.4, 0.6))
    return PackedBatches(pairs, base.batch_size, **lengths)


def _natural_optimizer(base: Base) -> Optimizer:
    # That run file's. Muon is ahead of it for 150 steps at a rate of 1e-2, at which 1,400 do not get below 5.3 nats.
    return adafactor(warmup_cosine(0.02, min(200, base.steps // 5), base.steps))


@functools.cache
def _natural(split: str) -> InMemorySource:
    root = natural_instructions.find_root()
    return natural_instructions.natural_instructions_source(root, split, natural_instructions.find_vocabulary())


@functools.cache
def _text() -> InMemorySource:
    return corpus.text_source(os.environ[corpus.ROOT_VARIABLE], "train", natural_instructions.find_vocabulary())


def _natural_missing() -> str:
    names = (natural_instructions.ROOT_VARIABLE, natural_instructions.VOCABULARY_VARIABLE, corpus.ROOT_VARIABLE)
    unset = [name for name in names if not os.environ.get(name)]
    return f"set {', '.join(unset)}" if unset else ""


def _strings_family(name: str, **programs: Any) -> Family:
    return Family(
        name=name,
        metric="exact_match",
        vocabulary=Bytes,
        training=functools.partial(strings.source, "train", 24, **programs),
        held_out=functools.partial(strings.source, "held_out", 64, **programs),
        text=functools.partial(_strings_text, **programs),
        base_batches=_strings_base,
        base_optimizer=_strings_optimizer,
    )


FAMILIES: dict[str, Family] = {
    "strings": _strings_family("strings"),
    "strings_demo": _strings_family("strings_demo", kinds=demo.KINDS, max_depth=demo.MAX_DEPTH),
    "natural_instructions": Family(
        name="natural_instructions",
        metric="rouge_l",
        vocabulary=natural_instructions.find_vocabulary,
        training=functools.partial(_natural, "train"),
        held_out=functools.partial(_natural, "test"),
        text=_text,
        base_batches=_natural_base,
        base_optimizer=_natural_optimizer,
        first=True,
        missing=_natural_missing,
    ),
}
