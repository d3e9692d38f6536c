"""Training jobs: `python -m hyperflax.train --gin_file=F --gin.MODEL_DIR="'runs/x'"`, as T5X users type it.

A run file binds the arguments of `train`. What is trained is one of four: `PlainT5`, a T5 that learns from (inputs,
targets) pairs; `HypernetworkOf`, a hypernetwork that learns to write adapters for a frozen T5; `SharedAdapter`, one
adapter for all tasks; `TaskAdapters`, one for each. All go through the same loop and leave a directory
`MODEL_DIR/model` that the next job, `hyperflax.load` or `hyperflax adapt` takes. On several hosts MODEL_DIR lies on a
disk that they share, or in a bucket.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from hyperflax import trees
from hyperflax.adapters.kinds import check_base as check_spec
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.buckets import Location, locate
from hyperflax.checkpoints.artefacts import AdapterMetadata, save_adapter
from hyperflax.checkpoints.fingerprint import fingerprint
from hyperflax.checkpoints.forms import load_base, read_provenance
from hyperflax.checkpoints.model_directory import is_model_directory, load_model_directory
from hyperflax.checkpoints.shapes import leaf_problems
from hyperflax.checkpoints.t5_directory import save_t5
from hyperflax.checkpoints.task_adapters import TaskAdaptersMetadata, save_task_adapters
from hyperflax.checkpoints.tensors import StorageDtype
from hyperflax.data import vocabularies
from hyperflax.data.examples import ExampleSource, parts_of, sources_of
from hyperflax.data.vocabularies import Vocabulary
from hyperflax.errors import CheckpointError, ConfigError
from hyperflax.evaluation.contamination import name_digests, task_names
from hyperflax.files import fetched
from hyperflax.hypermodel import TRAINING_TASKS, Hypermodel, HypermodelConfig
from hyperflax.hypernets.hyper_t5 import initialise_from_t5
from hyperflax.hypernets.table import Table
from hyperflax.models.neighbour_heads import start_neighbour_heads
from hyperflax.models.session import cast_kernels, changes_parameters
from hyperflax.models.stacking import stack_layers, unstack_layers
from hyperflax.models.t5 import T5
from hyperflax.objectives.episode import HypermodelObjective
from hyperflax.objectives.language_model import T5Objective
from hyperflax.objectives.protocol import Objective
from hyperflax.processes import Processes
from hyperflax.training import loop
from hyperflax.training.base_model import Origin, digest, read_base
from hyperflax.training.evaluate import loss_evaluator
from hyperflax.training.optimizers import Transformation
from hyperflax.training.partitioning import Partitioner
from hyperflax.training.prefetch import Batches
from hyperflax.training.run_log import METRICS_FILE, read_rows
from hyperflax.training.task_adapters import WithTaskAdapters
from hyperflax.types import PyTree, T5Config

EXPORT = "model"
RECORDED_TASKS = 4096  # most training tasks whose names are recorded in the model directory, as hashes


class Trainable(Protocol):
    """What `train` needs to know of a model."""

    @property
    def objective(self) -> Objective: ...

    @property
    def vocabulary(self) -> Vocabulary:
        """Returns the vocabulary that its batches are in."""
        ...

    @property
    def base_checkpoint(self) -> str | None:
        """Where the frozen parameters are read from; None if there are none."""
        ...

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Returns the checkpoints that any of its parameters come from, frozen or trained."""
        ...

    @property
    def validation_objective(self) -> Objective:
        """What validation measures: the token loss alone, whatever else training adds to it."""
        ...

    def read_frozen(self, partitioner: Partitioner) -> PyTree:
        """Returns what the objective only reads, see `read_base`."""
        ...

    @property
    def abstract_frozen(self) -> PyTree:
        """Returns the shapes of that, without reading it."""
        ...

    def initial_params(self, fresh: PyTree, partitioner: Partitioner) -> PyTree:
        """Returns where to start from, given freshly initialised parameters."""
        ...

    def export(
        self,
        directory: Location,
        params: PyTree,
        results: dict[str, Any],
        provenance: dict[str, Any],
        dtype: StorageDtype | None,
        origin: Origin | None,
    ) -> None:
        """Writes what users load. Raises CheckpointError if a frozen base is not the one of `origin` any more."""
        ...


