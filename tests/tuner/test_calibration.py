"""Whether the standard deviations are true: intervals of 90% hold the truth in 90 of 100 cases, on processes we know.

The bounds are those of a binomial with independent trials: each held-out value is of a task of its own. A count outside
them would come up once in 1,000 runs of a surrogate whose intervals are right.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from hyperflax.tuner.surrogates import DeepKernelGP, MLPCost, Queries, exact_gp
from tests.tuner.tables import posterior

WIDTH = stats.norm.ppf(0.95)  # half of the central 90%


def assert_calibrated(mean: np.ndarray, std: np.ndarray, truth: np.ndarray) -> None:
    inside = int(np.sum(np.abs(truth - mean) <= WIDTH * std))
    low, high = stats.binom.interval(0.999, len(truth), 0.9)
    assert low <= inside <= high, (
        f"{inside} of {len(truth)} values in the 90% interval, expected {low:.0f} to {high:.0f}"
    )


@pytest.mark.parametrize("kernel", ["matern52", "rbf"])
def test_an_exact_gp_on_functions_drawn_from_it(kernel):
    """One value of each of 300 functions, drawn with the very kernel that the posterior is computed with."""
    draw = np.random.default_rng(0)
    hyper = {"lengthscales": np.float32([0.5, 1.5]), "signal": 2.0, "shared": 0.0, "noise": 0.1}
    predictions = []
    for _ in range(300):
        x = draw.uniform(-2, 2, (13, 2)).astype(np.float32)
        root = _root(x, kernel)
        y = (root @ draw.normal(size=13) + np.sqrt(0.1) * draw.normal(size=13)).astype(np.float32)
        points, asked = exact_gp.Points(x[:12], np.zeros(12)), exact_gp.Points(x[12:], np.zeros(1))
        mean, variance = posterior(hyper, points, y[:12], np.ones(12, np.float32), asked, kernel=kernel)
        predictions.append((mean[0], np.sqrt(variance[0] + 0.1), y[12]))
    assert_calibrated(*np.transpose(predictions))


def test_a_deep_kernel_on_tasks_that_it_has_not_seen():
    """Before the task's first observation, and after three: calibrated both times, and the three help."""
    draw = np.random.default_rng(1)
    surrogate = DeepKernelGP(hidden=(16,), features=4, channels=2, kept=200, rows=128, steps=150, learning_rate=1e-2)
    table, scores = runs(draw, tasks=150, rows=4)
    fitted = surrogate.fit(table, scores, seed=0)
    blind, informed, truth = [], [], []
    for _ in range(120):
        task, found = runs(draw, tasks=1, rows=4)
        asked, given = task.take(slice(3, 4)), task.take(slice(0, 3))
        blind.append(surrogate.predict(fitted, asked))
        informed.append(surrogate.predict(surrogate.condition(fitted, given, found[:3]), asked))
        truth.append(found[3])
    truth, errors = np.array(truth), {}
    for name, predictions in (("blind", blind), ("informed", informed)):
        mean, std = np.concatenate(predictions, axis=1)
        assert_calibrated(mean, std, truth)
        errors[name] = np.mean((mean - truth) ** 2)
    assert errors["informed"] < errors["blind"] < 0.5 * np.mean((truth - scores.mean()) ** 2)


def test_costs_on_machines_of_unknown_speed():
    """Tasks differ in speed by a hidden factor: calibrated before and after the first observed step of the task."""
    draw = np.random.default_rng(2)
    surrogate = MLPCost(hidden=(16,), steps=300, learning_rate=1e-2)
    table, seconds = timings(draw, tasks=100, rows=6)
    fitted = surrogate.fit(table, seconds, seed=0)
    blind, informed, truth = [], [], []
    for _ in range(200):
        task, found = timings(draw, tasks=1, rows=6)
        asked, given = task.take(slice(5, 6)), task.take(slice(0, 2))
        blind.append(surrogate.predict(fitted, asked))
        informed.append(surrogate.predict(surrogate.condition(fitted, given, found[:2]), asked))
        truth.append(np.log(found[5]))
    truth, errors = np.array(truth), {}
    for name, predictions in (("blind", blind), ("informed", informed)):
        mean, std = np.concatenate(predictions, axis=1)
        assert_calibrated(mean, std, truth)
        errors[name] = np.mean((mean - truth) ** 2)
    assert errors["informed"] < 0.25 * errors["blind"]


def runs(draw: np.random.Generator, tasks: int, rows: int) -> tuple[Queries, np.ndarray]:
    """Scores that rise with fidelity to a level that pipeline and task decide, with noise; `rows` runs a task.

    A task's best learning rate depends on a meta-feature; its difficulty is hidden, and only its curves tell.
    """
    n, fidelities = tasks * rows, 5
    pipelines = draw.uniform(size=(n, 2))
    size, hidden = (np.repeat(draw.normal(size=tasks), rows) for _ in range(2))
    level = 1.0 - 2.0 * (pipelines[:, 0] - 0.5 - 0.15 * size) ** 2 + 0.3 * pipelines[:, 1] + 0.3 * hidden
    curves = level[:, None] * (1 - 0.6 ** np.arange(1, fidelities + 1)) + 0.03 * draw.normal(size=(n, fidelities))
    fidelity = draw.integers(1, fidelities + 1, n)
    partial = np.where(np.arange(fidelities) < draw.integers(0, fidelity)[:, None], curves, np.nan)
    return Queries(pipelines, partial, fidelity, size[:, None]), curves[np.arange(n), fidelity - 1]


def timings(draw: np.random.Generator, tasks: int, rows: int) -> tuple[Queries, np.ndarray]:
    """Seconds of steps: a pipeline's size and the data set's, times hidden factors of the task and of the pipeline."""
    n = tasks * rows
    pipelines = draw.uniform(size=(n, 2))
    meta, factor = (np.repeat(draw.normal(size=tasks), rows) for _ in range(2))
    logs = 2.0 + 1.5 * pipelines[:, 0] + 0.5 * meta + 0.5 * factor + 0.15 * draw.normal(size=n)
    return Queries(pipelines, np.full((n, 3), np.nan), draw.integers(1, 4, n), meta[:, None]), np.exp(logs)


def _root(x: np.ndarray, kernel: str) -> np.ndarray:
    """A root of 2 k(x, x), in float64 and without the code under test."""
    r = np.sqrt(np.sum(((x[:, None] - x[None]) / [0.5, 1.5]) ** 2, axis=-1))
    a = np.sqrt(5.0) * r
    k = np.exp(-(r**2) / 2) if kernel == "rbf" else (1 + a + a**2 / 3) * np.exp(-a)
    values, vectors = np.linalg.eigh(2.0 * k)
    return vectors * np.sqrt(np.maximum(values, 0.0))
