"""The tuner at work: pipelines run on a user's data set until the budget is spent, the best adapter kept.

    out/adapter.json, adapter.safetensors    the incumbent's adapter, an ordinary adapter directory
    out/tune.json                            data set, pool and history: what a killed run goes on from
    out/trials/<pipeline>.safetensors        runs under way
    out/runs/*.parquet                       a row of the meta-dataset for every pipeline that was run
    out/report.json, report.md, report.png   incumbent over time, score against cost, why this pipeline

The seconds of the budget are those of the trials; what choosing takes is told beside them. Killed and called again with
the same arguments, a run goes on after the last part that had ended.

>>> report = run(bench, data, recommender, out="invoices_tuned", budget=1800.0)
>>> report["incumbent"]["test_score"]
0.84
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from hyperflax.checkpoints.artefacts import save_adapter
from hyperflax.errors import CheckpointError, ConfigError
from hyperflax.files import read_json, write_json
from hyperflax.locks import alone_in
from hyperflax.tune import report as reports
from hyperflax.tune.bench import Bench
from hyperflax.tune.trial import Group, row
from hyperflax.tuner import table
from hyperflax.tuner.datasets import DataSet
from hyperflax.tuner.history import History, Trial
from hyperflax.tuner.optimisers import GreyBox, Mode, Optimiser, RandomSearch
from hyperflax.tuner.pipeline import AS_GENERATED, FIDELITIES, Pipeline, default_pipeline
from hyperflax.tuner.recommender import Recommender

FILE, TRIALS, RUNS, REPORT = "tune.json", "trials", "runs", "report.json"
POOL = 64
"""Pipelines that a run chooses from: those of the recommender that this model can run, then fresh draws."""


def make_pool(bench: Bench, recommender: Recommender | None, *, size: int = POOL, seed: int = 0) -> list[Pipeline]:
    """Returns the pipelines to choose from: as generated, the default, what worked on other data sets, and draws."""
    known = [Pipeline(method=AS_GENERATED), default_pipeline(), *(recommender.pool if recommender else ())]
    pool: dict[str, Pipeline] = {}
    for pipeline in [*known, *bench.space.sample(size, seed)]:
        try:
            bench.space.check(pipeline)
        except ConfigError:  # made for a hypermodel with other starts
            continue
        if len(pool) < size:
            pool.setdefault(pipeline.id, pipeline)
    return list(pool.values())


def recommend(
    bench: Bench, data: DataSet, recommender: Recommender, *, count: int = 5, seed: int = 0
) -> list[dict[str, Any]]:
    """Returns the pipelines with the best predicted score of a whole run, without running any.

    Returns:
      json, best first: `pipeline`, `score`, `std`, `seconds` of the whole run.
    """
    pool = make_pool(bench, recommender, seed=seed)
    surrogate = recommender.on(bench.space.encode(pool), bench.facts(data).meta)
    history = History(size=len(pool))
    mean, std, _ = surrogate.predict(history, [Trial(n, FIDELITIES) for n in range(len(pool))], "transfer")
    parts = [
        surrogate.predict(history, [Trial(n, part) for n in range(len(pool))], "transfer")[2]
        for part in (1, FIDELITIES)
    ]
    seconds = (parts[0] + parts[1]) / 2 * FIDELITIES
    best = np.argsort(-mean, kind="stable")[:count]
    return [
        {"pipeline": pool[n].to_json(), "score": float(mean[n]), "std": float(std[n]), "seconds": float(seconds[n])}
        for n in best
    ]


def run(
    bench: Bench,
    data: DataSet,
    recommender: Recommender | None,
    *,
    out: str | os.PathLike[str],
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
      out: the run's folder. budget: seconds of trials.
      mode: `transfer`, `condition` or `refit`, see `GreyBox`.
      size: of the pool. seed: of pool, starts and order of examples.
      say: is told of every part.

    Raises:
      ConfigError: a budget that is not positive.
      CheckpointError: `out` holds something else, or a run of other arguments.
      DataError: an example that is too long.
      BusyError: another process is at work in `out`.
    """
    if not budget > 0:
        raise ConfigError(f"budget: expected a positive number of seconds, got {budget}")
    folder = pathlib.Path(out)
    pool = make_pool(bench, recommender, size=size, seed=seed)
    with alone_in(folder):
        session = Session(bench, data, pool, folder, seed)
        optimiser: Optimiser = RandomSearch()
        if recommender is not None:
            surrogate = recommender.on(bench.space.encode(pool), bench.facts(data).meta)
            optimiser = GreyBox(surrogate, mode)
        begun, choosing = time.perf_counter(), 0.0
        while session.history.spent < budget:
            before = time.perf_counter()
            trial = optimiser.choose(session.history)
            choosing += time.perf_counter() - before
            if trial is None:
                say("nothing is left that promises to be better")
                break
            session.carry_out(trial)
            say(reports.line(session.history, pool, budget))
        elapsed = time.perf_counter() - begun
        return session.finish(
            budget=budget, choosing=choosing, elapsed=elapsed, optimiser=mode if recommender else "random"
        )


