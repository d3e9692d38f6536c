"""Pipelines run on data sets: what collects the tuner's meta-dataset, and what carries out its choices.

A `Group` is one or several pipelines that share a program, run side by side on one data set. It goes on part by part
(`FIDELITIES` of them) and scores the held-out examples after each; the seconds of a group of several are shared out
equally and marked as amortised. Compilation is not counted.

>>> bench = Bench(hyperflax.load("strings"))
>>> group = Group(bench, data, [pipeline], seeds=[0])
>>> group.advance().exact[0]        # held-out exact match after the first part
0.25
>>> rows = group.finish()           # the other parts, the test split; rows for the table
"""

from __future__ import annotations

import datetime
import importlib.metadata
import itertools
import math
import pathlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from hyperflax.adapters.kinds import build_spec
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.checkpoints.artefacts import Adapter, AdapterMetadata
from hyperflax.checkpoints.fingerprint import support_hash
from hyperflax.checkpoints.tensors import load_tree, save_tree
from hyperflax.errors import CheckpointError, ConfigError
from hyperflax.evaluation.contamination import inherited
from hyperflax.padding import rounded_up
from hyperflax.training.information_gain import informative, num_kept
from hyperflax.training.trials import SCHEDULES, Hyper, Recipe, epoch_rows, num_steps
from hyperflax.tune.bench import Bench, raw_start, stack
from hyperflax.tuner import table
from hyperflax.tuner.datasets import DataSet
from hyperflax.tuner.pipeline import AS_GENERATED, FIDELITIES, GENERATED, Pipeline
from hyperflax.types import PyTree

VERSIONS = ("hyperflax", "jax", "jaxlib", "flax", "optax")


class Part(NamedTuple):
    """What one part of a group's runs gave, each [run]: held-out exact match, loss per token, seconds."""

    exact: np.ndarray
    loss: np.ndarray
    seconds: np.ndarray


class Begin(NamedTuple):
    """What is found out before a group's first part: the examples of every step [run, steps, batch], and the scores."""

    rows: np.ndarray
    start: Part


