"""Optimisers compared on a recorded table: what each finds for data sets that the surrogates know nothing of.

Groups (corpora, categories) are left out one at a time: surrogates are fitted on all others and every data set of the
group is played by every optimiser. That is done anew with every seed, which is of the surrogates, too. A table of a
single group is split by pipelines instead: surrogates are fitted on the runs of one half of them and the other half is
the pool, which says less, since the data set is known then.

Regret (`replay.py`) is read at shares of the budget; the mean is over data sets, seeds within them averaged first, and
its interval resamples data sets.

    out/plays/<id>.json    one group and seed, written when it has been played

Killed and called again, a comparison goes on with what has no file; what another version of hyperflax played counts for
none. `shard=(i, n)` plays every n-th part, so that n processes fill one folder; whoever calls when all parts are there
gets the result.

>>> result = compare(recorded, default_optimisers(), "report", budget=20, seeds=5)
>>> result["regret"]["transfer"]["mean"]
[1.0, 0.31, ...]
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

import hyperflax
from hyperflax.errors import ConfigError
from hyperflax.evaluation.intervals import bootstrap_mean
from hyperflax.files import local_folder
from hyperflax.json_files import read_json, write_json
from hyperflax.tuner.optimisers import GreyBox, Only, Optimiser, RandomSearch, SuccessiveHalving
from hyperflax.tuner.packages import DEHB, SMAC
from hyperflax.tuner.recommender import Recommender
from hyperflax.tuner.recorded import Recorded
from hyperflax.tuner.replay import play
from hyperflax.tuner.reporting import save_png
from hyperflax.tuner.surrogates.queries import number_equal_rows
from hyperflax.versions import versions

SHARES = tuple(round(0.05 * number, 2) for number in range(21))
Make = Callable[[Recorded, Recommender], Optimiser | None]


def default_optimisers(default: np.ndarray | None = None) -> dict[str, Make]:
    """Returns every optimiser by its name in the report, made from a pool and a recommender.

    Args:
      default: [column] the encoded default pipeline, for `default`; that row of the pool is meant which is nearest.
        None leaves it out, as `as_generated` is where no pipeline of the pool trains nothing, and DEHB where runs have
        a single part.
    """
    makers: dict[str, Make] = {
        "transfer": lambda pool, learnt: GreyBox(learnt.on(pool.pipelines, _meta(pool)), "transfer"),
        "condition": lambda pool, learnt: GreyBox(learnt.on(pool.pipelines, _meta(pool)), "condition"),
        "quick_tune": lambda pool, learnt: GreyBox(learnt.on(pool.pipelines, _meta(pool)), "refit"),
        "random": lambda pool, learnt: RandomSearch(),
        "successive_halving": lambda pool, learnt: SuccessiveHalving(),
        "dehb": lambda pool, learnt: DEHB(pool.pipelines, _worst(pool)) if pool.fidelities > 1 else None,
        "smac": lambda pool, learnt: SMAC(pool.pipelines, _worst(pool)),
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


def _worst(pool: Recorded) -> float:
    """0 or, where scores are negative, the pool's lowest: no score is below it."""
    return min(0.0, float(np.nanmin(pool.scores)))


def _meta(pool: Recorded) -> np.ndarray:
    return pool.meta[pool.dataset[0]]


