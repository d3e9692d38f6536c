"""The split of strings by behaviour: every promise is recomputed here from the stored lists."""

from __future__ import annotations

from collections import Counter

import pytest

from hyperflax.errors import DataError
from hyperflax_tasks.strings import OPERATIONS, TYPES, Program, Split, load_split, parse, probes
from hyperflax_tasks.strings import split as splits


def _agreement(a: Program, b: Program) -> float:
    """Share of equal outputs on the probes of `a`'s type, by the plainest means."""
    same = [a.run(text) == b.try_run(text) for text in probes(a.kind)]
    return sum(same) / len(same)


def test_sizes_and_mix() -> None:
    split = load_split()
    assert len(split.train) == splits.NUM_GROWN
    assert len(split.held_out) == len(split.held_out_new_pair) == 600
    assert sum(split.held_out_new_pair) == 200
    assert [Counter(p.depth for p in split.held_out)[d] for d in (1, 2, 3, 4)] == [120, 240, 162, 78]
    assert [Counter(p.depth for p in split.train)[d] for d in (1, 2, 3, 4)] == [7200, 14400, 9720, 4680]
    assert {p.kind for p in split.train} == set(TYPES)
    assert len({p.kind for p in split.held_out}) >= 40
    assert {s.name for p in split.train for s in p.steps} == set(OPERATIONS)
    stored = sum((splits.HERE / name).stat().st_size for name in ("train.txt", "heldout.txt"))
    assert stored < 1_500_000


def test_pairs_of_operations() -> None:
    split = load_split()
    seen = {pair for p in split.train for pair in p.pairs}
    for program, new in zip(split.held_out, split.held_out_new_pair, strict=True):
        assert new == (not seen.issuperset(program.pairs))


def test_all_promises_hold_within_types_and_across_some() -> None:
    splits.check(load_split(), kinds=("fullname", "isodate", "file"))


@pytest.mark.parametrize("kind", ["email", "usdate"])
def test_agreement_by_plain_comparison(kind: str) -> None:
    """The hashed, vectorised comparison and this one share nothing."""
    split = load_split()
    train = [p for p in split.train if p.kind == kind]
    outputs = [[p.run(text) for text in probes(kind)] for p in train]
    for program in (p for p in split.held_out if p.kind == kind):
        mine = [program.run(text) for text in probes(kind)]
        worst = max(sum(a == b for a, b in zip(mine, theirs, strict=True)) for theirs in outputs)
        assert worst < 0.9 * 64


def test_no_program_is_trivial() -> None:
    split = load_split()
    for program in split.train[::5] + split.held_out:
        texts = probes(program.kind)
        outputs = [program.run(text) for text in texts]
        assert max(len(out.encode()) for out in outputs) <= 64
        assert sum(a != b for a, b in zip(texts, outputs, strict=True)) >= 48, "nearly an identity"
        assert max(Counter(outputs).values()) <= 0.35 * 64, "nearly a constant"


def test_the_simplest_program_of_a_behaviour_is_kept() -> None:
    by_words, by_mark = parse("name | word 1"), parse('name | before " "')
    outputs = [tuple(map(p.run, probes("name"))) for p in (by_words, by_mark)]
    candidates = [(2, by_mark, outputs[1]), (1, by_words, outputs[0])]
    assert splits.distinct(candidates) == [(3, by_words)]
    idle = parse("name | title | upper")
    candidates = splits.shortened([(4, idle, tuple(map(idle.run, probes("name"))))])
    assert splits.distinct(candidates) == [(4, parse("name | upper"))]


def test_collisions_count_agreement_on_the_held_out_types_probes() -> None:
    held_out = [parse('name | words "$2, $1"'), parse("name | word 2")]
    train = [parse('route | swap " " | replace " " ", "'), parse("email | upper")]
    assert _agreement(held_out[0], Program("name", train[0].steps)) == 1.0
    assert splits.collisions(held_out, train) == {(held_out[0], train[0].pipeline)}


@pytest.fixture(scope="module")
def small() -> Split:
    return splits.build(seed=1, attempts=3000, num_train=800, old_pairs=(4, 6, 4, 2), new_pairs=(0, 2, 2, 1))


def test_a_fresh_draw_keeps_every_promise(small: Split) -> None:
    splits.check(small)
    assert (len(small.train), len(small.held_out), sum(small.held_out_new_pair)) == (800, 21, 5)


def test_broken_promises_are_found(small: Split) -> None:
    twin = parse('name | before " "')
    with pytest.raises(DataError, match="behaves as"):
        splits.check(Split((*small.train, parse("name | word 1"), twin), small.held_out, small.held_out_new_pair), ())
    with pytest.raises(DataError, match="marked wrongly"):
        splits.check(Split(small.train, small.held_out, tuple(not f for f in small.held_out_new_pair)), ())
    moved = next(p for p in small.train if p.kind == "phrase" and p.depth == 2 and p.steps[-1].name == "suffix")
    leak = Program("headline", moved.steps)
    with pytest.raises(DataError, match="behaves as the training pipeline"):
        splits.check(Split(small.train, (leak,), (False,)))


def test_training_grows_and_every_promise_holds(small: Split) -> None:
    grown = splits.grow(small, seed=1, attempts=1500, num_train=1100)
    splits.check(grown)
    assert set(small.train) < set(grown.train)
    assert len(set(grown.train)) == 1100
    assert grown[1:] == small[1:], "the held-out programs stay"
    assert splits.grow(small, seed=1, attempts=1500, num_train=1100) == grown
    with pytest.raises(DataError, match="too few programs by depth"):
        splits.grow(small, attempts=100, num_train=1100)


def test_save_and_load(small: Split, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits.save(small, tmp_path)
    monkeypatch.setattr(splits, "HERE", tmp_path)
    assert splits.load_split.__wrapped__() == small


def test_too_few_candidates_are_reported() -> None:
    with pytest.raises(DataError, match="too few programs by depth"):
        splits.build(attempts=50)
