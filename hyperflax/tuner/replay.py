"""Optimisers on recorded runs: what each would have found, and after what cost.

One data set is played at a time; its recorded runs are the pool, a trial costs what it cost, and nothing of the data
set is known to a surrogate, which was fitted without its whole group. The curve of an optimiser is its incumbent's
regret,

    regret = (best - incumbent) / (best - start)

over the budget spent, where best is the largest score of the pool and start the unchanged model's score, or the pool's
smallest where that is unknown: 1 at the beginning, 0 with the best found. The incumbent is chosen by validation score,
as a user would. Where `final` scores are recorded, a run is judged by its own from its best part on, and before that
part, of which none is known, by its validation score; best is the largest of all these, and so may be a validation
score, too.

The budget is counted in whole runs of average cost: a budget of 10 is what ten pipelines of the pool cost on average.

>>> curve = play(recorded.of(0), RandomSearch(), budget=10, seed=0)
>>> curve.at(np.linspace(0, 1, 11))
"""

from __future__ import annotations

import dataclasses

import numpy as np

from hyperflax.errors import DataError
from hyperflax.tuner.history import History
from hyperflax.tuner.optimisers import Optimiser
from hyperflax.tuner.recorded import Recorded


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """Regret of an optimiser on a data set.

    Attributes:
      spent: [n] cost after each trial, in units of the budget (1 is all of it).
      regret: [n] of the incumbent then.
      history: what was done.
    """

    spent: np.ndarray
    regret: np.ndarray
    history: History

    def at(self, shares: np.ndarray) -> np.ndarray:
        """Returns the regret after these shares of the budget; 1 before the first trial has ended."""
        before = np.searchsorted(self.spent, np.asarray(shares) + 1e-12, side="right")
        return np.concatenate([[1.0], self.regret])[before]


def play(pool: Recorded, optimiser: Optimiser, *, budget: float, seed: int) -> Curve:
    """Lets an optimiser choose among the runs of one data set until the budget is spent.

    A run that was recorded in part fails where its record ends, at the cost of one more average part.

    Args:
      pool: runs of one data set; the pool's numbers are the rows. optimiser: see there.
      budget: in whole runs of average cost. seed: of the optimiser.

    Raises:
      DataError: runs of several data sets, or a budget that is not positive.
    """
    if len(set(pool.dataset.tolist())) != 1 or not budget > 0:
        raise DataError("play: expected runs of one data set and a positive budget")
    allowed = budget * float(np.nanmean(np.nansum(pool.cost, axis=1)))
    regret = regrets(pool)
    history = History(size=len(pool.dataset), fidelities=pool.fidelities, seed=seed)
    spent, found = [], []
    while (trial := optimiser.choose(history)) is not None:
        score = pool.scores[trial.pipeline, trial.fidelity - 1]
        cost = pool.cost[trial.pipeline, trial.fidelity - 1]
        history = history.asked(trial)
        if np.isnan(score):
            history = history.told(trial, seconds=float(np.nanmean(pool.cost)), status="failed")
        else:
            history = history.told(trial, seconds=float(cost), score=float(score))
        if history.spent > allowed:
            break
        incumbent = history.incumbent
        spent.append(history.spent / allowed)
        found.append(1.0 if incumbent is None else regret[incumbent.pipeline, incumbent.fidelity - 1])
    return Curve(np.array(spent), np.array(found), history)


def regrets(pool: Recorded) -> np.ndarray:
    """Returns the regret of stopping at every part of every run, [run, fidelity]; NaN where there is none.

    `final` belongs to a run's best part, so it judges every part from there on; parts before it are judged by their
    own score, which may then be the largest of the pool.
    """
    judged = np.array(pool.scores, np.float64)
    for row, final in enumerate(pool.final):
        if not np.isnan(final) and not np.all(np.isnan(judged[row])):
            judged[row, int(np.nanargmax(judged[row])) :] = final
    start = float(pool.start[pool.dataset[0]])
    best, worst = np.nanmax(judged), float(np.nanmin(judged)) if np.isnan(start) else start
    if not best > worst:
        return np.where(np.isnan(judged), np.nan, 0.0)
    return np.clip((best - judged) / (best - worst), 0.0, None)
