"""Verdicts: the interval against closed forms, the rule case by case, and from results to the table."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.claims.comparisons import Claim, Comparison, Curve, Side
from benchmarks.claims.report import aggregate, compare, markdown, values
from benchmarks.claims.verdicts import (
    NOT_REPRODUCED,
    NOT_RUN,
    REPRODUCED,
    UNDECIDED,
    Verdict,
    combine,
    crossed_interval,
    judge,
)
from hyperflax.errors import DataError
from hyperflax.evaluation.intervals import Interval


def test_one_column_gives_the_ordinary_interval_over_seeds():
    found = [[0.3], [0.5], [0.1], [0.4]]
    expected = stats.ttest_1samp(np.ravel(found), 0.0).confidence_interval(0.95)
    interval = crossed_interval(found)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_seeds_that_agree_give_the_ordinary_interval_over_tasks():
    tasks = [0.3, 0.5, 0.1, 0.4, -0.2]
    expected = stats.ttest_1samp(tasks, 0.0).confidence_interval(0.95)
    interval = crossed_interval([tasks, tasks, tasks])
    assert interval.mean == pytest.approx(0.22)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_both_sources_of_variation_are_added_with_satterthwaite_s_degrees_of_freedom():
    seeds, tasks = np.array([-0.1, 0.0, 0.1]), np.array([0.0, 0.2, 0.4, 0.6])
    of_seeds, of_tasks = 0.01 / 3, np.var(tasks, ddof=1) / 4
    freedom = (of_seeds + of_tasks) ** 2 / (of_seeds**2 / 2 + of_tasks**2 / 3)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(of_seeds + of_tasks)
    interval = crossed_interval(seeds[:, None] + tasks)
    assert (interval.mean, interval.high - interval.mean) == pytest.approx((0.3, half))


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """Crossed effects of 3 seeds and 40 tasks with noise; the nominal 95% may err on the wide side, not the narrow."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        matrix = rng.normal(0, 0.05, (3, 1)) + rng.normal(0, 0.2, (1, 40)) + rng.normal(0, 0.2, (3, 40))
        interval = crossed_interval(matrix)
        covered += interval.low <= 0.0 <= interval.high
    assert 0.935 < covered / 1000 < 0.995


@pytest.mark.parametrize("wrong", [[[0.1, 0.2]], [0.1, 0.2], [[math.nan], [0.1]], np.zeros((2, 0))])
def test_what_is_no_matrix_of_seeds_and_tasks_is_refused(wrong):
    with pytest.raises(DataError, match=r"expected finite numbers \[seed, task\]"):
        crossed_interval(wrong)


@pytest.mark.parametrize(
    ("low", "high", "better", "expected"),
    [
        (0.02, 0.06, "higher", REPRODUCED),
        (0.001, 0.005, "higher", REPRODUCED),
        (-0.06, -0.02, "higher", NOT_REPRODUCED),
        (-0.06, -0.02, "lower", REPRODUCED),
        (0.02, 0.06, "lower", NOT_REPRODUCED),
        (-0.004, 0.008, "higher", NOT_REPRODUCED),
        (-0.004, 0.02, "higher", UNDECIDED),
        (-0.02, 0.004, "lower", UNDECIDED),
    ],
)
def test_the_rule(low: float, high: float, better: str, expected: str):
    interval = Interval((low + high) / 2, low, high)
    assert judge(interval, 3, 60, higher=better == "higher", least=0.01).verdict == expected


def test_nothing_is_decided_by_few_seeds_or_without_a_result():
    interval = Interval(0.5, 0.4, 0.6)
    assert judge(interval, 2, 60, higher=True, least=0.01).verdict == UNDECIDED
    assert judge(None, 0, 0, higher=True, least=0.01).verdict == NOT_RUN
    assert judge(interval, 3, 60, higher=True, least=0.01, missing="no b").why == "no b"


@pytest.mark.parametrize("difference", [0.0, -1.0])
def test_equal_counts_of_a_few_runs_decide_nothing(difference: float):
    interval = crossed_interval([[difference]] * 3)
    assert judge(interval, 3, 1, higher=False, least=0.5).verdict == UNDECIDED
    # Of many tasks, equal differences say much: they were free to differ.
    found = judge(crossed_interval([[difference] * 40] * 3), 3, 40, higher=False, least=0.5)
    assert found.verdict == (REPRODUCED if difference < 0 else NOT_REPRODUCED)


