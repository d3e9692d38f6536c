"""The exact Gaussian process against scikit-learn's, against finite differences, and against itself with padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Matern, WhiteKernel

from hyperflax.tuner.surrogates import exact_gp
from hyperflax.tuner.surrogates.exact_gp import Points
from tests.tuner.tables import posterior

LENGTHSCALES, SIGNAL, SHARED, NOISE = (0.7, 2.0, 1.3), 1.7, 0.4, 0.05
VARIANCES = {"signal": SIGNAL, "shared": SHARED, "noise": NOISE}
SCALES = jnp.asarray(LENGTHSCALES)
HYPER = {"lengthscales": SCALES, **{name: jnp.float32(value) for name, value in VARIANCES.items()}}
# scikit-learn has no kernel of groups: here they are a fourth column, seen by length-scales so long or short that a
# base kernel ignores it, and the kernel of groups is 1 or 0.
BASES = {"matern52": Matern((*LENGTHSCALES, 1e9), nu=2.5), "rbf": RBF((*LENGTHSCALES, 1e9))}
GROUPS = RBF((1e9, 1e9, 1e9, 1e-3))

log_marginal_likelihood = jax.jit(exact_gp.log_marginal_likelihood, static_argnames="kernel")


def data(rows: int, seed: int = 0) -> tuple[Points, np.ndarray, Points]:
    """Points [rows] of three groups, targets [rows], and 20 other points, some of a fourth group."""
    draw = np.random.default_rng(seed)
    points, asked = (
        Points(draw.normal(size=(count, 3)).astype(np.float32), draw.integers(0, kinds, count))
        for count, kinds in ((rows, 3), (20, 4))
    )
    wave = np.sin(2 * points.features[:, 0]) + points.features[:, 1] + 0.5 * points.groups
    return points, (wave + 0.2 * draw.normal(size=rows)).astype(np.float32), asked


def columns(points: Points) -> np.ndarray:
    return np.concatenate([np.float64(points.features), points.groups[:, None]], axis=1)


def oracle(kernel: str, points: Points, targets: np.ndarray) -> GaussianProcessRegressor:
    prior = ConstantKernel(SIGNAL) * BASES[kernel] + ConstantKernel(SHARED) * GROUPS + WhiteKernel(NOISE)
    return GaussianProcessRegressor(prior, alpha=0.0, optimizer=None).fit(columns(points), np.float64(targets))


@pytest.mark.parametrize("kernel", ["matern52", "rbf"])
@pytest.mark.parametrize(("rows", "size"), [(1, 1), (60, 60), (60, 64), (60, 128)])
def test_it_is_scikit_learns_at_fixed_hyper_parameters_padded_or_not(kernel, rows, size):
    points, targets, asked = data(rows)
    expected = oracle(kernel, points, targets)
    mean, std = expected.predict(columns(asked), return_std=True)  # of a new observation: the kernel has a white part
    # Padding holds numbers that would be noticed.
    points, targets = jax.tree.map(
        lambda array: np.concatenate([array, np.full((size - rows, *array.shape[1:]), 2, array.dtype)]),
        (points, targets),
    )
    mask = exact_gp.row_mask(rows, size)
    found, variance = posterior(HYPER, points, targets, mask, asked, kernel=kernel)
    np.testing.assert_allclose(found, mean, rtol=1e-4, atol=1e-4 * np.abs(mean).max())
    np.testing.assert_allclose(np.sqrt(variance + NOISE), std, rtol=1e-4)
    likelihood = log_marginal_likelihood(HYPER, points, targets, mask, kernel=kernel)
    np.testing.assert_allclose(likelihood, expected.log_marginal_likelihood_value_, rtol=1e-4)


@pytest.mark.parametrize("kernel", ["matern52", "rbf"])
def test_gradients_are_those_of_scikit_learn_and_of_finite_differences(kernel):
    points, targets, _ = data(12)
    points.features[1] = points.features[0]  # distance 0, where a square root's derivative is infinite
    mask = np.ones(12, np.float32)

    @jax.jit
    def gradients(logs, features):
        def likelihood(logs, features):
            hyper = jax.tree.map(jnp.exp, logs)
            return exact_gp.log_marginal_likelihood(
                hyper, Points(features, points.groups), targets, mask, kernel=kernel
            )

        return jax.grad(likelihood, argnums=(0, 1))(logs, features)

    by_logs, by_features = gradients(jax.tree.map(jnp.log, HYPER), points.features)
    model = oracle(kernel, points, targets)
    _, gradient = model.log_marginal_likelihood(model.kernel_.theta, eval_gradient=True)
    theirs = [0, 1, 2, 3, 5, 10]  # without the length-scales of nothing and of all
    found = [by_logs["signal"], *by_logs["lengthscales"], by_logs["shared"], by_logs["noise"]]
    np.testing.assert_allclose(found, gradient[theirs], rtol=1e-3, atol=1e-3)

    def far(features: np.ndarray) -> float:
        return oracle(kernel, Points(features, points.groups), targets).log_marginal_likelihood_value_

    for row, column in ((0, 0), (1, 2), (7, 1)):
        step = np.zeros((12, 3))
        step[row, column] = 1e-4
        difference = (far(points.features + step) - far(points.features - step)) / 2e-4
        np.testing.assert_allclose(by_features[row, column], difference, rtol=1e-3, atol=1e-2)


def test_the_closed_form_of_the_matern_kernel_and_its_derivative_at_zero():
    r = np.linspace(0.1, 4, 9)
    expected = (1 + np.sqrt(5) * r + 5 * r**2 / 3) * np.exp(-np.sqrt(5) * r)
    np.testing.assert_allclose(exact_gp.matern52(jnp.float32(r**2)), expected, rtol=1e-5)
    assert jax.grad(exact_gp.matern52)(jnp.float32(0.0)) == pytest.approx(-5 / 6)


@given(rows=st.integers(1, 40), seed=st.integers(0, 2**31), scale=st.floats(1e-6, 1e3))
@settings(max_examples=15, deadline=None)
def test_more_observations_never_widen_the_posterior(rows, seed, scale):
    points, targets, asked = data(rows, seed)
    points, asked = (one._replace(features=np.float32(one.features * scale)) for one in (points, asked))
    points, targets = jax.tree.map(lambda array: exact_gp.pad(array, 64), (points, targets))
    masks = (exact_gp.row_mask(count, 64) for count in (rows // 2, rows))
    _, (wide, narrow) = zip(
        *(posterior(HYPER, points, targets, mask, asked, kernel="matern52") for mask in masks), strict=True
    )
    assert np.all(np.asarray(wide) <= np.float32(SIGNAL) + np.float32(SHARED))
    assert np.all(np.asarray(narrow) <= np.asarray(wide) + 1e-4 * SIGNAL)
    assert np.all(np.asarray(narrow) >= 0)


def test_a_covariance_that_cannot_be_decomposed_gives_nan_and_more_jitter_heals_it():
    points = Points(np.zeros((64, 3), np.float32), np.zeros(64, np.int32))  # rank one
    targets, mask, asked = np.ones(64, np.float32), np.ones(64, np.float32), Points(np.zeros((1, 3)), np.zeros(1))
    hyper = {**HYPER, "noise": jnp.float32(-1e-3)}  # not positive definite, whatever the rounding
    mean, variance = posterior(hyper, points, targets, mask, asked, kernel="rbf")
    assert np.isnan(mean).all()
    assert np.isnan(variance).all()
    mean, _ = posterior(hyper, points, targets, mask, asked, kernel="rbf", jitter=1e-2)
    assert np.isfinite(mean).all()


@pytest.mark.parametrize(("rows", "size"), [(0, 32), (1, 32), (32, 32), (33, 48), (512, 512), (513, 768)])
def test_rows_are_padded_to_few_sizes(rows, size):
    assert exact_gp.padded_size(rows) == size
    assert exact_gp.row_mask(rows, size).sum() == rows
    assert exact_gp.pad(np.ones((rows, 2)), size).sum() == 2 * rows
