"""Optimisers: given a history, which trial next. All of them, the grey-box one and its rivals, have one interface.

`choose(history)` is a function of the history alone and returns None where nothing is left to do. So the loop around it
is the same for a live run (`hyperflax tune run`) and a recorded table (`replay.py`), and several trials may be under
way at once: whoever asks writes each into the history before asking again.

| class | what it does |
|---|---|
| `Only` | one pipeline of the pool to its end: `default`, `as generated` |
| `RandomSearch` | pipelines in random order, each to its end |
| `SuccessiveHalving` | rungs of 1, 2, 4 ... parts, the best half of each going on (Jamieson and Talwalkar 2016) |
| `GreyBox` | the largest expected improvement at the next part per predicted second, transferred or refitted |

>>> trial = RandomSearch().choose(history)
>>> history = history.asked(trial)
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from hyperflax.errors import ConfigError
from hyperflax.tuner.acquisition import expected_improvement, per_second
from hyperflax.tuner.history import History, Trial

Mode: TypeAlias = Literal["transfer", "condition", "refit"]


class Optimiser(Protocol):
    """What chooses trials."""

    def choose(self, history: History) -> Trial | None:
        """Returns the next trial, or None if nothing is left or worth doing."""
        ...


def _next(history: History, pipeline: int) -> Trial:
    return Trial(pipeline, len(history.curve(pipeline)) + 1)


@dataclasses.dataclass(frozen=True)
class Only:
    """One pipeline, by its place in the pool, to its end."""

    pipeline: int

    def choose(self, history: History) -> Trial | None:
        return _next(history, self.pipeline) if self.pipeline in history.open() else None


class RandomSearch:
    """Pipelines in an order that the history's seed draws, each to its end before the next is begun."""

    def choose(self, history: History) -> Trial | None:
        order = np.random.default_rng(history.seed).permutation(history.size).tolist()
        still = set(history.open())
        return next((_next(history, pipeline) for pipeline in order if pipeline in still), None)


@dataclasses.dataclass(frozen=True)
class SuccessiveHalving:
    """Brackets of pipelines in random order; after 1, 2, 4 parts the best 1 / eta of those that got there go on.

    Attributes:
      bracket: pipelines that begin together. eta: what is divided by, and by which the rungs grow.
    """

    bracket: int = 16
    eta: int = 2

    def __post_init__(self) -> None:
        if self.bracket < 1 or self.eta < 2:
            raise ConfigError(f"SuccessiveHalving: expected bracket >= 1 and eta >= 2, got {self.bracket}, {self.eta}")

    def choose(self, history: History) -> Trial | None:
        order = np.random.default_rng(history.seed).permutation(history.size).tolist()
        for first in range(0, len(order), self.bracket):
            trial, waiting = self._in_bracket(history, order[first : first + self.bracket])
            if trial is not None or waiting:
                return trial
        return None

    def _in_bracket(self, history: History, members: list[int]) -> tuple[Trial | None, bool]:
        """The bracket's next trial, and whether it is held up by trials under way."""
        still, rung = set(history.open()), 1
        pending = {pipeline for pipeline, _ in history.pending}
        while members:
            below = [member for member in members if member in still and len(history.curve(member)) < rung]
            if below:
                return _next(history, below[0]), False
            if any(member in pending for member in members):
                return None, True
            if rung == history.fidelities:
                return None, False
            reached = [member for member in members if len(history.curve(member)) >= rung]
            reached.sort(key=lambda member: -history.curve(member)[rung - 1])
            members, rung = reached[: max(1, len(members) // self.eta)], min(history.fidelities, rung * self.eta)
        return None, False


@dataclasses.dataclass(frozen=True)
class GreyBox:
    """Expected improvement per second at the next part of every pipeline, from surrogates learnt on other data sets.

    The improvement is over the best score at that part, as far as one is known, else over the best at an earlier part.
    Before any score it is over 0 or, where that is more than three standard deviations above every trial, over the
    lowest score expected.
    Pipelines under way are not asked for again, which lets several workers ask.

    Attributes:
      surrogate: see `Surrogate`.
      mode: `transfer` never learns from this data set but for the partial curves that the surrogate reads, the finding
        of Strangmann et al. 2024; `condition` adds its scores to the posterior; `refit` also trains on, as Quick-Tune.
      xi: least improvement.
      enough: the run ends when the largest expected improvement falls below this.
    """

    surrogate: Surrogate
    mode: Mode = "transfer"
    xi: float = 0.0
    enough: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in ("transfer", "condition", "refit"):
            raise ConfigError(f"GreyBox.mode: expected transfer, condition or refit, got {self.mode!r}")

    def choose(self, history: History) -> Trial | None:
        candidates = history.open()
        if not candidates:
            return None
        trials = [_next(history, pipeline) for pipeline in candidates]
        mean, std, seconds = self.surrogate.predict(history, trials, self.mode)
        floor = 0.0 if np.max(mean + 3.0 * std) > 0 else float(np.min(mean))
        best_at = {fidelity: _best_at(history, fidelity, floor) for fidelity in {trial.fidelity for trial in trials}}
        best = np.array([best_at[trial.fidelity] for trial in trials])
        improvement = expected_improvement(mean, std, best, self.xi)
        if improvement.max() <= self.enough:
            return None
        return trials[int(np.argmax(per_second(improvement, seconds)))]


class Surrogate(Protocol):
    """What `GreyBox` asks: the performance and the cost surrogate of a data set, see `recommender.py`."""

    def predict(self, history: History, trials: list[Trial], mode: str) -> tuple[Any, Any, Any]:
        """Returns mean and std of every trial's score, and the seconds that it will take, [n] each."""
        ...


def _best_at(history: History, fidelity: int, floor: float) -> float:
    """The best score at a part or, where none was seen there, before it; the floor without any."""
    curves = [history.curve(pipeline) for pipeline in {seen.pipeline for seen in history.observations}]
    at = [curve[fidelity - 1] for curve in curves if len(curve) >= fidelity]
    return max(at or [score for curve in curves for score in curve[: fidelity - 1]], default=floor)