class Session:
    """A run's state on disk and in memory: the history, and the groups under way.

    Args: as of `run`.
    """

    def __init__(self, bench: Bench, data: DataSet, pool: Sequence[Pipeline], folder: pathlib.Path, seed: int):
        self.bench, self.data, self.pool, self.folder, self.seed = bench, data, list(pool), folder, seed
        self._groups: dict[int, Group] = {}
        self.history = self._claim()
        self._save()

    def carry_out(self, trial: Trial) -> None:
        """Runs a part and writes what came of it. A part that breaks down ends its pipeline."""
        self.history = self.history.asked(trial)
        begin = time.perf_counter()
        try:
            group = self._group(trial.pipeline)
            part = group.advance()
            if not np.isfinite(part.loss[0]):
                raise FloatingPointError("the loss is not finite")
            group.save(self._trial_file(trial.pipeline))
            seconds, score = float(part.seconds[0]), float(part.exact[0])
            self.history = self.history.told(trial, seconds=seconds, score=score)
        except (jax.errors.JaxRuntimeError, FloatingPointError, ConfigError) as error:
            status = table.OUT_OF_MEMORY if "RESOURCE_EXHAUSTED" in str(error) else table.FAILED
            self.history = self.history.told(trial, seconds=time.perf_counter() - begin, status=status)
        self._save()

    def finish(self, **told: Any) -> dict[str, Any]:
        """Writes adapter, table and report, and returns the report."""
        best = self.history.incumbent
        if best is None:
            raise ConfigError(f"{self.folder}: no pipeline got as far as a score; more budget may help")
        rows = [self._row(number) for number in self._begun()]
        table.write(self.folder / RUNS / "runs.parquet", rows)
        group, facts = self._group(best.pipeline), self.bench.facts(self.data)
        test = {**facts.test, "tuned": next(one.test_score for one in rows if one.pipeline == self.pool[best.pipeline])}
        adapter = group.adapter(0)
        report = {
            "dataset": self.data.name,
            "dataset_hash": self.data.hash,
            "incumbent": {
                "pipeline": self.pool[best.pipeline].to_json(),
                "validation_score": best.score,
                "test_score": test["tuned"],
            },
            "test": test,
            "spent": self.history.spent,
            "parts": len(self.history.observations),
            "pipelines": len(rows),
            **told,
        }
        provenance = {"tuning": {"report": report}}
        metadata = dataclasses.replace(adapter.metadata, provenance=provenance)
        save_adapter(self.folder, adapter.tree, adapter.spec, metadata, beside_others=True)
        write_json(self.folder / REPORT, report)
        reports.write(self.folder, report, self.history, self.pool)
        return report

    def _begun(self) -> list[int]:
        return sorted({seen.pipeline for seen in self.history.observations})

    def _row(self, pipeline: int) -> table.Run:
        seen = [one for one in self.history.observations if one.pipeline == pipeline]
        if seen[-1].score is None:
            told = {"status": seen[-1].status, "error": "see tune.json"}
            return row(self.bench, self.data, self.pool[pipeline], self.seed, **told)
        (one,) = self._group(pipeline).rows()
        return one

    def _group(self, pipeline: int) -> Group:
        """The group of a pipeline, made or read from its file; the last one used is the only one in memory."""
        if pipeline not in self._groups:
            self._groups.clear()
            group = Group(self.bench, self.data, [self.pool[pipeline]], [self.seed])
            if self._trial_file(pipeline).is_file():
                group.restore(self._trial_file(pipeline))
            # A part that was saved and not told of, by a kill in between, is run again.
            group.back_to(len(self.history.curve(pipeline)))
            self._groups[pipeline] = group
        return self._groups[pipeline]

    def _trial_file(self, pipeline: int) -> pathlib.Path:
        return self.folder / TRIALS / f"{self.pool[pipeline].id}.safetensors"

    def _claim(self) -> History:
        """The history of the folder, which must be this run's, or a new one."""
        file = self.folder / FILE
        if not file.is_file():
            if self.folder.exists() and any(not path.name.startswith(".") for path in self.folder.iterdir()):
                raise CheckpointError(
                    f"{self.folder}: expected nothing, an empty folder or a run of tune, found something else"
                )
            return History(size=len(self.pool), seed=self.seed)
        earlier = read_json(file)
        for name, ours in self._about().items():
            if earlier.get(name) != ours:
                raise CheckpointError(f"{self.folder}: holds a run with another {name}; choose another folder")
        return History.from_json(earlier.get("history"), str(file)).restarted()

    def _about(self) -> Mapping[str, Any]:
        return {
            "dataset": self.data.hash,
            "model": self.bench.model.parts.id,
            "seed": self.seed,
            "pool": [pipeline.to_json() for pipeline in self.pool],
        }

    def _save(self) -> None:
        write_json(self.folder / FILE, {**self._about(), "history": self.history.to_json()})
