"""Cost: what one fidelity step takes, from an MLP and what the new task's own seconds say. Unit: seconds.

    log seconds of a step = f(pipeline, meta-features, fidelity / t) + task offset + pipeline offset + noise

with the natural logarithm: machines and data sets make things so many times slower, not so many seconds. f is an MLP
fitted by least squares on a table of solo timings, Strangmann et al.'s (arXiv 2411.01195) cost predictor. The
offsets are Gaussian (`offsets` has the formulas): one observed step on a slower machine shifts the prediction for
every pipeline of the task, and most for the pipeline that was run. Their variances come from tasks held out of f, in
`FOLDS` folds, since a network's residuals on the tasks that it was fitted on say nothing of a new one. A table of one
task has none to hold out, and leaves the variances at their priors.

What a cost does not depend on: the scores of the curve. They are ignored.

>>> surrogate = MLPCost()
>>> fitted = surrogate.fit(table, seconds, seed=0)
>>> fitted = surrogate.condition(fitted, observed, observed_seconds)
>>> mean, std = in_seconds(*surrogate.predict(fitted, candidates))
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hyperflax.configs import check_sizes, whole_number
from hyperflax.errors import DataError
from hyperflax.tuner.surrogates import offsets
from hyperflax.tuner.surrogates.exact_gp import pad, padded_size
from hyperflax.tuner.surrogates.features import Scaling, folds, representative
from hyperflax.tuner.surrogates.minimise import Schedule, minimise
from hyperflax.tuner.surrogates.protocol import Fitted, Observations, Queries, table_of
from hyperflax.tuner.surrogates.queries import number_equal_rows
from hyperflax.types import Array, PyTree

FOLDS = 4
PRIOR = offsets.Variances()


class Regressor(nn.Module):
    """An MLP to one number: standardised log seconds [n] of settings [n, k]."""

    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, settings: Array) -> Array:
        x = settings
        for number, width in enumerate(self.hidden):
            x = nn.silu(nn.Dense(width, name=f"hidden_{number}")(x))
        return nn.Dense(1, name="out")(x)[..., 0]


@dataclasses.dataclass(frozen=True)
class MLPCost:
    """A cost surrogate; see the module.

    Attributes:
      hidden: widths of the MLP.
      kept: most rows of the table that `refit` goes on training with.
      rows: of a minibatch.
      steps, learning_rate: of `fit`.
      refit_steps, refit_learning_rate: of `refit`.
    """

    unit: ClassVar[str] = "natural logarithm of seconds per fidelity step"

    hidden: tuple[int, ...] = (64, 64)
    kept: int = 384
    rows: int = 512
    steps: int = 500
    learning_rate: float = 3e-3
    refit_steps: int = 50
    refit_learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(whole_number("MLPCost.hidden", width) for width in self.hidden))
        check_sizes(self, kept=1, rows=1)
        Schedule(self.steps, self.learning_rate), Schedule(self.refit_steps, self.refit_learning_rate)

    def fit(self, queries: Queries, seconds: np.ndarray, seed: int) -> Fitted:
        """Returns what is learnt from a table: n queries and the seconds [n] of their steps; see the protocol.

        Raises:
          DataError: an empty table, or seconds that are not positive and finite.
          SurrogateError: the training diverged.
        """
        table = _timings(table_of(queries, seconds))
        scaling = Scaling.of(queries, np.log(table.values))
        variances = self._variances(scaling, table, seed)
        network = self._train(scaling, table, self._start(scaling, queries, seed), seed)
        params = {
            "network": network,
            "variances": {name: np.array(value, np.float64) for name, value in dataclasses.asdict(variances).items()},
        }
        return Fitted(params, scaling, representative(table, self.kept, seed), table.take(slice(0)))

    def condition(self, fitted: Fitted, queries: Queries, seconds: np.ndarray) -> Fitted:
        """Returns the posterior of the offsets given further observed seconds of the new task."""
        _timings(Observations(queries, seconds))
        return fitted.observe(queries, seconds)

    def refit(self, fitted: Fitted, queries: Queries, seconds: np.ndarray, seed: int) -> Fitted:
        """Returns what `condition` does, after training the MLP further on the kept rows and the task's observations.

        The variances stay: they are about tasks that the MLP has not seen. What it has taken in of this one is no
        longer a residual, and so is not counted twice.

        Raises:
          SurrogateError: the training diverged.
        """
        fitted = self.condition(fitted, queries, seconds)
        schedule = Schedule(self.refit_steps, self.refit_learning_rate)
        network = self._train(fitted.scaling, fitted.known, fitted.params["network"], seed, schedule)
        return dataclasses.replace(fitted, params={**fitted.params, "network": network})

    def predict(self, fitted: Fitted, queries: Queries) -> tuple[np.ndarray, np.ndarray]:
        """Returns (mean [n], std [n]) of log seconds, the variation from step to step included.

        Raises:
          DataError: queries of other sizes than the table's.
        """
        fitted.require_sizes(queries)
        task, params = fitted.task, fitted.params
        residuals = np.log(task.values.astype(np.float64)) - self._mean(params["network"], fitted.scaling, task.queries)
        pipelines = number_equal_rows(np.concatenate([task.queries.pipelines, queries.pipelines]))
        variances = offsets.Variances(**{name: float(value) for name, value in params["variances"].items()})
        shift, variance = offsets.posterior(variances, residuals, pipelines[: len(task)], pipelines[len(task) :])
        return self._mean(params["network"], fitted.scaling, queries) + shift, np.sqrt(variance)

    def loss(self, params: PyTree, batch: Mapping[str, PyTree], mask: Array) -> Array:
        """Returns the mean squared error of standardised log seconds."""
        error = Regressor(self.hidden).apply({"params": params}, batch["settings"]) - batch["targets"]
        return jnp.sum(mask * error**2) / jnp.sum(mask)

    def check(self, fitted: Fitted) -> None:
        """Raises DataError unless these parameters are of this surrogate: names, shapes, finite numbers."""
        network = jax.eval_shape(lambda: self._start(fitted.scaling, fitted.kept.queries, 0))
        scalars = {field.name: np.float64(0) for field in dataclasses.fields(offsets.Variances)}
        fitted.require_params({"network": network, "variances": scalars})
        offsets.Variances(**{name: float(value) for name, value in fitted.params["variances"].items()})
        _timings(fitted.known)

    def _start(self, scaling: Scaling, queries: Queries, seed: int) -> PyTree:
        return _start(self, seed, scaling.settings(queries.take(slice(0, 1))))

    def _train(
        self, scaling: Scaling, table: Observations, start: PyTree, seed: int, schedule: Schedule | None = None
    ) -> PyTree:
        data = {"settings": scaling.settings(table.queries), "targets": scaling.scaled(np.log(table.values))}
        schedule = schedule or Schedule(self.steps, self.learning_rate)
        return minimise(self, start, data, schedule, rows=self.rows, seed=seed)

    def _mean(self, network: PyTree, scaling: Scaling, queries: Queries) -> np.ndarray:
        settings = scaling.settings(queries)
        scaled = np.asarray(_predict(self, network, pad(settings, padded_size(len(settings)))))[: len(settings)]
        return scaling.value_mean + scaling.value_std * scaled.astype(np.float64)

    def _variances(self, scaling: Scaling, table: Observations, seed: int) -> offsets.Variances:
        """From residuals on tasks held out of the MLP, fold by fold; the tasks are shared out by the seed."""
        fold = folds(table, FOLDS, seed)
        numbers = np.unique(fold)
        if len(numbers) < 2:
            return PRIOR
        residuals = np.empty(len(table))
        for number in numbers:
            held = np.flatnonzero(fold == number)
            network = self._train(
                scaling, table.take(np.flatnonzero(fold != number)), self._start(scaling, table.queries, seed), seed
            )
            predicted = self._mean(network, scaling, table.queries.take(held))
            residuals[held] = np.log(table.values[held].astype(np.float64)) - predicted
        return offsets.estimate(residuals, table.queries.tasks, number_equal_rows(table.queries.pipelines), PRIOR)


def in_seconds(mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (mean [n], std [n]) in seconds of a step whose log seconds are Gaussian with these.

    A log-normal's: mean exp(mean + std^2 / 2), std that times sqrt(exp(std^2) - 1). The median is exp(mean).
    """
    variance = np.square(std)
    seconds = np.exp(mean + variance / 2)
    return seconds, seconds * np.sqrt(np.expm1(variance))


def _timings(table: Observations) -> Observations:
    if not np.all(table.values > 0):
        row = int(np.flatnonzero(~(table.values > 0))[0])
        raise DataError(f"values: row {row}: expected seconds above 0, got {table.values[row]}")
    return table


@functools.partial(jax.jit, static_argnames="surrogate")
def _start(surrogate: MLPCost, seed: Array, settings: Array) -> PyTree:
    return Regressor(surrogate.hidden).init(jax.random.key(seed), settings)["params"]


@functools.partial(jax.jit, static_argnames="surrogate")
def _predict(surrogate: MLPCost, network: PyTree, settings: Array) -> Array:
    return Regressor(surrogate.hidden).apply({"params": network}, settings)
