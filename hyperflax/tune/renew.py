"""A table carried over to a hypermodel whose hypernetwork was trained further, on the same frozen base.

A run that starts from a random, shared or source adapter is the same run whichever hypernetwork stands beside it: it is
kept, and only what the row says of its data set is the new hypermodel's. A run from the generated adapter is run anew,
with its pipeline and seed; its seconds stay those of the table, since they do not depend on what the hypernetwork has
learnt, and timings of another machine or day would make one start look dearer than the others.

    out/group-<digest>.parquet    the kept runs of a data set, or the new runs of one structure on a data set

Killed and called again it goes on with the runs that the folder does not hold, as a collection does; `shard=(i, n)`
does every n-th program.

>>> renew(Bench(newer), table.read("runs"), datasets, out="renewed")
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from hyperflax.errors import ConfigError, DataError
from hyperflax.files import local_folder
from hyperflax.tune.bench import Bench
from hyperflax.tune.collect import VARIED, Job, carry_out, check_unseen
from hyperflax.tuner import table
from hyperflax.tuner.datasets import DataSet
from hyperflax.tuner.pipeline import AS_GENERATED, GENERATED, Pipeline

TOLERANCE = 1e-3  # by which one base's loss may differ, relatively, between two versions of the compiler


def renew(
    bench: Bench,
    runs: Sequence[table.Run],
    datasets: Sequence[DataSet],
    *,
    out: pathlib.Path | str,
    shard: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> int:
    """Writes the table of `bench.model` and returns the number of rows that were written.

    Args:
      bench: with the new hypermodel.
      runs: of an earlier one with the same base, in the order of `table.read` for every shard.
      datasets: those that `runs` are on; others are left alone.
      out: folder of the new table. shard, progress: as in `collect`.

    Raises:
      ConfigError: a shard that is none; a pipeline that the new hypermodel cannot start.
      DataError: runs of several models, of this very one, or of one with another base; a data set that is missing, or
        that the new hypermodel was trained on.
    """
    if not 0 <= shard[0] < shard[1]:
        raise ConfigError(f"renew: expected a shard (i, n) with i < n, got {shard}")
    _check_models(bench, runs)
    by_hash = {data.hash: data for data in datasets}
    if missing := sorted({run.dataset for run in runs if run.dataset_hash not in by_hash}):
        other = sorted({data.name for data in datasets} & set(missing))
        but = f"; given with other examples or splits: {other[:5]}" if other else ""
        raise DataError(f"renew: expected every data set of the table, {len(missing)} are missing: {missing[:5]}{but}")
    used = {run.dataset_hash for run in runs}
    check_unseen(bench.model, [data for data in datasets if data.hash in used])
    _check_pipelines(bench, runs)
    folder, written = local_folder(out), 0
    groups, done = _groups(runs)[shard[0] :: shard[1]], table.ids(folder)
    for group in tqdm(groups, unit="program", disable=not progress):
        for member in group:
            data = by_hash[member[0].dataset_hash]
            if left := [run for run in member if _id(bench, run) not in done]:
                _check_base(bench, data, left[0])
                table.add(folder, [_renewed(bench, data, run) for run in left])
                written += len(left)
        bench.forget_programs()
    return written


def _groups(runs: Sequence[table.Run]) -> list[list[list[table.Run]]]:
    """What is done one after the other while programs are kept: for each structure, for each data set, its runs.

    Kept runs need no program; those of a data set are a group. What took longest comes first, so that shards, which
    take turns, get about as much each.
    """
    groups: dict[Pipeline | str, dict[str, list[table.Run]]] = {}
    unsaid: dict[str, Any] = dict.fromkeys(VARIED)  # what a structure leaves open
    for run in runs:
        key = dataclasses.replace(run.pipeline, **unsaid) if _anew(run.pipeline) else run.dataset_hash
        groups.setdefault(key, {}).setdefault(run.dataset_hash, []).append(run)
    listed = [list(group.values()) for group in groups.values()]
    return sorted(listed, key=_seconds, reverse=True)


def _seconds(group: Sequence[Sequence[table.Run]]) -> float:
    return sum(sum(run.seconds) for runs in group for run in runs if _anew(run.pipeline))


def _renewed(bench: Bench, data: DataSet, run: table.Run) -> table.Run:
    if _anew(run.pipeline):
        (new,) = carry_out(bench, Job(data, (run.pipeline,), (run.seed,), solo=True))
        if len(run.seconds) >= len(new.seconds):
            known = {"seconds": run.seconds[: len(new.seconds)], "seconds_per_epoch": run.seconds_per_epoch}
            return dataclasses.replace(new, **known, amortised=run.amortised)
        return new  # the earlier one was stopped or failed sooner
    test = bench.test_scores(data)
    described = {"bare_score": test["bare"], "generated_score": test[GENERATED], "meta": bench.facts(data).meta}
    return dataclasses.replace(run, model=bench.model.parts.id, **described)


def _anew(pipeline: Pipeline) -> bool:
    return pipeline.method == AS_GENERATED or pipeline.init == GENERATED


def _id(bench: Bench, run: table.Run) -> str:
    """The id that a run has in the new hypermodel's table."""
    return table.run_id(run.dataset_hash, run.pipeline, run.seed, bench.model.parts.id)


def _check_models(bench: Bench, runs: Sequence[table.Run]) -> None:
    models = sorted({run.model for run in runs})
    if len(models) != 1 or models == [bench.model.parts.id]:
        raise DataError(
            f"renew: expected runs of one earlier hypermodel than '{bench.model.parts.id}', got runs of {models}"
        )


def _check_pipelines(bench: Bench, runs: Sequence[table.Run]) -> None:
    """Before any is run: a collection would take what cannot start for a failure of the pipeline, and go on."""
    for pipeline in {run.pipeline.id: run.pipeline for run in runs if _anew(run.pipeline)}.values():
        try:
            bench.space.check(pipeline)
        except ConfigError as error:
            raise ConfigError(
                f"renew: '{bench.model.parts.id}' cannot start a pipeline of '{runs[0].model}': {error}"
            ) from error


def _check_base(bench: Bench, data: DataSet, run: table.Run) -> None:
    """The base's own loss on the data set tells bases apart, which a row does not name."""
    was, now = run.meta.get("bare_loss", math.nan), bench.facts(data).meta["bare_loss"]
    if not math.isclose(was, now, rel_tol=TOLERANCE):
        raise DataError(
            f"renew: data set '{data.name}': expected runs on the same base, whose loss is {now:.6g} a token, got "
            f"{was:.6g} of '{run.model}'"
        )
