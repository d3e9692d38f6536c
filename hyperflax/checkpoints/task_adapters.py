"""The task adapters' directory: one adapter of each training task, which `train.TaskAdapters` leaves behind.

    task_adapters.json          which base model, which tasks, how trained; the spec
    task_adapters.safetensors   the leaves [task, ...], named by their paths in the `adapters` collection

It is to an adapter directory what a batch is to an example, and checked as that is; see `documents`.

>>> save_task_adapters("runs/tasks/model", tree, spec, metadata)
>>> load_task_adapters("runs/tasks/model").metadata.tasks
('task022_cosmosqa_passage_inappropriate_binary', ...)
"""

from __future__ import annotations

import dataclasses
from typing import Any

from hyperflax.adapters.spec import AdapterSpec
from hyperflax.buckets import Location
from hyperflax.checkpoints.documents import AdapterForm, Fingerprint
from hyperflax.checkpoints.tensors import StorageDtype
from hyperflax.errors import AdapterError, CheckpointError
from hyperflax.types import PyTree
from hyperflax.versions import versions


@dataclasses.dataclass(frozen=True)
class TaskAdaptersMetadata:
    """Where task adapters come from.

    Attributes:
      tasks: names, one a row.
      base_fingerprint: of the base model that they belong to.
      base_digest: of the same, as a training run knows its base; see `training.base_model.digest`.
      versions: of the software that made them.
      provenance: anything else worth keeping, as json.
    """

    tasks: tuple[str, ...]
    base_fingerprint: Fingerprint
    base_digest: str
    versions: dict[str, str] = dataclasses.field(default_factory=versions)
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class StoredTaskAdapters:
    """The trees of all tasks, leaves [task, ...], the spec that each fits, and where they come from."""

    tree: PyTree
    spec: AdapterSpec
    metadata: TaskAdaptersMetadata


_FORM = AdapterForm("task_adapters", "hyperflax-task-adapters", 1, TaskAdaptersMetadata)


def save_task_adapters(
    directory: Location | str,
    adapters: PyTree,
    spec: AdapterSpec,
    metadata: TaskAdaptersMetadata,
    *,
    dtype: StorageDtype | None = None,
    overwrite: bool = False,
) -> None:
    """Writes the directory; an interruption leaves nothing that looks like one.

    Args:
      directory: where to. It must not exist, or be empty, unless `overwrite`.
      adapters: leaves [task, ...], as layers read them.
      spec: what each task's tree must fit.
      metadata: where they come from.
      dtype: "bfloat16" halves the file and rounds the values.
      overwrite: replace task adapters that are there; a directory that holds other files as well is left alone.

    Raises:
      AdapterError: the tree does not fit the spec.
      CheckpointError: the directory may not be replaced, or there are not as many rows as names.
    """
    _check(adapters, spec, metadata, directory)
    _FORM.write(directory, adapters, spec, metadata, dtype=dtype, overwrite=overwrite)


def load_task_adapters(directory: Location | str) -> StoredTaskAdapters:
    """Reads what `save_task_adapters` wrote, here or in a bucket, as numpy arrays.

    Raises:
      CheckpointError: a file is missing, damaged, from elsewhere, or does not belong to the other; names file and key
        or leaf.
    """
    return StoredTaskAdapters(*_FORM.read(directory, _check))


def _check(adapters: PyTree, spec: AdapterSpec, metadata: TaskAdaptersMetadata, where: Location | str) -> None:
    """Raises AdapterError where the tree does not fit the spec, CheckpointError where rows and names do not agree."""
    spec.validate(adapters, batch_dims=1)
    if not spec.leaves:
        raise AdapterError("the spec has no leaves")
    rows = next(iter(spec.flatten(adapters).values())).shape[0]
    names = set(metadata.tasks)
    if not rows == len(names) == len(metadata.tasks):
        raise CheckpointError(f"{where}: expected an adapter for each of {len(names)} tasks, got {rows}")
