"""Confidence intervals over tasks: the percentile bootstrap. And over the examples of one task, right or wrong: exact.

The unit that is resampled is the task, because the question is how the method would do on other tasks, and examples of
one task are far from independent. Where a task was run several times (supports drawn anew, seeds, prompts),
`bootstrap_nested` resamples the runs within each resampled task: how the method would do on other tasks with other
supports. Runs vary between tasks as well, so the second stage counts part of that variation again, the mean over tasks
of (variance of the runs / their number), divided by the number of tasks: its intervals err on the wide side.

Known limits, stated rather than hidden: with few tasks the interval is too narrow (simulated coverage of the nominal
95% for beta(2, 3) scores: 84% with 5 tasks, 90% with 10, 94% with 50, 95% with 119); where all tasks agree (all 0, say)
it has no width. With a single task nothing is known about others: the interval is then the whole range of scores.

Of the examples of one task, which are few and often agree, that would say too much: from two right ones of two, 1.00
[1.00, 1.00]. Where they are scored 0 or 1, `mean_of_examples` and `difference_of_examples` have intervals for counts.

Source: Efron and Tibshirani 1993, *An Introduction to the Bootstrap*, chapter 13; Davison and Hinkley 1997, *Bootstrap
Methods and their Application*, section 3.8, for the two stages. Wilson 1927, *JASA* 22:158, for shares; Clopper and
Pearson 1934, *Biometrika* 26:4, and McNemar 1947, *Psychometrika* 12:2, for paired ones.

>>> bootstrap_mean([0.0, 1.0, 1.0, 0.0]).mean
0.5
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hyperflax.errors import ConfigError, DataError

RESAMPLES = 10_000
_RUNS = 0x72756E73  # keeps the draws of runs apart from those of tasks
_CHUNK_ELEMENTS = 2_000_000  # of the index array; bounds memory to some tens of MB however many tasks there are


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean with the bounds of its confidence interval; `low <= mean <= high`."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def bootstrap_mean(
    values: npt.ArrayLike,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Mean of `values` and its percentile bootstrap interval.

    Args:
      values: [task] one finite number per task.
      bounds: range of a single value; it is the answer where one task is all there is.
      confidence: mass of the interval, 0.95 by default.
      resamples: how many times the tasks are drawn anew, with replacement.
      seed: of the draws. Equal seeds and lengths draw equal tasks.

    Raises:
      DataError: no values, a wrong shape, or a value that is not finite or outside the bounds.
      ConfigError: a confidence outside (0, 1) or no resamples.
    """
    array = np.asarray(values, dtype=np.float64)
    _check(array, "task", bounds, confidence, resamples)
    mean = float(array.mean())
    if array.size == 1:
        return Interval(mean, *bounds)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, _CHUNK_ELEMENTS // array.size)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        means[start : start + count] = array[rng.integers(array.size, size=(count, array.size))].mean(axis=1)
    return _percentiles(mean, means, confidence)


