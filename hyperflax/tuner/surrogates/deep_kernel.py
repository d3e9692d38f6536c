"""Performance: a Gaussian process on features that a small network makes of pipeline, partial curve and meta-features.

    settings [n, p + 2 m + 1] ---------------------+
    curve [n, t] -> 2 convolutions -> mean [n, c] -+-> MLP -> features [n, d] -+
    last score, share of fidelities run [n, 2] ----+                           +-> exact GP -> (mean, std)
    task [n] ------------------------------------------------------------------+

Deep kernel learning (Wilson et al. 2016, arXiv 1511.02222) as Quick-Tune uses it (Arango et al. 2024, arXiv 2306.03828,
section 3, where the surrogate conditions on pipeline, partial curve and meta-features), with no refitting on the new
task in Strangmann et al. 2024 (arXiv 2411.01195). Network and kernel are trained together by Adam on

    -1/rows * log p(scores of a minibatch of rows),        exact within the minibatch,

since all rows of a table do not fit into one decomposition. A prediction conditions on `kept` rows of the table, drawn
by the seed in equal shares per task (`features.representative`), followed by the new task's own observations, all of
them. `kept` is 384 so that with 128 observations of the task the covariance is still 512 x 512, a power of two.

Beyond the papers, a task has an offset of its own, Gaussian with a learnt variance: how hard a data set is shows in its
first scores and hardly in its meta-features. Without the offset one task's observations say little of its other
pipelines, and a new task looks more certain than it is.

A network that has been trained on few tasks is too sure of the next one. So `fit` trains `FOLDS` times without a part
of the tasks, to see by how much their squared errors exceed the predicted variances, and once with all. All
variances of the process are then multiplied by that ratio, which leaves every mean as it is:

    ratio = (1 + sum over tasks of the task's mean ((score - mean) / std)^2) / (1 + tasks)

The 1 is a prior of one task that is predicted as it should be, and all there is for a table of one task.

The prior mean is the table's mean score. `refit` trains on with minibatches of the kept rows and the task's
observations together, so that the earlier tasks are not forgotten.

>>> surrogate = DeepKernelGP()
>>> fitted = surrogate.fit(table, scores, seed=0)
>>> mean, std = surrogate.predict(surrogate.condition(fitted, observed, observed_scores), candidates)
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hyperflax.configs import check_sizes, whole_number
from hyperflax.errors import ConfigError, SurrogateError
from hyperflax.tuner.surrogates import exact_gp
from hyperflax.tuner.surrogates.exact_gp import KERNELS, KernelName, Points, pad, padded_size, row_mask
from hyperflax.tuner.surrogates.features import Scaling, folds, representative
from hyperflax.tuner.surrogates.minimise import Schedule, minimise
from hyperflax.tuner.surrogates.protocol import Fitted, Observations, Queries, table_of
from hyperflax.tuner.surrogates.queries import number_equal_rows
from hyperflax.types import Array, PyTree

NOISE_FLOOR = 1e-4
"""Least noise variance, in squared standard deviations of the table's scores: keeps float32 decompositions sound."""

FOLDS = 4
"""Parts into which the tasks are shared out, to be held out one after the other."""

REFIT_ROWS = 256
"""Rows of a minibatch of `refit`, which someone waits for: twice as many would take eight times as long."""

BLOCK = 1024
"""Most queries that are answered at once."""


class Extractor(nn.Module):
    """Rows to GP features.

    Attributes:
      hidden: widths of the MLP.
      features: d, the width of what comes out.
      channels: c, of the convolutions along the curve; each sees a fidelity and its two neighbours.
    """

    hidden: tuple[int, ...]
    features: int
    channels: int

    @nn.compact
    def __call__(self, inputs: Mapping[str, Array]) -> Array:
        """Returns [n, d] for `settings` [n, p + 2 m + 1], `scores` and `seen` [n, t], `summary` [n, 2]."""
        seen = inputs["seen"][..., None]
        curve = jnp.concatenate([inputs["scores"][..., None], seen], axis=-1)
        for name in ("curve_0", "curve_1"):
            curve = seen * nn.silu(nn.Conv(self.channels, kernel_size=(3,), name=name)(curve))
        curve = jnp.sum(curve, axis=1) / jnp.maximum(jnp.sum(seen, axis=1), 1.0)
        x = jnp.concatenate([inputs["settings"], inputs["summary"], curve], axis=-1)
        for number, width in enumerate(self.hidden):
            x = nn.silu(nn.Dense(width, name=f"hidden_{number}")(x))
        return nn.Dense(self.features, name="features")(x)


