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
import functools
import importlib.metadata
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from hyperflax.adapters.kinds import build_spec
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.adapters.start import start_from
from hyperflax.checkpoints.artefacts import Adapter, AdapterMetadata
from hyperflax.errors import ConfigError
from hyperflax.finetune import generate, readable
from hyperflax.hypermodel import Hypermodel
from hyperflax.training.information_gain import informative
from hyperflax.training.trials import SCHEDULES, Hyper, Recipe, Trials, epoch_rows
from hyperflax.tuner import table
from hyperflax.tuner.datasets import DataSet, task_embedding
from hyperflax.tuner.pipeline import AS_GENERATED, FIDELITIES, GENERATED, RANDOM, Pipeline
from hyperflax.tuner.space import PipelineSpace
from hyperflax.types import PyTree

VERSIONS = ("hyperflax", "jax", "jaxlib", "flax", "optax")


class Part(NamedTuple):
    """What one part of a group's runs gave, each [run]: held-out exact match, loss per token, seconds."""

    exact: np.ndarray
    loss: np.ndarray
    seconds: np.ndarray


class Facts(NamedTuple):
    """What is known of a data set before any training.

    Attributes:
      meta: meta-features, see `tuner/datasets.py`.
      generated: the generated adapter; None if the hypernetwork can read none of the examples.
      test: test scores of the conditions `bare` and `generated`.
    """

    meta: dict[str, float]
    generated: Adapter | None
    test: dict[str, float]


class Bench:
    """A hypermodel and its starts, with the compiled programs that its runs share.

    Args:
      model: gives the frozen T5 and the generated starts.
      starts: further starts by name, `shared` and `source`.
    """

    def __init__(self, model: Hypermodel, starts: Mapping[str, Adapter] | None = None):
        self.model, self.starts = model, dict(starts or {})
        specs = {name: adapter.spec for name, adapter in self.starts.items()}
        self.space = PipelineSpace(model.config.base, {GENERATED: model.config.spec, **specs})
        self._trials: dict[Recipe, Trials] = {}
        self._facts: dict[str, Facts] = {}

    def trials(self, recipe: Recipe) -> Trials:
        """Returns the compiled functions of a recipe, made once."""
        if recipe not in self._trials:
            self._trials[recipe] = Trials(self.model.model, self.model.base_params, recipe)
        return self._trials[recipe]

    def forget_programs(self) -> None:
        """Frees the compiled programs; facts of data sets stay."""
        self._trials.clear()

    def arrays(self, data: DataSet, split: str) -> dict[str, np.ndarray]:
        """Returns a part of a data set as token rows. Raises DataError where an example is too long."""
        return data.arrays(split, self.model.config.vocabulary, self.model.config.episodes)

    def facts(self, data: DataSet) -> Facts:
        """Returns what is known of a data set before training, computed once."""
        if data.hash not in self._facts:
            self._facts[data.hash] = self._describe(data)
        return self._facts[data.hash]

    def start(self, data: DataSet, pipeline: Pipeline) -> Adapter | None:
        """Returns the adapter that a pipeline starts from on a data set; None for a random start.

        Raises:
          ConfigError: there is no such start.
        """
        if pipeline.init == RANDOM:
            return None
        if pipeline.init == GENERATED or pipeline.method == AS_GENERATED:
            start = self.facts(data).generated
        else:
            start = self.starts.get(pipeline.init)
        if start is None:
            raise ConfigError(f"data set '{data.name}': no {pipeline.init or GENERATED} adapter to start from")
        return start

    def score(self, data: DataSet, split: str, adapter: Adapter | None) -> tuple[float, float]:
        """Returns (exact match, loss per token) of an adapter, or of the bare model, on a part of a data set."""
        spec = AdapterSpec(() if adapter is None else adapter.spec.leaves)
        raw = {} if adapter is None else _raw(adapter, spec, seed=0)
        exact, loss = self.trials(Recipe(spec)).score(_stack([raw]), _stack([self.arrays(data, split)]))
        return float(exact.mean()), float(loss[0])

    def _describe(self, data: DataSet) -> Facts:
        vocabulary = self.model.config.vocabulary
        adapter = generate(self.model, data.train)
        meta = data.text_features(vocabulary)
        meta["bare_exact"], meta["bare_loss"] = self.score(data, "validation", None)
        test = {"bare": self.score(data, "test", None)[0], GENERATED: math.nan}
        meta["generated_exact"], meta["generated_loss"] = math.nan, math.nan
        if adapter is not None:
            meta["generated_exact"], meta["generated_loss"] = self.score(data, "validation", adapter)
            test[GENERATED] = self.score(data, "test", adapter)[0]
            meta |= task_embedding(self._slot_states(data))
        return Facts(meta, adapter, test)

    def _slot_states(self, data: DataSet) -> np.ndarray:
        """Slot states [slots, emb] of the first examples that fill one support."""
        shown = readable(self.model, data.train)[: self.model.config.episodes.shots]
        episode = {"support_tokens": self.model.episode(shown, [])["support_tokens"]}
        return np.asarray(self._states({"params": self.model.hypernetwork_params}, episode))

    @functools.cached_property
    def _states(self):
        return jax.jit(functools.partial(self.model.hypernetwork.apply, method="slot_states"))


