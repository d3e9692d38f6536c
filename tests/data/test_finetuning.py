"""Held-out parts and batches of one task: pure in the seed, every example once an epoch."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperflax.data import finetuning
from hyperflax.data.draws import stream
from hyperflax.data.episode_config import EpisodeConfig
from hyperflax.data.finetuning import PairBatches, hold_out
from hyperflax.data.jsonl import Line
from hyperflax.data.vocabularies import Bytes
from hyperflax.errors import DataError

CONFIG = EpisodeConfig(inputs_length=6, targets_length=4)


def lines(count: int) -> list[Line]:
    return [Line(f"mine.jsonl:{number + 1:03}", f"{number:03}", "x") for number in range(count)]


@given(st.integers(8, 80), st.floats(0, 0.99), st.integers(0, 2**40))
@settings(max_examples=60, deadline=None)
def test_a_part_is_held_out_by_the_seed_alone(count, share, seed):
    train, held = hold_out(lines(count), share, seed)
    assert sorted(train + held) == lines(count)
    assert (train, held) == (sorted(train), sorted(held))
    assert len(held) == min(max(2, round(share * count)), count - 2)
    assert hold_out(lines(count), share, seed) == (train, held)


def test_seeds_differ_and_too_few_are_refused():
    assert hold_out(lines(40), 0.2, 0) != hold_out(lines(40), 0.2, 1)
    with pytest.raises(DataError, match=r"expected at least 8, .* got 7"):
        hold_out(lines(7), 0.2, 0)


@given(st.integers(1, 20), st.integers(1, 8), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_an_epoch_has_every_example_once(count, batch_size, epoch):
    batches = PairBatches.of(lines(count), CONFIG, Bytes(), batch_size=batch_size, seed=5)
    seen, first = [], epoch * batches.per_epoch
    for step in range(first, first + batches.per_epoch):
        batch = batches.batch(step)
        assert batch["encoder_input_tokens"].shape == (1, min(batch_size, count), 6)
        real = batch["decoder_loss_weights"][0].any(axis=-1)
        seen += [Bytes().decode(row.tolist()) for row in batch["encoder_input_tokens"][0][real]]
        for name, array in batches.batch(step).items():
            np.testing.assert_array_equal(array, batch[name])
    assert sorted(seen) == [line.input for line in lines(count)]


def test_orders_differ_between_epochs_and_evaluation_keeps_the_order():
    batches = PairBatches.of(lines(16), CONFIG, Bytes(), batch_size=16, seed=5)
    first, second = (batches.batch(step)["encoder_input_tokens"] for step in (0, 1))
    assert (first != second).any()
    ordered = PairBatches.of(lines(16), CONFIG, Bytes(), batch_size=16, seed=None).batch(3)["encoder_input_tokens"][0]
    assert [Bytes().decode(row.tolist()) for row in ordered] == [line.input for line in lines(16)]


def test_an_epoch_is_shuffled_once_and_not_for_every_batch(monkeypatch):
    drawn = []

    def counted(*purpose):
        drawn.append(purpose)
        return stream(*purpose)

    monkeypatch.setattr(finetuning, "stream", counted)
    batches = PairBatches.of(lines(30), CONFIG, Bytes(), batch_size=3, seed=987)
    for step in range(2 * batches.per_epoch):
        batches.batch(step)
    assert len(drawn) == 2


def test_parts_are_the_batch_cut_and_rows_are_as_long_as_the_examples():
    roomy = EpisodeConfig(inputs_length=500, targets_length=100)
    whole = PairBatches.of(lines(16), roomy, Bytes(), batch_size=8, seed=5)
    assert whole.arrays["encoder_input_tokens"].shape == (17, 32)
    assert whole.arrays["decoder_target_tokens"].shape == whole.arrays["decoder_loss_weights"].shape == (17, 8)
    assert all(array.base is None for array in whole.arrays.values())  # nor does anything behind it hold the rest
    batch, parts = whole.batch(1), dataclasses.replace(whole, parts=4).batch(1)
    assert parts.pop("task_index").tolist() == [0, 0, 0, 0]
    for name, array in parts.items():
        assert array.shape[:2] == (4, 2)
        np.testing.assert_array_equal(array.reshape(batch[name].shape), batch[name])


def test_a_batch_that_its_parts_do_not_divide_is_filled_up():
    whole = PairBatches.of(lines(15), CONFIG, Bytes(), batch_size=16, seed=5)
    batch, parts = whole.batch(1), dataclasses.replace(whole, parts=4).batch(1)
    assert parts["task_index"].tolist() == [0, 0, 0, 0]
    for name in batch.keys() - {"task_index"}:
        assert parts[name].shape == (4, 4, batch[name].shape[-1])
        *rows, last = parts[name].reshape(16, -1)
        np.testing.assert_array_equal(rows, batch[name][0])
        assert not last.any()


def test_a_long_example_is_named_by_file_and_line():
    long = [*lines(2), Line("mine.jsonl:7", "a long input", "x")]
    with pytest.raises(DataError, match=r"mine\.jsonl:7: inputs: expected at most 6 tokens"):
        PairBatches.of(long, CONFIG, Bytes(), batch_size=2, seed=0)
