"""The derangement of the control and the nearest-task baseline."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from hyperflax.errors import ConfigError, DataError
from hyperflax.evaluation.controls import derangement, nearest_task, shuffled_support


@pytest.mark.parametrize("n", [2, 3, 4, 10, 119, 1000])
def test_derangement_has_no_fixed_point(n: int) -> None:
    for seed in range(20):
        permutation = derangement(n, seed)
        assert sorted(permutation.tolist()) == list(range(n))
        assert not np.any(permutation == np.arange(n))
        assert np.array_equal(permutation, derangement(n, seed))


def test_derangements_are_uniform() -> None:
    # Four things have 9 derangements; 9,000 draws give each 1,000 +- 30: five standard deviations are allowed.
    counts = collections.Counter(tuple(derangement(4, seed).tolist()) for seed in range(9000))
    assert len(counts) == 9
    assert all(850 < count < 1150 for count in counts.values())


def test_shuffled_support_names_tasks() -> None:
    donors = shuffled_support(["a", "b", "c"], seed=3)
    assert sorted(donors) == sorted(donors.values()) == ["a", "b", "c"]
    assert all(task != donor for task, donor in donors.items())


@pytest.mark.parametrize("tasks", [[], ["only"]])
def test_too_few_tasks_are_refused(tasks: list[str]) -> None:
    with pytest.raises(DataError, match=f"at least 2 .* got {len(tasks)}"):
        shuffled_support(tasks)


def test_a_repeated_task_is_refused() -> None:
    with pytest.raises(DataError, match="'b' is listed more than once"):
        shuffled_support(["a", "b", "b"])


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_nearest_task_is_the_lowest_loss(batch_size: int) -> None:
    candidates = {f"task{i}": float(i) for i in range(10)}
    sizes = []

    def loss(adapters: list[float], support: float) -> list[float]:
        sizes.append(len(adapters))
        return [(adapter - support) ** 2 for adapter in adapters]

    nearest = nearest_task(candidates, 6.2, loss, batch_size=batch_size)
    assert (nearest.name, nearest.loss) == ("task6", pytest.approx(0.04))
    assert nearest.losses == pytest.approx({name: (value - 6.2) ** 2 for name, value in candidates.items()})
    assert sum(sizes) == 10
    assert max(sizes) == min(batch_size, 10)
    assert nearest_task(candidates, 6.2, loss, exclude={"task6"}).name == "task7"
    assert nearest_task(candidates, 6.5, loss).name == "task6"  # a tie goes to the first by name


def test_nearest_task_refuses_nonsense() -> None:
    with pytest.raises(DataError, match="none of 1 candidates"):
        nearest_task({"a": 0}, None, lambda adapters, _: [0.0], exclude=["a"])
    with pytest.raises(DataError, match=r"expected shape \(2,\), got \(1,\)"):
        nearest_task({"a": 0, "b": 1}, None, lambda adapters, _: [0.0])
    with pytest.raises(DataError, match="'b' is NaN"):
        nearest_task({"a": 0, "b": 1}, None, lambda adapters, _: [0.0, np.nan])
    with pytest.raises(ConfigError, match="batch_size"):
        nearest_task({"a": 0}, None, lambda adapters, _: [0.0], batch_size=0)
