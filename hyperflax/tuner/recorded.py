"""Recorded runs in one shape, whatever they come from: what surrogates learn from and optimisers are replayed on.

    pipelines [run, column] in [0, 1]    scores, cost [run, fidelity], NaN after a run's end    meta [data set, feature]

`from_runs` takes the project's own meta-dataset, `quick_tune` a folder of csv files as Quick-Tune keeps them,
`scaling_law` and `peft_comparison` (`tuner/foreign.py`) two published tables. A pipeline that was run with several
seeds counts as several.

>>> recorded = from_runs(read("runs"))
>>> play(recorded.of(0), RandomSearch(), budget=10, seed=0)
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np

from hyperflax.errors import DataError
from hyperflax.tuner import encoding
from hyperflax.tuner.pipeline import FIDELITIES
from hyperflax.tuner.table import Run

SECONDS = "seconds"


@dataclasses.dataclass(frozen=True, eq=False)
class Recorded:
    """See the module's text.

    Attributes:
      datasets, groups: names of the data sets and the corpus or category that each is of.
      dataset: [run] places in `datasets`.
      columns: names of the pipelines' columns. pipelines: [run, column].
      scores: [run, fidelity], higher is better. cost: of each part, in `unit`. unit: `seconds` unless a table has none.
      final: [run] score on other examples than those that `scores` are of; NaN where a table has none.
      features: names of the meta-features. meta: [data set, feature], NaN where unknown.
      start: [data set] score of the unchanged model, on the examples of `final`; NaN where unknown.
    """

    datasets: tuple[str, ...]
    groups: tuple[str, ...]
    dataset: np.ndarray
    columns: tuple[str, ...]
    pipelines: np.ndarray
    scores: np.ndarray
    cost: np.ndarray
    final: np.ndarray
    features: tuple[str, ...]
    meta: np.ndarray
    start: np.ndarray
    unit: str = SECONDS

    def __post_init__(self) -> None:
        runs, sets = len(self.dataset), len(self.datasets)
        shapes = {
            "pipelines": (runs, len(self.columns)),
            "scores": (runs, self.fidelities),
            "cost": (runs, self.fidelities),
            "final": (runs,),
            "meta": (sets, len(self.features)),
            "start": (sets,),
        }
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise DataError(f"recorded runs: {name}: expected shape {shape}, got {getattr(self, name).shape}")
        if not runs or len(self.groups) != sets or np.any((self.dataset < 0) | (self.dataset >= sets)):
            raise DataError("recorded runs: expected at least one run, a group for each data set and known data sets")
        if np.any(np.isnan(self.pipelines)):
            raise DataError("recorded runs: pipelines: expected numbers, got NaN")
        known = ~np.isnan(self.scores)
        if np.any(known[:, 1:] & ~known[:, :-1]):
            raise DataError("recorded runs: scores: expected no gap in a curve")
        if np.any(known & ~(self.cost > 0)):
            raise DataError("recorded runs: cost: expected a positive number beside every score")

    @property
    def fidelities(self) -> int:
        """Number of parts of a whole run."""
        return self.scores.shape[1]

    def of(self, dataset: int) -> Recorded:
        """Returns the runs of one data set, by its place in `datasets`."""
        return self.rows(np.flatnonzero(self.dataset == dataset))

    def rows(self, numbers: Sequence[int] | np.ndarray) -> Recorded:
        """Returns the runs with these numbers, in their order."""
        fields = ("dataset", "pipelines", "scores", "cost", "final")
        return dataclasses.replace(
            self, **{name: getattr(self, name)[np.asarray(numbers, np.int64)] for name in fields}
        )


def from_runs(runs: Sequence[Run], *, group: str = "corpus") -> Recorded:
    """Returns the project's own runs; those that did not complete with the part of their curve that they have.

    Meta-features are a hypermodel's, so the same examples are another data set for another model. Under another name
    or in another corpus they are the same one, called as in the first of its runs.

    Args:
      runs: of a table.
      group: `corpus` or `category`.

    Raises:
      DataError: no run with a score.
    """
    runs = [run for run in runs if run.curve]
    if not runs:
        raise DataError("recorded runs: expected at least one with a score, got none")
    first = {_dataset(run): run for run in reversed(runs)}
    keys = sorted(first, key=lambda key: (first[key].dataset, *key))
    features = tuple(sorted({name for run in first.values() for name in run.meta}))
    place = {key: number for number, key in enumerate(keys)}
    names = [first[key].dataset for key in keys]
    named = Counter(names)
    pad = FIDELITIES

    def padded(values: Sequence[float]) -> list[float]:
        return [*values, *[np.nan] * (pad - len(values))]

    return Recorded(
        # Names of their own: whoever plays them tells them apart by these.
        datasets=tuple(
            name if named[name] == 1 else f"{name} ({', '.join(key)})" for name, key in zip(names, keys, strict=True)
        ),
        groups=tuple(getattr(first[key], group) for key in keys),
        dataset=np.array([place[_dataset(run)] for run in runs]),
        columns=encoding.columns(),
        pipelines=encoding.encode([run.pipeline for run in runs]),
        scores=np.array([padded(run.curve) for run in runs], np.float32),
        cost=np.array([padded(run.seconds) for run in runs], np.float32),
        final=np.array([run.test_score for run in runs], np.float32),
        features=features,
        meta=np.array([[first[key].meta.get(name, np.nan) for name in features] for key in keys], np.float32),
        start=np.array([first[key].bare_score for key in keys], np.float32),
    )


def _dataset(run: Run) -> tuple[str, str]:
    return run.dataset_hash, run.model