def test_a_claim_is_as_good_as_its_worst_comparison():
    kinds = {kind: Verdict(kind, "") for kind in (REPRODUCED, UNDECIDED, NOT_RUN, NOT_REPRODUCED)}
    assert combine([kinds[REPRODUCED]] * 2).verdict == REPRODUCED
    assert combine([kinds[REPRODUCED], kinds[UNDECIDED]]).verdict == UNDECIDED
    assert combine([kinds[UNDECIDED], kinds[NOT_RUN]]).verdict == NOT_RUN
    assert combine([*kinds.values()]).verdict == NOT_REPRODUCED
    assert combine([]).verdict == UNDECIDED


def result(seed: int, a: float, base: str = "x") -> dict:
    return {
        "seed": seed,
        "base": {"name": "base", "fingerprint": base},
        "measures": {"generated": {"t1": [a, a + 0.2], "t2": [a - 0.1, a + 0.1]}, "bare": {"t1": [0.1], "t2": [0.0]}},
        "figures": {"loss_spikes": float(seed)},
    }


RESULTS = {("one", seed): result(seed, 0.5 + 0.01 * seed) for seed in range(3)}
BETTER = Comparison("one beats the bare model", Side("one"), Side("one", "bare"), 0.01, published="12 : 10")
PLANNED = {"one": (0, 1, 2), "two": (0, 1, 2)}


def test_statistics_of_a_side():
    assert values(RESULTS, Side("one"), "mean")[0] == pytest.approx({"t1": 0.6, "t2": 0.5})
    assert values(RESULTS, Side("one"), "spread")[0] == pytest.approx(dict.fromkeys(("t1", "t2"), 0.2 / math.sqrt(2)))
    assert values(RESULTS, Side("one", "loss_spikes"), "figure") == {seed: {"": float(seed)} for seed in range(3)}
    assert values(RESULTS, Side("one", "bare"), "spread") == {}
    assert values(RESULTS, Side("two"), "mean") == {}


def test_a_comparison_is_paired_by_task_and_seed():
    row = compare(BETTER, RESULTS, PLANNED)
    assert (row["a"], row["b"], row["tasks"], row["seeds"]) == (0.56, 0.05, 2, 3)
    # Both tasks gain 0.5 in seed 0, 0.51 in seed 1: tasks vary not at all, seeds by 0.01.
    half = stats.t.ppf(0.975, 2) * 0.01 / math.sqrt(3)
    assert row["difference"] == pytest.approx({"mean": 0.51, "low": 0.51 - half, "high": 0.51 + half}, abs=1e-4)
    assert row["verdict"] == REPRODUCED


def test_a_missing_result_or_another_base_decides_nothing():
    part = {key: found for key, found in RESULTS.items() if key[1] < 2}
    assert "one (generated), seed 2" in compare(BETTER, part, PLANNED)["why"]
    mixed = {**RESULTS, ("one", 2): result(2, 0.52, base="y")}
    assert "one and the same base" in compare(BETTER, mixed, PLANNED)["why"]


def test_the_table_says_verdict_and_published_figures():
    class Planned:
        name, seeds = "one", (0, 1, 2)

    beside = Comparison("one against two", Side("one"), Side("two"), 0.01, decides=False)
    curve = Curve("t", "x", "y", {"line": ((1.0, Side("one")), (2.0, Side("two")))})

    class Missing(Planned):
        name = "two"

    claim = Claim(1, "One is good.", (Planned, Missing), (BETTER, beside), (curve,), published="yes")
    findings = aggregate("toy", "cpu", [claim], RESULTS)
    (row,) = findings["claims"]
    assert row["verdict"] == REPRODUCED
    assert [point[:2] for point in row["curves"][0]["lines"]["line"]] == [[1.0, 0.56]]
    text = markdown([findings])
    assert "| 1. One is good. | toy | cpu | **reproduced** |" in text
    assert "12 : 10" in text
    assert "(one against two)" in text
    assert "no result of two (generated), seed 0" in text
    rows = [line.count("|") for line in text.splitlines() if line.startswith(("| one", "| (one"))]
    assert rows == [8, 8]
