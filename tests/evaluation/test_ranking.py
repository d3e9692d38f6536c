"""Rank classification: against every choice scored alone, and where the answer has a closed form."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperflax.data.examples import Example, InMemorySource, TaskExamples
from hyperflax.data.rendering import render
from hyperflax.data.vocabularies import EOS_ID, SentencePiece
from hyperflax.errors import DataError
from hyperflax.evaluation import ranking
from hyperflax.evaluation.conditions import Conditions
from hyperflax.evaluation.held_out import HeldOut
from hyperflax.evaluation.runner import evaluate_conditions
from hyperflax.hypermodel import Hypermodel
from hyperflax.models.scoring import score_options
from tests.evaluation.micro import choice_source, hypermodel

TASKS, EXAMPLES, SOURCE = 3, 5, 8


def inputs(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, 256, (TASKS, EXAMPLES, SOURCE)).astype(np.int32)
    return np.where(np.arange(SOURCE) < rng.integers(2, SOURCE + 1, (TASKS, EXAMPLES, 1)), tokens, 0)


def choices(seed: int = 1) -> list[list[list[np.ndarray]]]:
    """Two to four choices of one to six tokens; the last task has two examples fewer."""
    rng = np.random.default_rng(seed)

    def one() -> list[np.ndarray]:
        return [rng.integers(3, 256, rng.integers(1, 7)).astype(np.int32) for _ in range(rng.integers(2, 5))]

    return [[one() for _ in range(EXAMPLES - 2 * (task == TASKS - 1))] for task in range(TASKS)]


def brute_force(source: np.ndarray, options: list[np.ndarray], adapter: object = None, rule: str = "sum") -> int:
    """The choice with the largest sum or mean of log-probabilities, each scored by a forward pass of its own."""
    model = hypermodel()
    variables = {"params": model.base_params} | ({} if adapter is None else {"adapters": adapter})
    encoder = np.zeros(
        (1, 2 * SOURCE), np.int32
    )  # one shape for all calls: padding is invisible, and so is what follows
    encoder[0, : len(source)] = source
    scores = []
    for option in options:
        target = np.append(option, EOS_ID)
        decoder = np.zeros((1, SOURCE), np.int32)
        decoder[0, 1 : len(target)] = option
        log_probs = np.asarray(_log_probs(variables, encoder, decoder))[0]
        scores.append(getattr(log_probs[np.arange(len(target)), target], rule)())
    return int(np.argmax(scores))


@jax.jit
def _log_probs(variables: object, source: jax.Array, decoder: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(hypermodel().model.apply(variables, source, decoder).astype(jnp.float32))


def generated() -> object:
    rng = np.random.default_rng(2)
    return hypermodel().generate({"support_tokens": rng.integers(3, 256, (TASKS, 2, 8)).astype(np.int32)})


@pytest.mark.parametrize("rows", [256, 24])
def test_the_choice_is_that_of_each_scored_alone(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bare and under a generated adapter for each task, whatever the size of a slice."""
    monkeypatch.setattr(ranking, "ROWS", rows)
    assert len(list(ranking.slices(inputs(), rows=rows // 4))) == (1 if rows == 256 else 3)
    tokens, options, adapters = inputs(), choices(), generated()
    found = {
        (name, rule): ranking.rank(hypermodel(), tokens, options, given, rule=rule)
        for name, given in (("bare", None), ("generated", adapters))
        for rule in ("sum", "mean")
    }
    for (name, rule), chosen in found.items():
        for task, examples in enumerate(options):
            own = None if name == "bare" else jax.tree.map(lambda leaf, task=task: leaf[task], adapters)
            expected = [brute_force(tokens[task, row], given, own, rule) for row, given in enumerate(examples)]
            assert chosen[task] == expected, (name, rule)
    assert len({str(chosen) for chosen in found.values()}) == len(found)  # all four differ


def test_slices_are_of_one_shape_and_hold_every_example_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "TOKENS", 2 * TASKS * SOURCE)  # room for two examples of every task
    tokens, other = inputs(), np.arange(TASKS * EXAMPLES).reshape(TASKS, EXAMPLES)
    parts = list(ranking.slices(tokens, other))
    assert [kept for kept, *_ in parts] == [2, 2, 1]
    assert {(a.shape, b.shape) for _, a, b in parts} == {((TASKS, 2, SOURCE), (TASKS, 2))}
    np.testing.assert_array_equal(np.concatenate([part[:, :kept] for kept, part, _ in parts], 1), tokens)
    np.testing.assert_array_equal(np.concatenate([part[:, :kept] for kept, _, part in parts], 1), other)
    assert not parts[-1][1][:, 1:].any()
    monkeypatch.setattr(ranking, "TOKENS", 1)
    assert [kept for kept, _ in ranking.slices(tokens)] == [1] * EXAMPLES


def test_examples_of_many_counts_are_sliced_to_few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fits into one slice has a rounded size; of more examples all slices have one, and none is all padding."""
    monkeypatch.setattr(ranking, "TOKENS", 20 * TASKS * SOURCE)
    shapes = set()
    for examples in range(1, 90):
        parts = list(ranking.slices(np.ones((TASKS, examples, SOURCE), np.int32)))
        assert sum(kept for kept, _ in parts) == examples
        assert len(parts) == -(-examples // 20)
        shapes |= {part.shape[1] for _, part in parts}
    assert shapes == {1, 2, 3, 4, 6, 8, 12, 16, 20}


def test_rows_without_an_example_change_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, wherever they stand: behind the last example of a slice, or in a slice of their own."""
    monkeypatch.setattr(ranking, "ROWS", 4 * TASKS * EXAMPLES)  # one slice for all examples, none for more
    seen: list[np.ndarray] = []

    def watched(*given: object) -> np.ndarray:
        seen.append(np.asarray(score_options(*given)))
        return seen[-1]

    monkeypatch.setattr(ranking, "score_options", watched)
    padded = np.pad(inputs(), [(0, 0), (0, 1), (0, 0)])
    for adapters in (None, generated()):
        assert ranking.rank(hypermodel(), inputs(), choices(), adapters) == ranking.rank(
            hypermodel(), padded, choices(), adapters
        )
        alone, beside, padding = seen
        np.testing.assert_array_equal(alone, beside)
        assert alone.shape == padding.shape
        seen.clear()


def test_without_knowledge_the_shortest_choice_wins_and_ties_go_to_the_first() -> None:
    """With all parameters 0 every token has probability 1 / vocabulary: a choice of n tokens scores -(n + 1) log V, so
    that a sum that were divided by the length would find all equal."""
    model = hypermodel()
    blank = Hypermodel(
        model.config, jax.tree.map(np.zeros_like, model.parts.base), model.parts.hypernetwork_params, name="blank"
    )
    words = [[np.full(n, 7, np.int32) for n in lengths] for lengths in ((3, 1, 2), (2, 2), (5, 4), (1, 1, 1), (9, 2))]
    assert ranking.rank(blank, inputs()[:1], [words]) == [[1, 0, 1, 0, 1]]


SUITE = {
    f"task_{letter}": [(f"{letter}{i}", str(i % 2), ["0", "1", "no"][: 2 + i % 2]) for i in range(6)]
    for letter in "abc"
}


@pytest.mark.parametrize("rule", ["sum", "mean"])
def test_every_condition_chooses_and_the_control_reads_another_support(rule: ranking.Rule) -> None:
    """Conditions against the same ranking with hand-made adapters and inputs."""
    model, source = hypermodel(), choice_source(SUITE)
    held_out = HeldOut.from_source(source, model.config.episodes, examples=None, ranked=rule)
    assert [len(task.inputs) for task in held_out.tasks] == [4, 4, 4]
    conditions = Conditions(model, held_out, refine_steps=2)
    names = ("bare", "in_context", "generated", "refined", "shuffled_support")
    table = evaluate_conditions(held_out.tasks, conditions.pick(*names), "accuracy", progress=False)
    supports = {task.name: task.support for task in held_out.tasks}
    sentinels = (model.config.vocabulary.sentinel(0), model.config.vocabulary.sentinel(1))
    for task in held_out.tasks:
        scored = held_out.tokens[task.name].scored
        shown = [render(example, sentinels) for example in held_out.tokens[task.name].support]
        for name in ("bare", "in_context", "generated", "shuffled_support"):
            adapter = None
            if name in ("generated", "shuffled_support"):
                owner = task.name if name == "generated" else conditions._donors[task.name]
                assert (owner == task.name) == (name == "generated")
                adapter = jax.tree.map(jnp.asarray, model.adapt(supports[owner]).tree)
            for row, example in enumerate(scored):
                asked = [example.inputs]
                if name == "in_context":
                    asked = [*shown, sentinels[:1], example.inputs, sentinels[1:]]
                source_tokens = np.concatenate([*asked, [EOS_ID]])
                best = brute_force(source_tokens, list(example.options), adapter, rule)
                assert table.predictions[name][task.name][row] == task.options[row][best], (name, row)
        for name in names:
            answers = table.predictions[name][task.name]
            right = [answer in given for answer, given in zip(answers, task.options, strict=True)]
            assert all(right)
            hits = [answer == target for answer, (target,) in zip(answers, task.references, strict=True)]
            assert table.scores[name][task.name] == pytest.approx(np.mean(hits))


def test_an_example_whose_target_is_no_choice_is_named() -> None:
    source = choice_source({"good": SUITE["task_a"], "bad": [("x", "yes", ["no", "maybe"])] * 4})
    with pytest.raises(
        DataError, match=r"task 'bad', example \d: expected its target among its answer choices, it has 2"
    ):
        HeldOut.from_source(source, hypermodel().config.episodes, ranked="sum")


def test_choices_that_the_vocabulary_makes_one_of_are_refused(data_dir: pathlib.Path) -> None:
    """T5's has neither braces nor "<": whichever is chosen would be right."""
    t5, config = SentencePiece(data_dir / "vocab" / "spiece.model"), hypermodel().config.episodes

    def held_out(*choices: str) -> HeldOut:
        example = Example.from_text("1 ? 2", choices[0], t5, options=choices)
        return HeldOut.from_source(InMemorySource([TaskExamples("compare", 4 * [example])], t5), config, ranked="sum")

    told = r"task 'compare', example \d: expected answer choices that the vocabulary tells apart, got 2 of 3 .* ' ⁇ '"
    with pytest.raises(DataError, match=told):
        held_out("<", "=", "}")
    for choices in (("<", ">"), ("a <", "b <"), ("same", "same")):
        assert len(held_out(*choices).tasks[0].options[0]) == 2


def test_draws_of_the_support_share_their_scored_examples() -> None:
    source = choice_source({name: [(f"{name[-1]}{i}", "0", ["0", "1"]) for i in range(20)] for name in SUITE})
    config = hypermodel().config.episodes
    drawn = [HeldOut.from_source(source, config, examples=None, ranked="sum", draw=draw, draws=4) for draw in range(4)]
    for tasks in zip(*(held_out.tasks for held_out in drawn), strict=True):
        assert len({task.inputs for task in tasks}) == 1
        assert len(tasks[0].inputs) == 20 - 4 * 2
        assert len({task.support for task in tasks}) > 1
        assert not {x for task in tasks for x, _ in task.support} & set(tasks[0].inputs)
