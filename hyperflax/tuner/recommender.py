"""What was learnt from recorded runs, ready for a new data set: both surrogates, and how to ask them.

    DIR/performance/, DIR/cost/    the surrogates, see `surrogates/saving.py`
    DIR/recommender.json           the hypermodel's id, columns of pipelines, names of meta-features, number of
                                   fidelities, the pool

The pool are the pipelines that did best: of every data set the best by validation score, then the second best, and so
on. So a new data set is offered what has worked somewhere, next to fresh draws.

>>> recommender = Recommender.fit(from_runs(read("runs")), pool, seed=0)
>>> surrogate = recommender.on(encode(pool), meta)
>>> GreyBox(surrogate).choose(History(size=len(pool)))
Trial(pipeline=17, fidelity=1)
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from hyperflax import configs
from hyperflax.checkpoints.fingerprint import fingerprint
from hyperflax.errors import CheckpointError, ConfigError, DataError
from hyperflax.files import atomic_directory
from hyperflax.json_files import read_schema, write_json
from hyperflax.tuner import encoding, surrogates
from hyperflax.tuner.history import History, Trial
from hyperflax.tuner.pipeline import Pipeline
from hyperflax.tuner.recorded import Recorded
from hyperflax.tuner.surrogates import (
    CostSurrogate,
    DeepKernelGP,
    Fitted,
    MLPCost,
    PerformanceSurrogate,
    Queries,
    in_seconds,
)
from hyperflax.tuner.surrogates.queries import number_equal_rows

FORMAT, VERSION = "hyperflax-recommender", 2
FILE, PERFORMANCE, COST = "recommender.json", "performance", "cost"
REFIT_EVERY = 5
"""Least observations between two refits of the mode `refit`, later a quarter of those that were there at the last one;
those in between are conditioned on."""


@dataclasses.dataclass(frozen=True)
class About:
    """What `recommender.json` holds; version 1 named no model."""

    format: str
    schema_version: int
    columns: list[str]
    features: list[str]
    fidelities: int
    unit: str
    pool: list[dict]
    model: str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Recommender:
    """See the module's text.

    Attributes:
      performance, cost: the surrogates. scores, seconds: what they have learnt.
      columns: of encoded pipelines. features: names of the meta-features. fidelities: parts of a run.
      unit: of the cost. pool: pipelines that have worked; empty for tables of other origin.
      model: id of the hypermodel whose runs were learnt from; None where that is unknown.
    """

    performance: PerformanceSurrogate
    scores: Fitted
    cost: CostSurrogate
    seconds: Fitted
    columns: tuple[str, ...]
    features: tuple[str, ...]
    fidelities: int
    unit: str
    pool: tuple[Pipeline, ...] = ()
    model: str | None = None

    @classmethod
    def fit(
        cls,
        recorded: Recorded,
        pool: Sequence[Pipeline] = (),
        *,
        performance: PerformanceSurrogate | None = None,
        cost: CostSurrogate | None = None,
        solo: np.ndarray | None = None,
        model: str | None = None,
        seed: int = 0,
    ) -> Recommender:
        """Learns both surrogates from recorded runs.

        Args:
          recorded: runs of other data sets. pool: see the class.
          performance, cost: configurations; defaults of their classes.
          solo: [run] whether a run's seconds are nobody's share; the cost is learnt from those alone. None: all are.
          model: id of the hypermodel that all runs are of, if they are one's. seed: of all that is random.

        Raises:
          DataError: no run with solo timings, or data sets of equal meta-features, by which they are told apart.
        """
        known: dict[int, str] = {}
        for name, task in zip(recorded.datasets, number_equal_rows(recorded.meta).tolist(), strict=True):
            if (other := known.setdefault(task, name)) != name:
                raise DataError(f"recorded runs: data sets '{other}' and '{name}' have equal meta-features")
        performance, cost = performance or DeepKernelGP(), cost or MLPCost()
        queries, scores, _ = every_part(recorded)
        timed = recorded if solo is None else recorded.rows(np.flatnonzero(solo))
        timed_queries, _, seconds = every_part(timed)
        return cls(
            performance=performance,
            scores=performance.fit(queries, scores, seed),
            cost=cost,
            seconds=cost.fit(timed_queries, seconds, seed),
            columns=recorded.columns,
            features=recorded.features,
            fidelities=recorded.fidelities,
            unit=recorded.unit,
            pool=tuple(pool),
            model=model,
        )

    @property
    def fingerprint(self) -> str:
        """Of all that was learnt."""
        return fingerprint({PERFORMANCE: dataclasses.asdict(self.scores), COST: dataclasses.asdict(self.seconds)})

    def check_model(self, model: str) -> None:
        """Raises ConfigError where it cannot serve the hypermodel of this id.

        It was learnt from another one's runs, or from pipelines that another version encoded: it would take their
        columns for today's.
        """
        for place, (learnt, given) in enumerate(itertools.zip_longest(self.columns, encoding.columns())):
            if learnt != given:
                raise ConfigError(
                    f"tuner: column {place} of its pipelines: expected {given!r}, got {learnt!r}; fit it again"
                )
        if self.model not in (None, model):
            raise ConfigError(f"tuner: expected one learnt from runs of '{model}', got one from runs of '{self.model}'")

    def on(self, pipelines: np.ndarray, meta: Mapping[str, float] | np.ndarray) -> TaskSurrogate:
        """Returns the surrogate of one data set and pool, as `GreyBox` asks it.

        Args:
          pipelines: [pool, column], encoded. meta: the data set's meta-features; one that is not given is unknown.

        Raises:
          DataError: other columns than those learnt from.
        """
        if pipelines.ndim != 2 or pipelines.shape[1] != len(self.columns):
            raise DataError(f"pipelines: expected {len(self.columns)} columns, got shape {pipelines.shape}")
        if isinstance(meta, Mapping):
            meta = np.array([meta.get(name, np.nan) for name in self.features], np.float32)
        return TaskSurrogate(self, np.asarray(pipelines, np.float32), np.asarray(meta, np.float32))

    def save(self, path: pathlib.Path | str, *, overwrite: bool = False) -> None:
        """Writes a directory. Raises CheckpointError where it exists and may not be replaced."""
        about = About(
            FORMAT,
            VERSION,
            list(self.columns),
            list(self.features),
            self.fidelities,
            self.unit,
            [pipeline.to_json() for pipeline in self.pool],
            self.model,
        )
        with atomic_directory(path, overwrite=overwrite, owned=(FILE, PERFORMANCE, COST)) as folder:
            surrogates.save(folder / PERFORMANCE, self.performance, self.scores)
            surrogates.save(folder / COST, self.cost, self.seconds)
            write_json(folder / FILE, configs.to_json(about))

    @classmethod
    def load(cls, path: pathlib.Path | str) -> Recommender:
        """Reads a directory. Raises CheckpointError where it is none, or is damaged."""
        folder = pathlib.Path(path)
        about = read_schema(folder / FILE, About, file_format=FORMAT, version=VERSION)
        performance, scores = surrogates.load(folder / PERFORMANCE)
        cost, seconds = surrogates.load(folder / COST)
        sizes = (len(about.columns), about.fidelities, len(about.features))
        if isinstance(performance, CostSurrogate) or not isinstance(cost, CostSurrogate):
            kinds = f"{type(performance).__name__} and {type(cost).__name__}"
            raise CheckpointError(f"{folder}: expected a surrogate of scores and one of seconds, got {kinds}")
        for name, fitted in ((PERFORMANCE, scores), (COST, seconds)):
            if fitted.kept.queries.sizes != sizes:
                raise CheckpointError(f"{folder}/{name}: expected sizes {sizes}, got {fitted.kept.queries.sizes}")
        try:
            pool = tuple(Pipeline.from_json(item, f"{folder / FILE}: pool") for item in about.pool)
        except ConfigError as error:
            raise CheckpointError(str(error)) from error
        named = tuple(about.columns), tuple(about.features)
        return cls(performance, scores, cost, seconds, *named, about.fidelities, about.unit, pool, about.model)


@dataclasses.dataclass(frozen=True, eq=False)
class TaskSurrogate:
    """A recommender on one data set and pool: predictions for trials, given a history."""

    recommender: Recommender
    pipelines: np.ndarray
    meta: np.ndarray
    refits: dict[tuple, Fitted] = dataclasses.field(default_factory=dict, repr=False)
    transferred: dict[tuple, tuple[float, float]] = dataclasses.field(default_factory=dict, repr=False)

    def predict(
        self, history: History, trials: Sequence[Trial], mode: str
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns mean and std of the trials' scores and their cost, [n] each; see `GreyBox` for the modes.

        The cost always learns from this data set's own: a slower machine says nothing of how good a pipeline is.
        """
        asked = self.queries(history, trials)
        done = [seen for seen in history.observations if seen.score is not None]
        seen = self.queries(history, [Trial(one.pipeline, one.fidelity) for one in done])
        if mode == "transfer":
            mean, std = self._transferred(history, trials, asked)
        else:
            scores = self._learnt(seen, np.array([one.score for one in done]), refit=mode == "refit")
            mean, std = self.recommender.performance.predict(scores, asked)
        cost, seconds = self.recommender.cost, self.recommender.seconds
        if done:
            seconds = cost.condition(seconds, seen, np.array([one.seconds for one in done]))
        return mean, std, in_seconds(*cost.predict(seconds, asked))[0]

    def _learnt(self, seen: Queries, values: np.ndarray, *, refit: bool) -> Fitted:
        """The surrogate of scores that also knows what was seen of this data set."""
        whole = last_refit(len(values)) if refit else 0
        scores = self._refitted(seen.take(slice(0, whole)), values[:whole]) if whole else self.recommender.scores
        if whole == len(values):
            return scores
        return self.recommender.performance.condition(scores, seen.take(slice(whole, None)), values[whole:])

    def _transferred(self, history: History, trials: Sequence[Trial], asked: Queries) -> tuple[np.ndarray, np.ndarray]:
        """Mean and std by what was learnt on other data sets alone; they change with a pipeline's own curve only."""
        keys = [(number, part, history.curve(number)[: part - 1]) for number, part in trials]
        if new := [number for number, key in enumerate(keys) if key not in self.transferred]:
            predicted = self.recommender.performance.predict(self.recommender.scores, asked.take(np.array(new)))
            answers = zip(*predicted, strict=True)
            self.transferred.update(zip((keys[number] for number in new), answers, strict=True))
        mean, std = np.array([self.transferred[key] for key in keys]).T
        return mean, std

    def _refitted(self, seen: Queries, values: np.ndarray) -> Fitted:
        """The surrogate of scores trained on with what was seen; the last answer is kept for the next trials."""
        key = (values.tobytes(), *(getattr(seen, field.name).tobytes() for field in dataclasses.fields(seen)))
        if key not in self.refits:
            fitted = self.recommender.performance.refit(self.recommender.scores, seen, values, seed=len(values))
            self.refits.clear()
            self.refits[key] = fitted
        return self.refits[key]

    def queries(self, history: History, trials: Sequence[Trial]) -> Queries:
        """Returns the questions that trials are: each with the part of its pipeline's curve before it."""
        curves = np.full((len(trials), self.recommender.fidelities), np.nan, np.float32)
        for row, trial in zip(curves, trials, strict=True):
            before = history.curve(trial.pipeline)[: trial.fidelity - 1]
            row[: len(before)] = before
        return Queries(
            pipelines=self.pipelines[[trial.pipeline for trial in trials]],
            curves=curves,
            fidelity=np.array([trial.fidelity for trial in trials]),
            meta=np.repeat(self.meta[None], len(trials), axis=0),
        )