@dataclasses.dataclass(frozen=True)
class PlainT5:
    """A T5 whose own parameters are trained: pretraining, fine-tuning, multi-task reference systems.

    Attributes:
      config, vocabulary: of the model.
      initial_checkpoint: T5 directory, model directory or T5X checkpoint to start from; None starts from scratch.
      neighbour_heads: from scratch, how strongly two heads of each stack look next door at first, in nats; see
        `start_neighbour_heads`.
      z_loss, label_smoothing: of the token loss.
    """

    config: T5Config
    vocabulary: Vocabulary
    initial_checkpoint: str | None = None
    neighbour_heads: float = 0.0
    z_loss: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        vocabularies.check_room("PlainT5.config", self.config.vocab_size, self.vocabulary)
        if self.neighbour_heads and self.initial_checkpoint:
            raise ConfigError("PlainT5.neighbour_heads: expected 0 beside an initial_checkpoint, which has its own")
        if self.config.scan_layers:
            raise ConfigError("PlainT5.config: expected unrolled layers, got scan_layers=True")

    @property
    def objective(self) -> T5Objective:
        return T5Objective(T5(self.config), z_loss=self.z_loss, label_smoothing=self.label_smoothing)

    @property
    def base_checkpoint(self) -> None:
        return None

    @property
    def checkpoints(self) -> tuple[str, ...]:
        return (self.initial_checkpoint,) if self.initial_checkpoint else ()

    @property
    def validation_objective(self) -> T5Objective:
        return self.objective

    def read_frozen(self, partitioner: Partitioner) -> None:
        return None

    @property
    def abstract_frozen(self) -> None:
        return None

    def initial_params(self, fresh: PyTree, partitioner: Partitioner) -> PyTree:
        if self.initial_checkpoint:
            return read_base(self.initial_checkpoint, self.config, partitioner, vocabulary=self.vocabulary)
        return start_neighbour_heads(fresh, self.config, self.neighbour_heads) if self.neighbour_heads else fresh

    def export(
        self,
        directory: Location,
        params: PyTree,
        results: dict[str, Any],
        provenance: dict[str, Any],
        dtype: StorageDtype | None,
        origin: Origin | None,
    ) -> None:
        del origin  # there is no base
        told = {"results": results, "provenance": provenance}
        save_t5(directory, params, self.config, self.vocabulary, **told, dtype=dtype, overwrite=True)


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

    def read_frozen(self, partitioner: Partitioner) -> PyTree:
        config = self.config.base.replace(scan_layers=self.scan_layers)
        in_compute_dtype = self._read_in_compute_dtype
        return read_base(
            self.base_checkpoint, config, partitioner, vocabulary=self.vocabulary, compute_dtype=in_compute_dtype
        )

    @property
    def abstract_frozen(self) -> PyTree:
        config = self.config.base.replace(scan_layers=self.scan_layers)
        shapes = _abstract_t5(config)
        if not self._read_in_compute_dtype:
            return shapes
        return jax.eval_shape(functools.partial(cast_kernels, config=config), shapes)

    @property
    def _read_in_compute_dtype(self) -> bool:
        """Not for adapters that are added to parameters before a layer casts the sum."""
        return not changes_parameters(leaf.path for leaf in self.config.spec.leaves)

    def initial_params(self, fresh: PyTree, partitioner: Partitioner) -> PyTree:
        if self.start == "random":
            return fresh
        trunk = self.config.hypernetwork.t5
        trained = self.start != "base" and is_model_directory(self.start)
        if self.fresh_heads and not trained:
            raise ConfigError(f"HypernetworkOf.fresh_heads: expected a model directory as start, got '{self.start}'")
        if trained and not self.fresh_heads:
            flat = {**fresh, "t5": unstack_layers(fresh["t5"], trunk)} if self.scan_layers else fresh
            params = _trained_hypernetwork(self.start, flat, self.vocabulary)
            return {**params, "t5": stack_layers(params["t5"], trunk)} if self.scan_layers else params
        if trained:
            t5 = _hypernetwork_params(self.start, self.vocabulary)["t5"]
            return initialise_from_t5(fresh, stack_layers(t5, trunk) if self.scan_layers else t5)
        path, shape = (self.base_checkpoint, self.config.base) if self.start == "base" else (self.start, trunk)
        shape = shape.replace(scan_layers=self.scan_layers)
        return initialise_from_t5(fresh, read_base(path, shape, partitioner, vocabulary=self.vocabulary))

    def export(
        self,
        directory: Location,
        params: PyTree,
        results: dict[str, Any],
        provenance: dict[str, Any],
        dtype: StorageDtype | None,
        origin: Origin | None,
    ) -> None:
        if self.scan_layers:
            params = {**params, "t5": unstack_layers(params["t5"], self.config.hypernetwork.t5)}
        base = _load_same(self.base_checkpoint, self.config.base, self.vocabulary, origin)
        model = Hypermodel(self.config, base, params, name=self.name, results=results, provenance=provenance)
        model.save(directory, dtype=dtype, overwrite=True)


