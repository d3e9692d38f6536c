"""Optimisers compared on a recorded table: what each finds for data sets that the surrogates know nothing of.

Groups (corpora, categories) are left out one at a time: surrogates are fitted on all others and every data set of the
group is played by every optimiser with every seed. A table of a single group is split by pipelines instead: surrogates
are fitted on one half of the runs and the other half is the pool, which says less, since the data set is known then.

Regret (`replay.py`) is read at shares of the budget; the mean is over data sets, seeds within them averaged first, and
its interval resamples data sets.

>>> result = compare(recorded, default_optimisers(recorded), budget=20, seeds=5)
>>> result["regret"]["transfer"]["mean"]
[1.0, 0.31, ...]
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from hyperflax.errors import ConfigError
from hyperflax.evaluation.intervals import bootstrap_mean
from hyperflax.files import atomic_file
from hyperflax.tuner.optimisers import GreyBox, Only, Optimiser, RandomSearch, SuccessiveHalving
from hyperflax.tuner.packages import DEHB, SMAC
from hyperflax.tuner.recommender import Recommender
from hyperflax.tuner.recorded import Recorded
from hyperflax.tuner.replay import play

SHARES = tuple(round(0.05 * number, 2) for number in range(21))
Make = Callable[[Recorded, Recommender], Optimiser | None]


def default_optimisers(default: np.ndarray | None = None) -> dict[str, Make]:
    """Returns every optimiser by its name in the report, made from a pool and a recommender.

    Args:
      default: [column] the encoded default pipeline, for `default`; that row of the pool is meant which is nearest.
      None
        leaves it out, as `as_generated` is where no pipeline of the pool trains nothing.
    """
    makers: dict[str, Make] = {
        "transfer": lambda pool, learnt: GreyBox(learnt.on(pool.pipelines, _meta(pool)), "transfer"),
        "condition": lambda pool, learnt: GreyBox(learnt.on(pool.pipelines, _meta(pool)), "condition"),
        "quick_tune": lambda pool, learnt: GreyBox(learnt.on(pool.pipelines, _meta(pool)), "refit"),
        "random": lambda pool, learnt: RandomSearch(),
        "successive_halving": lambda pool, learnt: SuccessiveHalving(),
        "dehb": lambda pool, learnt: DEHB(pool.pipelines),
        "smac": lambda pool, learnt: SMAC(pool.pipelines),
        "as_generated": lambda pool, learnt: _as_generated(pool),
    }
    if default is not None:
        makers["default"] = lambda pool, learnt: Only(
            int(np.argmin(np.sum(np.square(pool.pipelines - default), axis=1)))
        )
    return makers


def _as_generated(pool: Recorded) -> Optimiser | None:
    if "method=as_generated" not in pool.columns:
        return None
    rows = np.flatnonzero(pool.pipelines[:, pool.columns.index("method=as_generated")])
    return Only(int(rows[0])) if len(rows) else None


def _meta(pool: Recorded) -> np.ndarray:
    return pool.meta[pool.dataset[0]]


def compare(
    recorded: Recorded,
    optimisers: Mapping[str, Make],
    *,
    budget: float = 20.0,
    seeds: int = 5,
    shares: Sequence[float] = SHARES,
    solo: np.ndarray | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Plays all optimisers on all data sets; see the module's text.

    Args:
      recorded: the table. optimisers: name -> maker, see `default_optimisers`.
      budget: in whole runs of average cost. seeds: plays of each optimiser on each data set.
      shares: of the budget, at which the regret is read.
      solo: [run] whether its seconds are nobody's share.
      seed: of surrogates, intervals and splits.
      progress: show a bar.

    Returns:
      json: `shares`; `regret`, by optimiser its `mean`, `low` and `high` at each share and, by data set, `datasets`;
      `left_out`, what was left out; `budget`, `seeds`, `unit`.

    Raises:
      ConfigError: a budget or a number of seeds that is not positive.
    """
    if not budget > 0 or seeds < 1:
        raise ConfigError(f"compare: expected a positive budget and at least 1 seed, got {budget}, {seeds}")
    grid = np.asarray(shares, np.float64)
    played: dict[str, dict[str, list[float]]] = {name: {} for name in optimisers}
    parts = list(_left_out(recorded, solo, seed))
    with tqdm(total=sum(len(pools) for _, _, pools in parts) * len(optimisers), disable=not progress) as bar:
        for train, train_solo, pools in parts:
            learnt = Recommender.fit(train, solo=train_solo, seed=seed)
            for pool in pools:
                name = recorded.datasets[pool.dataset[0]]
                for label, make in optimisers.items():
                    optimiser = make(pool, learnt)
                    if optimiser is not None:
                        curves = [play(pool, optimiser, budget=budget, seed=number).at(grid) for number in range(seeds)]
                        played[label][name] = np.mean(curves, axis=0).tolist()
                    bar.update()
    return {
        "shares": grid.tolist(),
        "regret": {name: _summary(curves) for name, curves in played.items() if curves},
        "left_out": "groups" if len(set(recorded.groups)) > 1 else "pipelines",
        "budget": budget,
        "seeds": seeds,
        "unit": recorded.unit,
    }


