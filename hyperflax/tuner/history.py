"""What a tuner knows of one data set: the curves of a pool of pipelines so far, what is under way, what it cost.

Pipelines are numbers here, places in a pool that somebody else keeps, so recorded tables of any origin are replayed. A
history is a value: `asked` and `told` return a new one, and json holds all of it, so a killed run goes on from its
file. Optimisers (`optimisers.py`) read it and choose the next trial; they keep nothing that it does not hold.

>>> history = History(size=2)
>>> history.asked(Trial(0, 1)).told(Trial(0, 1), score=0.5, seconds=2.0).incumbent
Incumbent(pipeline=0, fidelity=1, score=0.5)
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

from hyperflax import configs
from hyperflax.errors import ConfigError
from hyperflax.tuner.pipeline import FIDELITIES
from hyperflax.tuner.table import COMPLETED, STATUSES


class Trial(NamedTuple):
    """A pipeline by its place in the pool, and the fidelity that it is to reach, from 1."""

    pipeline: int
    fidelity: int


class Incumbent(NamedTuple):
    """The best trial so far and its held-out score; fidelity 0 is a pipeline's start, before any part."""

    pipeline: int
    fidelity: int
    score: float


@dataclasses.dataclass(frozen=True)
class Observation:
    """A trial's end: its status, and if that is `completed` its score; its seconds count in any case.

    `start` is the held-out score that the pipeline began with, None where it is not known: of a pipeline the best is
    kept, be it the start. What went wrong stands in `error`. Histories that are older have neither.
    """

    pipeline: int
    fidelity: int
    score: float | None
    seconds: float
    status: str = COMPLETED
    error: str = ""
    start: float | None = None

    @property
    def best(self) -> Incumbent | None:
        """The better of the part and its pipeline's start; None without a score."""
        if self.score is None:
            return None
        if self.start is not None and self.start > self.score:
            return Incumbent(self.pipeline, 0, self.start)
        return Incumbent(self.pipeline, self.fidelity, self.score)


@dataclasses.dataclass(frozen=True)
class History:
    """See the module's text.

    Attributes:
      size: number of pipelines in the pool. fidelities: parts of a whole run.
      seed: of an optimiser's draws.
      observations: in the order in which they came.
      pending: trials that were asked for and have not ended, (pipeline, fidelity).
    """

    size: int
    fidelities: int = FIDELITIES
    seed: int = 0
    observations: tuple[Observation, ...] = ()
    pending: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "observations", tuple(self.observations))
        object.__setattr__(self, "pending", tuple(Trial(*trial) for trial in self.pending))
        if self.size < 1 or self.fidelities < 1:
            raise ConfigError(
                f"history: expected a size and fidelities of at least 1, got {self.size}, {self.fidelities}"
            )
        curves: dict[int, int] = {}
        for seen in self.observations:
            if not 0 <= seen.pipeline < self.size or seen.fidelity != curves.get(seen.pipeline, 0) + 1:
                raise ConfigError(f"history: observation {seen}: no next part of a pipeline of the pool")
            if seen.status not in STATUSES or (seen.score is None) != (seen.status != COMPLETED):
                raise ConfigError(f"history: observation {seen}: a score belongs to 'completed' and to no other status")
            curves[seen.pipeline] = seen.fidelity if seen.status == COMPLETED else self.fidelities

    def asked(self, trial: Trial) -> History:
        """Returns the history with a trial under way. Raises ConfigError where it cannot be the next."""
        if trial.pipeline not in self.open() or trial.fidelity != len(self.curve(trial.pipeline)) + 1:
            raise ConfigError(f"history: {trial} cannot be asked for now")
        return dataclasses.replace(self, pending=(*self.pending, trial))

    def told(
        self,
        trial: Trial,
        *,
        seconds: float,
        score: float | None = None,
        status: str = COMPLETED,
        error: str = "",
        start: float | None = None,
    ) -> History:
        """Returns the history with a trial's end. A failure and a lack of memory end the pipeline.

        Raises:
          ConfigError: nobody asked for the trial, or a score that is no finite number.
        """
        if trial not in self.pending:
            raise ConfigError(f"history: nobody asked for {trial}")
        if status == COMPLETED and (score is None or not math.isfinite(score)):
            raise ConfigError(f"history: {trial}: expected a finite score, got {score!r}")
        score = score if status == COMPLETED else None
        seen = Observation(trial.pipeline, trial.fidelity, score, seconds, status, error, start)
        pending = tuple(other for other in self.pending if other != trial)
        return dataclasses.replace(self, observations=(*self.observations, seen), pending=pending)

    def restarted(self) -> History:
        """Returns the history without what was under way when a process ended; it will be asked for again."""
        return dataclasses.replace(self, pending=())

    # What an optimiser asks

    def curve(self, pipeline: int) -> tuple[float, ...]:
        """Returns the scores of a pipeline's parts so far."""
        return self._curves.get(pipeline, ())

    @functools.cached_property
    def _curves(self) -> dict[int, tuple[float, ...]]:
        curves: dict[int, list[float]] = {}
        for seen in self.observations:
            if seen.score is not None:
                curves.setdefault(seen.pipeline, []).append(seen.score)
        return {pipeline: tuple(scores) for pipeline, scores in curves.items()}

    def open(self) -> list[int]:
        """Returns the pipelines that can go on: not ended, not failed, not under way."""
        closed = {pipeline for pipeline, _ in self.pending}
        closed |= {
            seen.pipeline for seen in self.observations if seen.status != COMPLETED or seen.fidelity == self.fidelities
        }
        return [number for number in range(self.size) if number not in closed]

    @property
    def spent(self) -> float:
        """Seconds of all trials that have ended."""
        return sum(seen.seconds for seen in self.observations)

    @property
    def incumbent(self) -> Incumbent | None:
        """The best score so far, starts included, the earliest of equals; None before any."""
        return max(
            (best for seen in self.observations if (best := seen.best)), key=lambda best: best.score, default=None
        )

    def best_of(self, pipeline: int) -> float | None:
        """Returns the best score of a pipeline so far, its start included; None before any."""
        own = [best.score for seen in self.observations if seen.pipeline == pipeline and (best := seen.best)]
        return max(own, default=None)

    # Json

    def to_json(self) -> dict[str, Any]:
        """Returns everything as plain data."""
        return configs.to_json(self)

    @classmethod
    def from_json(cls, data: Any, where: str) -> History:
        """The inverse of `to_json`. Raises ConfigError with `where` on anything else."""
        return configs.from_json(cls, data, where)
