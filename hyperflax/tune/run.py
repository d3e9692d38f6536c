"""The tuner at work: pipelines run on a user's data set until the budget is spent, the best adapter kept.

    out/adapter.json, adapter.safetensors    the incumbent's adapter, an ordinary adapter directory
    out/tune.json                            pool and history: what a killed run goes on from, see `record.py`
    out/trials/<pipeline>.safetensors        runs under way
    out/runs/*.parquet                       a row of the meta-dataset for every pipeline that was run
    out/report.json, report.md, report.png   incumbent over time, score against cost, why this pipeline: `report.py`

The budget is of everything until the last part: training, scoring, compiling, choosing. A run ends before it when every
held-out example is right, or when no pipeline promises to be better. Killed and called again with the same arguments,
it goes on after the last part that had ended.

>>> report = run(bench, data, recommender, out="invoices_tuned", budget=1800.0)
>>> report["incumbent"]["test_score"]
0.84
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from hyperflax.errors import CheckpointError, ConfigError
from hyperflax.files import local_folder, require_run_place
from hyperflax.locks import alone_in
from hyperflax.tune import record as records
from hyperflax.tune import report as reports
from hyperflax.tune.bench import Bench
from hyperflax.tune.record import Expected, Record
from hyperflax.tune.trial import Begin, Group, row
from hyperflax.tuner import table
from hyperflax.tuner.datasets import DataSet
from hyperflax.tuner.encoding import encode
from hyperflax.tuner.history import History, Trial
from hyperflax.tuner.optimisers import GreyBox, Mode, Optimiser, RandomSearch
from hyperflax.tuner.pipeline import AS_GENERATED, FIDELITIES, Pipeline, default_pipeline
from hyperflax.tuner.recommender import Recommender, TaskSurrogate

TRIALS, RUNS = "trials", "runs"
POOL = 64
"""Pipelines that a run chooses from: those of the recommender that this model can run, then fresh draws."""


def make_pool(bench: Bench, recommender: Recommender | None, *, size: int = POOL, seed: int = 0) -> list[Pipeline]:
    """Returns the pipelines to choose from: as generated, the default, what worked on other data sets, and draws."""
    pool: dict[str, Pipeline] = {}
    for pipeline in (Pipeline(method=AS_GENERATED), default_pipeline(), *(recommender.pool if recommender else ())):
        try:
            bench.space.check(pipeline)
        except ConfigError:  # made for a hypermodel with other starts
            continue
        pool.setdefault(pipeline.id, pipeline)
    for pipeline in bench.space.sample(size, seed):
        pool.setdefault(pipeline.id, pipeline)
    return list(pool.values())[:size]


def recommend(
    bench: Bench, data: DataSet, recommender: Recommender, *, count: int = 5, seed: int = 0
) -> list[dict[str, Any]]:
    """Returns the pipelines with the best predicted score of a whole run, without running any.

    Returns:
      json, best first: `pipeline`, `score`, `std`, `seconds` of the whole run.

    Raises:
      ConfigError: a data set that one of the bench's starts cannot be used on, or a recommender of another
        model's runs; a count below 1.
    """
    if count < 1:
        raise ConfigError(f"recommend: expected a count of at least 1, got {count}")
    bench.check(data)
    recommender.check_model(bench.model.parts.id)
    pool = make_pool(bench, recommender, seed=seed)
    expected = whole_runs(recommender.on(encode(pool), bench.facts(data).meta), len(pool))
    best = sorted(range(len(pool)), key=lambda number: -expected[number].score)[:count]
    return [{"pipeline": pool[number].to_json(), **dataclasses.asdict(expected[number])} for number in best]


def whole_runs(surrogate: TaskSurrogate, size: int) -> tuple[Expected, ...]:
    """Returns what is expected of a whole run of each of the pool's `size` pipelines, before any has begun."""
    trials = [Trial(number, part) for part in (FIDELITIES, 1) for number in range(size)]
    mean, std, seconds = surrogate.predict(History(size=size), trials, "transfer")
    whole = (seconds[:size] + seconds[size:]) / 2 * FIDELITIES
    return tuple(Expected(*map(float, row)) for row in zip(mean[:size], std[:size], whole, strict=True))


