"""What a surrogate is: a frozen configuration whose methods are pure functions of what has been learnt.

Two kinds share one form. A performance surrogate predicts scores, higher is better; a cost surrogate predicts the
natural logarithm of seconds. Both are fitted once on a table of many tasks and then asked about a new one:

>>> fitted = surrogate.fit(table, scores, seed=0)               # once, on earlier tasks
>>> fitted = surrogate.condition(fitted, observed, scores)      # cheap: the posterior, the parameters as they were
>>> fitted = surrogate.refit(fitted, observed, scores, seed=1)  # or train on, as Quick-Tune does (arXiv 2306.03828)
>>> mean, std = surrogate.predict(fitted, candidates)

`condition` and `refit` add observations to those already given, in any number of calls: conditioning on `a` and then
on `b` is conditioning on both. All observations given to one `Fitted` are of one new task; the next task starts from
what `fit` returned. Equal arguments and seeds give equal results on one machine.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from hyperflax import trees
from hyperflax.errors import DataError
from hyperflax.tuner.surrogates.features import Scaling
from hyperflax.tuner.surrogates.queries import Observations, Queries, require_sizes
from hyperflax.types import PyTree

__all__ = ["CostSurrogate", "Fitted", "Observations", "PerformanceSurrogate", "Queries"]


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """What a surrogate has learnt. `hyperflax.tuner.surrogates.saving` writes it to a directory.

    Attributes:
      params: nested dict of numpy arrays; what is in it is the surrogate's own business.
      scaling: of the table.
      kept: the part of the table that predictions or further training draw on.
      task: the new task's observations, in the order in which they came.
    """

    params: PyTree
    scaling: Scaling
    kept: Observations
    task: Observations

    def observe(self, queries: Queries, values: np.ndarray) -> Fitted:
        """Returns this with the new task's further observations [n].

        Raises:
          DataError: the queries are not of the table's sizes, or the values not finite.
        """
        return dataclasses.replace(self, task=self.task.and_then(Observations(queries, values)))

    @property
    def known(self) -> Observations:
        """What is kept of the table, then the task's observations."""
        return self.kept.and_then(self.task)

    def require_sizes(self, queries: Queries) -> None:
        """Raises DataError unless the queries have as many columns as the table."""
        require_sizes(queries, self.kept.queries.sizes)

    def require_params(self, expected: PyTree) -> None:
        """Raises DataError unless `params` has the leaves of `expected`, of the same shape and type, all finite."""
        found, wanted = trees.flatten(self.params), trees.flatten(expected)
        if found.keys() != wanted.keys():
            raise DataError(f"params: expected the leaves {sorted(wanted)}, got {sorted(found)}")
        for name, leaf in wanted.items():
            array = found[name]
            if array.shape != leaf.shape or array.dtype != leaf.dtype:
                raise DataError(
                    f"params: leaf '{name}': expected {leaf.dtype} {leaf.shape}, got {array.dtype} {array.shape}"
                )
            if not np.all(np.isfinite(array)):
                raise DataError(f"params: leaf '{name}': expected finite numbers, got {array[~np.isfinite(array)][0]}")


def table_of(queries: Queries, values: np.ndarray) -> Observations:
    """Returns a table to fit on.

    Raises:
      DataError: it is empty, or the values are not finite or not one for each query.
    """
    if not len(queries):
        raise DataError("a surrogate's table: expected at least one row, got none")
    return Observations(queries, values)


@runtime_checkable
class PerformanceSurrogate(Protocol):
    """Predicts a pipeline's score at a fidelity, given its partial curve."""

    def fit(self, queries: Queries, scores: np.ndarray, seed: int) -> Fitted:
        """Returns what is learnt from a table: n queries and their scores [n]; the seed draws everything random."""
        ...

    def predict(self, fitted: Fitted, queries: Queries) -> tuple[np.ndarray, np.ndarray]:
        """Returns (mean [n], std [n]), float64, in the units of the scores.

        The std is that of a score yet to be observed: what is not known of the function, and observation noise.
        """
        ...

    def condition(self, fitted: Fitted, queries: Queries, scores: np.ndarray) -> Fitted:
        """Returns the posterior given further observations of the new task; no parameter changes."""
        ...

    def refit(self, fitted: Fitted, queries: Queries, scores: np.ndarray, seed: int) -> Fitted:
        """Returns what `condition` does, after training the parameters further on all that is known."""
        ...

    def check(self, fitted: Fitted) -> None:
        """Raises DataError unless these parameters are of this surrogate: names, shapes, finite numbers."""
        ...


@runtime_checkable
class CostSurrogate(Protocol):
    """Predicts what one fidelity step costs: the step that ends at the fidelity asked about, run alone on a machine.

    `unit` names what is predicted. Methods are those of a performance surrogate, with seconds [n] > 0 for scores;
    `predict` returns mean and std of log seconds, and `cost.in_seconds` turns these into seconds.
    """

    unit: ClassVar[str]

    def fit(self, queries: Queries, seconds: np.ndarray, seed: int) -> Fitted: ...

    def predict(self, fitted: Fitted, queries: Queries) -> tuple[np.ndarray, np.ndarray]: ...

    def condition(self, fitted: Fitted, queries: Queries, seconds: np.ndarray) -> Fitted: ...

    def refit(self, fitted: Fitted, queries: Queries, seconds: np.ndarray, seed: int) -> Fitted: ...

    def check(self, fitted: Fitted) -> None: ...
