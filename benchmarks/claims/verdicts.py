"""From scores to verdicts: intervals over tasks and seeds, and one rule for all claims.

A comparison is a matrix of differences a - b, [seed, task], paired: the same task, the same seed, the same scored
examples. Both vary by chance, and a claim is about other tasks and other seeds, so both count:

    v_t = variance over tasks of the means over seeds / tasks
    v_s = variance over seeds of the means over tasks / seeds
    interval = mean -+ t(95%, df) sqrt(v_t + v_s)
    df = (v_t + v_s)^2 / (v_t^2 / (tasks - 1) + v_s^2 / (seeds - 1))

(Two crossed random effects; degrees of freedom by Satterthwaite 1946. What varies with neither alone is counted in both
terms, so the interval errs on the wide side. Three seeds make df small where seeds matter, and the interval wide: that
is the price of three seeds.) A quantity that a run has only once, such as its number of loss spikes, has one column,
and its interval is the ordinary one over seeds.

The rule, with `least`, the smallest difference that would matter, turned so that the claimed side is positive:

    reproduced                     the interval lies above 0
    not reproduced                 it lies below 0, or below `least`: what there may be is too small to matter
    not decidable at this scale    it holds both 0 and `least`, or there are fewer than three seeds, or a quantity of
                                   one value per seed is the same for all: equal counts leave no spread to judge by
    not run                        a result is missing

An interval between 0 and `least` has the claimed sign, and counts as reproduced. A claim is reproduced if all its
deciding comparisons are, not reproduced if one of them is not, else not run if one was not, else not decidable.

>>> crossed_interval([[0.2, 0.3, 0.1], [0.2, 0.2, 0.2], [0.1, 0.3, 0.2]]).mean
0.2
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from hyperflax.errors import DataError
from hyperflax.evaluation.intervals import Interval

REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
UNDECIDED = "not decidable at this scale"
NOT_RUN = "not run"
LEAST_SEEDS = 3


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A verdict with its reason in words."""

    verdict: str
    why: str


def crossed_interval(differences: npt.ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean of a [seed, task] matrix and its interval over seeds and tasks, as the module's docstring has it.

    Args:
      differences: at least two seeds; one column for what a run has only once.
      confidence: mass of the interval.

    Raises:
      DataError: another shape, fewer than two seeds, or a number that is not finite.
    """
    matrix = np.asarray(differences, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] < 2 or matrix.shape[1] < 1 or not np.isfinite(matrix).all():
        raise DataError(
            f"differences: expected finite numbers [seed, task] of two seeds or more, got shape {matrix.shape}"
        )
    mean = float(matrix.mean())
    variances = [
        (float(means.var(ddof=1)) / means.size, means.size - 1)
        for means in (matrix.mean(axis=0), matrix.mean(axis=1))
        if means.size > 1
    ]
    variance = sum(v for v, _ in variances)
    if variance == 0.0:
        return Interval(mean, mean, mean)
    freedom = variance**2 / sum(v**2 / df for v, df in variances)
    half = float(stdtrit(freedom, 0.5 + confidence / 2)) * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half)


def judge(
    interval: Interval | None, seeds: int, tasks: int, *, higher: bool, least: float, missing: str = ""
) -> Verdict:
    """The verdict on one comparison.

    Args:
      interval: of a - b; None where there is none.
      seeds, tasks: that are behind it; one "task" is what a run has only once.
      higher: the claim is that a is the higher one.
      least: smallest difference that would matter, positive.
      missing: what there is no result of, in words.
    """
    if interval is None or missing:
        return Verdict(NOT_RUN, missing or "no results")
    if seeds < LEAST_SEEDS:
        return Verdict(UNDECIDED, f"{seeds} seeds, at least {LEAST_SEEDS} are needed")
    if tasks == 1 and interval.low == interval.high:
        return Verdict(UNDECIDED, f"the difference is {interval.mean:g} for every seed: no spread to judge by")
    low, high = (interval.low, interval.high) if higher else (-interval.high, -interval.low)
    if low > 0:
        return Verdict(REPRODUCED, "the interval lies on the claimed side of zero")
    if high < 0:
        return Verdict(NOT_REPRODUCED, "the interval lies on the other side of zero")
    if high < least:
        return Verdict(NOT_REPRODUCED, f"a difference of {least:g} or more lies outside the interval")
    return Verdict(UNDECIDED, f"the interval holds both zero and {least:g}")


def combine(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict on a claim from those on its deciding comparisons."""
    verdicts = list(verdicts)
    for kind in (NOT_REPRODUCED, NOT_RUN, UNDECIDED):
        count = sum(one.verdict == kind for one in verdicts)
        if count:
            return Verdict(kind, f"{count} of {len(verdicts)} deciding comparisons: {kind}")
    if not verdicts:
        return Verdict(UNDECIDED, "nothing decides it")
    return Verdict(REPRODUCED, f"all {len(verdicts)} deciding comparisons")
