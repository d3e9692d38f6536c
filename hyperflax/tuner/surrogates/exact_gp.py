"""An exact Gaussian process on feature vectors, in float32 JAX: marginal likelihood and posterior.

    y = f(x) + b_group + noise,   f ~ GP(0, signal * k(|x - x'|^2 / lengthscales^2)),   b ~ N(0, shared)

    C = signal K + shared S + noise I,   S_ij = 1 within a group    (Rasmussen & Williams 2006, ch. 2, 5)
    log p(y) = -1/2 y' C^-1 y - 1/2 log |C| - n/2 log 2 pi
    mean(x*) = c*' C^-1 y,   variance of f(x*) + b = signal + shared - c*' C^-1 c*,   c* = signal k* + shared s*

Shapes: features [n, d] with groups [n] int, targets [n], mask [n] (1.0 = a real row, 0.0 = padding), hyper a dict of
float32 `lengthscales` [d], `signal` [], `shared` [], `noise` []: the last three are variances. All are positive, but
`shared` may be 0. A padded row has covariance 0 with all others and 1 with itself, so it changes no result, and shapes
come in powers of two: jit compiles once per size and not once per observation.

Float32. C's condition number is about n signal / noise at most; rounding is harmless while that stays below 10^6.
`jitter` times signal is added to the diagonal. Where C is not positive definite even so, the decomposition is NaN, and
so is whatever is computed from it: nothing here repairs that, callers test for it and try again with more (`JITTERS`).

One decomposition at a time, and never under vmap: many small ones in one XLA program can wait for each other for ever
on a machine of few cores.

>>> hyper = {"lengthscales": jnp.ones(2), "signal": 1.0, "shared": 0.2, "noise": 0.1}
>>> known = factors(hyper, points := Points(features, groups), targets, mask, kernel="matern52")
>>> mean, variance = posterior(hyper, points, mask, known, Points(asked, other), kernel="matern52")
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hyperflax.padding import rounded_up
from hyperflax.types import Array

KernelName = Literal["matern52", "rbf"]
Hyper = Mapping[str, Array]

JITTERS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
"""In the order in which they are tried; the last one is a tenth of the signal's standard deviation."""

_HIGHEST = jax.lax.Precision.HIGHEST  # accelerators would otherwise multiply float32 in half precision


class Points(NamedTuple):
    """Where a process is looked at: features [n, d] float32 and groups [n] int, numbers that mean only equal or not."""

    features: Array
    groups: Array


@jax.custom_jvp
def matern52(squared: Array) -> Array:
    """(1 + r + r^2 / 3) exp(-r), r = sqrt(5 squared): Matern with smoothness 5/2, of the squared scaled distance."""
    r = jnp.sqrt(5.0 * squared)
    return (1.0 + r + r**2 / 3.0) * jnp.exp(-r)


@matern52.defjvp
def _matern52_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # The closed form is smooth at distance 0, where the square root's own derivative is infinite.
    (squared,), (change,) = primals, tangents
    r = jnp.sqrt(5.0 * squared)
    return matern52(squared), -5.0 / 6.0 * (1.0 + r) * jnp.exp(-r) * change


def rbf(squared: Array) -> Array:
    """exp(-squared / 2)."""
    return jnp.exp(-0.5 * squared)


KERNELS: Mapping[KernelName, Callable[[Array], Array]] = {"matern52": matern52, "rbf": rbf}


@jax.custom_vjp
def squared_distances(one: Array, other: Array) -> Array:
    """Returns |a - b|^2, [n, m], of points [n, d] and [m, d]."""
    # Differences first: |a|^2 + |b|^2 - 2ab cancels in float32 for near neighbours, the pairs that matter most.
    return jnp.sum((one[:, None, :] - other[None, :, :]) ** 2, axis=-1)


def _distances_forward(one: Array, other: Array) -> tuple[Array, tuple[Array, Array]]:
    return squared_distances(one, other), (one, other)


def _distances_backward(points: tuple[Array, Array], change: Array) -> tuple[Array, Array]:
    # d/da_i = 2 sum_j g_ij (a_i - b_j), as two products of matrices: never an array [n, m, d].
    one, other = points
    to_other = jnp.matmul(change, other, precision=_HIGHEST)
    to_one = jnp.matmul(change.T, one, precision=_HIGHEST)
    return (
        2.0 * (jnp.sum(change, axis=1)[:, None] * one - to_other),
        2.0 * (jnp.sum(change, axis=0)[:, None] * other - to_one),
    )


squared_distances.defvjp(_distances_forward, _distances_backward)


