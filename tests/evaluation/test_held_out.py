"""Held-out tasks: which of a source's can be evaluated, and with what."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from hyperflax.data.episode_config import EpisodeConfig
from hyperflax.data.examples import Example, InMemorySource, TaskExamples, TaskInfo
from hyperflax.data.rendering import episode_arrays
from hyperflax.data.vocabularies import Bytes
from hyperflax.errors import DataError
from hyperflax.evaluation.conditions import Conditions
from hyperflax.evaluation.coverage import count_cut_supports, not_covered
from hyperflax.evaluation.held_out import HeldOut
from hyperflax.hypermodel import Hypermodel
from tests.evaluation.micro import hypermodel

CONFIG = EpisodeConfig(shots=4, examples=1, support_length=16, inputs_length=64, targets_length=8)


def letters(*sizes: int) -> InMemorySource:
    """Tasks `task0` ... of so many examples, of which every sixth fits no support row."""
    tasks = {
        f"task{number}": [(f"{i:02}" if i % 6 < 5 else f"{i:02}" * 10, "y") for i in range(size)]
        for number, size in enumerate(sizes)
    }
    return InMemorySource.from_strings(tasks, Bytes())


@pytest.mark.parametrize("first", [False, True])
def test_no_task_is_left_out_for_examples_that_cannot_be_shown(first: bool) -> None:
    """Where all that the support leaves are scored, whichever of them are long."""
    for seed in range(20):
        held_out = HeldOut.from_source(letters(12, 24), CONFIG, examples=None, seed=seed, first=first)
        assert not held_out.left_out
        assert [len(task.inputs) for task in held_out.tasks] == [8, 20]
        for task in held_out.tasks:
            assert len(task.support) == 4
            assert not {text for text, _ in task.support} & set(task.inputs)


def test_scored_examples_make_another_support_for_figures() -> None:
    """Of as many that fit a row; a task of fewer has none. Of the first 6 examples one fits no row."""
    held_out = HeldOut.from_source(letters(12, 24), CONFIG, examples=6, first=True)
    again = held_out.shown_scored(CONFIG, 0)
    for name, given in again.tokens.items():
        shown, first = ([e.inputs.tolist() for e in of] for of in (given.support, held_out.tokens[name].support))
        assert len({*map(tuple, shown), *map(tuple, first)}) == 8
        assert all(len(inputs) == 2 for inputs in shown)
    assert again.tokens.keys() == {"task0", "task1"}
    few = HeldOut.from_source(letters(8, 24), CONFIG, examples=6, first=True)
    assert few.shown_scored(CONFIG, 0).tokens.keys() == {"task1"}


def test_what_cannot_be_evaluated_is_told() -> None:
    held_out = HeldOut.from_source(letters(3, 12), CONFIG)
    assert [task.name for task in held_out.tasks] == ["task1"]
    assert held_out.left_out["task0"].startswith("task 'task0': expected 1 scored examples besides 4 of support, got 3")
    with pytest.raises(DataError, match=r"expected at least one task that can be evaluated, got none of 2 .*'task0'"):
        HeldOut.from_source(letters(3, 4), CONFIG)
    with pytest.raises(DataError, match="expected one shot or more, or a definition in the support, got 0 shots"):
        HeldOut.from_source(letters(12), CONFIG.replace(shots=0))


def test_positives_that_fit_no_row_are_left_out_as_in_training() -> None:
    model, vocabulary = hypermodel(), Bytes()
    config = model.config.episodes.replace(positives="support", too_long="skip")
    other = Hypermodel(
        dataclasses.replace(model.config, episodes=config), model.parts.base, model.parts.hypernetwork_params
    )
    long, short = (Example.from_text(text, "y", vocabulary) for text in ("x" * 100, "x"))
    pairs = [Example.from_text(f"{i}", "y", vocabulary) for i in range(6)]
    info = TaskInfo(definition=np.array(vocabulary.encode("say y")), positives=(long, short))
    held_out = HeldOut.from_source(InMemorySource([TaskExamples("y", pairs, info)], vocabulary), config)
    assert held_out.tokens["y"].info.positives == (short,)
    assert held_out.tasks[0].instruction == "say y"
    generated = Conditions(other, held_out).pick("generated")["generated"]
    assert len(generated(held_out.tasks)[0]) == 4


def test_positives_alone_are_a_support() -> None:
    """Of a model that is shown no drawn examples, and no definition."""
    vocabulary = Bytes()
    config = CONFIG.replace(shots=0, demonstrations="none", positives="support", num_positives=2, support_length=128)
    pairs = [Example.from_text(f"{i}", "y", vocabulary) for i in range(6)]
    info = TaskInfo(positives=(Example.from_text("a", "b", vocabulary),))
    held_out = HeldOut.from_source(InMemorySource([TaskExamples("y", pairs, info)], vocabulary), config)
    assert held_out.tokens["y"].support == ()
    assert held_out.tokens["y"].info.positives == info.positives
    with pytest.raises(DataError, match="has no positive example that fits"):
        HeldOut.from_source(InMemorySource([TaskExamples("y", pairs)], vocabulary), config)


def test_another_support_shares_no_example_with_the_first() -> None:
    first, again = (HeldOut.from_source(letters(9, 24), CONFIG, draw=draw, apart=draw > 0) for draw in (0, 1))
    assert not set(first.tasks[1].support) & set(again.tasks[0].support)
    assert (again.tasks[0].name, again.tasks[0].inputs) == ("task1", first.tasks[1].inputs)
    assert again.left_out == {"task0": "task 'task0': expected 4 examples for another support, got 0"}


def test_positives_share_a_joint_row_with_the_definition() -> None:
    """One that fits alone and not behind the definition is not shown."""
    vocabulary = Bytes()
    config = CONFIG.replace(support_layout="joint", definition="support", shots=2)
    short, middle = (Example.from_text(text, "y", vocabulary) for text in ("x", "x" * 10))
    pairs = [Example.from_text(f"{i}", "y", vocabulary) for i in range(6)]
    info = TaskInfo(definition=np.array(vocabulary.encode("say y")), positives=(middle, short))
    source = InMemorySource([TaskExamples("y", pairs, info)], vocabulary)
    held_out = HeldOut.from_source(source, config, support="positives")
    assert held_out.tasks[0].support == (("x", "y"),)
    alone = HeldOut.from_source(source, config.replace(definition="none"), support="positives")
    assert alone.tasks[0].support == (("x" * 10, "y"), ("x", "y"))


@pytest.mark.parametrize(
    ("changes", "support", "kept"),
    [
        ({"shots": 1, "positives": "support", "num_positives": 1}, "a", ""),
        ({"shots": 2, "positives": "support"}, "ab", ""),  # the third was not shown in training
        ({"shots": 1, "positives": "support"}, "a", "b"),
        ({"shots": 0, "positives": "support", "definition": "support"}, "", "ab"),
        ({"shots": 2, "positives": "support", "demonstrations": "none"}, "ab", "abc"),
        ({"shots": 2, "positives": "support", "demonstrations": "inputs"}, "ab", "abc"),
        ({"shots": 2, "positives": "support", "demonstrations": "both"}, "ab", ""),
        ({"shots": 2, "positives": "both", "demonstrations": "both"}, "ab", ""),
        ({"shots": 2, "positives": "both", "demonstrations": "support"}, "ab", "abc"),  # else the inputs had none
        ({"shots": 2, "positives": "inputs", "demonstrations": "support"}, "ab", "abc"),
        ({"shots": 2, "positives": "none"}, "ab", ""),
    ],
)
def test_positives_that_are_the_support_stand_in_it_once(changes: dict[str, Any], support: str, kept: str) -> None:
    """And those that no demonstration stands for stay: the model was trained with two."""
    vocabulary = Bytes()
    positives = tuple(Example.from_text(text, "y", vocabulary) for text in "abc")
    pairs = [Example.from_text(f"{i}", "y", vocabulary) for i in range(6)]
    source = InMemorySource([TaskExamples("y", pairs, TaskInfo(positives=positives))], vocabulary)
    config = CONFIG.replace(**changes)
    tokens = HeldOut.from_source(source, config, support="positives").tokens["y"]
    assert [vocabulary.decode(e.inputs.tolist()) for e in tokens.support] == [*support]
    assert [vocabulary.decode(e.inputs.tolist()) for e in tokens.info.positives] == [*kept]
    drawn = HeldOut.from_source(source, config.replace(shots=1)).tokens["y"].info.positives
    most = 0 if config.positives == "none" else config.num_positives
    assert drawn[:most] == positives[:most]


def test_a_model_of_definition_and_positives_reads_both() -> None:
    """What its hypernetwork gets is what training showed it, wherever a suite's support comes from."""
    model, vocabulary = hypermodel(), Bytes()
    config = model.config.episodes.replace(shots=0, positives="support", definition="support")
    info = TaskInfo(np.array(vocabulary.encode("say")), (Example.from_text("a", "b", vocabulary),))
    pairs = [Example.from_text(f"{i}", "y", vocabulary) for i in range(6)]
    source = InMemorySource([TaskExamples("y", pairs, info)], vocabulary)
    given = HeldOut.from_source(source, config, support="positives").tokens["y"]
    read = episode_arrays(given.support, (), config, vocabulary, given.info)["support_tokens"]
    trained = episode_arrays((), (), config, vocabulary, info)["support_tokens"]
    np.testing.assert_array_equal(read, trained)
    assert np.count_nonzero(read[:, 0]) == 2


