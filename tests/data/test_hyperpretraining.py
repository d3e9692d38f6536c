"""Cut windows lose nothing but what does not fit, every cut is equally likely, and batches depend on (seed, step)."""

from __future__ import annotations

import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflax.data.batches import shift_right
from hyperflax.data.episodes import EpisodeConfig, Episodes
from hyperflax.data.examples import Example, InMemorySource, TaskExamples
from hyperflax.data.hyperpretraining import CACLM, cut
from hyperflax.data.vocabularies import Bytes
from hyperflax.errors import ConfigError, DataError

LENGTHS = {"length": 40, "shortest": 4, "support_length": 34, "inputs_length": 40, "targets_length": 40}


def counting(*sizes: int) -> InMemorySource:
    """Texts whose tokens are 10, 11, 12 ...: a piece tells where it stood."""
    nothing = np.zeros(0, np.int32)
    texts = [Example(nothing, np.arange(10, 10 + size, dtype=np.int32)) for size in sizes]
    return InMemorySource([TaskExamples("text", texts)], Bytes())


@given(st.integers(1, 6), st.integers(0, 60), st.integers(0, 10_000))
def test_four_pieces_make_the_window(shortest: int, spare: int, seed: int) -> None:
    tokens = np.arange(4 * shortest + spare)
    pieces = cut(tokens, shortest, np.random.default_rng(seed))
    assert len(pieces) == 4
    assert min(map(len, pieces)) >= shortest
    np.testing.assert_array_equal(np.concatenate(pieces), tokens)


def test_every_cut_is_equally_likely() -> None:
    rng = np.random.default_rng(0)
    draws = 5000
    counts = collections.Counter(tuple(map(len, cut(np.arange(10), 2, rng))) for _ in range(draws))
    # Two spare tokens over four pieces: C(5, 3) = 10 ways.
    assert len(counts) == 10
    expected = draws / 10
    # Chi-square with 9 degrees of freedom is below 27.9 in 999 of 1,000 cases.
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 27.9


def test_support_is_what_stands_around_inputs_and_targets() -> None:
    batch = CACLM(counting(200), batch_size=8, **LENGTHS).batch(3)
    for row in range(8):
        support, inputs, targets = (
            batch[name][row, 0].tolist() for name in ("support_tokens", "encoder_input_tokens", "decoder_target_tokens")
        )
        first, last = (at for at, token in enumerate(support) if token == 1)
        before, after = support[:first], support[first + 1 : last]
        asked, answer = inputs[: inputs.index(1)], [token for token in targets if token]
        assert 1 not in targets
        window = [*before, *asked, *answer, *after]
        assert window == list(range(window[0], window[0] + 40))


def test_the_arrays_are_those_of_episodes() -> None:
    batch = CACLM(counting(100, 50), batch_size=3, **LENGTHS).batch(0)
    source = InMemorySource.from_strings({"upper": [(c, c.upper()) for c in "abcdef"]}, Bytes())
    config = EpisodeConfig(
        tasks_per_batch=3, shots=1, examples=1, support_length=34, inputs_length=40, targets_length=40
    )
    episodes = Episodes(source, config).batch(0)
    assert {n: (a.shape, a.dtype) for n, a in batch.items()} == {n: (a.shape, a.dtype) for n, a in episodes.items()}
    np.testing.assert_array_equal(batch["decoder_input_tokens"], shift_right(batch["decoder_target_tokens"]))
    np.testing.assert_array_equal(batch["decoder_loss_weights"], batch["decoder_target_tokens"] > 0)


def test_pieces_that_are_too_long_keep_where_they_meet() -> None:
    short = CACLM(counting(200), batch_size=8, **{**LENGTHS, "inputs_length": 4, "targets_length": 3}).batch(5)
    whole = CACLM(counting(200), batch_size=8, **LENGTHS).batch(5)
    np.testing.assert_array_equal(short["support_tokens"], whole["support_tokens"])
    np.testing.assert_array_equal(short["decoder_target_tokens"], whole["decoder_target_tokens"][..., :3])
    for row in range(8):
        inputs = whole["encoder_input_tokens"][row, 0].tolist()
        end = inputs.index(1)
        assert short["encoder_input_tokens"][row, 0].tolist() == inputs[end - 3 : end + 1]


def test_batches_depend_on_seed_and_step_and_rows_on_no_other_row() -> None:
    source = counting(120, 90, 60)
    first = CACLM(source, batch_size=4, seed=7, **LENGTHS).batch(2)
    for other, same in ((7, True), (8, False)):
        again = CACLM(source, batch_size=4, seed=other, **LENGTHS).batch(2)
        assert np.array_equal(first["support_tokens"], again["support_tokens"]) == same
    more = CACLM(source, batch_size=6, seed=7, **LENGTHS).batch(2)
    np.testing.assert_array_equal(more["support_tokens"][:4], first["support_tokens"])
    assert not np.array_equal(
        first["support_tokens"], CACLM(source, batch_size=4, **LENGTHS).batch(3)["support_tokens"]
    )


def test_impossible_lengths_are_named() -> None:
    with pytest.raises(ConfigError, match=r"CACLM\.support_length: expected a whole number of at least 34, got 33"):
        CACLM(counting(200), batch_size=2, **{**LENGTHS, "support_length": 33})
    with pytest.raises(ConfigError, match=r"CACLM\.shortest: expected a whole number of at least 1"):
        CACLM(counting(200), batch_size=2, **{**LENGTHS, "shortest": 0, "support_length": 42})
    with pytest.raises(DataError, match="at least one of 16 tokens"):
        CACLM(counting(15), batch_size=2, **LENGTHS)
