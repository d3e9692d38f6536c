"""What a surrogate is asked, and what has been observed: plain numpy arrays, one row per question.

A row asks for one pipeline, on one data set, at one fidelity, given the learning curve seen so far. Rows of different
data sets may stand in one table; rows whose meta-features are equal are of one data set, here called a task.

>>> queries = Queries(
...     pipelines=[[0.3, 1.0]], curves=[[0.5, np.nan, np.nan]], fidelity=[2], meta=[[1200.0, np.nan]]
... )
>>> queries.sizes, queries.observed
((2, 3, 2), array([1]))
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from hyperflax.errors import DataError


@dataclasses.dataclass(frozen=True, eq=False)
class Queries:
    """Questions to a surrogate. What is given is converted to the types below and checked.

    Attributes:
      pipelines: [n, p] float32 in 0..1, encoded hyper-parameters. An inactive one is 0 beside its own indicator column.
      curves: [n, t] float32, scores at fidelity 1, 2 ... t, higher is better; NaN from the first fidelity not yet run.
      fidelity: [n] int32 in 1..t, the fidelity asked about, after the last one observed.
      meta: [n, m] float32, meta-features of the data set, in their own units; NaN where unknown.

    Raises:
      DataError: names the array, the row, what was expected and what came.
    """

    pipelines: np.ndarray
    curves: np.ndarray
    fidelity: np.ndarray
    meta: np.ndarray

    def __post_init__(self) -> None:
        for name in ("pipelines", "curves", "meta"):
            object.__setattr__(self, name, _numbers(name, getattr(self, name), 2))
        fidelity = _numbers("fidelity", self.fidelity, 1, np.float64)
        _require(np.equal(fidelity, np.rint(fidelity)), "fidelity", "whole numbers", fidelity)
        rows = {name: len(getattr(self, name)) for name in ("pipelines", "curves", "meta")} | {
            "fidelity": len(fidelity)
        }
        if len(set(rows.values())) > 1:
            raise DataError(f"queries: expected as many rows in every array, got {rows}")
        if self.pipelines.shape[1] < 1 or self.curves.shape[1] < 1:
            raise DataError(f"queries: expected at least one pipeline column and one fidelity, got {self.sizes}")
        _require((self.pipelines >= 0) & (self.pipelines <= 1), "pipelines", "numbers in 0..1", self.pipelines)
        _require(~np.isinf(self.meta), "meta", "finite numbers or NaN", self.meta)
        missing = np.isnan(self.curves)
        _require(~np.isinf(self.curves), "curves", "finite numbers or NaN", self.curves)
        _require(missing[:, 1:] | ~missing[:, :-1], "curves", "no score after the first NaN", self.curves[:, 1:])
        _require((fidelity >= 1) & (fidelity <= self.sizes[1]), "fidelity", f"1..{self.sizes[1]}", fidelity)
        _require(fidelity > self.observed, "fidelity", "more than the fidelities already observed", fidelity)
        object.__setattr__(self, "fidelity", fidelity.astype(np.int32))

    def __len__(self) -> int:
        return len(self.pipelines)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(p, t, m): pipeline columns, fidelities, meta-features."""
        return self.pipelines.shape[1], self.curves.shape[1], self.meta.shape[1]

    @property
    def observed(self) -> np.ndarray:
        """[n] int: how many fidelities of the curve have been run."""
        return np.sum(~np.isnan(self.curves), axis=1)

    @property
    def tasks(self) -> np.ndarray:
        """[n] int from 0: the number of the row's task among those of the table."""
        return number_equal_rows(self.meta)

    def take(self, rows: np.ndarray | slice) -> Queries:
        """Returns the chosen rows, in that order; a slice, or indices."""
        return Queries(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True, eq=False)
class Observations:
    """Questions with their answers.

    Attributes:
      queries: n questions.
      values: [n] float32, finite: a score each, or seconds for a cost.
    """

    queries: Queries
    values: np.ndarray

    def __post_init__(self) -> None:
        values = _numbers("values", self.values, 1)
        if len(values) != len(self.queries):
            raise DataError(f"values: expected one for each of {len(self.queries)} queries, got {len(values)}")
        _require(np.isfinite(values), "values", "finite numbers", values)
        object.__setattr__(self, "values", values)

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: np.ndarray | slice) -> Observations:
        """Returns the chosen rows, in that order."""
        return Observations(self.queries.take(rows), self.values[rows])

    def and_then(self, later: Observations) -> Observations:
        """Returns these rows, then the later ones.

        Raises:
          DataError: the two are of different sizes.
        """
        require_sizes(later.queries, self.queries.sizes)
        pairs = ((getattr(part.queries, field.name) for part in (self, later)) for field in dataclasses.fields(Queries))
        queries = Queries(*(np.concatenate(tuple(pair)) for pair in pairs))
        return Observations(queries, np.concatenate([self.values, later.values]))


def require_sizes(queries: Queries, sizes: tuple[int, int, int]) -> None:
    """Raises DataError unless the queries have these (pipeline columns, fidelities, meta-features)."""
    if queries.sizes != sizes:
        raise DataError(
            f"queries: expected {sizes} (pipeline columns, fidelities, meta-features), as in the table, "
            f"got {queries.sizes}"
        )


def number_equal_rows(rows: np.ndarray) -> np.ndarray:
    """Returns [n] int32: equal rows of [n, k] float32 have equal numbers, from 0; NaN equals NaN here."""
    if rows.shape[1] == 0:
        return np.zeros(len(rows), np.int32)
    alike = np.where(np.isnan(rows), np.float32(np.nan), rows) + np.float32(0)  # + 0: one zero, not two
    return np.unique(alike.view(np.uint32), axis=0, return_inverse=True)[1].reshape(-1).astype(np.int32)


def _numbers(name: str, value: ArrayLike, dims: int, dtype: type = np.float32) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):  # becomes inf, which is refused by name
            array = np.ascontiguousarray(np.asarray(value), dtype)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: expected an array of numbers, {error}") from error
    if array.ndim != dims:
        raise DataError(f"{name}: expected {dims} dimension{'s' * (dims > 1)}, got shape {array.shape}")
    return array


def _require(holds: np.ndarray, name: str, expected: str, values: np.ndarray) -> None:
    if not np.all(holds):
        place = tuple(int(index) for index in np.argwhere(~holds)[0])
        raise DataError(f"{name}: row {place[0]}: expected {expected}, got {values[place]}")