@pytest.mark.parametrize(
    ("layout", "definition", "supports", "cut"),
    [
        ("separate", "say y", 1, 0),
        ("separate", "say y" * 3, 1, 0),  # 15 tokens and their end fill a row
        ("separate", "say y" * 3 + "!", 1, 1),
        ("joint", "", 1, 0),
        ("joint", "!", 1, 1),  # room for two of the three examples
        ("joint", "!", 3, 0),
        ("joint", "say y" * 3, 3, 1),
    ],
)
def test_supports_that_are_not_read_whole_are_counted(layout: Any, definition: str, supports: int, cut: int) -> None:
    """Of one task, whose examples take 5 of the 16 tokens of a row each."""
    vocabulary = Bytes()
    config = CONFIG.replace(support_layout=layout, definition="support", shots=3, too_long="truncate")
    pairs = [Example.from_text(f"{i:02}", "y", vocabulary) for i in range(6)]
    info = TaskInfo(definition=np.array(vocabulary.encode(definition), np.int32))
    source = InMemorySource([TaskExamples("y", pairs, info)], vocabulary)
    held_out = HeldOut.from_source(source, config)
    assert count_cut_supports(held_out, config, vocabulary, supports) == cut
    told = not_covered(held_out, source, config, supports)
    assert told == ({"supports_cut": {"tasks": 1, "length": 16}} if cut else {})
