"""Sizes that batches are padded to."""

from __future__ import annotations

import numpy as np

from hyperflax.padding import blocks, rounded_up, trim


def test_sizes_are_few_and_at_most_half_as_large_again() -> None:
    counts = (1, 2, 3, 4, 5, 6, 7, 9, 13, 33, 48, 49)
    assert [rounded_up(count) for count in counts] == [1, 2, 3, 4, 6, 6, 8, 12, 16, 48, 48, 64]
    for count in range(1, 2000):
        size = rounded_up(count)
        assert count <= size <= 1.5 * count
        assert rounded_up(size) == size
    assert len({rounded_up(count) for count in range(1, 1025)}) == 20


def test_blocks_hold_every_row_once_and_padding_at_the_end() -> None:
    rows = {"x": np.array([[1, 2, 3, 4, 5, 0]]), "y": np.arange(12).reshape(1, 6, 2)}
    found = list(blocks(rows, most=2, axis=1))
    assert [part["x"].tolist() for part in found] == [[[1, 2]], [[3, 4]], [[5, 0]]]
    np.testing.assert_array_equal(np.concatenate([part["y"] for part in found], axis=1), rows["y"])
    (whole,) = blocks(rows, most=64, axis=1)
    assert whole["x"].tolist() == [[1, 2, 3, 4, 5, 0]]  # 6 is one of few sizes


def test_only_columns_of_padding_are_cut_and_lengths_are_few() -> None:
    for used in range(0, 101):
        rows = np.zeros((2, 3, 100), np.int32)
        rows[1, 2, :used] = 7
        rows[1, 2, : used - 1] = 0  # padding before a token stays
        kept = trim(rows)
        assert kept.sum() == rows.sum()
        assert kept.shape == (2, 3, min(max(32, rounded_up(used)), 100))
    assert trim(np.zeros((2, 16), np.int32)).shape == (2, 16)
    assert trim(np.zeros((2, 16), np.int32), least=8).shape == (2, 8)
