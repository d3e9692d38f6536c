"""Filling the meta-dataset: many pipelines on many data sets.

A collection is planned from its arguments alone: `structures` pipelines are drawn, and of each, for each data set,
`variants` that differ in learning rate, schedule, warm-up and weight decay. What they share is one program, so
the variants run side by side, and a program is compiled once for all data sets. On the first `solo` data sets of each
structure the variants run one by one, for timings that are nobody's share.

    out/group-<digest>.parquet    one file for each group of runs, written when it has ended

Killed and called again, a collection goes on with the groups whose runs the folder does not hold, in whatever file. A
run's id tells models apart, not starts, so a folder is for one bank and one set of shared adapters. `shard=(i, n)` does
every n-th structure, so that n machines fill one folder without talking to each other; `workers.py` hands structures
out through Ray.

>>> collect(Collection(bench, datasets, out="runs", structures=30, variants=4, seed=0))
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from tqdm import tqdm

from hyperflax.errors import ConfigError, DataError
from hyperflax.evaluation.contamination import TRAINING_TASKS, check_names, not_recorded, trained_elsewhere
from hyperflax.evaluation.runner import EvaluationTask
from hyperflax.files import local_folder
from hyperflax.hypermodel import Hypermodel
from hyperflax.tune.bench import Bench
from hyperflax.tune.trial import Group, row
from hyperflax.tuner import table
from hyperflax.tuner.datasets import DataSet, check_distinct
from hyperflax.tuner.pipeline import TUNE, Pipeline
from hyperflax.tuner.space import PipelineSpace

_LOG = logging.getLogger("hyperflax.tune")

VARIED = ("learning_rate", "schedule", "warmup", "weight_decay")


@dataclasses.dataclass(frozen=True)
class Job:
    """One group of a collection: pipelines of one structure on one data set, side by side or one by one.

    Attributes:
      data: what they are run on. pipelines: what is run. seeds: one for each. solo: one by one.
    """

    data: DataSet
    pipelines: tuple[Pipeline, ...]
    seeds: tuple[int, ...]
    solo: bool

    def ids(self, model: str) -> set[str]:
        """Returns the ids that its runs with a hypermodel have in the table."""
        runs = zip(self.pipelines, self.seeds, strict=True)
        return {table.run_id(self.data.hash, pipeline, seed, model) for pipeline, seed in runs}


def vary(space: PipelineSpace, structure: Pipeline, count: int, seed: int) -> list[Pipeline]:
    """Returns pipelines that differ from `structure` only in what does not change the program."""
    drawn = space.sample(4 * count + 8, seed)
    varied = []
    for number in range(count):
        values = {}
        for name in VARIED:
            if getattr(structure, name) is not None:
                choices = [getattr(pipeline, name) for pipeline in drawn if getattr(pipeline, name) is not None]
                values[name] = choices[number % len(choices)]
        varied.append(dataclasses.replace(structure, **values))
    return varied


class Collection:
    """A collection, whose structures may be carried out in any order, by any number of processes.

    Args:
      bench: with the hypermodel, for which every data set must be new.
      datasets: see `DataSet`; names and contents are unique.
      out: folder of the table.
      structures, variants, solo, seed: see the module's text.

    Raises:
      DataError: a data set that the hypermodel was trained on, or one that is given twice.
      ConfigError: numbers that plan nothing, or a data set that one of the starts cannot be used on.
    """

    def __init__(
        self,
        bench: Bench,
        datasets: Sequence[DataSet],
        *,
        out: pathlib.Path | str,
        structures: int,
        variants: int = 4,
        solo: int = 1,
        seed: int = 0,
    ):
        if structures < 1 or variants < 1:
            raise ConfigError(
                f"collect: expected structures and variants of at least 1, got {structures} and {variants}"
            )
        check_unseen(bench.model, datasets)
        for data in datasets:
            bench.check(data)
        self.bench, self.datasets, self.out = bench, list(datasets), local_folder(out)
        self.variants, self.solo, self.seed = variants, solo, seed
        self.structures = bench.space.sample(structures, seed)

    def jobs(self, number: int) -> list[Job]:
        """Returns the jobs of a structure, one for each data set."""
        jobs, structure = [], self.structures[number]
        for place, data in enumerate(self.datasets):
            rng = np.random.default_rng(np.random.SeedSequence([self.seed, number, int(data.hash, 16)]))
            count = self.variants if structure.method == TUNE else 1
            seeds = tuple(rng.integers(2**31, size=count).tolist())
            pipelines = vary(self.bench.space, structure, count, int(rng.integers(2**31)))
            # Every data set is the first of some structure, so each has solo timings.
            alone = (place - number) % len(self.datasets) < self.solo
            jobs.append(Job(data, tuple(pipelines), seeds, alone))
        return jobs

    def fill(self, number: int) -> int:
        """Carries out what is left of a structure and returns the number of runs that were written."""
        written, done = 0, table.ids(self.out)
        for job in self.jobs(number):
            if not job.ids(self.bench.model.parts.id) <= done:
                runs = carry_out(self.bench, job)
                table.add(self.out, runs)
                written += len(runs)
        self.bench.forget_programs()
        return written


def collect(collection: Collection, *, shard: tuple[int, int] = (0, 1), progress: bool = True) -> int:
    """Carries out a collection, or what is left of it, and returns the number of runs that were written.

    Args:
      collection: see there. shard: see the module's text. progress: show a bar.

    Raises:
      ConfigError: a shard that is none.
      DataError: an example that is too long.
    """
    if not 0 <= shard[0] < shard[1]:
        raise ConfigError(f"collect: expected a shard (i, n) with i < n, got {shard}")
    numbers = range(shard[0], len(collection.structures), shard[1])
    return sum(collection.fill(number) for number in tqdm(numbers, unit="structure", disable=not progress))


def carry_out(bench: Bench, job: Job) -> list[table.Run]:
    """Runs a job. A lack of memory is an observation, too; any other error is one."""
    numbers = range(len(job.pipelines))
    groups = [[number] for number in numbers] if job.solo else [list(numbers)]
    runs: list[table.Run] = []
    for group in groups:
        pipelines, seeds = [job.pipelines[number] for number in group], [job.seeds[number] for number in group]
        try:
            runs += Group(bench, job.data, pipelines, seeds).finish()
        except (ConfigError, jax.errors.JaxRuntimeError) as error:
            memory = "RESOURCE_EXHAUSTED" in str(error)
            status = table.OUT_OF_MEMORY if memory else table.FAILED
            runs += [
                row(bench, job.data, pipeline, seed, status=status, error=str(error)[:500])
                for pipeline, seed in zip(pipelines, seeds, strict=True)
            ]
    return runs


def check_unseen(model: Hypermodel, datasets: Sequence[DataSet]) -> None:
    """Refuses data sets that the hypermodel was trained on, and repeated ones, by name and content.

    What it was trained on is known by task name, and by data set where another collection has it, as far as the
    hypermodel has a record of it; where there is none, or not of all, a warning is logged.

    Raises:
      DataError: names the data sets.
    """
    check_distinct(datasets)
    name, seen = model.parts.name, model.parts.provenance
    tasks = [EvaluationTask(data.task or data.name, (), (), data_sets=data.data_sets) for data in datasets]
    check_names(f"the hypermodel '{name}' was trained on and", seen.get(TRAINING_TASKS, ()), tasks)
    for task, data_set in trained_elsewhere(seen, tasks).items():
        raise DataError(f"the hypermodel '{name}' was trained on the data set of '{task}', as {data_set}")
    if not_recorded({name: seen}):
        _LOG.warning(
            "the hypermodel '%s': its training tasks are not recorded, or not all: data sets may be among them",
            name,
        )
