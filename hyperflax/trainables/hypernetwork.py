"""A hypernetwork over a frozen T5: HyperT5 and HART (Phang et al. 2022; Liang et al. 2023)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax

from hyperflax import configs, trees
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.buckets import Location
from hyperflax.checkpoints.model_directory import (
    ModelParts,
    fetched_model,
    is_model_directory,
    load_model_directory,
)
from hyperflax.checkpoints.shapes import check_unseen, difference, leaf_problems, unseen
from hyperflax.data import vocabularies
from hyperflax.data.vocabularies import Vocabulary
from hyperflax.errors import CheckpointError, ConfigError
from hyperflax.hypermodel import Hypermodel, HypermodelConfig
from hyperflax.hypernets.hyper_t5 import initialise_from_t5
from hyperflax.models.session import cast_kernels, changes_parameters
from hyperflax.models.stacking import stack_layers, unstack_layers
from hyperflax.objectives.episode import HypermodelObjective
from hyperflax.trainables.protocol import Trained, abstract_t5, load_same
from hyperflax.training.base_model import read_base
from hyperflax.training.partitioning import Partitioner
from hyperflax.types import PyTree, T5Config


@dataclasses.dataclass(frozen=True)
class HypernetworkOf:
    """A hypernetwork that writes adapters for a frozen T5.

    Attributes:
      config: base model, adapters, hypernetwork, episodes and vocabulary.
      base_checkpoint: the frozen T5: a T5 directory, a model directory, a T5X checkpoint or a Hugging Face model. It is
        read once more when the model is exported. A run goes on, and is exported, with the base that it began with.
      start: the hypernetwork's own T5 starts as a copy of the base (`base`), at random (`random`), or from another T5
        or T5X checkpoint (its path), and the rest of it anew; the path of a model directory, such as hyperpretraining
        leaves, starts the whole hypernetwork from the one in it.
      fresh_heads: of the hypernetwork in the model directory `start` keep only the T5, which has learnt to read
        examples; slots and heads start anew, so they may be those of other adapters.
      name: of the exported model.
      z_loss, label_smoothing: of the token loss.
      distillation: weight of the divergence from the base model that reads the definition or the support; the
        training episodes need a `teacher`.
      consistency: weight of the distance between what is generated from several supports of a task; the training
        episodes need `supports` of at least 2.
      consistency_of: what is compared, slot `states` or `adapters`.
      reconstruction: weight of the distance from each task's own adapter; the batches are `WithTaskAdapters`, of
        adapters that `TaskAdapters` trained for the same base.
      scan_layers: the layers of both networks are loops while they are trained, so that they compile in a time that
        does not grow with their number. What is exported has its layers apart again.
    """

    config: HypermodelConfig
    base_checkpoint: str
    start: Literal["base", "random"] | str = "base"
    fresh_heads: bool = False
    name: str = "hypermodel"
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    distillation: float = 0.0
    consistency: float = 0.0
    consistency_of: Literal["states", "adapters"] = "states"
    reconstruction: float = 0.0
    scan_layers: bool = False

    @property
    def vocabulary(self) -> Vocabulary:
        return self.config.vocabulary

    @property
    def checkpoints(self) -> tuple[str, ...]:
        return (self.base_checkpoint, *(() if self.start in ("base", "random") else (self.start,)))

    @property
    def objective(self) -> HypermodelObjective:
        base, hypernetwork = self.config.build(scan_layers=self.scan_layers)
        return HypermodelObjective(
            base,
            hypernetwork,
            z_loss=self.z_loss,
            label_smoothing=self.label_smoothing,
            distillation=self.distillation,
            consistency=self.consistency,
            consistency_of=self.consistency_of,
            reconstruction=self.reconstruction,
        )

    @property
    def validation_objective(self) -> HypermodelObjective:
        return dataclasses.replace(self.objective, distillation=0.0, consistency=0.0, reconstruction=0.0)

    @property
    def meaning(self) -> dict[str, Any]:
        config = self.config
        return {
            **_meaning(config.hypernetwork_class, configs.to_json(config.hypernetwork), config.spec),
            "hypernetwork.t5": unseen(config.hypernetwork.t5),
            "base": unseen(config.base),
        }

    def read_frozen(self, partitioner: Partitioner) -> PyTree:
        config = self.config.base.replace(scan_layers=self.scan_layers)
        in_compute_dtype = self._read_in_compute_dtype
        return read_base(
            self.base_checkpoint, config, partitioner, vocabulary=self.vocabulary, compute_dtype=in_compute_dtype
        )

    @property
    def abstract_frozen(self) -> PyTree:
        config = self.config.base.replace(scan_layers=self.scan_layers)
        shapes = abstract_t5(config)
        if not self._read_in_compute_dtype:
            return shapes
        return jax.eval_shape(functools.partial(cast_kernels, config=config), shapes)

    @property
    def _read_in_compute_dtype(self) -> bool:
        """Not for adapters that are added to parameters before a layer casts the sum."""
        return not changes_parameters(leaf.path for leaf in self.config.spec.leaves)

    def initial_params(self, fresh: PyTree, partitioner: Partitioner) -> PyTree:
        trained = self.start not in ("base", "random") and is_model_directory(self.start)
        if self.fresh_heads and not trained:
            raise ConfigError(f"HypernetworkOf.fresh_heads: expected a model directory as start, got '{self.start}'")
        if self.start == "random":
            return fresh
        if trained and not self.fresh_heads:
            unrolled = jax.eval_shape(functools.partial(self._arranged, arrange=unstack_layers), fresh)
            return self._arranged(_trained_hypernetwork(self, unrolled), stack_layers)
        if trained:
            params = self._arranged(_read_hypernetwork(self.start, self.config).hypernetwork_params, stack_layers)
            if "t5" not in params:
                raise CheckpointError(
                    f"{self.start}: fresh_heads: expected a hypernetwork with a T5, which is what would be kept, got "
                    f"{sorted(params)}"
                )
            return initialise_from_t5(fresh, params["t5"])
        trunk = self.config.hypernetwork.t5
        if self.start == "base":
            check_unseen(self.config.base, trunk, where="HypernetworkOf.start, a copy of the base")
        path, shape = (self.base_checkpoint, self.config.base) if self.start == "base" else (self.start, trunk)
        shape = shape.replace(scan_layers=self.scan_layers)
        return initialise_from_t5(fresh, read_base(path, shape, partitioner, vocabulary=self.vocabulary))

    def _arranged(self, params: PyTree, arrange: Callable[[PyTree, T5Config], PyTree]) -> PyTree:
        """Returns a hypernetwork's parameters, those of its T5 stacked or unstacked where a run scans layers.

        A hypernetwork without a T5 has no layers.
        """
        if not self.scan_layers or "t5" not in params:
            return params
        return {**params, "t5": arrange(params["t5"], self.config.hypernetwork.t5)}

    def export(self, directory: Location, trained: Trained) -> None:
        params = self._arranged(trained.params, unstack_layers)
        base = load_same(self.base_checkpoint, self.config.base, self.vocabulary, trained.origin)
        told = {"results": trained.results, "provenance": trained.provenance, "created_with": "hyperflax train"}
        Hypermodel(self.config, base, params, name=self.name, **told).save(
            directory, dtype=trained.dtype, overwrite=True
        )


def _read_hypernetwork(directory: str, config: HypermodelConfig) -> ModelParts:
    """Returns the model in a model directory, for its hypernetwork.

    Raises:
      CheckpointError: it was trained with another vocabulary, or in a T5 that computes otherwise in a way that the
        shapes of parameters do not show.
    """
    with fetched_model(directory) as folder:
        parts = load_model_directory(folder)
        found = vocabularies.from_json(parts.vocabulary, folder)
    if found != config.vocabulary:
        raise CheckpointError(f"{directory}: vocabulary: expected {config.vocabulary!r}, found {found!r}")
    if (t5 := parts.hypernetwork_config.get("t5")) is not None:
        where = f"{directory}: hypernetwork.config.t5"
        check_unseen(configs.from_json(T5Config, t5, where), config.hypernetwork.t5, where=where)
    return parts


def _trained_hypernetwork(model: HypernetworkOf, fresh: PyTree) -> PyTree:
    """Returns the parameters of the hypernetwork in the model directory that `model` starts from.

    Raises:
      CheckpointError: as `_read_hypernetwork`; or they are not those of `fresh`, and every leaf is listed that is
        missing, too much or of another shape; or they mean something else there: in another hypernetwork, under other
        settings, or as adapters of other places or scales.
    """
    directory, parts = model.start, _read_hypernetwork(model.start, model.config)
    expected = {path: tuple(leaf.shape) for path, leaf in trees.flatten(fresh).items()}
    if problems := leaf_problems(parts.hypernetwork_params, expected):
        raise CheckpointError(f"{directory}: its hypernetwork is another than the one to start: " + "; ".join(problems))
    found = _meaning(parts.hypernetwork_class, parts.hypernetwork_config, parts.spec)
    if other := difference(found, model.meaning):
        name, theirs, ours = other
        raise CheckpointError(
            f"{directory}: {name}: expected {ours!r}, found {theirs!r}; the same parameters would mean something else"
        )
    return parts.hypernetwork_params


def _meaning(name: str, config: Mapping[str, Any], spec: AdapterSpec) -> dict[str, Any]:
    """Returns what decides how a hypernetwork's parameters are read, beside what its T5's shapes do not show."""
    settings = {f"hypernetwork.{field}": value for field, value in config.items() if field != "t5"}
    return {"hypernetwork.class": name, **settings, "scales": spec.scales}