def bootstrap_nested(
    runs: Sequence[npt.ArrayLike],
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Mean over tasks of their mean over runs, and its interval: tasks are resampled, then the runs of each.

    Args:
      runs: for every task the values of its runs, at least one; tasks may differ in their number. With one run each
        the answer is that of `bootstrap_mean`. For a paired difference, the differences run by run.
      bounds, confidence, resamples, seed: as in `bootstrap_mean`.

    Raises:
      DataError, ConfigError: as in `bootstrap_mean`; a task without runs.

    >>> bootstrap_nested([[0.2, 0.4], [0.6, 0.6, 0.9]]).mean
    0.5
    """
    rows = [np.asarray(row, dtype=np.float64) for row in runs]
    for row in rows:
        _check(row, "run", bounds, confidence, resamples)
    means_of_tasks = np.array([row.mean() for row in rows])
    _check(means_of_tasks, "task", bounds, confidence, resamples)
    mean, tasks, most = float(means_of_tasks.mean()), len(rows), max(map(len, rows))
    if tasks == 1:
        return Interval(mean, *bounds)
    counts = np.array([len(row) for row in rows])
    padded = np.stack([np.pad(row, (0, most - len(row))) for row in rows])
    of_tasks, of_runs = np.random.default_rng(seed), np.random.default_rng([_RUNS, seed])
    means = np.empty(resamples)
    step = max(1, _CHUNK_ELEMENTS // padded.size)
    for start in range(0, resamples, step):
        drawn = of_tasks.integers(tasks, size=(min(step, resamples - start), tasks))[..., None]
        size = counts[drawn]  # [resample, task, 1]: so many runs are drawn of that task; the rest of the row is padding
        picked = padded[drawn, (of_runs.random((*drawn.shape[:2], most)) * size).astype(np.int64)]
        sums = np.sum(picked, axis=-1, where=np.arange(most) < size)
        means[start : start + len(drawn)] = (sums / size[..., 0]).mean(axis=1)
    return _percentiles(mean, means, confidence)


def _check(
    array: npt.NDArray[np.float64], unit: str, bounds: tuple[float, float], confidence: float, resamples: int
) -> None:
    if array.ndim != 1 or array.size == 0:
        raise DataError(
            f"bootstrap over tasks: expected values of shape [{unit}], at least one, got shape {array.shape}"
        )
    if not np.isfinite(array).all() or array.min() < bounds[0] or array.max() > bounds[1]:
        raise DataError(f"bootstrap over tasks: expected numbers in {bounds}, got {array.min()} to {array.max()}")
    if not 0.0 < confidence < 1.0 or resamples < 1:
        raise ConfigError(f"bootstrap: expected 0 < confidence < 1 and resamples >= 1, got {confidence}, {resamples}")


def _percentiles(mean: float, means: npt.NDArray[np.float64], confidence: float) -> Interval:
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    # Sums in another order may differ in the last bit: equal values must not give a mean outside its own interval.
    return Interval(mean, min(float(low), mean), max(float(high), mean))


def bootstrap_difference(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Mean of `a - b` over tasks with its interval, paired: `a[i]` and `b[i]` are scores in 0..1 of the same task.

    Pairing takes the difficulty of the tasks out of the comparison, so that two conditions whose own intervals overlap
    may still differ surely.

    >>> bootstrap_difference([0.9, 0.3], [0.8, 0.2]).excludes_zero
    True
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise DataError(f"paired difference: expected equal shapes, got {first.shape} and {second.shape}")
    return bootstrap_mean(first - second, bounds=(-1.0, 1.0), confidence=confidence, resamples=resamples, seed=seed)


def mean_of_examples(values: npt.ArrayLike) -> Interval:
    """Mean of one task's examples and its 95% interval: Wilson's where each is right or wrong, else the bootstrap.

    Args:
      values: [example] scores in 0..1.

    >>> mean_of_examples([1.0, 1.0]).low < 0.5
    True
    """
    scores = np.asarray(values, dtype=np.float64)
    if not np.isin(scores, (0.0, 1.0)).all():
        return bootstrap_mean(scores)
    mean, found = float(scores.mean()), _share(scores.sum(), scores.size, "wilson")
    return Interval(mean, min(found.low, mean), max(found.high, mean))


def difference_of_examples(a: npt.ArrayLike, b: npt.ArrayLike) -> Interval:
    """Mean of `a - b` over one task's examples and its 95% interval: exact where each is right or wrong, else the
    bootstrap.

    The exact one is made of two for shares: on how many examples the two differ, and on how many of those the first is
    better. It excludes zero where McNemar's exact test (the sign test) does, which takes at least 6 examples that
    differ. That both shares are taken at their worst makes it wide: its simulated coverage is 96% and more.

    Args:
      a, b: [example] scores in 0..1 of the same examples.

    >>> [difference_of_examples([1.0] * n, [0.0] * n).excludes_zero for n in (5, 6)]
    [False, True]
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if not np.isin([first, second], (0.0, 1.0)).all():
        return bootstrap_difference(first, second)
    differ = int(np.sum(first != second))
    differing, better = _share(differ, first.size), _share(np.sum(first > second), differ)
    low, high = 2 * better.low - 1, 2 * better.high - 1  # of the difference, among those that differ
    return Interval(
        float(np.mean(first - second)),
        low * (differing.low if low > 0 else differing.high),
        high * (differing.high if high > 0 else differing.low),
    )


def _share(count: Any, size: int, method: Literal["exact", "wilson"] = "exact") -> Interval:
    """`count / size` with its 95% interval; of none nothing is known."""
    from scipy import stats  # a second's import, which reports over tasks do without

    if size == 0:
        return Interval(0.5, 0.0, 1.0)
    found = stats.binomtest(int(count), size).proportion_ci(0.95, method=method)
    return Interval(count / size, float(found.low), float(found.high))
