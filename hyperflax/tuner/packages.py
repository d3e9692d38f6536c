"""Optimisers of other packages as optimisers of ours: DEHB (Awad et al. 2021) and SMAC (Lindauer et al. 2022).

Both propose points of the unit cube of encoded pipelines and, DEHB, fidelities. A point stands for the nearest pipeline
of the pool that no earlier point stands for, so every proposal brings something new; a point that is proposed again
stands for the same pipeline. What a package is told is negative, since both minimise; a pipeline that failed is told as
the worst score so far and, before any, as the worst that there can be.

The packages keep a state of their own. `choose` builds it from the history: the same seed and the same observations
lead to the same place, and as long as a history goes on from the last one, so does the state. SMAC searches from a set
of points, whose order Python draws: its choices are the same within a process, in others under one PYTHONHASHSEED only.

>>> trial = DEHB(recorded.pipelines).choose(history)
"""

from __future__ import annotations

import abc
import dataclasses
import logging
import pathlib
import shutil
import tempfile
import weakref
from typing import Any, NamedTuple

import numpy as np

from hyperflax.errors import DataError, MissingExtraError
from hyperflax.tuner.history import History, Observation, Trial


class Proposal(NamedTuple):
    """A point [column] and the fidelity to which it is to be run; `ticket` is the package's own."""

    point: np.ndarray
    fidelity: int
    ticket: Any


class Package(abc.ABC):
    """What a package does for one data set."""

    @abc.abstractmethod
    def ask(self) -> Proposal:
        """Returns the next proposal."""

    @abc.abstractmethod
    def tell(self, proposal: Proposal, loss: float, seconds: float) -> None:
        """Reports what came of a proposal, taken as its point's own though the nearest pipeline was run."""


@dataclasses.dataclass(eq=False)
class _Session:
    """A package's state after some observations, and what it waits for."""

    package: Package
    waiting: Proposal
    standing: dict[bytes, int]
    observations: tuple[Observation, ...] = ()


class _FromPackage(abc.ABC):
    """`choose` by a package; see the module's text.

    Args:
      pipelines: [pool, column] in [0, 1].
      worst: the lowest score that there can be.
    """

    def __init__(self, pipelines: np.ndarray, worst: float = 0.0):
        self.pipelines, self.worst = np.asarray(pipelines, np.float64), worst
        if self.pipelines.ndim != 2 or not np.all((self.pipelines >= 0) & (self.pipelines <= 1)):
            raise DataError(f"{type(self).__name__}: expected pipelines [pool, column] in 0..1")
        self._sessions: dict[tuple[int, int, int], _Session] = {}

    @abc.abstractmethod
    def start(self, columns: int, fidelities: int, seed: int) -> Package:
        """Returns the package at its beginning."""

    def choose(self, history: History) -> Trial | None:
        if history.size != len(self.pipelines):
            raise DataError(f"{type(self).__name__}: expected a pool of {len(self.pipelines)}, got {history.size}")
        key = (history.size, history.fidelities, history.seed)
        session = self._sessions.get(key)
        if session is None or history.observations[: len(session.observations)] != session.observations:
            package = self.start(self.pipelines.shape[1], history.fidelities, history.seed)
            session = self._sessions[key] = _Session(package, package.ask(), {})
        for known in range(len(session.observations), len(history.observations)):
            seen = history.observations[: known + 1]
            self._follow(session, dataclasses.replace(history, observations=seen, pending=()))
        pipeline = self._standing_for(session, session.waiting.point)
        if pipeline is None or pipeline not in history.open():
            return None
        return Trial(pipeline, len(history.curve(pipeline)) + 1)

    def _follow(self, session: _Session, history: History) -> None:
        """Tells what has come of proposals by one more observation, until the package waits for what is not known."""
        session.observations = history.observations
        while (pipeline := self._standing_for(session, session.waiting.point)) is not None:
            ended = [seen for seen in history.observations if seen.pipeline == pipeline]
            failed = bool(ended) and ended[-1].score is None
            if len(history.curve(pipeline)) < session.waiting.fidelity and not failed:
                return
            self._tell(session, history, pipeline, failed)

    def _standing_for(self, session: _Session, point: np.ndarray) -> int | None:
        """The pipeline that stands for a point; None if every pipeline stands for another one."""
        key = np.asarray(point, np.float64).tobytes()
        if key not in session.standing:
            taken = set(session.standing.values())
            free = [number for number in range(len(self.pipelines)) if number not in taken]
            if not free:
                return None
            distances = np.sum(np.square(self.pipelines[free] - point), axis=1)
            session.standing[key] = free[int(np.argmin(distances))]
        return session.standing[key]

    def _tell(self, session: _Session, history: History, pipeline: int, failed: bool) -> None:
        scores = [seen.score for seen in history.observations if seen.score is not None]
        score = min(scores, default=self.worst) if failed else history.curve(pipeline)[session.waiting.fidelity - 1]
        seconds = sum(seen.seconds for seen in history.observations if seen.pipeline == pipeline)
        session.package.tell(session.waiting, -float(score), float(seconds))
        session.waiting = session.package.ask()