@dataclasses.dataclass(frozen=True)
class _AdaptersOf:
    """Adapters for a frozen T5 that are trained as they are: no hypernetwork writes them.

    Attributes:
      base: shape of the frozen T5.
      spec: what is trained for it.
      vocabulary: of the frozen T5.
      base_checkpoint: the frozen T5, see `HypernetworkOf`. Adapters fit this base alone, so to be compared with a
        hypermodel that was exported in bfloat16, they are trained on the base in that model directory.
      z_loss, label_smoothing: of the token loss.
    """

    base: T5Config
    spec: AdapterSpec
    vocabulary: Vocabulary
    base_checkpoint: str
    z_loss: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_spec(self.spec, self.base)
        vocabularies.check_room(f"{type(self).__name__}.base", self.base.vocab_size, self.vocabulary)

    @property
    def table(self) -> Table:
        raise NotImplementedError

    @property
    def checkpoints(self) -> tuple[str, ...]:
        return (self.base_checkpoint,)

    @property
    def objective(self) -> HypermodelObjective:
        return HypermodelObjective(T5(self.base), self.table, z_loss=self.z_loss, label_smoothing=self.label_smoothing)

    @property
    def validation_objective(self) -> HypermodelObjective:
        return self.objective

    def read_frozen(self, partitioner: Partitioner) -> PyTree:
        return read_base(self.base_checkpoint, self.base, partitioner, vocabulary=self.vocabulary)

    @property
    def abstract_frozen(self) -> PyTree:
        return _abstract_t5(self.base)

    def initial_params(self, fresh: PyTree, partitioner: Partitioner) -> PyTree:
        return fresh


