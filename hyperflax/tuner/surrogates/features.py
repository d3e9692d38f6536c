"""From queries to what a network reads: standardised, without NaN, in float32.

Everything is scaled by the table that a surrogate was fitted on and never by the new task, so that one observation does
not change what the others mean:

    score, curve     (value - mean) / std of the table's values
    meta-feature     (value - mean) / std of its known values, and an indicator column: 1 where it is unknown
    pipeline         as it is, in 0..1

An unknown meta-feature stands at the mean. A column that is constant in the table says nothing that could be learnt; it
is 0 for every query, and so is the indicator of a meta-feature that was always or never known. Standardised inputs
are cut off at +-LIMIT: a data set far outside the table is one at its border.

>>> scaling = Scaling.of(table.queries, table.values)
>>> scaling.settings(queries).shape  # [n, p + 2 m + 1]
"""

from __future__ import annotations

import dataclasses

import numpy as np

from hyperflax.errors import DataError
from hyperflax.tuner.surrogates.queries import Observations, Queries

LIMIT = 10.0


@dataclasses.dataclass(frozen=True, eq=False)
class Scaling:
    """Means and standard deviations of a table, float64.

    Attributes:
      value_mean, value_std: [] of the values; a std of 0 is replaced by 1.
      meta_mean: [m] of the known meta-features, 0 where none is known.
      meta_inverse_std: [m] one over their standard deviation, 0 for a constant column.
      missing_varies: [m] 1.0 where the column is known in some rows and unknown in others, else 0.0.
    """

    value_mean: np.ndarray
    value_std: np.ndarray
    meta_mean: np.ndarray
    meta_inverse_std: np.ndarray
    missing_varies: np.ndarray

    def __post_init__(self) -> None:
        shapes = {}
        for field in dataclasses.fields(self):
            array = np.asarray(getattr(self, field.name), np.float64)
            if not np.all(np.isfinite(array)):
                raise DataError(f"scaling: {field.name}: expected finite numbers, got {array}")
            object.__setattr__(self, field.name, array)
            shapes[field.name] = array.shape
        columns = self.meta_mean.shape
        if shapes["value_mean"] or shapes["value_std"] or len(columns) != 1 or set(shapes.values()) - {(), columns}:
            raise DataError(f"scaling: expected two scalars and three vectors of one length, got {shapes}")
        if not self.value_std > 0:
            raise DataError(f"scaling: value_std: expected a positive number, got {self.value_std}")

    @classmethod
    def of(cls, queries: Queries, values: np.ndarray) -> Scaling:
        """Returns the scaling of a table: its queries and their values [n]."""
        values, meta = np.asarray(values, np.float64), queries.meta.astype(np.float64)
        known = ~np.isnan(meta)
        count = np.maximum(np.sum(known, axis=0), 1)
        mean = np.sum(np.where(known, meta, 0.0), axis=0) / count
        std = np.sqrt(np.sum(np.where(known, meta - mean, 0.0) ** 2, axis=0) / count)
        varies = std > 1e-6 * np.abs(mean)
        return cls(
            value_mean=np.asarray(np.mean(values)),
            value_std=np.asarray(_std(values)),
            meta_mean=mean,
            meta_inverse_std=np.where(varies, 1.0 / np.where(varies, std, 1.0), 0.0),
            missing_varies=(np.any(known, axis=0) & ~np.all(known, axis=0)).astype(np.float64),
        )

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """Returns values in standard deviations from the table's mean, float32, of the same shape."""
        return ((np.asarray(values, np.float64) - self.value_mean) / self.value_std).astype(np.float32)

    def settings(self, queries: Queries) -> np.ndarray:
        """Returns [n, p + 2 m + 1] float32: pipeline, meta-features and their indicators, fidelity / t."""
        unknown = np.isnan(queries.meta)
        known = np.where(unknown, self.meta_mean, queries.meta.astype(np.float64))
        meta = np.clip((known - self.meta_mean) * self.meta_inverse_std, -LIMIT, LIMIT)
        parts = (queries.pipelines, meta, unknown * self.missing_varies, _share(queries.fidelity, queries))
        return np.concatenate(parts, axis=1).astype(np.float32)

    def curves(self, queries: Queries) -> dict[str, np.ndarray]:
        """Returns the partial curves, float32: `scores` and `seen` [n, t], `summary` [n, 2].

        `scores` are standardised as values are and 0 where `seen` is 0; `summary` is the last score and the share of
        fidelities that have been run.
        """
        seen = ~np.isnan(queries.curves)
        scores = np.where(seen, np.clip(self.scaled(queries.curves), -LIMIT, LIMIT), 0.0)
        observed = queries.observed
        last = np.where(observed > 0, scores[np.arange(len(queries)), observed - 1], 0.0)
        summary = np.concatenate([last[:, None], _share(observed, queries)], axis=1)
        arrays = {"scores": scores, "seen": seen, "summary": summary}
        return {name: array.astype(np.float32) for name, array in arrays.items()}


def representative(table: Observations, rows: int, seed: int) -> Observations:
    """Returns at most `rows` rows of a table, drawn by the seed, every task with as equal a share as it has rows for.

    Equal shares, because a new task resembles some task of the table, not some row: drawn row by row, the tasks with
    the most runs would crowd out the others. Within a task the draw is uniform, so that it follows the table's own
    density of pipelines and fidelities.
    """
    order = np.random.default_rng(seed).permutation(len(table))
    turns, taken = np.empty(len(table), np.int64), {}
    for row, task in zip(order, table.queries.tasks[order], strict=True):
        turns[row] = taken.get(task, 0)  # the how-many-th of its task
        taken[task] = turns[row] + 1
    chosen = order[np.argsort(turns[order], kind="stable")][:rows]
    return table.take(np.sort(chosen))


def folds(table: Observations, count: int, seed: int) -> np.ndarray:
    """Returns [n] int below `count`: tasks shared out evenly by the seed, all rows of a task in one fold."""
    tasks = table.queries.tasks
    return (np.random.default_rng(seed).permutation(tasks.max() + 1) % count)[tasks]


def _share(count: np.ndarray, queries: Queries) -> np.ndarray:
    return (count / queries.sizes[1])[:, None]


def _std(values: np.ndarray) -> float:
    std = float(np.std(values))
    return std if std > 1e-6 * np.abs(np.mean(values)) else 1.0