def _left_out(recorded: Recorded, solo: np.ndarray | None, seed: int):
    """Yields (runs to learn from, which of them have solo timings, the pools to play)."""
    groups = sorted({recorded.groups[number] for number in recorded.dataset.tolist()})
    of_group = np.array([recorded.groups[number] for number in recorded.dataset])
    for group in groups:
        inside = np.flatnonzero(of_group == group)
        if len(groups) > 1:
            train = np.flatnonzero(of_group != group)
        else:
            order = np.random.default_rng(seed).permutation(inside)
            train, inside = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
        pools = [
            recorded.rows(inside[recorded.dataset[inside] == number])
            for number in sorted(set(recorded.dataset[inside].tolist()))
        ]
        train_solo = None if solo is None or not np.any(solo[train]) else np.asarray(solo)[train]
        yield recorded.rows(train), train_solo, pools


def _summary(curves: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Mean and interval over data sets at each share, and every data set's own curve."""
    values = np.array(list(curves.values()))
    bounds = (0.0, float(max(1.0, values.max())))
    intervals = [bootstrap_mean(column, bounds=bounds) for column in values.T]
    return {
        "mean": [interval.mean for interval in intervals],
        "low": [interval.low for interval in intervals],
        "high": [interval.high for interval in intervals],
        "datasets": dict(curves),
    }


def table(result: Mapping[str, Any], shares: Sequence[float] = (0.1, 0.25, 0.5, 1.0)) -> str:
    """Returns a Markdown table: an optimiser a row, its mean regret with its interval at these shares of the budget."""
    places = [int(np.argmin(np.abs(np.array(result["shares"]) - share))) for share in shares]
    lines = [
        "| optimiser | " + " | ".join(f"{share:.0%} of the budget" for share in shares) + " |",
        "|---|" + "---|" * len(shares),
    ]
    for name, curve in sorted(result["regret"].items(), key=lambda item: item[1]["mean"][places[-1]]):
        cells = [f"{curve['mean'][at]:.3f} [{curve['low'][at]:.3f}, {curve['high'][at]:.3f}]" for at in places]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(result: Mapping[str, Any], path: pathlib.Path) -> None:
    """Draws every optimiser's regret over the share of the budget, with its interval."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, curve in result["regret"].items():
        (drawn,) = axes.plot(result["shares"], curve["mean"], label=name)
        axes.fill_between(result["shares"], curve["low"], curve["high"], alpha=0.12, color=drawn.get_color())
    axes.set(
        xlabel=f"share of the budget ({result['budget']:g} whole runs)", ylabel="normalised regret", ylim=(0, None)
    )
    axes.legend()
    with atomic_file(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)
