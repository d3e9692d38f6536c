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

LENGTHSCALES, SIGNAL, NOISE = (0.7, 2.0, 1.3), 1.7, 0.05
SCALES = jnp.asarray(LENGTHSCALES)
HYPER = {"lengthscales": SCALES, "signal": jnp.float32(SIGNAL), "noise": jnp.float32(NOISE)}
BASES = {"matern52": Matern(LENGTHSCALES, nu=2.5), "rbf": RBF(LENGTHSCALES)}

posterior = jax.jit(exact_gp.posterior, static_argnames="kernel")
log_marginal_likelihood = jax.jit(exact_gp.log_marginal_likelihood, static_argnames="kernel")


def data(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features [rows, 3], targets [rows], and 20 other features."""
    draw = np.random.default_rng(seed)
    features = draw.normal(size=(rows, 3)).astype(np.float32)
    targets = (np.sin(2 * features[:, 0]) + features[:, 1] + 0.2 * draw.normal(size=rows)).astype(np.float32)
    return features, targets, draw.normal(size=(20, 3)).astype(np.float32)


def oracle(kernel: str, features: np.ndarray, targets: np.ndarray) -> GaussianProcessRegressor:
    prior = ConstantKernel(SIGNAL) * BASES[kernel] + WhiteKernel(NOISE)
    return GaussianProcessRegressor(prior, alpha=0.0, optimizer=None).fit(np.float64(features), np.float64(targets))


@pytest.mark.parametrize("kernel", ["matern52", "rbf"])
@pytest.mark.parametrize(("rows", "size"), [(1, 1), (60, 60), (60, 64), (60, 128)])
def test_it_is_scikit_learns_at_fixed_hyper_parameters_padded_or_not(kernel, rows, size):
    features, targets, asked = data(rows)
    expected = oracle(kernel, features, targets)
    mean, std = expected.predict(asked, return_std=True)  # of a new observation: the kernel has a white part
    # Padding holds numbers that would be noticed.
    padded = [
        np.concatenate([array, np.full((size - rows, *array.shape[1:]), 3.0, np.float32)]) for array in data(rows)[:2]
    ]
    mask = exact_gp.row_mask(rows, size)
    found, variance = posterior(HYPER, *padded, mask, asked, kernel=kernel)
    np.testing.assert_allclose(found, mean, rtol=1e-4, atol=1e-4 * np.abs(mean).max())
    np.testing.assert_allclose(np.sqrt(variance + NOISE), std, rtol=1e-4)
    likelihood = log_marginal_likelihood(HYPER, *padded, mask, kernel=kernel)
    np.testing.assert_allclose(likelihood, expected.log_marginal_likelihood_value_, rtol=1e-4)


@pytest.mark.parametrize("kernel", ["matern52", "rbf"])
def test_gradients_are_those_of_scikit_learn_and_of_finite_differences(kernel):
    features, targets, _ = data(12)
    features[1] = features[0]  # distance 0, where a square root's derivative is infinite
    mask = np.ones(12, np.float32)

    def likelihood(logs, features):
        return log_marginal_likelihood(jax.tree.map(jnp.exp, logs), features, targets, mask, kernel=kernel)

    logs = jax.tree.map(jnp.log, HYPER)
    by_logs, by_features = jax.grad(likelihood, argnums=(0, 1))(logs, jnp.asarray(features))
    model = oracle(kernel, features, targets)
    _, gradient = model.log_marginal_likelihood(model.kernel_.theta, eval_gradient=True)
    found = [by_logs["signal"], *by_logs["lengthscales"], by_logs["noise"]]
    np.testing.assert_allclose(found, gradient, rtol=1e-3, atol=1e-3)

    def far(features: np.ndarray) -> float:
        return oracle(kernel, features, targets).log_marginal_likelihood_value_

    for row, column in ((0, 0), (1, 2), (7, 1)):
        step = np.zeros((12, 3))
        step[row, column] = 1e-4
        difference = (far(features + step) - far(features - step)) / 2e-4
        np.testing.assert_allclose(by_features[row, column], difference, rtol=1e-3, atol=1e-2)


def test_the_closed_form_of_the_matern_kernel_and_its_derivative_at_zero():
    r = np.linspace(0.1, 4, 9)
    expected = (1 + np.sqrt(5) * r + 5 * r**2 / 3) * np.exp(-np.sqrt(5) * r)
    np.testing.assert_allclose(exact_gp.matern52(jnp.float32(r**2)), expected, rtol=1e-5)
    assert jax.grad(exact_gp.matern52)(jnp.float32(0.0)) == pytest.approx(-5 / 6)


@given(rows=st.integers(1, 40), seed=st.integers(0, 2**31), scale=st.floats(1e-6, 1e3))
@settings(max_examples=15, deadline=None)
def test_more_observations_never_widen_the_posterior(rows, seed, scale):
    features, targets, asked = data(rows, seed)
    features, asked = np.float32(features * scale), np.float32(asked * scale)
    size = exact_gp.padded_size(rows, least=64)
    arrays = exact_gp.pad(features, size), exact_gp.pad(targets, size)
    _, wide = posterior(HYPER, *arrays, exact_gp.row_mask(rows // 2, size), asked, kernel="matern52")
    _, narrow = posterior(HYPER, *arrays, exact_gp.row_mask(rows, size), asked, kernel="matern52")
    assert np.all(np.asarray(wide) <= SIGNAL)
    assert np.all(np.asarray(narrow) <= np.asarray(wide) + 1e-4 * SIGNAL)
    assert np.all(np.asarray(narrow) >= 0)


def test_a_covariance_that_cannot_be_decomposed_gives_nan_and_more_jitter_heals_it():
    features = np.zeros((64, 3), np.float32)  # rank one
    targets, mask = np.ones(64, np.float32), np.ones(64, np.float32)
    hyper = {**HYPER, "noise": jnp.float32(-1e-3)}  # not positive definite, whatever the rounding
    mean, variance = posterior(hyper, features, targets, mask, features[:1], kernel="rbf")
    assert np.isnan(mean).all()
    assert np.isnan(variance).all()
    mean, _ = posterior(hyper, features, targets, mask, features[:1], kernel="rbf", jitter=1e-2)
    assert np.isfinite(mean).all()


@pytest.mark.parametrize(("rows", "size"), [(0, 32), (1, 32), (32, 32), (33, 64), (512, 512), (513, 1024)])
def test_sizes_are_powers_of_two(rows, size):
    assert exact_gp.padded_size(rows) == size
    assert exact_gp.row_mask(rows, size).sum() == rows
    assert exact_gp.pad(np.ones((rows, 2)), size).sum() == 2 * rows