def last_refit(observations: int) -> int:
    """Returns after how many observations the last refit was, 0 for none: 5, 10, 15, 20, 25, 31, 38 ..."""
    last = 0
    while (following := last + max(REFIT_EVERY, last // 4)) <= observations:
        last = following
    return last


def every_part(recorded: Recorded) -> tuple[Queries, np.ndarray, np.ndarray]:
    """Returns the questions that recorded runs answer, with their scores and costs, [n] each.

    Every part of every run is asked for just before it, as an optimiser does, and once more before the run has begun,
    as who wants a recommendation does.

    Raises:
      DataError: no run.
    """
    runs, parts = np.nonzero(~np.isnan(recorded.scores))
    if not len(runs):
        raise DataError("recorded runs: expected at least one score, got none")
    later = parts > 0
    known = np.concatenate([parts, np.zeros(int(later.sum()), parts.dtype)])
    runs, parts = np.concatenate([runs, runs[later]]), np.concatenate([parts, parts[later]])
    queries = Queries(
        pipelines=recorded.pipelines[runs],
        curves=np.where(np.arange(recorded.fidelities) < known[:, None], recorded.scores[runs], np.nan),
        fidelity=parts + 1,
        meta=recorded.meta[recorded.dataset[runs]],
    )
    return queries, recorded.scores[runs, parts], recorded.cost[runs, parts]


def best_pipelines(pipelines: Sequence[Pipeline], recorded: Recorded, count: int) -> list[Pipeline]:
    """Returns the pipelines that did best: every data set's best, then every second best ..., without repetition.

    Args:
      pipelines: of the recorded runs, one for each. count: how many at most.
    """
    best = np.nanmax(np.where(np.isnan(recorded.scores), -np.inf, recorded.scores), axis=1)
    ranked = [
        rows[np.argsort(-best[rows], kind="stable")]
        for rows in (np.flatnonzero(recorded.dataset == number) for number in range(len(recorded.datasets)))
    ]
    chosen: dict[str, Pipeline] = {}
    for place in range(max(map(len, ranked))):
        for rows in ranked:
            if place < len(rows) and len(chosen) < count:
                chosen.setdefault(pipelines[rows[place]].id, pipelines[rows[place]])
    return list(chosen.values())