def covariance(hyper: Hyper, one: Points, other: Points, kernel: KernelName) -> Array:
    """Returns [n, m]: signal * k, plus `shared` where two points are of one group."""
    scales = hyper["lengthscales"]
    near = KERNELS[kernel](squared_distances(one.features / scales, other.features / scales))
    return hyper["signal"] * near + hyper["shared"] * (one.groups[:, None] == other.groups[None, :])


def _of_scores(hyper: Hyper, points: Points, mask: Array, kernel: KernelName, jitter: Array | float) -> Array:
    """Returns C [n, n], padding as the identity."""
    both = mask[:, None] * mask[None, :]
    diagonal = mask * (hyper["noise"] + jitter * hyper["signal"]) + (1.0 - mask)
    return both * covariance(hyper, points, points, kernel) + jnp.diag(diagonal)


class Factors(NamedTuple):
    """What likelihood and posterior need of n observations: `lower` [n, n], L of C = L L'; `white` [n], L^-1 y."""

    lower: Array
    white: Array


def _decomposed(matrix: Array, targets: Array) -> Factors:
    lower = jnp.linalg.cholesky(matrix)
    return Factors(lower, jax.scipy.linalg.solve_triangular(lower, targets, lower=True))


@jax.custom_vjp
def log_density(matrix: Array, targets: Array) -> Array:
    """Returns -1/2 y' C^-1 y - 1/2 log |C| for C [n, n] and y [n]; NaN if C is not positive definite."""
    return _density_forward(matrix, targets)[0]


def _density_forward(matrix: Array, targets: Array) -> tuple[Array, Factors]:
    known = _decomposed(matrix, targets)
    return -0.5 * jnp.sum(known.white**2) - jnp.sum(jnp.log(jnp.diag(known.lower))), known


def _density_backward(known: Factors, change: Array) -> tuple[Array, Array]:
    # d/dC = 1/2 (a a' - C^-1) with a = C^-1 y (Rasmussen & Williams, eq. 5.9): one triangular solve and one product,
    # where differentiating the decomposition takes twice as many.
    lower, white = known
    inverse = jax.scipy.linalg.solve_triangular(lower, jnp.eye(len(lower), dtype=lower.dtype), lower=True)
    weights = jnp.matmul(inverse.T, white, precision=_HIGHEST)
    precision = jnp.matmul(inverse.T, inverse, precision=_HIGHEST)
    return 0.5 * change * (weights[:, None] * weights[None, :] - precision), -change * weights


log_density.defvjp(_density_forward, _density_backward)


def log_marginal_likelihood(
    hyper: Hyper,
    points: Points,
    targets: Array,
    mask: Array,
    *,
    kernel: KernelName,
    jitter: Array | float = JITTERS[0],
) -> Array:
    """Returns log p(targets), a scalar: the sum over real rows, in nats."""
    density = log_density(_of_scores(hyper, points, mask, kernel, jitter), mask * targets)
    return density - 0.5 * math.log(2.0 * math.pi) * jnp.sum(mask)


def factors(
    hyper: Hyper,
    points: Points,
    targets: Array,
    mask: Array,
    *,
    kernel: KernelName,
    jitter: Array | float = JITTERS[0],
) -> Factors:
    """Returns the factors of n observations; NaN if C is not positive definite."""
    return _decomposed(_of_scores(hyper, points, mask, kernel, jitter), mask * targets)


def posterior(
    hyper: Hyper, points: Points, mask: Array, known: Factors, asked: Points, *, kernel: KernelName
) -> tuple[Array, Array]:
    """Returns (mean, variance), both [m], of f + b at the m points asked about; a new y has `noise` on top.

    The variance is a difference; where rounding takes it below 0, at an observed point of almost no noise, it is 0.

    Args:
      points, mask: of the observations. known: their factors.
    """
    cross = mask[:, None] * covariance(hyper, points, asked, kernel)
    explained = jax.scipy.linalg.solve_triangular(known.lower, cross, lower=True)
    mean = jnp.einsum("nm,n->m", explained, known.white, precision=_HIGHEST)
    variance = hyper["signal"] + hyper["shared"] - jnp.sum(explained**2, axis=0)
    return mean, jnp.where(variance < 0.0, 0.0, variance)  # NaN stays NaN: the caller looks for it


def padded_size(rows: int, least: int = 32) -> int:
    """Returns the size, at least `least`, to which so many rows are padded."""
    return rounded_up(max(least, rows))


def pad(array: np.ndarray, size: int) -> np.ndarray:
    """Returns [size, ...]: the array's rows, then zeros."""
    return np.concatenate([array, np.zeros((size - len(array), *array.shape[1:]), array.dtype)])


def row_mask(rows: int, size: int) -> np.ndarray:
    """Returns [size] float32: 1 for each row, then 0 for the padding."""
    return (np.arange(size) < rows).astype(np.float32)
