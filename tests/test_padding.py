"""Sizes that batches are padded to."""

from __future__ import annotations

from hyperflax.padding import rounded_up


def test_sizes_are_few_and_at_most_half_as_large_again() -> None:
    counts = (1, 2, 3, 4, 5, 6, 7, 9, 13, 33, 48, 49)
    assert [rounded_up(count) for count in counts] == [1, 2, 3, 4, 6, 6, 8, 12, 16, 48, 48, 64]
    for count in range(1, 2000):
        size = rounded_up(count)
        assert count <= size <= 1.5 * count
        assert rounded_up(size) == size
    assert len({rounded_up(count) for count in range(1, 1025)}) == 20