@dataclasses.dataclass(frozen=True)
class SharedAdapter(_AdaptersOf):
    """One adapter for a frozen T5, trained on the examples of all tasks: the baseline that reads no support.

    What is exported is an adapter directory, for `hyperflax evaluate --shared` and `hyperflax predict --adapter`.
    Attributes as of `_AdaptersOf`.
    """

    @property
    def table(self) -> Table:
        return Table(self.spec, shared=True)

    def export(
        self,
        directory: Location,
        params: PyTree,
        results: dict[str, Any],
        provenance: dict[str, Any],
        dtype: StorageDtype | None,
        origin: Origin | None,
    ) -> None:
        adapters = self.table.apply({"params": params}, {})
        provenance = {**provenance, "results": results}
        base = fingerprint(_load_same(self.base_checkpoint, self.base, self.vocabulary, origin))
        metadata = AdapterMetadata(base_fingerprint=base, provenance=provenance)
        save_adapter(directory, adapters, self.spec, metadata, dtype=dtype, overwrite=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskAdapters(_AdaptersOf):
    """An adapter for each training task, all trained in one run: what `HypernetworkOf.reconstruction` comes near to.

    What is exported is a directory of task adapters, see `checkpoints.task_adapters`. An adapter has a gradient where
    its task is drawn: with 800 tasks and batches of eight, in one step of a hundred; an optimizer with momentum would
    move it in the others as well (`runs/natural_instructions_task_adapters.gin` has none). All start from the same
    draw, so that what tells two of them apart is what their tasks taught them.

    Attributes:
      source: whose tasks; the batches are episodes of it.
      base, spec, vocabulary, base_checkpoint, z_loss, label_smoothing: as of `SharedAdapter`.
    """

    source: ExampleSource

    @property
    def table(self) -> Table:
        return Table(self.spec, num_tasks=len(self.source.task_names))

    def initial_params(self, fresh: PyTree, partitioner: Partitioner) -> PyTree:
        def alike(rows: Any) -> Any:
            # Placed as it was: every device makes its own rows.
            place = rows.sharding if isinstance(rows, jax.Array) else None
            return jax.jit(lambda x: jnp.broadcast_to(x[:1], x.shape), out_shardings=place)(rows)

        return jax.tree.map(alike, fresh)

    def export(
        self,
        directory: Location,
        params: PyTree,
        results: dict[str, Any],
        provenance: dict[str, Any],
        dtype: StorageDtype | None,
        origin: Origin | None,
    ) -> None:
        scales = {leaf.path: np.float32(leaf.scale) for leaf in self.spec.leaves}
        raw = {path.replace(".", "/"): np.asarray(rows) for path, rows in params.items()}
        adapters = trees.unflatten({path: rows * scales[path] for path, rows in raw.items()})
        base = _load_same(self.base_checkpoint, self.base, self.vocabulary, origin)
        metadata = TaskAdaptersMetadata(
            tasks=tuple(self.source.task_names),
            base_fingerprint=fingerprint(base),
            base_digest=digest(base),
            provenance={**provenance, "results": results},
        )
        save_task_adapters(directory, adapters, self.spec, metadata, dtype=dtype, overwrite=True)


def _load_same(path: str, config: T5Config, vocabulary: Vocabulary, origin: Origin | None) -> PyTree:
    """Returns a base as `load_base` does. Raises CheckpointError if it is another one than that of `origin`."""
    base = load_base(path, config, vocabulary)
    if origin is not None:
        origin.check(path, path, digest(base))
    return base


def _abstract_t5(config: T5Config) -> PyTree:
    """Returns the shapes of a T5's parameters."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(T5(config).init, jax.random.key(0), tokens, tokens)["params"]


def _hypernetwork_params(directory: str, vocabulary: Vocabulary) -> PyTree:
    with fetched(directory) as folder:
        parts = load_model_directory(folder)
        if (found := vocabularies.from_json(parts.vocabulary, folder)) != vocabulary:
            raise CheckpointError(f"{directory}: vocabulary: expected {vocabulary!r}, found {found!r}")
        return parts.hypernetwork_params


def _provenance(model: Trainable, batches: Any) -> dict[str, Any]:
    """Returns the record of the tasks that anything in the model was trained on, as far as they are known.

    What the start or the base was trained on counts too: a second stage does not hide the tasks of the first.
    """
    # A generated family has tens of thousands of tasks, and no benchmark with which it could be confused.
    names = task_names(batches)
    tasks = set(name_digests(names)) if len(names) <= RECORDED_TASKS else set()
    tasks |= {name for path in model.checkpoints for name in read_provenance(path).get(TRAINING_TASKS, ())}
    return {TRAINING_TASKS: sorted(tasks)} if tasks else {}


def _trained_hypernetwork(directory: str, fresh: PyTree, vocabulary: Vocabulary) -> PyTree:
    """Returns the parameters of the hypernetwork in a model directory.

    Raises:
      CheckpointError: they are not those of `fresh`; lists every leaf that is missing, too much or of another shape.
        Or they were trained with another vocabulary.
    """
    params = _hypernetwork_params(directory, vocabulary)
    expected = {path: tuple(leaf.shape) for path, leaf in trees.flatten(fresh).items()}
    if problems := leaf_problems(params, expected):
        raise CheckpointError(f"{directory}: its hypernetwork is another than the one to start: " + "; ".join(problems))
    return params


def train(
    *,
    model: Trainable,
    batches: Batches,
    optimizer: Transformation,
    total_steps: int,
    model_dir: str,
    validation: Batches | None = None,
    validation_batches: int = 8,
    eval_period: int = 0,
    export_dtype: StorageDtype | None = None,
    partitioner: Partitioner | None = None,
    **options: Any,
) -> Location:
    """Runs a training job and exports the result; a job whose `model_dir` has a checkpoint goes on from there.

    Args:
      model: `PlainT5`, `HypernetworkOf`, `SharedAdapter` or `TaskAdapters`.
      batches: of training data, `.batch(step)`.
      optimizer: see `make_optimizer`.
      total_steps: length of the whole run.
      model_dir: the run's folder, or its address in a bucket.
      validation: batches for the validation loss; the first `validation_batches` of them, every `eval_period` steps
        and at the end.
      export_dtype: `bfloat16` halves the exported model.
      partitioner: where arrays live; all devices as data shards by default.
      options: further arguments of `hyperflax.training.loop.train`.

    Returns:
      the exported directory; its results are the steps and the figures of the run's last validation. A run that was
      stopped before its last step (`max_seconds`) is exported as it is.

    Raises:
      CheckpointError: the run in `model_dir` began with another base, or what the base was read from has changed since;
        that run is saved, and exported once the base is there again.
      ConfigError: an unknown option, or batches in another vocabulary than the model's.
      HyperflaxError: as `hyperflax.training.loop.train`.
    """
    if not model_dir:
        raise ConfigError("train.model_dir: expected a folder, got an empty string")
    known = inspect.signature(loop.train).parameters
    if unknown := sorted(set(options) - set(known)):
        raise ConfigError(f"train.{unknown[0]}: expected one of {', '.join(sorted(known))}, got another name")
    for name, given in (("batches", batches), ("validation", validation)):
        for source in sources_of(given):
            if source.vocabulary != model.vocabulary:
                raise ConfigError(
                    f"train.{name}: expected tokens of the model's {model.vocabulary!r}, got {source.vocabulary!r}"
                )
            if isinstance(model, TaskAdapters) and source.task_names != model.source.task_names:
                raise ConfigError(
                    f"train.{name}: expected episodes of TaskAdapters.source, '{model.source.task_names[0]}' ..., got "
                    f"those of '{source.task_names[0]}' ..."
                )
    partitioner = partitioner or Partitioner()
    evaluator = None
    if validation is not None:
        evaluator = loss_evaluator(model.validation_objective, validation, validation_batches)
    path, frozen = model.base_checkpoint, model.read_frozen(partitioner)
    origin = None if path is None else Origin(path, digest(frozen))
    for wanted in parts_of(batches, WithTaskAdapters):
        made_for = wanted.stored.metadata.base_digest
        if origin is not None and made_for != origin.digest:
            raise CheckpointError(
                f"{wanted.directory}: expected task adapters of the base model {origin.digest} in {path}, got those "
                f"of {made_for}"
            )
    state = loop.train(
        objective=model.objective,
        optimizer=optimizer,
        batches=batches,
        model_dir=model_dir,
        total_steps=total_steps,
        frozen=frozen,
        origin=origin,
        initial_params=functools.partial(model.initial_params, partitioner=partitioner),
        evaluator=evaluator,
        eval_period=eval_period,
        partitioner=partitioner,
        **options,
    )
    del frozen  # exporting reads it again, from where it is stored
    directory = locate(model_dir) / EXPORT
    params = _on_host(state.params)
    processes = Processes.running()
    if processes.first:
        results = {"steps": int(state.step), **_last_validation(model_dir)}
        model.export(directory, params, results, _provenance(model, batches), export_dtype, origin)
    processes.wait("exported")
    return directory


def _last_validation(model_dir: str) -> dict[str, float]:
    """Returns the figures of a run's last validation as `validation/*`, {} where there was none.

    They come from its log: a job that is started again when its last step is done validates nothing.
    """
    rows = [row for row in read_rows(locate(model_dir) / METRICS_FILE) if row["kind"] == "eval"]
    known = ("step", "kind", "seconds")
    return {f"validation/{name}": value for name, value in rows[-1].items() if name not in known} if rows else {}


def _on_host(params: PyTree) -> PyTree:
    """Returns the parameters as numpy arrays; what lies in pieces on several hosts comes together."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, jax.device_get(params))
    return multihost_utils.process_allgather(params, tiled=True)


if __name__ == "__main__":
    from hyperflax.cli.gin_main import main

    sys.exit(main("hyperflax.train.train", sys.argv[1:]))