class DEHB(_FromPackage):
    """Differential evolution with Hyperband's fidelities, from the package `dehb` with its own defaults."""

    def start(self, columns: int, fidelities: int, seed: int) -> Package:
        return _DEHB(columns, fidelities, seed)


class SMAC(_FromPackage):
    """Bayesian optimisation with a random forest, from the package `smac` with its own defaults; whole runs only."""

    def start(self, columns: int, fidelities: int, seed: int) -> Package:
        return _SMAC(columns, fidelities, seed)


class _DEHB(Package):
    def __init__(self, columns: int, fidelities: int, seed: int):
        try:
            import dehb
        except ImportError as error:
            raise MissingExtraError("dehb", "tuner-baselines") from error

        class Quiet(dehb.DEHB):
            def _setup_logger(self, kwargs: Any) -> None:
                """In place of a log file, with a thread, that stays open as long as the process lives."""
                silent: Any = logging.getLogger(__name__)
                self.output_path, self.logger = kwargs["output_path"], silent

        self._dehb = Quiet(
            dimensions=columns,
            min_fidelity=1,
            max_fidelity=fidelities,
            n_workers=1,
            seed=seed,
            save_freq="end",  # of a run of its own, which there is not
            output_path=_scratch(self),
        )

    def ask(self) -> Proposal:
        job: Any = self._dehb.ask()
        return Proposal(np.asarray(job["config"], np.float64), max(1, round(float(job["fidelity"]))), job)

    def tell(self, proposal: Proposal, loss: float, seconds: float) -> None:
        self._dehb.tell(proposal.ticket, {"fitness": loss, "cost": seconds})


class _SMAC(Package):
    def __init__(self, columns: int, fidelities: int, seed: int):
        try:
            import smac
            from ConfigSpace import ConfigurationSpace, Float
        except ImportError as error:
            raise MissingExtraError("smac", "tuner-baselines") from error
        self._fidelities = fidelities
        self._space = ConfigurationSpace(seed=seed)
        self._space.add(*(Float(f"x{number:04d}", (0.0, 1.0)) for number in range(columns)))
        scenario = smac.Scenario(
            self._space, n_trials=10_000, seed=seed, deterministic=True, output_directory=_scratch(self)
        )
        design = smac.HyperparameterOptimizationFacade.get_initial_design(scenario, n_configs=8)
        self._smac = smac.HyperparameterOptimizationFacade(
            scenario, lambda config, seed: 0.0, initial_design=design, overwrite=True, logging_level=False
        )

    def ask(self) -> Proposal:
        info = self._smac.ask()
        return Proposal(np.asarray(info.config.get_array(), np.float64), self._fidelities, info)

    def tell(self, proposal: Proposal, loss: float, seconds: float) -> None:
        import smac

        value = smac.runhistory.TrialValue(cost=loss, time=seconds)
        self._smac.tell(proposal.ticket, value, save=False)


def _scratch(owner: Package) -> pathlib.Path:
    """A folder that goes when its owner does."""
    folder = tempfile.mkdtemp(prefix="hyperflax-")
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    return pathlib.Path(folder)
