"""Padded and packed features against their definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperflax.data.batches import shift_right, text_batch
from hyperflax.data.text import PackedBatches, PaddedBatches
from hyperflax.errors import ConfigError, DataError

tokens = st.lists(st.integers(3, 99), max_size=7)


def test_text_batch_features() -> None:
    batch = text_batch([([5, 6], [7, 8]), ([9], [])], inputs_length=4, targets_length=3, batch_size=3)
    assert batch["encoder_input_tokens"].tolist() == [[5, 6, 1, 0], [9, 1, 0, 0], [0, 0, 0, 0]]
    assert batch["decoder_target_tokens"].tolist() == [[7, 8, 1], [1, 0, 0], [0, 0, 0]]
    assert batch["decoder_input_tokens"].tolist() == [[0, 7, 8], [0, 1, 0], [0, 0, 0]]
    assert batch["decoder_loss_weights"].tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert batch["decoder_loss_weights"].dtype == np.float32
    assert batch["encoder_input_tokens"].dtype == np.int32


def test_text_batch_never_truncates() -> None:
    with pytest.raises(DataError, match=r"example 1: inputs: expected at most 3 tokens.*got 4"):
        text_batch([([5], [5]), ([5, 5, 5], [5])], inputs_length=3, targets_length=3)
    with pytest.raises(DataError, match="at most 1 examples"):
        text_batch([([5], [5])] * 2, inputs_length=3, targets_length=3, batch_size=1)


def test_packed_batch_features() -> None:
    pairs = [([5, 6], [7]), ([8], [9, 9]), ([3, 3, 3], [4])]
    batch = PackedBatches(lambda rng: pairs, batch_size=1, inputs_length=6, targets_length=6, misses=1).batch(0)
    assert batch["encoder_input_tokens"].tolist() == [[5, 6, 1, 8, 1, 0]]
    assert batch["encoder_segment_ids"].tolist() == [[1, 1, 1, 2, 2, 0]]
    assert batch["encoder_positions"].tolist() == [[0, 1, 2, 0, 1, 0]]
    assert batch["decoder_target_tokens"].tolist() == [[7, 1, 9, 9, 1, 0]]
    assert batch["decoder_input_tokens"].tolist() == [[0, 7, 0, 9, 9, 0]]  # no token leaks across segments
    assert batch["decoder_segment_ids"].tolist() == [[1, 1, 2, 2, 2, 0]]
    assert batch["decoder_positions"].tolist() == [[0, 1, 0, 1, 2, 0]]
    assert batch["decoder_loss_weights"].tolist() == [[1, 1, 1, 1, 1, 0]]


@given(st.lists(st.tuples(tokens, tokens), min_size=1, max_size=12))
def test_packing_keeps_every_pair_whole(pairs: list[tuple[list[int], list[int]]]) -> None:
    batch = PackedBatches(lambda rng: pairs, batch_size=3, inputs_length=10, targets_length=9, misses=1).batch(0)
    found = []
    for row in range(3):
        for segment in range(1, batch["encoder_segment_ids"][row].max() + 1):
            inputs = batch["encoder_input_tokens"][row][batch["encoder_segment_ids"][row] == segment].tolist()
            targets = batch["decoder_target_tokens"][row][batch["decoder_segment_ids"][row] == segment].tolist()
            assert inputs[-1] == targets[-1] == 1
            found.append((inputs[:-1], targets[:-1]))
    # The pairs in their order, over and over, up to the first one that finds no room.
    drawn = itertools.islice(itertools.cycle(pairs), len(found))
    assert sorted(found) == sorted((list(a), list(b)) for a, b in drawn)


def test_shift_right_of_a_stack() -> None:
    assert shift_right(np.array([[[1, 2, 3]]])).tolist() == [[[0, 1, 2]]]


def _pairs(rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(rng.integers(3, 99, rng.integers(1, 9)), rng.integers(3, 99, rng.integers(1, 9))) for _ in range(3)]


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**40), step=st.integers(0, 2**40))
@pytest.mark.parametrize("kind", [PackedBatches, PaddedBatches])
def test_streams_are_pure_in_seed_and_step(kind: type, seed: int, step: int) -> None:
    def make(seed: int) -> dict[str, np.ndarray]:
        stream = kind(_pairs, batch_size=4, inputs_length=32, targets_length=32, seed=seed)
        stream.batch(step + 1)  # what was asked before must not matter
        return stream.batch(step)

    first, again, other = make(seed), make(seed), make(seed + 1)
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert not np.array_equal(first["encoder_input_tokens"], other["encoder_input_tokens"])


def test_packed_batches_are_nearly_full() -> None:
    batch = PackedBatches(_pairs, batch_size=8, inputs_length=64, targets_length=64).batch(0)
    assert batch["decoder_loss_weights"].mean() > 0.85


@pytest.mark.parametrize("kind", [PackedBatches, PaddedBatches])
@pytest.mark.parametrize(("field", "value"), [("batch_size", 0), ("batch_size", 2.0), ("inputs_length", "64")])
def test_a_size_that_is_none_is_refused_before_a_batch_is_asked_for(kind: type, field: str, value: object) -> None:
    """As a run file gives it: in the first batch it was a traceback of numpy's."""
    sizes = {"batch_size": 2, "inputs_length": 8, "targets_length": 8, field: value}
    with pytest.raises(
        ConfigError, match=rf"{kind.__name__}\.{field}: expected a whole number of at least 1, got {value!r}"
    ):
        kind(_pairs, **sizes)


def test_a_pair_that_fits_nowhere_is_named() -> None:
    stream = PackedBatches(lambda rng: [([3] * 9, [4])], batch_size=1, inputs_length=9, targets_length=4)
    with pytest.raises(DataError, match=r"step 3, call 0, pair 0: inputs: expected at most 9 tokens.*got 10"):
        stream.batch(3)


def test_a_source_that_yields_nothing_is_refused() -> None:
    stream = PaddedBatches(lambda rng: [], batch_size=1, inputs_length=9, targets_length=4)
    with pytest.raises(DataError, match="expected pairs that fill a batch"):
        stream.batch(0)