class Group:
    """Runs of one program on one data set, side by side.

    Args:
      bench: see there. data: what they are run on.
      pipelines: of one program, see `program`. seeds: one for each.
      begin: of an earlier group of the same arguments; which examples teach the most can take as long as a part.

    Raises:
      ConfigError: pipelines of several programs, one that is not in the bench's space, or one without a start.
    """

    def __init__(
        self,
        bench: Bench,
        data: DataSet,
        pipelines: Sequence[Pipeline],
        seeds: Sequence[int],
        begin: Begin | None = None,
    ):
        for pipeline in pipelines:
            bench.space.check(pipeline)
        programs = {program(bench, data, pipeline) for pipeline in pipelines}
        if len(programs) != 1 or len(pipelines) != len(seeds):
            raise ConfigError(
                f"group: expected pipelines of one program and a seed for each, got {len(programs)} programs, "
                f"{len(pipelines)} pipelines and {len(seeds)} seeds"
            )
        self.bench, self.data, self.pipelines, self.seeds = bench, data, list(pipelines), list(seeds)
        self.spec = spec_of(bench, data, self.pipelines[0])
        self.parts: list[Part] = []
        self._trials = bench.trials(programs.pop().recipe)
        self._train, self._held, self._test = (
            stack([bench.arrays(data, split)] * len(seeds)) for split in ("train", "validation", "test")
        )
        self._raw = raw = [self._start(pipeline, seed) for pipeline, seed in zip(pipelines, seeds, strict=True)]
        runs = zip(pipelines, seeds, raw, strict=True)
        self._rows = begin.rows if begin else np.stack([self._examples(*run) for run in runs])
        self._bounds = [round(self._rows.shape[1] * part / FIDELITIES) for part in range(FIDELITIES + 1)]
        self._hyper = _hyper(pipelines, seeds, self._rows.shape[1])
        self._state = self._trials.start(stack(raw))
        self._best = stack(raw)
        self._compile()
        self.start = begin.start if begin else Part(*self._scored(), np.zeros(len(seeds)))
        self._best_scores = list(zip(self.start.exact, -self.start.loss, strict=True))
        self.training_seconds = 0.0

    @property
    def begin(self) -> Begin:
        """What another group of the same arguments need not find out again."""
        return Begin(self._rows, self.start)

    def advance(self) -> Part:
        """Runs the next part and scores it; the best parameters so far, the start included, are kept."""
        number, begin = len(self.parts), time.perf_counter()
        rows = self._rows[:, self._bounds[number] : self._bounds[number + 1]]
        if rows.shape[1]:
            self._state, _ = self._trials.run(self._state, self._hyper, self._train, rows)
            jax.block_until_ready(self._state)
        self.training_seconds += time.perf_counter() - begin
        exact, loss = self._scored()
        seconds = (time.perf_counter() - begin) / len(self.seeds)
        self.parts.append(Part(exact, loss, np.full(len(self.seeds), seconds)))
        better = np.zeros(len(self.seeds), bool)
        for run, score in enumerate(zip(exact, -loss, strict=True)):
            if np.isfinite(loss[run]) and score > self._best_scores[run]:
                self._best_scores[run], better[run] = score, True
        self._best = jax.tree.map(
            lambda new, old: np.where(better.reshape(-1, *[1] * (old.ndim - 1)), np.asarray(new), old),
            self._state.params,
            self._best,
        )
        return self.parts[-1]

    def finish(self) -> list[table.Run]:
        """Runs the parts that are left, scores the test split, and returns a row for every run."""
        while len(self.parts) < FIDELITIES:
            self.advance()
        return self.rows()

    def rows(self) -> list[table.Run]:
        """Returns a row of the table for every run as it is now.

        A run whose loss was not finite has failed, another one that has parts left is stopped.
        """
        exact = self._trials.score(self._best, self._test)[0].mean(axis=1)
        return [self._row(run, float(exact[run])) for run in range(len(self.seeds))]

    def adapter(self, run: int) -> Adapter:
        """Returns a run's adapter of its best part so far, the start included."""
        tree = self.spec.materialise(jax.tree.map(lambda leaf: np.asarray(leaf[run]), self._best))
        pipeline, start = self.pipelines[run], self.bench.start(self.data, self.pipelines[run])
        support = support_hash({"input": line.input, "target": line.target} for line in self.data.train)
        if start is not None and pipeline.method == AS_GENERATED:
            support = start.metadata.support_hash  # of those that the hypernetwork could read
        steps = self._bounds[self._best_part(run)]
        earlier = {} if start is None else start.metadata.provenance
        trained = [type(self.data).__name__] if steps else []
        metadata = AdapterMetadata(
            base_fingerprint=self.bench.model.base_fingerprint,
            hypermodel=None if start is None else start.metadata.hypermodel,
            support_hash=support,
            refine_steps=steps,
            created_with="hyperflax tune",
            provenance={**inherited(earlier, trained), "pipeline": pipeline.to_json(), "seed": self.seeds[run]},
        )
        return Adapter(jax.tree.map(np.asarray, tree), self.spec, metadata)

    def _best_part(self, run: int) -> int:
        """After how many parts a run had what is kept of it; 0 for its start."""
        seen = [(part.exact[run], -part.loss[run]) for part in (self.start, *self.parts)]
        return max(range(len(seen)), key=lambda part: seen[part] if np.isfinite(seen[part][1]) else (-1.0, 0.0))

    # Interrupted and gone on with

    def save(self, path: pathlib.Path | str) -> None:
        """Writes all that `restore` needs to go on bit for bit."""
        leaves = {
            name: {f"{number:05d}": np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(tree))}
            for name, tree in (("state", self._state), ("best", self._best))
        }
        seen = {name: np.array([getattr(part, name) for part in self.parts]) for name in Part._fields}
        scores = np.array(self._best_scores, np.float64)
        save_tree(path, {**leaves, "parts": seen, "scores": scores, "seconds": np.array([self.training_seconds])})

    def restore(self, path: pathlib.Path | str) -> None:
        """Goes on where `save` was called on a group of the same arguments.

        Raises:
          CheckpointError: the file is of another group, or damaged.
        """
        tree = load_tree(path)
        for name in ("state", "best"):
            ours, theirs = jax.tree.leaves(getattr(self, f"_{name}")), list(tree.get(name, {}).values())
            if [leaf.shape for leaf in ours] != [leaf.shape for leaf in theirs]:
                raise CheckpointError(f"{path}: '{name}' is of another pipeline: shapes differ")
            values = [np.asarray(new, old.dtype) for new, old in zip(theirs, ours, strict=True)]
            setattr(self, f"_{name}", jax.tree.unflatten(jax.tree.structure(getattr(self, f"_{name}")), values))
        self.parts = [Part(*values) for values in zip(*(tree["parts"][name] for name in Part._fields), strict=True)]
        self._best_scores = [tuple(scores) for scores in tree["scores"]]
        self.training_seconds = float(tree["seconds"][0])

    def back_to(self, parts: int) -> None:
        """Makes sure that so many parts are done; a group that is a part ahead begins anew and runs them again."""
        if len(self.parts) != parts:
            self._state, self._best, self.parts = self._trials.start(stack(self._raw)), stack(self._raw), []
            self._best_scores = list(zip(self.start.exact, -self.start.loss, strict=True))
            self.training_seconds = 0.0
            while len(self.parts) < parts:
                self.advance()

    def _start(self, pipeline: Pipeline, seed: int) -> PyTree:
        adapter = self.bench.start(self.data, pipeline)
        if adapter is None:
            return jax.tree.map(np.asarray, self.spec.init(jax.random.key(seed)))
        return raw_start(adapter, self.spec, seed)

    def _examples(self, pipeline: Pipeline, seed: int, raw: PyTree) -> np.ndarray:
        """The examples of every step, [steps, batch]."""
        if pipeline.method == AS_GENERATED:
            return np.zeros((0, 1), np.int32)
        kept = np.arange(len(self.data.train))
        if pipeline.skip:
            train, held = (jax.tree.map(lambda array: array[0], part) for part in (self._train, self._held))
            kept = informative(self._trials, raw, train, held, share=1.0 - pipeline.skip)
        values: Any = pipeline  # it trains, so all of them apply
        return epoch_rows(kept, values.batch_size, values.epochs, seed)

    def _compile(self) -> None:
        lengths = {after - before for before, after in itertools.pairwise(self._bounds)}
        for steps in {rounded_up(length) for length in lengths if length}:
            self._trials.compile(
                self._state,
                self._hyper,
                self._train,
                np.resize(self._rows, (len(self.seeds), steps, self._rows.shape[2])),
            )

    def _scored(self) -> tuple[np.ndarray, np.ndarray]:
        exact, loss = self._trials.score(self._state.params, self._held)
        return exact.mean(axis=1), loss

    def _row(self, run: int, test_score: float) -> table.Run:
        broken = next((part for part in range(len(self.parts)) if not np.isfinite(self.parts[part].loss[run])), None)
        parts = self.parts[:broken]
        status = table.COMPLETED if len(parts) == FIDELITIES else table.STOPPED
        epochs = (self.pipelines[run].epochs or 0) * len(self.parts) / FIDELITIES
        return row(
            self.bench,
            self.data,
            self.pipelines[run],
            self.seeds[run],
            status=status if broken is None else table.FAILED,
            curve=tuple(part.exact[run] for part in parts),
            losses=tuple(part.loss[run] for part in parts),
            seconds=tuple(part.seconds[run] for part in parts),
            seconds_per_epoch=self.training_seconds / len(self.seeds) / epochs if epochs else 0.0,
            amortised=len(self.seeds) > 1,
            start_score=float(self.start.exact[run]),
            test_score=test_score,
            error="" if broken is None else f"the loss was not finite after part {broken + 1}",
        )


