"""Tasks as plain pairs: what is shown before an input is what evaluation shows, and nothing of it is scored."""

from __future__ import annotations

import numpy as np
import pytest

from hyperflax.data.episode_config import EpisodeConfig
from hyperflax.data.examples import Example, InMemorySource, TaskExamples
from hyperflax.data.multitask import Induction, TaskPairs
from hyperflax.data.vocabularies import Bytes
from hyperflax.errors import DataError

CONFIG = EpisodeConfig(shots=3, examples=2, support_length=32, inputs_length=64, targets_length=16)


@pytest.fixture(scope="module")
def source() -> InMemorySource:
    words = ["ab", "cd", "ef", "gh", "ij", "kl"]
    tasks = {"upper": [(w, w.upper()) for w in words], "double": [(w, w + w) for w in words]}
    return InMemorySource.from_strings(tasks, Bytes(), definitions={"upper": "in capitals", "double": "twice"})


def text(source: InMemorySource, tokens: np.ndarray) -> str:
    marks = {source.vocabulary.sentinel(0): "<", source.vocabulary.sentinel(1): ">"}
    return "".join(marks.get(int(t)) or source.vocabulary.decode([int(t)]) for t in tokens)


def test_without_context_the_pair_is_the_example(source: InMemorySource) -> None:
    pairs = TaskPairs(source, CONFIG.replace(demonstrations="none"))
    for seed in range(10):
        for inputs, targets in pairs(np.random.default_rng(seed)):
            x, y = text(source, inputs), text(source, targets)
            assert y in (x.upper(), x + x)


def test_context_precedes_the_input_and_does_not_hold_it(source: InMemorySource) -> None:
    pairs = TaskPairs(source, CONFIG.replace(demonstrations="inputs", definition="inputs"))
    for seed in range(10):
        for inputs, targets in pairs(np.random.default_rng(seed)):
            definition, *shots = text(source, inputs).split("<")
            *shown, last = shots
            x = last.removesuffix(">")
            rule = {"in capitals": str.upper, "twice": lambda w: w + w}[definition]
            assert [s.split(">") for s in shown] == [[s.split(">")[0], rule(s.split(">")[0])] for s in shown]
            assert len(shown) == 3
            assert x not in [s.split(">")[0] for s in shown]
            assert text(source, targets) == rule(x)


def test_an_end_of_sequence_within_an_example_ends_nothing() -> None:
    """Tokens of a seqio Task may hold some: between two texts, for instance."""
    examples = [Example(np.array([100 + i, 1, 100 + i], np.int32), np.array([7, 1, 8], np.int32)) for i in range(4)]
    source = InMemorySource([TaskExamples("parted", examples)], Bytes())
    alone = TaskPairs(source, CONFIG.replace(shots=0, demonstrations="none"))
    for inputs, targets in alone(np.random.default_rng(0)):
        assert inputs.tolist() == [inputs[0], 1, inputs[0]]
        assert targets.tolist() == [7, 1, 8]
    behind = TaskPairs(source, CONFIG.replace(shots=1, demonstrations="inputs"))
    for inputs, _ in behind(np.random.default_rng(0)):
        assert len(inputs) == (1 + 3 + 1 + 3) + (1 + 3 + 1)


def test_induction_asks_for_the_definition(source: InMemorySource) -> None:
    seen = set()
    for seed in range(20):
        ((inputs, targets),) = Induction(source, CONFIG)(np.random.default_rng(seed))
        definition = text(source, targets)
        shown = [shot.split(">") for shot in text(source, inputs).split("<")[1:]]
        assert len(shown) == 3
        assert all((y == x.upper()) == (definition == "in capitals") for x, y in shown)
        seen.add(definition)
    assert seen == {"in capitals", "twice"}


def test_induction_gives_the_whole_input_to_examples() -> None:
    """The definition stands in the target: however long it is, it takes no room from them."""
    definition = "d" * 30
    tasks = {"upper": [(w, w.upper()) for w in ("ab", "cd", "ef", "gh")]}
    source = InMemorySource.from_strings(tasks, Bytes(), definitions={"upper": definition})
    config = EpisodeConfig(shots=2, examples=1, support_length=32, inputs_length=32, targets_length=32)
    for too_long in ("error", "skip"):
        induction = Induction(source, config.replace(too_long=too_long))
        ((inputs, targets),) = induction(np.random.default_rng(0))
        assert text(source, targets) == definition
        assert len(text(source, inputs).split("<")) == 3


def test_induction_refuses_a_task_without_definition() -> None:
    source = InMemorySource.from_strings({"upper": [(w, w.upper()) for w in "abcdef"]}, Bytes())
    with pytest.raises(DataError, match="'upper': expected a definition"):
        Induction(source, CONFIG)
