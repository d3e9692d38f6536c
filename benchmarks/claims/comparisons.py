"""The words of the table: a side of a comparison, a comparison, a curve, a claim.

>>> Comparison("it beats the bare model", Side("hyper_t5", "generated"), Side("hyper_t5", "bare"), least=0.01)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from benchmarks.claims.experiments import Experiment, Tuning


@dataclasses.dataclass(frozen=True)
class Side:
    """What is measured: a measure or a figure of an experiment's results, see `results`."""

    experiment: str
    measure: str = "generated"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One comparison, a - b.

    Attributes:
      says: the claim in words, of which a is the subject.
      a, b: what is compared.
      statistic: of a measure, the `mean` over the runs of a task or their `spread`, the standard deviation over
        supports; or a `figure`, which a run has only once.
      better: the side on which a is claimed to be.
      least: smallest difference that would matter, in the unit of the statistic.
      decides: the claim's verdict depends on it.
      published: the papers' figures, as text.
    """

    says: str
    a: Side
    b: Side
    least: float
    statistic: Literal["mean", "spread", "figure"] = "mean"
    better: Literal["higher", "lower"] = "higher"
    decides: bool = True
    published: str = ""


@dataclasses.dataclass(frozen=True)
class Curve:
    """A picture: for every line some (x, side), drawn as means over seeds and tasks with their intervals."""

    title: str
    x: str
    y: str
    lines: Mapping[str, tuple[tuple[float, Side], ...]]


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of the papers.

    Attributes:
      number: as the command line has it.
      says: in one sentence.
      experiments: everything that is run for it.
      comparisons: what decides it, and what stands beside it.
      curves: drawn.
      published: the papers' figures and how surely they are known, as text.
    """

    number: int
    says: str
    experiments: tuple[Experiment | Tuning, ...]
    comparisons: tuple[Comparison, ...]
    curves: tuple[Curve, ...] = ()
    published: str = ""