@dataclasses.dataclass(frozen=True)
class DeepKernelGP:
    """A performance surrogate; see the module.

    Attributes:
      hidden, features, channels: of the extractor.
      kernel: on the features: "matern52" or "rbf", with a length-scale per feature.
      kept: most rows of the table that predictions condition on.
      rows: of a minibatch.
      steps, learning_rate: of `fit`.
      refit_steps, refit_learning_rate: of `refit`.
    """

    hidden: tuple[int, ...] = (64, 64)
    features: int = 8
    channels: int = 8
    kernel: KernelName = "matern52"
    kept: int = 384
    rows: int = 512
    steps: int = 1000
    learning_rate: float = 3e-3
    refit_steps: int = 50
    refit_learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(whole_number("DeepKernelGP.hidden", width) for width in self.hidden))
        check_sizes(self, features=1, channels=1, kept=1, rows=1)
        if self.kernel not in KERNELS:
            raise ConfigError(f"DeepKernelGP.kernel: expected one of {sorted(KERNELS)}, got {self.kernel!r}")
        Schedule(self.steps, self.learning_rate), Schedule(self.refit_steps, self.refit_learning_rate)

    @property
    def extractor(self) -> Extractor:
        return Extractor(self.hidden, self.features, self.channels)

    def fit(self, queries: Queries, scores: np.ndarray, seed: int) -> Fitted:
        """Returns what is learnt from a table: n queries and their scores [n]; see the protocol.

        Raises:
          DataError: an empty table, or scores that are not finite.
          SurrogateError: the training diverged.
        """
        table = table_of(queries, scores)
        scaling = Scaling.of(queries, table.values)
        fitted = self._fit(scaling, table, seed)
        return dataclasses.replace(fitted, params=_widened(fitted.params, self._ratio(scaling, table, seed)))

    def condition(self, fitted: Fitted, queries: Queries, scores: np.ndarray) -> Fitted:
        """Returns the posterior given further observations of the new task; no parameter changes."""
        return fitted.observe(queries, scores)

    def refit(self, fitted: Fitted, queries: Queries, scores: np.ndarray, seed: int) -> Fitted:
        """Returns what `condition` does, after training further on the kept rows and the task's observations.

        Raises:
          SurrogateError: the training diverged.
        """
        fitted = self.condition(fitted, queries, scores)
        data, schedule = _rows(fitted.scaling, fitted.known), Schedule(self.refit_steps, self.refit_learning_rate)
        params = minimise(self, fitted.params, data, schedule, rows=REFIT_ROWS, seed=seed)
        return dataclasses.replace(fitted, params=params)

    def predict(self, fitted: Fitted, queries: Queries) -> tuple[np.ndarray, np.ndarray]:
        """Returns (mean [n], std [n]) of the scores, observation noise included.

        Raises:
          DataError: queries of other sizes than the table's.
          SurrogateError: the covariance could not be decomposed, whatever the jitter.
        """
        fitted.require_sizes(queries)
        if not len(queries):
            return np.zeros(0), np.zeros(0)
        seen, known, scaling = _seen(self, fitted), fitted.known.queries, fitted.scaling
        count, tasks = len(known), number_equal_rows(np.concatenate([known.meta, queries.meta]))
        points = Points(seen.features, jnp.asarray(pad(tasks[:count], len(seen.mask))))
        parts = []
        for first in range(0, len(queries), BLOCK):
            block = slice(first, first + BLOCK)
            asked = {"inputs": _inputs(scaling, queries.take(block)), "tasks": tasks[count:][block]}
            rows = len(asked["tasks"])
            asked = _padded(asked, padded_size(rows))
            mean, variance = map(np.asarray, _predict(self, fitted.params, points, seen.mask, seen.factors, asked))
            parts.append((mean[:rows], variance[:rows]))
        mean, variance = (np.concatenate(column).astype(np.float64) for column in zip(*parts, strict=True))
        return scaling.value_mean + scaling.value_std * mean, scaling.value_std * np.sqrt(variance)

    def loss(self, params: PyTree, batch: Mapping[str, PyTree], mask: Array) -> Array:
        """Returns minus the log marginal likelihood per row, in nats of standardised scores."""
        likelihood = exact_gp.log_marginal_likelihood(
            hyper_of(params), _points(self, params, batch), batch["targets"], mask, kernel=self.kernel
        )
        return -likelihood / jnp.sum(mask)

    def check(self, fitted: Fitted) -> None:
        """Raises DataError unless these parameters are of this surrogate: names, shapes, finite numbers."""
        inputs = _first(_inputs(fitted.scaling, fitted.kept.queries))
        fitted.require_params(jax.eval_shape(lambda: _start(self, 0, inputs)))

    def _fit(self, scaling: Scaling, table: Observations, seed: int) -> Fitted:
        schedule, data = Schedule(self.steps, self.learning_rate), _rows(scaling, table)
        params = minimise(self, _start(self, seed, _first(data["inputs"])), data, schedule, rows=self.rows, seed=seed)
        return Fitted(params, scaling, representative(table, self.kept, seed), table.take(slice(0)))

    def _ratio(self, scaling: Scaling, table: Observations, seed: int) -> float:
        """Returns how much larger squared errors are than the variances predicted, on tasks held out fold by fold."""
        fold, tasks = folds(table, FOLDS, seed), table.queries.tasks
        if not np.any(fold):
            return 1.0
        squares = np.empty(len(table))
        for number in np.unique(fold):
            held = np.flatnonzero(fold == number)
            partial = self._fit(scaling, table.take(np.flatnonzero(fold != number)), seed)
            mean, std = self.predict(partial, table.queries.take(held))
            squares[held] = ((table.values[held] - mean) / std) ** 2
        per_task = np.bincount(tasks, squares) / np.bincount(tasks)
        return float((1.0 + np.sum(per_task)) / (1.0 + len(per_task)))