def compare(
    recorded: Recorded,
    optimisers: Mapping[str, Make],
    out: pathlib.Path | str,
    *,
    budget: float = 20.0,
    seeds: int = 5,
    shares: Sequence[float] = SHARES,
    solo: np.ndarray | None = None,
    seed: int = 0,
    shard: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> dict[str, Any] | None:
    """Plays all optimisers on all data sets; see the module's text.

    Args:
      recorded: the table. optimisers: name -> maker, see `default_optimisers`.
      out: folder of what has been played.
      budget: in whole runs of average cost. seeds: plays of each optimiser on each data set.
      shares: of the budget, at which the regret is read.
      solo: [run] whether its seconds are nobody's share.
      seed: the first one. shard: see the module's text.
      progress: show a bar.

    Returns:
      json: `shares`; `regret`, by optimiser its `mean`, `low` and `high` at each share, the number of data sets that
      they are `over` and, by data set, `datasets`; `groups`, the same without data sets for each group; `left_out`,
      what was left out; `budget`, `seeds`, `unit`; `versions`. None where other shards are still to come.

    Raises:
      ConfigError: a budget or a number of seeds that is not positive, or a shard that is none.
    """
    if not budget > 0 or seeds < 1:
        raise ConfigError(f"compare: expected a positive budget and at least 1 seed, got {budget}, {seeds}")
    if not 0 <= shard[0] < shard[1]:
        raise ConfigError(f"compare: expected a shard (i, n) with i < n, got {shard}")
    out = local_folder(out)
    groups = sorted({recorded.groups[number] for number in recorded.dataset.tolist()})
    alone = None if solo is None else solo.tolist()
    settings = json.dumps([hyperflax.__version__, sorted(optimisers), budget, list(shares), alone])
    files = {
        (group, number): out / "plays" / f"{_digest(recorded, settings, group, number)}.json"
        for number in range(seed, seed + seeds)
        # Another group is first with every seed, so that no shard gets the largest one every time.
        for group in np.roll(groups, number).tolist()
    }
    own = list(files)[shard[0] :: shard[1]]
    for group, number in tqdm(own, unit="part", disable=not progress):
        if not files[group, number].is_file():
            played = _play(recorded, optimisers, group, number, budget=budget, shares=shares, solo=solo)
            write_json(files[group, number], played)
    if not all(file.is_file() for file in files.values()):
        return None
    return {
        "shares": list(shares),
        **_regrets({part: read_json(file) for part, file in files.items()}),
        "left_out": "groups" if len(groups) > 1 else "pipelines",
        "budget": budget,
        "seeds": seeds,
        "unit": recorded.unit,
        "versions": versions(),
    }


def _digest(recorded: Recorded, *settings: object) -> str:
    """Tells tables, versions and settings apart, so that nothing is taken for what another call has played."""
    digest = hashlib.sha256(repr(settings).encode())
    for field in dataclasses.fields(recorded):
        value = getattr(recorded, field.name)
        digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    return digest.hexdigest()[:16]


def _play(
    recorded: Recorded,
    optimisers: Mapping[str, Make],
    group: str,
    seed: int,
    *,
    budget: float,
    shares: Sequence[float],
    solo: np.ndarray | None,
) -> dict[str, dict[str, list[float]]]:
    """Returns, by optimiser and data set of a group, the regret at each share."""
    train, pools = _left_out(recorded, group, seed)
    timed = None if solo is None or not np.any(solo[train]) else solo[train]
    learnt = Recommender.fit(recorded.rows(train), solo=timed, seed=seed)
    played: dict[str, dict[str, list[float]]] = {}
    for pool in pools:
        for label, make in optimisers.items():
            if (optimiser := make(pool, learnt)) is not None:
                curve = play(pool, optimiser, budget=budget, seed=seed)
                name = recorded.datasets[pool.dataset[0]]
                played.setdefault(label, {})[name] = curve.at(np.asarray(shares, np.float64)).tolist()
    return played


def _left_out(recorded: Recorded, group: str, seed: int) -> tuple[np.ndarray, list[Recorded]]:
    """Returns the runs to learn from and the pools to play, one for each data set of the group."""
    of_group = np.array([recorded.groups[number] == group for number in recorded.dataset])
    inside, train = np.flatnonzero(of_group), np.flatnonzero(~of_group)
    if not len(train):
        pipeline = number_equal_rows(recorded.pipelines)
        drawn = np.random.default_rng(seed).permutation(pipeline.max() + 1)
        known = np.isin(pipeline, drawn[: len(drawn) // 2])
        train, inside = inside[known], inside[~known]
    left = recorded.rows(inside)
    return train, [left.of(number) for number in sorted(set(left.dataset.tolist()))]


def _regrets(played: Mapping[tuple[str, int], Mapping[str, Mapping[str, Sequence[float]]]]) -> dict[str, Any]:
    """Averages over seeds, then over data sets: of all groups, and of each."""
    curves: dict[str, dict[str, list[Sequence[float]]]] = {}
    of_group: dict[str, set[str]] = {}
    for (group, _), by_optimiser in played.items():
        for label, by_dataset in by_optimiser.items():
            for name, curve in by_dataset.items():
                curves.setdefault(label, {}).setdefault(name, []).append(curve)
                of_group.setdefault(group, set()).add(name)
    mean = {
        label: {name: np.mean(many, axis=0).tolist() for name, many in sorted(by_dataset.items())}
        for label, by_dataset in curves.items()
    }
    groups = {}
    for group, names in of_group.items():
        inside = {label: [mean[label][name] for name in sorted(names & mean[label].keys())] for label in mean}
        groups[group] = {label: _summary(many) for label, many in inside.items() if many}
    regret = {label: {**_summary(list(of.values())), "datasets": of} for label, of in mean.items()}
    return {"regret": regret, "groups": groups}


def _summary(curves: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Mean and interval over data sets at each share."""
    values = np.array(curves)
    bounds = (0.0, float(max(1.0, values.max())))
    intervals = [bootstrap_mean(column, bounds=bounds) for column in values.T]
    return {
        "mean": [interval.mean for interval in intervals],
        "low": [interval.low for interval in intervals],
        "high": [interval.high for interval in intervals],
        "over": len(curves),
    }


def _names(regret: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Returns each optimiser's name for readers, with the number of data sets where it was not played on all."""
    most = max(curve["over"] for curve in regret.values())
    return {
        name: name if curve["over"] == most else f"{name} ({curve['over']} of {most} data sets)"
        for name, curve in regret.items()
    }


def table(
    result: Mapping[str, Any], group: str | None = None, shares: Sequence[float] = (0.1, 0.25, 0.5, 0.75, 1.0)
) -> str:
    """Returns a Markdown table: an optimiser a row, its mean regret with its interval at these shares of the budget.

    Args:
      result: of `compare`. group: of whose data sets; by default of all.
    """
    places = [int(np.argmin(np.abs(np.array(result["shares"]) - share))) for share in shares]
    lines = [
        "| optimiser | " + " | ".join(f"{share:.0%} of the budget" for share in shares) + " |",
        "|---|" + "---|" * len(shares),
    ]
    regret = result["regret"] if group is None else result["groups"][group]
    names = _names(regret)
    for name, curve in sorted(regret.items(), key=lambda item: item[1]["mean"][places[-1]]):
        cells = [f"{curve['mean'][at]:.3f} [{curve['low'][at]:.3f}, {curve['high'][at]:.3f}]" for at in places]
        lines.append(f"| {names[name]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(result: Mapping[str, Any], path: pathlib.Path) -> None:
    """Draws every optimiser's regret over the share of the budget, with its interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    names = _names(result["regret"])
    for name, curve in result["regret"].items():
        (drawn,) = axes.plot(result["shares"], curve["mean"], label=names[name])
        axes.fill_between(result["shares"], curve["low"], curve["high"], alpha=0.12, color=drawn.get_color())
    axes.set(
        xlabel=f"share of the budget ({result['budget']:g} whole runs)", ylabel="normalised regret", ylim=(0, None)
    )
    figure.legend(loc="outside right upper", frameon=False)
    save_png(figure, path)
