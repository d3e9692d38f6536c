"""Training jobs: `python -m hyperflax.train --gin_file=F --gin.MODEL_DIR="'runs/x'"`, as T5X users type it.

A run file binds the arguments of `train`. What is trained is one of four: `PlainT5`, a T5 that learns from (inputs,
targets) pairs; `HypernetworkOf`, a hypernetwork that learns to write adapters for a frozen T5; `SharedAdapter`, one
adapter for all tasks; `TaskAdapters`, one for each. All go through the same loop and leave a directory
`MODEL_DIR/model` that the next job, `hyperflax.load` or `hyperflax adapt` takes. On several hosts MODEL_DIR lies on a
disk that they share, or in a bucket.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from hyperflax.buckets import Location, locate
from hyperflax.checkpoints.forms import read_provenance
from hyperflax.checkpoints.tensors import StorageDtype
from hyperflax.configs import whole_number
from hyperflax.data.batches import Batches
from hyperflax.data.examples import parts_of, sources_of, untold
from hyperflax.errors import CheckpointError, ConfigError
from hyperflax.evaluation.contamination import record
from hyperflax.files import remove_left
from hyperflax.locks import alone_in
from hyperflax.objectives.normalisation import REAL_TOKENS
from hyperflax.processes import Processes
from hyperflax.trainables import HypernetworkOf, PlainT5, SharedAdapter, TaskAdapters, Trainable, Trained
from hyperflax.training import loop
from hyperflax.training.base_model import Origin, digest
from hyperflax.training.evaluate import loss_evaluator
from hyperflax.training.optimizers import Transformation
from hyperflax.training.partitioning import Partitioner
from hyperflax.training.run_log import METRICS_FILE, read_rows
from hyperflax.training.task_adapters import WithTaskAdapters
from hyperflax.types import PyTree

# Run files name what is trained beside the job: `@train.PlainT5()`.
__all__ = ["HypernetworkOf", "PlainT5", "SharedAdapter", "TaskAdapters", "Trainable", "train"]

_LOG = logging.getLogger("hyperflax")
EXPORT = "model"
# Arguments of `loop.train` that follow from the model and its validation batches.
OWN = frozenset({"objective", "frozen", "origin", "meaning", "provenance", "initial_params", "evaluator"})


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
      batches: of training data, see `Batches`; of those that tell no source a warning is logged.
      optimizer: see `make_optimizer`.
      total_steps: length of the whole run.
      model_dir: the run's folder, or its address in a bucket.
      validation: batches for the validation loss; the first `validation_batches` of them, every `eval_period` steps
        and at the end.
      export_dtype: `bfloat16` halves the exported model.
      partitioner: where arrays live; all devices as data shards by default.
      options: further arguments of `hyperflax.training.loop.train`, but those of `OWN`.

    Returns:
      the exported directory; its results are the steps and the figures of the run's last validation. A run that was
      stopped before its last step (`max_seconds`) is exported as it is.

    Raises:
      CheckpointError: the run in `model_dir` began as another model or with another base, or what its base is read from
        has changed since; that run is saved, and exported once the base is there again.
      ConfigError: an unknown option, a `model_dir` that is no path, batches in another vocabulary than the model's, or
        none to validate on.
      HyperflaxError: as `hyperflax.training.loop.train`.
    """
    if model_dir == "":
        raise ConfigError("train.model_dir: expected a folder, got an empty string")
    locate(model_dir)  # refuses what is no place
    known = set(inspect.signature(loop.train).parameters) - OWN
    if unknown := sorted(set(options) - known):
        names = sorted((known | set(inspect.signature(train).parameters)) - {"options"})
        raise ConfigError(f"train.{unknown[0]}: expected one of {', '.join(names)}, got another name")
    if not isinstance(optimizer, Transformation):
        raise ConfigError(f"train.optimizer: expected an optimizer, such as @make_optimizer(), got {optimizer!r:.80}")
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
    processes, silent = Processes.running(), untold(batches)
    unrecorded = [getattr(part, "__name__", type(part).__name__) for part in silent]
    if silent:
        # A function that pairs are drawn from has no source to tell.
        meant = all(not hasattr(part, "batch") for part in silent)
        _LOG.log(
            logging.INFO if meant or not processes.first else logging.WARNING,
            "train.batches: no `source` (see `Batches`) in %s: vocabulary and tasks are not compared with the model's, "
            "and no evaluation of the model will know all that it was trained on",
            ", ".join(unrecorded),
        )
    partitioner = partitioner or Partitioner()
    evaluator = None
    if validation is not None:
        whole_number("train.validation_batches", validation_batches)
        factor = options.get("loss_normalizing_factor", REAL_TOKENS)
        evaluator = loss_evaluator(
            model.validation_objective, validation, validation_batches, loss_normalizing_factor=factor
        )
    path, frozen = model.base_checkpoint, model.read_frozen(partitioner)
    origin = None if path is None else Origin(path, digest(frozen))
    for wanted in parts_of(batches, WithTaskAdapters):
        made_for = wanted.stored.metadata.base_digest
        if origin is not None and made_for != origin.digest:
            raise CheckpointError(
                f"{wanted.directory}: expected task adapters of the base model {origin.digest} in {path}, got those "
                f"of {made_for}"
            )
    vocabulary = {name: value for name, value in model.vocabulary.to_json().items() if name != "file"}
    earlier, provenance = [read_provenance(path) for path in model.checkpoints], dict[str, Any]()

    def learnt_from(before: Mapping[str, Any]) -> Mapping[str, Any]:
        """Of a run that goes on with other data, too: what it learnt from before stays known."""
        provenance.update(record(sources_of(batches), [*earlier, before], unrecorded))
        return provenance

    with alone_in(model_dir):  # until it is exported
        state = loop.train(
            objective=model.objective,
            optimizer=optimizer,
            batches=batches,
            model_dir=model_dir,
            total_steps=total_steps,
            frozen=frozen,
            origin=origin,
            meaning={**model.meaning, "vocabulary": vocabulary},
            provenance=learnt_from,
            initial_params=functools.partial(model.initial_params, partitioner=partitioner),
            evaluator=evaluator,
            eval_period=eval_period,
            partitioner=partitioner,
            **options,
        )
        del frozen  # exporting reads it again, from where it is stored
        directory = locate(model_dir) / EXPORT
        params = _on_host(state.params)
        if processes.first:
            results = {"steps": int(state.step), **_last_validation(model_dir)}
            remove_left(directory, "tmp")  # by kills while exporting
            model.export(directory, Trained(params, results, provenance, export_dtype, origin))
            remove_left(directory, "old")  # which may have been the only one
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