def row(bench: Bench, data: DataSet, pipeline: Pipeline, seed: int, **observed: Any) -> table.Run:
    """Returns a row of the table: what is known of data set, model and machine, with what was observed."""
    test = bench.test_scores(data)
    nothing: dict[str, Any] = {
        "curve": (),
        "losses": (),
        "seconds": (),
        "seconds_per_epoch": 0.0,
        "amortised": False,
        "start_score": math.nan,
        "test_score": math.nan,
    }
    return table.Run(
        dataset=data.name,
        corpus=data.corpus,
        category=data.category,
        dataset_hash=data.hash,
        pipeline=pipeline,
        seed=seed,
        model=bench.model.parts.id,
        bare_score=test["bare"],
        generated_score=test[GENERATED],
        meta=bench.facts(data).meta,
        device=jax.devices()[0].device_kind,
        versions={name: importlib.metadata.version(name) for name in VERSIONS},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **{**nothing, **observed},
    )


class Program(NamedTuple):
    """What runs share that are done side by side: the recipe, examples of a step, and number of steps."""

    recipe: Recipe
    batch_size: int
    steps: int


def program(bench: Bench, data: DataSet, pipeline: Pipeline) -> Program:
    """Returns the program that a pipeline on a data set needs."""
    spec = AdapterSpec(spec_of(bench, data, pipeline).leaves)
    if pipeline.method == AS_GENERATED:
        return Program(Recipe(spec), 0, 0)
    values: Any = pipeline  # it trains, so all of them apply
    kept = num_kept(len(data.train), 1.0 - values.skip)
    recipe = Recipe(spec, values.optimizer, values.dropout, bool(values.prompt_first))
    return Program(recipe, values.batch_size, num_steps(kept, values.batch_size, values.epochs))


def spec_of(bench: Bench, data: DataSet, pipeline: Pipeline) -> AdapterSpec:
    """Returns the spec that a pipeline trains. Raises ConfigError where it has no start."""
    start = bench.start(data, pipeline)
    if start is not None and pipeline.method == AS_GENERATED:
        return start.spec
    return build_spec(pipeline.kinds(None if start is None else start.spec), bench.model.config.base)


def _hyper(pipelines: Sequence[Pipeline], seeds: Sequence[int], steps: int) -> Hyper:
    def numbers(name: str, other: float = 0.0) -> np.ndarray:
        return np.array([getattr(pipeline, name) or other for pipeline in pipelines], np.float32)

    return Hyper(
        learning_rate=numbers("learning_rate"),
        schedule=np.array([SCHEDULES.index(pipeline.schedule or "constant") for pipeline in pipelines], np.int32),
        warmup=numbers("warmup"),
        total_steps=np.full(len(pipelines), steps, np.float32),
        prompt_steps=np.round(numbers("prompt_first") * steps).astype(np.int32),
        weight_decay=numbers("weight_decay"),
        seed=np.array(seeds, np.int32),
    )
