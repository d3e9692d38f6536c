"""A hypermodel on the bench: its starts and pipelines, compiled programs, and what it knows of a data set untrained.

>>> bench = Bench(hyperflax.load("strings"))
>>> bench.test_scores(data)
{'bare': 0.0, 'generated': 0.41}
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import jax
import numpy as np

from hyperflax import trees
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.adapters.start import start_from
from hyperflax.checkpoints.artefacts import Adapter
from hyperflax.errors import ConfigError
from hyperflax.finetune import generate, readable, supports_for
from hyperflax.hypermodel import Hypermodel
from hyperflax.training.trials import Recipe, Trials
from hyperflax.tuner.datasets import DataSet, task_embedding
from hyperflax.tuner.pipeline import AS_GENERATED, GENERATED, RANDOM, Pipeline
from hyperflax.tuner.space import PipelineSpace
from hyperflax.types import PyTree


class Facts(NamedTuple):
    """What is known of a data set before any training.

    Attributes:
      meta: meta-features, see `tuner/datasets.py`.
      generated: the generated adapter; None if the hypernetwork can read none of the examples.
    """

    meta: dict[str, float]
    generated: Adapter | None


class Adapters(Protocol):
    """Adapters, one of which a pipeline starts from on a data set; `bank.Bank` and `shared.Shared` are such."""

    @property
    def specs(self) -> Sequence[AdapterSpec]:
        """What `PipelineSpace` wants of a start."""
        ...

    @property
    def fingerprint(self) -> str:
        """Tells them from any others from which the same pipelines could start."""
        ...

    def check(self, data: DataSet) -> None:
        """Raises ConfigError where a data set may not start from them, or has nothing to start from."""
        ...

    def first(self, model: Hypermodel, data: DataSet, pipeline: Pipeline) -> Adapter | None:
        """Returns the adapter to start from, None if there is none for the pipeline. Raises ConfigError as `check`."""
        ...


class Bench:
    """A hypermodel and its starts, with the compiled programs that its runs share.

    Args:
      model: gives the frozen T5 and the generated starts.
      starts: further starts by name: `shared`, `source`.
    """

    def __init__(self, model: Hypermodel, starts: Mapping[str, Adapters] | None = None):
        self.model, self.starts = model, dict(starts or {})
        specs = {name: start.specs for name, start in self.starts.items()}
        self.space = PipelineSpace(model.config.base, {GENERATED: (model.config.spec,), **specs})
        self._trials: dict[Recipe, Trials] = {}
        self._arrays: dict[tuple[str, str], dict[str, np.ndarray]] = {}
        self._facts: dict[str, Facts] = {}
        self._test_scores: dict[str, dict[str, float]] = {}
        self._chosen: dict[tuple[str, str, str | None], Adapter | None] = {}

    def trials(self, recipe: Recipe) -> Trials:
        """Returns the compiled functions of a recipe, made once."""
        if recipe not in self._trials:
            self._trials[recipe] = Trials(self.model.model, self.model.base_params, recipe)
        return self._trials[recipe]

    def forget_programs(self) -> None:
        """Frees the compiled programs; facts of data sets stay."""
        self._trials.clear()

    def arrays(self, data: DataSet, split: str) -> dict[str, np.ndarray]:
        """Returns a part of a data set as token rows, made once. Raises DataError where an example is too long."""
        if (key := (data.hash, split)) not in self._arrays:
            self._arrays[key] = data.arrays(split, self.model.config.vocabulary, self.model.config.episodes)
        return self._arrays[key]

    def facts(self, data: DataSet) -> Facts:
        """Returns what is known of a data set before training, computed once."""
        if data.hash not in self._facts:
            self._facts[data.hash] = self._describe(data)
        return self._facts[data.hash]

    def test_scores(self, data: DataSet) -> dict[str, float]:
        """Returns exact match on the test split of `bare` and `generated`, NaN where there is none; computed once."""
        if data.hash not in self._test_scores:
            compared = self._compare(data, "test", self.facts(data).generated)
            self._test_scores[data.hash] = {name: exact for name, (exact, _) in compared.items()}
        return self._test_scores[data.hash]

    def check(self, data: DataSet) -> None:
        """Raises ConfigError where a data set cannot be what one of the starts is used on."""
        for adapters in self.starts.values():
            adapters.check(data)

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
            start = self._further(data, pipeline)
        if start is None:
            raise ConfigError(f"data set '{data.name}': no {pipeline.init or GENERATED} adapter to start from")
        return start

    def _further(self, data: DataSet, pipeline: Pipeline) -> Adapter | None:
        """The adapter of one of `starts`, looked for once."""
        adapters, key = self.starts.get(str(pipeline.init)), (str(pipeline.init), data.hash, pipeline.kind)
        if adapters is not None and key not in self._chosen:
            self._chosen[key] = adapters.first(self.model, data, pipeline)
        return self._chosen.get(key)

    def score(self, data: DataSet, split: str, adapter: Adapter | None) -> tuple[float, float]:
        """Returns (exact match, loss per token) of an adapter, or of the bare model, on a part of a data set."""
        spec = AdapterSpec(() if adapter is None else adapter.spec.leaves)
        raw = {} if adapter is None else raw_start(adapter, spec, seed=0)
        exact, loss = self.trials(Recipe(spec)).score(stack([raw]), stack([self.arrays(data, split)]))
        return float(exact.mean()), float(loss[0])

    def _describe(self, data: DataSet) -> Facts:
        vocabulary = self.model.config.vocabulary
        adapter = generate(self.model, data.train)
        meta = data.text_features(vocabulary)
        for name, (exact, loss) in self._compare(data, "validation", adapter).items():
            meta[f"{name}_exact"], meta[f"{name}_loss"] = exact, loss
        if adapter is not None:  # one support's states, of the first examples
            shown, shots = readable(self.model, data.train), max(1, self.model.config.episodes.shots)
            support = self.model.episode(shown[:shots], [])["support_tokens"]
            # As often as there were supports for the adapter, so that the program is there already.
            supports = np.repeat(support[None], supports_for(len(shown), shots), axis=0)
            meta |= task_embedding(np.asarray(self.model.slot_states({"support_tokens": supports}))[0])
        return Facts(meta, adapter)

    def _compare(self, data: DataSet, split: str, adapter: Adapter | None) -> dict[str, tuple[float, float]]:
        """What `score` gives for the bare model and for the generated adapter, NaN where there is none.

        Both are runs of one program, in which the bare model has the adapter without effect.
        """
        if adapter is None:
            return {"bare": self.score(data, split, None), GENERATED: (math.nan, math.nan)}
        spec = adapter.spec
        kept = {leaf.path: np.ones(leaf.shape, np.float32) for leaf in spec.optional}
        written = {**trees.flatten(raw_start(adapter, spec, seed=0)), **kept}
        bare = {path: np.zeros_like(value) for path, value in written.items()}  # what changes nothing, prefixes masked
        both = stack([trees.unflatten(bare), trees.unflatten(written)])
        exact, loss = self.trials(Recipe(spec)).score(both, stack([self.arrays(data, split)] * 2))
        return {name: (float(exact[run].mean()), float(loss[run])) for run, name in enumerate(("bare", GENERATED))}


def raw_start(adapter: Adapter, spec: AdapterSpec, seed: int) -> PyTree:
    """Returns the raw tree of `spec` with the effect of an adapter; `seed` is of what is new in it."""
    return start_from(adapter.tree, adapter.spec, spec, jax.random.key(seed))


def stack(items: Sequence[PyTree]) -> PyTree:
    """Returns trees with a new first axis, one entry for each."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *items)