class Seen(NamedTuple):
    """What predictions need of the rows that a surrogate knows, padded; see `exact_gp`."""

    features: Array
    mask: np.ndarray
    factors: exact_gp.Factors


@functools.lru_cache(maxsize=4)
def _seen(surrogate: DeepKernelGP, fitted: Fitted) -> Seen:
    """Kept, since who chooses among pipelines asks one surrogate hundreds of times."""
    known = fitted.known
    size = padded_size(len(known))
    given = _padded({"inputs": _inputs(fitted.scaling, known.queries), "tasks": known.queries.tasks}, size)
    targets, mask = pad(fitted.scaling.scaled(known.values), size), row_mask(len(known), size)
    for jitter in exact_gp.JITTERS:
        features, factors = _factors(surrogate, fitted.params, given, targets, mask, jitter)
        if np.all(np.isfinite(factors.lower)) and np.all(np.isfinite(factors.white)):
            return Seen(features, mask, factors)
    raise SurrogateError(
        f"DeepKernelGP: the covariance of {len(known)} observations is not positive definite in float32; "
        f"expected it to be with {exact_gp.JITTERS[-1]} of the signal's variance added to its diagonal"
    )


def hyper_of(params: PyTree) -> exact_gp.Hyper:
    """Returns the kernel's positive numbers; the parameters are their logarithms."""
    kernel = params["kernel"]
    return {
        "lengthscales": jnp.exp(kernel["log_lengthscales"]),
        "signal": jnp.exp(kernel["log_signal"]),
        "shared": jnp.exp(kernel["log_shared"]),
        "noise": NOISE_FLOOR + jnp.exp(kernel["log_noise"]),
    }


def _widened(params: PyTree, ratio: float) -> PyTree:
    """Returns the parameters of the same process with all variances multiplied; noise stays above its floor."""
    kernel = dict(params["kernel"])
    noise = max(ratio * (NOISE_FLOOR + math.exp(kernel["log_noise"])) - NOISE_FLOOR, 1e-3 * NOISE_FLOOR)
    kernel["log_noise"] = np.array(math.log(noise), np.float32)
    for name in ("log_signal", "log_shared"):
        kernel[name] = np.array(kernel[name] + math.log(ratio), np.float32)
    return {**params, "kernel": kernel}


def _rows(scaling: Scaling, table: Observations) -> dict[str, PyTree]:
    targets = scaling.scaled(table.values)
    return {"inputs": _inputs(scaling, table.queries), "tasks": table.queries.tasks, "targets": targets}


def _inputs(scaling: Scaling, queries: Queries) -> dict[str, np.ndarray]:
    return {"settings": scaling.settings(queries), **scaling.curves(queries)}


@functools.partial(jax.jit, static_argnames="surrogate")
def _start(surrogate: DeepKernelGP, seed: Array, inputs: Mapping[str, Array]) -> PyTree:
    kernel = {
        # Distances between unit-normal features are about sqrt(2 d): neighbours correlate from the start.
        "log_lengthscales": jnp.full(surrogate.features, 0.5 * math.log(surrogate.features)),
        "log_signal": jnp.zeros(()),
        "log_shared": jnp.asarray(math.log(0.1)),
        "log_noise": jnp.asarray(math.log(0.1)),
    }
    return {"extractor": surrogate.extractor.init(jax.random.key(seed), inputs)["params"], "kernel": kernel}


def _points(surrogate: DeepKernelGP, params: PyTree, rows: Mapping[str, PyTree]) -> Points:
    features = surrogate.extractor.apply({"params": params["extractor"]}, rows["inputs"])
    return Points(features, rows["tasks"])


def _padded(rows: Mapping[str, PyTree], size: int) -> PyTree:
    return jax.tree.map(lambda array: pad(array, size), dict(rows))


def _first(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array[:1] for name, array in inputs.items()}


@functools.partial(jax.jit, static_argnames="surrogate")
def _factors(surrogate: DeepKernelGP, params, given, targets, mask, jitter):
    points = _points(surrogate, params, given)
    known = exact_gp.factors(hyper_of(params), points, targets, mask, kernel=surrogate.kernel, jitter=jitter)
    return points.features, known


@functools.partial(jax.jit, static_argnames="surrogate")
def _predict(surrogate: DeepKernelGP, params, points, mask, known, asked):
    hyper, asked = hyper_of(params), _points(surrogate, params, asked)
    mean, variance = exact_gp.posterior(hyper, points, mask, known, asked, kernel=surrogate.kernel)
    return mean, variance + hyper["noise"]
