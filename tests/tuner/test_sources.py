"""Ranking of source tasks: evidence against the Gaussian it is, maps against their closed form."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from hyperflax.errors import DataError
from hyperflax.tuner.sources import apply_map, evidence_at, fit_map, log_evidence, rank


def problem(n=30, d=4, noise=0.3, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, d))
    return features, features @ rng.normal(size=(d, 2)) + noise * rng.normal(size=(n, 2))


@pytest.mark.parametrize(("n", "d"), [(30, 4), (5, 9)])
def test_the_evidence_is_that_of_the_joint_gaussian(n, d):
    """y ~ N(0, F F' / alpha + I / beta), with more examples than columns and with fewer."""
    features, labels = problem(n, d)
    y = labels[:, 0] - labels[:, 0].mean()
    left, singular, _ = np.linalg.svd(features, full_matrices=False)
    inside = np.square(left.T @ y)
    for alpha, beta in ((1.0, 1.0), (0.2, 7.0)):
        joint = multivariate_normal(np.zeros(n), features @ features.T / alpha + np.eye(n) / beta)
        ours = evidence_at(np.square(singular), inside, y @ y - inside.sum(), n, alpha, beta)
        assert ours == pytest.approx(joint.logpdf(y), rel=1e-8)


def test_the_fixed_point_is_the_maximum():
    features, labels = problem()
    y = labels[:, :1] - labels[:, :1].mean()
    left, singular, _ = np.linalg.svd(features, full_matrices=False)
    inside = np.square(left.T @ y[:, 0])
    rest = float(y[:, 0] @ y[:, 0] - inside.sum())

    def negative(logs):
        return -evidence_at(np.square(singular), inside, rest, len(y), *np.exp(logs))

    best = -minimize(negative, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}).fun
    assert log_evidence(features, labels[:, :1]) == pytest.approx(best / len(y), abs=1e-6)


def test_a_map_is_found_again_and_its_shift_is_free():
    rng = np.random.default_rng(0)
    base, weights, shift = rng.normal(size=(50, 3)) + 5.0, rng.normal(size=(3, 2)), np.array([10.0, -4.0])
    matrix = fit_map(base, base @ weights + shift, strength=1e-12)
    np.testing.assert_allclose(matrix[:-1], weights, atol=1e-6)
    np.testing.assert_allclose(apply_map(matrix, base), base @ weights + shift, atol=1e-6)
    np.testing.assert_allclose(
        apply_map(fit_map(base, base @ weights + shift, strength=1e9), base).std(axis=0), 0, atol=1e-6
    )


def test_the_source_whose_space_explains_the_labels_ranks_first():
    rng = np.random.default_rng(1)
    embeddings = rng.normal(size=(40, 6))
    labels = embeddings[:, :2] + 0.05 * rng.normal(size=(40, 2))
    keep, lose = np.zeros((7, 6)), np.zeros((7, 6))
    keep[:2, :2], lose[2:6, :4] = np.eye(2), np.eye(4)
    ranked = rank(embeddings, labels, {"lose": lose, "keep": keep, "again": keep})
    assert [name for name, _ in ranked] == ["again", "keep", "lose"]
    assert ranked[0][1] == ranked[1][1] > ranked[2][1]


def test_what_cannot_be_ranked_is_refused():
    features, labels = problem()
    with pytest.raises(DataError, match="expected labels that vary"):
        log_evidence(features, np.ones((30, 2)))
    with pytest.raises(DataError, match="n > 1"):
        log_evidence(features, labels[:5])
    with pytest.raises(DataError, match="fit_map: expected"):
        fit_map(features, labels[:5])
