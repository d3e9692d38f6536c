"""Offsets of tasks and pipelines: the closed form against the joint Gaussian, the variances against a known process."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperflax.errors import DataError
from hyperflax.tuner.surrogates.cost import in_seconds
from hyperflax.tuner.surrogates.offsets import Variances, estimate, posterior


@given(
    st.lists(st.integers(0, 3), max_size=8),
    st.lists(st.integers(0, 5), min_size=1, max_size=5),
    st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_the_posterior_is_the_conditional_of_the_joint_gaussian(seen, asked, seed):
    """Covariance of two residuals of a task: task, plus pipeline if they share it, plus step if they are one."""
    variances = Variances(task=0.5, pipeline=0.2, step=0.03)
    seen, asked = np.array(seen, int), np.array(asked)
    residuals = np.random.default_rng(seed).normal(size=len(seen))
    pipelines = np.concatenate([seen, asked])
    joint = 0.5 + 0.2 * (pipelines[:, None] == pipelines) + 0.03 * np.eye(len(pipelines))
    k = len(seen)
    gain = joint[k:, :k] @ np.linalg.inv(joint[:k, :k])
    mean, variance = posterior(variances, residuals, seen, asked)
    np.testing.assert_allclose(mean, gain @ residuals, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(variance, np.diag(joint[k:, k:] - gain @ joint[:k, k:]), rtol=1e-8)


def test_one_run_on_a_slower_machine_shifts_every_pipeline():
    mean, variance = posterior(Variances(1.0, 0.1, 0.01), np.array([np.log(3.0)]), np.array([0]), np.array([0, 1]))
    np.testing.assert_allclose(mean, np.log(3.0) * np.array([1.1, 1.0]) / 1.11)
    assert variance[0] < variance[1] < 1.11


def test_variances_are_those_of_a_known_process():
    """1,500 tasks of one to six pipelines of one to five steps: each estimate within four of its standard errors."""
    draw = np.random.default_rng(0)
    truth = Variances(task=0.6, pipeline=0.25, step=0.04)
    residuals, tasks, pipelines = [], [], []
    for task in range(1500):
        shared = draw.normal(0, np.sqrt(truth.task))
        for pipeline in range(draw.integers(1, 7)):
            steps = draw.integers(1, 6)
            own = shared + draw.normal(0, np.sqrt(truth.pipeline))
            residuals += list(own + draw.normal(0, np.sqrt(truth.step), steps))
            tasks += [task] * steps
            pipelines += [pipeline] * steps
    found = estimate(np.array(residuals), np.array(tasks), np.array(pipelines), prior=Variances())
    # A variance of k independent squares has standard error variance * sqrt(2 / k); few pipelines in a task add to it.
    for name, free, inflation in (("task", 1500, 1.3), ("pipeline", 3700, 1.2), ("step", 10000, 1.0)):
        expected = getattr(truth, name)
        error = 4 * inflation * expected * np.sqrt(2 / free)
        assert getattr(found, name) == pytest.approx(expected, abs=error), name


def test_one_observation_says_almost_nothing_and_none_leaves_the_prior():
    prior = Variances(0.5, 0.2, 0.03)
    assert estimate(np.zeros(0), np.zeros(0, int), np.zeros(0, int), prior) == prior
    found = estimate(np.array([2.0]), np.array([0]), np.array([0]), prior)
    assert (found.pipeline, found.step) == pytest.approx((0.2, 0.03))
    assert found.task == pytest.approx((0.5 + 4.0 - 0.2 - 0.03) / 2)
    with pytest.raises(DataError, match="expected a positive number"):
        Variances(task=0.0)


def test_seconds_are_a_log_normals():
    draw = np.random.default_rng(1)
    sample = np.exp(draw.normal(0.7, 0.4, 400_000))
    mean, std = in_seconds(np.array([0.7]), np.array([0.4]))
    np.testing.assert_allclose([mean[0], std[0]], [sample.mean(), sample.std()], rtol=0.01)
