"""The derangement of the control."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from hyperflax.errors import DataError
from hyperflax.evaluation.controls import derangement, shuffled_support


@pytest.mark.parametrize("n", [2, 3, 4, 10, 119, 1000])
def test_derangement_has_no_fixed_point(n: int) -> None:
    for seed in range(-2, 20):
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


def test_with_groups_the_donor_is_of_another_group() -> None:
    groups = {"rte_a": "rte", "rte_b": "rte", "rte_c": "rte", "cb_a": "cb", "cb_b": "cb", "copa_a": "copa"}
    for seed in range(20):
        donors = shuffled_support(list(groups), seed, groups)
        assert list(donors) == list(groups)
        assert all(groups[donor] != groups[task] for task, donor in donors.items())
        assert len({groups[donors[task]] for task in ("rte_a", "rte_b", "rte_c")}) == 1
    # One of the two derangements of three groups gives rte the supports of cb, in turn.
    found = {tuple(shuffled_support(list(groups), seed, groups).values())[:3] for seed in range(20)}
    assert found == {("cb_a", "cb_b", "cb_a"), ("copa_a", "copa_a", "copa_a")}
    with pytest.raises(DataError, match=r"at least 2 .* got 1"):
        shuffled_support(["rte_a", "rte_b"], 0, groups)
