"""Small tables of made-up runs, for the tests of surrogates."""

from __future__ import annotations

import functools

import jax
import numpy as np

from hyperflax.tuner.surrogates import Queries, exact_gp

SIZES = (3, 4, 2)  # pipeline columns, fidelities, meta-features


def queries(rows: int, seed: int, *, tasks: int = 4, sizes: tuple[int, int, int] = SIZES) -> Queries:
    """Rows of several tasks, with partial curves of every length and a tenth of the meta-features unknown."""
    columns, fidelities, features = sizes
    draw = np.random.default_rng(seed)
    fidelity = draw.integers(1, fidelities + 1, rows)
    observed = draw.integers(0, fidelity)
    curves = np.where(np.arange(fidelities) < observed[:, None], draw.uniform(size=(rows, fidelities)), np.nan)
    meta = draw.normal(3.0, 100.0, (tasks, features))
    meta[draw.uniform(size=meta.shape) < 0.1] = np.nan
    return Queries(draw.uniform(size=(rows, columns)), curves, fidelity, meta[draw.integers(0, tasks, rows)])


def values(of: Queries, seed: int) -> np.ndarray:
    """Positive numbers that depend on pipeline and fidelity, with noise: scores or seconds."""
    noise = np.random.default_rng(seed).normal(0.0, 0.05, len(of))
    return np.exp(of.pipelines[:, 0] - 0.5 * of.pipelines[:, -1] + 0.1 * of.fidelity + noise).astype(np.float32)


@functools.partial(jax.jit, static_argnames="kernel")
def posterior(hyper, points, targets, mask, asked, *, kernel, jitter=exact_gp.JITTERS[0]):
    """An exact GP's mean and variance from the observations themselves."""
    known = exact_gp.factors(hyper, points, targets, mask, kernel=kernel, jitter=jitter)
    return exact_gp.posterior(hyper, points, mask, known, asked, kernel=kernel)