def run(
    bench: Bench,
    data: DataSet,
    recommender: Recommender | None,
    *,
    out: pathlib.Path | str,
    budget: float,
    mode: Mode = "transfer",
    size: int = POOL,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Tunes on a data set and returns the report; called again it goes on.

    Args:
      bench: the model. data: what to tune for.
      recommender: what was learnt from other data sets; None searches at random.
      out: the run's folder. budget: seconds; the part that is under way then ends, and there is at least one.
      mode: `transfer`, `condition` or `refit`, see `GreyBox`; of no consequence without a recommender.
      size: of the pool. seed: of pool, starts and order of examples.
      say: is told of every part.

    Raises:
      ConfigError: a budget that is not positive, a data set that one of the bench's starts cannot be used on, or a
        recommender of another model's runs.
      CheckpointError: `out` holds something else, or a run of other arguments.
      DataError: an example that is too long.
      BusyError: another process is at work in `out`.
    """
    if not budget > 0:
        raise ConfigError(f"budget: expected a positive number of seconds, got {budget}")
    out = local_folder(out)
    bench.check(data)
    if recommender is not None:
        recommender.check_model(bench.model.parts.id)
    pool = make_pool(bench, recommender, size=size, seed=seed)
    begun = Record(
        name=data.name,
        dataset=data.hash,
        model=bench.model.parts.id,
        seed=seed,
        pool=tuple(pool),
        optimiser="random" if recommender is None else mode,
        budget=budget,
        history=History(size=len(pool), seed=seed),
        tuner="" if recommender is None else recommender.fingerprint,
        starts={name: start.fingerprint for name, start in bench.starts.items()},
    )
    with alone_in(out):
        before = time.perf_counter()
        optimiser: Optimiser = RandomSearch()
        if recommender is not None:
            surrogate = recommender.on(encode(pool), bench.facts(data).meta)
            begun = dataclasses.replace(begun, expected=whole_runs(surrogate, len(pool)))
            optimiser = GreyBox(surrogate, mode)
        session = Session(bench, data, out, begun)
        while session.record.elapsed < budget or not session.record.history.observations:
            incumbent = session.record.history.incumbent
            if incumbent is not None and incumbent.score == 1.0:  # of equals the earliest stays
                say("every held-out example is right: no pipeline can be better on these")
                break
            trial = optimiser.choose(session.record.history)
            chosen = time.perf_counter()
            if trial is None:
                say("nothing is left that promises to be better")
                break
            session.carry_out(trial)
            ended = time.perf_counter()
            session.took(choosing=chosen - before, elapsed=ended - before)
            say(reports.line(session.record))
            before = ended  # so that writing counts as well, with the next part
        return session.finish()


class Session:
    """A run's state on disk and in memory: its record, and the group under way.

    Args:
      bench, data: as of `run`. folder: of the run.
      begun: the run before its first part; what the folder holds of the same run goes before it.
    """

    def __init__(self, bench: Bench, data: DataSet, folder: pathlib.Path, begun: Record):
        self.bench, self.data, self.folder = bench, data, folder
        self._groups: dict[int, Group] = {}
        self._begun_with: dict[int, Begin] = {}
        self.record = self._claim(begun)
        self._save()

    def carry_out(self, trial: Trial) -> None:
        """Runs a part; `took` writes what came of it. A part that breaks down ends its pipeline."""
        history = self.record.history.asked(trial)
        begin = time.perf_counter()
        try:
            group = self._group(trial.pipeline)
            part = group.advance()
            if not np.isfinite(part.loss[0]):
                raise FloatingPointError("the loss is not finite")
            group.save(self._trial_file(trial.pipeline))
            scores = {"score": float(part.exact[0]), "start": float(group.start.exact[0])}
            history = history.told(trial, seconds=float(part.seconds[0]), **scores)
        except (jax.errors.JaxRuntimeError, FloatingPointError, ConfigError) as error:
            self._groups.clear()  # it may be half a part ahead; its file is not
            status = table.OUT_OF_MEMORY if "RESOURCE_EXHAUSTED" in str(error) else table.FAILED
            seconds = time.perf_counter() - begin
            history = history.told(trial, seconds=seconds, status=status, error=str(error)[:500])
        self.record = dataclasses.replace(self.record, history=history)

    def took(self, *, choosing: float, elapsed: float) -> None:
        """Adds the seconds of a part, and of choosing it, and writes the record: no part is there without its time."""
        sums = {"choosing": self.record.choosing + choosing, "elapsed": self.record.elapsed + elapsed}
        self.record = dataclasses.replace(self.record, **sums)
        self._save()

    def finish(self) -> dict[str, Any]:
        """Writes adapter, table and report, and returns the report."""
        best = self.record.history.incumbent
        if best is None:
            tried, of, last = len(self._begun()), self.record.history.size, self.record.history.observations[-1]
            raise ConfigError(
                f"{self.folder}: {tried} of {of} pipelines were tried and none got as far as a score; the last one "
                f"ended with {last.status}: {last.error}"
            )
        rows = {number: self._row(number) for number in self._begun()}
        table.write(self.folder / RUNS / "runs.parquet", list(rows.values()))
        adapter = self._group(best.pipeline).adapter(0)
        test = {**self.bench.test_scores(self.data), "tuned": rows[best.pipeline].test_score}
        test = {name: score for name, score in test.items() if not math.isnan(score)}
        self.record = dataclasses.replace(self.record, test=test)
        self._save()
        report = reports.of(self.record)
        told = {name: value for name, value in report.items() if name not in ("tried", "over_time")}
        provenance = {**adapter.metadata.provenance, "tuning": {"report": told}}
        metadata = dataclasses.replace(adapter.metadata, provenance=provenance)
        dataclasses.replace(adapter, metadata=metadata).save(self.folder, beside_others=True)
        reports.write(self.folder, report)
        return report

    def _begun(self) -> list[int]:
        return sorted({seen.pipeline for seen in self.record.history.observations})

    def _row(self, pipeline: int) -> table.Run:
        last = [one for one in self.record.history.observations if one.pipeline == pipeline][-1]
        broken: dict[str, Any] = {} if last.score is not None else {"status": last.status, "error": last.error}
        if not self.record.history.curve(pipeline):
            return row(self.bench, self.data, self.record.pool[pipeline], self.record.seed, **broken)
        (one,) = self._group(pipeline).rows()
        return dataclasses.replace(one, **broken)

    def _group(self, pipeline: int) -> Group:
        """The group of a pipeline, made or read from its file; of others than the last one only `begin` is kept."""
        if pipeline not in self._groups:
            self._groups.clear()
            known = self._begun_with.get(pipeline)
            group = Group(self.bench, self.data, [self.record.pool[pipeline]], [self.record.seed], known)
            self._begun_with[pipeline] = group.begin
            if self._trial_file(pipeline).is_file():
                group.restore(self._trial_file(pipeline))
            # A part that was saved and not told of, by a kill in between, is run again.
            group.back_to(len(self.record.history.curve(pipeline)))
            self._groups[pipeline] = group
        return self._groups[pipeline]

    def _trial_file(self, pipeline: int) -> pathlib.Path:
        return self.folder / TRIALS / f"{self.record.pool[pipeline].id}.safetensors"

    def _claim(self, begun: Record) -> Record:
        """What the folder's record, which must be of this run, says of it; or else the run as it begins."""
        require_run_place(self.folder, records.FILE, "tune")
        if not (self.folder / records.FILE).is_file():
            return begun
        earlier = records.read(self.folder)
        for name in ("dataset", "model", "seed", "optimiser", "tuner", "starts", "pool"):
            if getattr(earlier, name) not in (None, getattr(begun, name)):
                raise CheckpointError(f"{self.folder}: holds a run that differs in its {name}; choose another folder")
        kept = {"history": earlier.history.restarted(), "choosing": earlier.choosing, "elapsed": earlier.elapsed}
        return dataclasses.replace(begun, **kept)

    def _save(self) -> None:
        self.record.write(self.folder)
