"""Rows of supports are encoded once, in parts of bounded size, and what is kept is bounded."""

from __future__ import annotations

import concurrent.futures

import numpy as np
import pytest

from hyperflax.hypernets.encoded_rows import EncodedRows

EMB = 3


class Encoder:
    """row -> row * (1, 2, 3) in float32; notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[np.ndarray] = []

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        self.asked.append(rows)
        return rows[..., None].astype(np.float32) * np.arange(1, EMB + 1, dtype=np.float32)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [rows.shape for rows in self.asked]


def tokens(*leading: int, length: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 1000, (*leading, length)).astype(np.int32)


def right(encoded: np.ndarray, rows: np.ndarray) -> bool:
    return np.array_equal(encoded, rows[..., None] * np.arange(1, EMB + 1, dtype=np.float32))


def test_a_row_is_encoded_once_wherever_it_stands() -> None:
    encoder = Encoder()
    encoded, first = EncodedRows(encoder), tokens(2, 3)
    assert right(encoded(first), first)
    assert encoder.shapes == [(6, 4)]
    more = np.concatenate([first[1, ::-1], tokens(2, seed=1), tokens(2, seed=1)])  # five of seven are known or equal
    assert right(encoded(more), more)
    assert encoder.shapes == [(6, 4), (2, 4)]
    again = more[None, None]
    assert right(encoded(again), again)
    assert len(encoder.asked) == 2


def test_equal_tokens_in_rows_of_other_lengths_are_other_rows() -> None:
    encoded = EncodedRows(Encoder())
    short = tokens(1)
    long = np.pad(short, ((0, 0), (0, 2)))
    assert right(encoded(short), short)
    assert right(encoded(long), long)


@pytest.mark.parametrize(
    ("at_once", "shapes"),
    [(100, [(12, 4)]), (16, [(4, 4), (4, 4), (3, 4)]), (20, [(5, 4), (5, 4), (1, 4)]), (1, [(1, 4)] * 11)],
)
def test_many_rows_are_read_in_parts(at_once: int, shapes: list[tuple[int, int]]) -> None:
    encoder, rows = Encoder(), tokens(11)
    assert right(EncodedRows(encoder, at_once=at_once)(rows), rows)
    assert encoder.shapes == shapes


def test_what_is_kept_is_bounded_and_the_oldest_goes_first() -> None:
    encoder, row_bytes = Encoder(), 4 * EMB * 4
    encoded, rows = EncodedRows(encoder, keep=3 * row_bytes), tokens(4)
    encoded(rows[:3])
    encoded(rows[:1])  # used again, so the second is the oldest now
    encoded(rows[3:])
    assert [shape[0] for shape in encoder.shapes] == [3, 1]
    encoded(rows[[0, 2, 3]])
    assert len(encoder.asked) == 2
    encoded(rows[1:2])
    assert len(encoder.asked) == 3
    everything = tokens(50, seed=2)  # more than is kept is still answered
    assert right(encoded(everything), everything)
    assert encoded._bytes == 3 * row_bytes == sum(row.nbytes for row in encoded._kept.values())


def test_threads_may_share_one() -> None:
    encoded, rows = EncodedRows(Encoder(), keep=200), tokens(20)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: right(encoded(rows[i % 17 :]), rows[i % 17 :]), range(300)))
    assert all(found)
    assert encoded._bytes == sum(row.nbytes for row in encoded._kept.values()) <= 200
