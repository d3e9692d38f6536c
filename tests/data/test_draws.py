"""Counter-based draws: fixed bits, independence of rows, uniformity."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hyperflax.data.draws import stream


@given(st.integers(1, 500), st.data())
def test_distinct_are_distinct_and_in_range(n: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, n))
    drawn = stream(seed=3, purpose=1, step=n).distinct(n, count)
    assert len(set(drawn)) == count
    assert all(0 <= i < n for i in drawn)


def test_distinct_of_all_is_a_uniform_permutation() -> None:
    # 6 orders of 3 things, 6,000 draws: chi-squared with 5 degrees of freedom is below 20.5 in 99.9% of the cases.
    orders: dict[tuple[int, ...], int] = {}
    for step in range(6000):
        order = tuple(stream(0, 1, step).distinct(3, 3))
        orders[order] = orders.get(order, 0) + 1
    assert len(orders) == 6
    assert sum((count - 1000) ** 2 / 1000 for count in orders.values()) < 20.5


def test_streams_are_philox_blocks() -> None:
    # Counter words (0, 0, row, step), key words (seed, purpose): numpy's own Philox set there gives the same bits.
    bits = np.random.Philox(key=np.array([7, 9], np.uint64), counter=np.array([0, 0, 2, 5], np.uint64))
    assert stream(seed=7, purpose=9, step=5, row=2).uniform() == (int(bits.random_raw()) >> 11) / 2**53


def test_every_coordinate_matters() -> None:
    base = {"seed": 1, "purpose": 2, "step": 3, "row": 4}
    values = {stream(**base).uniform()} | {stream(**{**base, name: 99}).uniform() for name in base}
    assert len(values) == 5


@given(st.integers(-5, 5), st.integers(0, 10))
def test_integers_stay_within_bounds(low: int, span: int) -> None:
    drawn = {stream(0, 1, step).integer(low, low + span) for step in range(200)}
    assert drawn <= set(range(low, low + span + 1))
    assert span > 3 or drawn == set(range(low, low + span + 1))
