"""Strings as pretraining pairs: each kind is what it says, true, and within its bounds."""

from __future__ import annotations

import numpy as np
import pytest

from hyperflax.errors import ConfigError
from hyperflax_tasks.strings import load_split, parse
from hyperflax_tasks.strings.episodes import base_pairs, source

KINDS = ("follow", "induce", "continue", "copy")


def pairs(kind: str, count: int, **options) -> list[tuple[str, str]]:
    """`count` pairs of one kind as text; sentinels vanish in decoding."""
    rates = tuple(float(kind == name) for name in KINDS)
    draw, rng = base_pairs("held_out", 6, rates=rates, **options), np.random.default_rng(0)
    decode = source("held_out", 6).vocabulary.decode
    drawn: list[tuple[str, str]] = []
    while len(drawn) < count:
        drawn += [(decode(list(x)), decode(list(y))) for x, y in draw(rng)]
    return drawn


def test_a_task_is_a_program_with_its_instruction_as_definition() -> None:
    held_out = source("held_out", 6)
    assert set(held_out.task_names) == {program.instruction for program in load_split().held_out}
    for task in (0, 300, 599):
        program = parse(held_out.task_names[task])
        assert held_out.vocabulary.decode(held_out.info(task).definition.tolist()) == program.instruction
        for number in range(held_out.sizes[task]):
            example = held_out.example(task, number)
            x, y = (held_out.vocabulary.decode(ids.tolist()) for ids in (example.inputs, example.targets))
            assert program.run(x) == y


def test_fewer_tasks_are_spread_over_the_split() -> None:
    names = list(source("held_out", 6).task_names)
    assert list(source("held_out", 6, tasks=3).task_names) == [names[0], names[200], names[400]]


def test_a_source_of_some_types_and_depths() -> None:
    names = source("held_out", 6, kinds=("email", "isodate"), max_depth=2).task_names
    expected = [p for p in load_split().held_out if p.kind in ("email", "isodate") and p.depth <= 2]
    assert list(names) == [p.instruction for p in expected]
    assert source("held_out", 6, kinds=["email", "isodate"], max_depth=2).task_names == names  # as gin files write it
    assert next(iter(source("held_out", 6, tasks=1, kinds=("email",)).task_names)).startswith("email | ")


@pytest.mark.parametrize(
    "options",
    [
        {"split": "test"},
        {"examples": 0},
        {"tasks": 0},
        {"max_depth": 0},
        {"kinds": ()},
        {"kinds": []},
        {"kinds": ("emial",)},
    ],
)
def test_impossible_settings_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError, match="strings source"):
        source(**options)


def test_following_puts_the_instruction_before_the_input() -> None:
    for x, y in pairs("follow", 60):
        found = [p for p in load_split().held_out if x.startswith(p.instruction)]
        assert any(program.try_run(x.removeprefix(program.instruction)) == y for program in found)


def test_induction_asks_for_the_instruction() -> None:
    instructions = {program.instruction for program in load_split().held_out}
    assert {y for _, y in pairs("induce", 60)} <= instructions


def test_copying_repeats_its_input() -> None:
    assert all(x == y for x, y in pairs("copy", 60))


# Bounds that many programs do not fit, and some not at all; a definition that does not fit would be an error.
@pytest.mark.parametrize(
    ("kind", "inputs_length", "targets_length"),
    [("follow", 40, 30), ("induce", 60, 96), ("continue", 90, 30), ("copy", 40, 30)],
)
def test_pairs_stay_within_their_bounds(kind: str, inputs_length: int, targets_length: int) -> None:
    rates = tuple(float(kind == name) for name in KINDS)
    draw = base_pairs("held_out", 6, rates=rates, inputs_length=inputs_length, targets_length=targets_length)
    rng = np.random.default_rng(1)
    drawn = [pair for _ in range(200) for pair in draw(rng)]
    assert len(drawn) > 50
    assert all(len(x) < inputs_length and len(y) < targets_length for x, y in drawn)