class Group:
    """Runs of one program on one data set, side by side.

    Args:
      bench: see there. data: what they are run on.
      pipelines: of one program, see `program`. seeds: one for each.

    Raises:
      ConfigError: pipelines of several programs, one that is not in the bench's space, or one without a start.
    """

    def __init__(self, bench: Bench, data: DataSet, pipelines: Sequence[Pipeline], seeds: Sequence[int]):
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
            _stack([bench.arrays(data, split)] * len(seeds)) for split in ("train", "validation", "test")
        )
        raw = [self._start(pipeline, seed) for pipeline, seed in zip(pipelines, seeds, strict=True)]
        self._rows = np.stack([self._examples(*run) for run in zip(pipelines, seeds, raw, strict=True)])
        self._bounds = [round(self._rows.shape[1] * part / FIDELITIES) for part in range(FIDELITIES + 1)]
        self._hyper = _hyper(pipelines, seeds, self._rows.shape[1])
        self._state = self._trials.start(_stack(raw))
        self._best = _stack(raw)
        self._compile()
        self.start = Part(*self._scored(), np.zeros(len(seeds)))
        self._best_scores = list(zip(self.start.exact, -self.start.loss, strict=True))
        self.training_seconds = 0.0

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
        """Returns a row of the table for every run as it is now; a run whose loss was not finite has failed."""
        exact = self._trials.score(self._best, self._test)[0].mean(axis=1)
        return [self._row(run, float(exact[run])) for run in range(len(self.seeds))]

    def adapter(self, run: int) -> Adapter:
        """Returns a run's adapter of its best part so far, the start included."""
        tree = self.spec.materialise(jax.tree.map(lambda leaf: np.asarray(leaf[run]), self._best))
        metadata = AdapterMetadata(
            base_fingerprint=self.bench.model.base_fingerprint,
            created_with="hyperflax tune",
            provenance={"pipeline": self.pipelines[run].to_json(), "seed": self.seeds[run]},
        )
        return Adapter(jax.tree.map(np.asarray, tree), self.spec, metadata)

    def _start(self, pipeline: Pipeline, seed: int) -> PyTree:
        adapter = self.bench.start(self.data, pipeline)
        if adapter is None:
            return jax.tree.map(np.asarray, self.spec.init(jax.random.key(seed)))
        return _raw(adapter, self.spec, seed)

    def _examples(self, pipeline: Pipeline, seed: int, raw: PyTree) -> np.ndarray:
        """The examples of every step, [steps, batch]."""
        if pipeline.method == AS_GENERATED:
            return np.zeros((0, 1), np.int32)
        kept = np.arange(len(self.data.train))
        if pipeline.skip:
            train, held = (jax.tree.map(lambda array: array[0], part) for part in (self._train, self._held))
            kept = informative(self._trials, raw, train, held, share=1.0 - pipeline.skip, seed=seed)
        return epoch_rows(kept, pipeline.batch_size, pipeline.epochs, seed)

    def _compile(self) -> None:
        lengths = {after - before for before, after in itertools.pairwise(self._bounds)}
        for steps in {1 << (length - 1).bit_length() for length in lengths if length}:
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
        epochs = (self.pipelines[run].epochs or 0) * len(self.parts) / FIDELITIES
        return row(
            self.bench,
            self.data,
            self.pipelines[run],
            self.seeds[run],
            status=table.COMPLETED if broken is None and len(parts) == FIDELITIES else table.FAILED,
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
    facts = bench.facts(data)
    nothing = {"curve": (), "losses": (), "seconds": (), "seconds_per_epoch": 0.0, "amortised": False}
    return table.Run(
        dataset=data.name,
        corpus=data.corpus,
        category=data.category,
        dataset_hash=data.hash,
        pipeline=pipeline,
        seed=seed,
        model=bench.model.parts.id,
        bare_score=facts.test["bare"],
        generated_score=facts.test[GENERATED],
        meta=facts.meta,
        device=jax.devices()[0].device_kind,
        versions={name: importlib.metadata.version(name) for name in VERSIONS},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **{**nothing, "start_score": math.nan, "test_score": math.nan, **observed},
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
    kept = max(1, round((1.0 - pipeline.skip) * len(data.train)))
    recipe = Recipe(spec, pipeline.optimizer, pipeline.dropout, bool(pipeline.prompt_first))
    return Program(recipe, pipeline.batch_size, max(1, round(kept * pipeline.epochs / pipeline.batch_size)))


def spec_of(bench: Bench, data: DataSet, pipeline: Pipeline) -> AdapterSpec:
    """Returns the spec that a pipeline trains. Raises ConfigError where it has no start."""
    start = bench.start(data, pipeline)
    if pipeline.method == AS_GENERATED:
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


def _raw(adapter: Adapter, spec: AdapterSpec, seed: int) -> PyTree:
    return start_from(adapter.tree, adapter.spec, spec, jax.random.key(seed))


def _stack(items: Sequence[PyTree]) -> PyTree:
    """Trees with a new first axis, one entry for each."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *items)
