"""Bootstrap intervals against exact quantiles, the normal approximation and simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hyperflax.errors import ConfigError, DataError
from hyperflax.evaluation.intervals import (
    bootstrap_difference,
    bootstrap_mean,
    bootstrap_nested,
    difference_of_examples,
    mean_of_examples,
)


def _binomial_quantile(n: int, p: float, q: float) -> int:
    total = 0.0
    for k in range(n + 1):
        total += math.comb(n, k) * p**k * (1 - p) ** (n - k)
        if total >= q:
            return k
    return n


@pytest.mark.parametrize(("n", "hits"), [(20, 6), (50, 5), (119, 60)])
def test_zero_one_scores_have_binomial_quantiles(n: int, hits: int) -> None:
    # A resample of 0/1 scores has Binomial(n, hits/n) ones: the interval is known exactly, up to 10,000 draws.
    interval = bootstrap_mean([1.0] * hits + [0.0] * (n - hits))
    assert interval.mean == hits / n
    assert interval.low * n == pytest.approx(_binomial_quantile(n, hits / n, 0.025), abs=1.0)
    assert interval.high * n == pytest.approx(_binomial_quantile(n, hits / n, 0.975), abs=1.0)


def test_many_tasks_approach_the_normal_interval() -> None:
    values = np.random.default_rng(1).beta(2, 3, 1000)
    interval = bootstrap_mean(values)
    half = 1.959964 * values.std() / math.sqrt(len(values))
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_coverage_by_simulation() -> None:
    # True mean of beta(2, 3): 0.4. With 400 samples of 50 tasks a coverage of 0.94 comes out within 0.94 +- 0.036.
    rng = np.random.default_rng(2)
    covered = 0
    for trial in range(400):
        interval = bootstrap_mean(rng.beta(2, 3, 50), resamples=1000, seed=trial)
        covered += interval.low <= 0.4 <= interval.high
    assert 0.90 <= covered / 400 <= 0.98


def test_pairing_takes_task_difficulty_out() -> None:
    rng = np.random.default_rng(3)
    difficulty = rng.uniform(0.1, 0.9, 100)
    a, b = difficulty + rng.normal(0.05, 0.02, 100), difficulty
    difference = bootstrap_difference(a, b)
    assert difference.mean == pytest.approx((a - b).mean())
    assert difference.excludes_zero
    assert difference.high - difference.low < 0.01  # 4 x 0.02 / sqrt(100) = 0.008
    assert bootstrap_mean(a).low < bootstrap_mean(b).high  # the conditions' own intervals overlap
    swapped = bootstrap_difference(b, a)
    assert (swapped.low, swapped.high) == pytest.approx((-difference.high, -difference.low))


def test_degenerate_cases() -> None:
    one = bootstrap_mean([0.7])
    assert (one.mean, one.low, one.high) == (0.7, 0.0, 1.0)  # one task tells nothing about others
    one = bootstrap_difference([0.7], [0.2])
    assert (one.low, one.high, one.excludes_zero) == (-1.0, 1.0, False)
    equal = bootstrap_mean([0.1] * 7)  # 0.1 is not exact in binary: the mean must still lie inside
    assert equal.low <= equal.mean <= equal.high
    assert equal.high - equal.low < 1e-12
    two = bootstrap_mean([0.0, 1.0])  # means 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4
    assert (two.low, two.high) == (0.0, 1.0)


def test_seeded_and_chunked() -> None:
    values = np.random.default_rng(4).uniform(size=3001)  # 30 M draws: several chunks
    assert bootstrap_mean(values, resamples=1500) == bootstrap_mean(values, resamples=1500)
    assert bootstrap_mean(values, resamples=1500) != bootstrap_mean(values, resamples=1500, seed=1)


def test_confidence_widens() -> None:
    values = np.linspace(0, 1, 30)
    narrow, wide = bootstrap_mean(values, confidence=0.5), bootstrap_mean(values, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize("values", [[], [[0.1, 0.2]], [0.1, math.nan], [0.1, 1.5], [-0.1]])
def test_bad_values_are_refused(values: list[float]) -> None:
    with pytest.raises(DataError, match="bootstrap"):
        bootstrap_mean(values)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(2,\) and \(1,\)"):
        bootstrap_difference([0.1, 0.2], [0.1])
    with pytest.raises(ConfigError, match="confidence"):
        bootstrap_mean([0.1, 0.2], confidence=95)
    with pytest.raises(ConfigError, match="resamples"):
        bootstrap_mean([0.1, 0.2], resamples=0)


def test_with_one_run_each_nothing_is_nested() -> None:
    values = np.random.default_rng(5).uniform(size=40)
    assert bootstrap_nested(values[:, None]) == bootstrap_mean(values)


@pytest.mark.parametrize("between", [0.0, 0.15])
def test_two_stages_have_the_variance_of_both(between: float) -> None:
    """Var* = [variance of the tasks' means + mean over tasks of (variance of the runs / their number)] / tasks."""
    rng = np.random.default_rng(6)
    runs = [0.5 + rng.normal(0, between) + rng.uniform(-0.1, 0.1, size) for size in rng.integers(2, 7, 400)]
    runs = [np.clip(row, 0, 1) for row in runs]
    means = np.array([row.mean() for row in runs])
    variance = (means.var() + np.mean([row.var() / len(row) for row in runs])) / len(runs)
    interval, half = bootstrap_nested(runs), 1.959964 * math.sqrt(variance)
    assert interval.mean == pytest.approx(means.mean())
    assert interval.low == pytest.approx(means.mean() - half, abs=0.05 * half)
    assert interval.high == pytest.approx(means.mean() + half, abs=0.05 * half)
    assert interval.high - interval.low > bootstrap_mean(means).high - bootstrap_mean(means).low


def test_runs_of_one_task_tell_nothing_of_others_and_empty_ones_are_refused() -> None:
    one = bootstrap_nested([[0.2, 0.4, 0.6]])
    assert (one.mean, one.low, one.high) == (pytest.approx(0.4), 0.0, 1.0)
    for runs in ([], [[0.1], []], [0.1, 0.2], [[0.1], [1.2]]):
        with pytest.raises(DataError, match="bootstrap"):
            bootstrap_nested(runs)


def test_a_share_has_wilsons_interval() -> None:
    # Wilson's bounds for k of n: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).
    for right, n in ((2, 2), (0, 3), (7, 10)):
        z, p = 1.959964, right / n
        half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        found = mean_of_examples([1.0] * right + [0.0] * (n - right))
        assert found.mean == p
        assert found.low == pytest.approx((p + z**2 / (2 * n) - half) / (1 + z**2 / n), abs=1e-6)
        assert found.high == pytest.approx((p + z**2 / (2 * n) + half) / (1 + z**2 / n), abs=1e-6)
    assert mean_of_examples([0.2, 0.4]) == bootstrap_mean([0.2, 0.4])


def test_an_exact_difference_excludes_zero_where_mcnemars_test_does() -> None:
    for better in range(12):
        for worse in range(12):
            a, b = [1.0] * better + [0.0] * worse + [1.0] * 3, [0.0] * better + [1.0] * worse + [1.0] * 3
            found = difference_of_examples(a, b)
            tail = sum(math.comb(better + worse, k) for k in range(min(better, worse) + 1)) / 2 ** (better + worse)
            assert found.excludes_zero is (tail < 0.025)
            assert found.low <= found.mean <= found.high
            swapped = difference_of_examples(b, a)
            assert (swapped.low, swapped.high) == (pytest.approx(-found.high), pytest.approx(-found.low))
    assert difference_of_examples([0.5, 1.0], [0.0, 0.2]) == bootstrap_difference([0.5, 1.0], [0.0, 0.2])


@pytest.mark.parametrize(("better", "worse"), [(0.5, 0.1), (0.3, 0.3), (0.05, 0.0)])
def test_coverage_of_exact_differences_by_simulation(better: float, worse: float) -> None:
    rng, covered = np.random.default_rng(4), 0
    for _ in range(200):
        found = rng.choice([1, -1, 0], 20, p=[better, worse, 1 - better - worse])
        interval = difference_of_examples(found == 1, found == -1)
        covered += interval.low <= better - worse <= interval.high
    assert covered / 200 >= 0.93  # at least 0.95, with a standard deviation of 0.015
