"""The task adapters' directory: one adapter of each training task, which `train.TaskAdapters` leaves behind.

    task_adapters.json          which base model, which tasks, how trained; the spec
    task_adapters.safetensors   the leaves [task, ...], named by their paths in the `adapters` collection

It is to an adapter directory what a batch is to an example, and checked as that is; see `artefacts`.

>>> save_task_adapters("runs/tasks/model", tree, spec, metadata)
>>> load_task_adapters("runs/tasks/model").metadata.tasks
('task022_cosmosqa_passage_inappropriate_binary', ...)
"""

from __future__ import annotations

import dataclasses
from typing import Any

from hyperflax import configs
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.buckets import Location
from hyperflax.checkpoints.artefacts import Fingerprint, check_fingerprint, checked_json, spec_from
from hyperflax.checkpoints.fingerprint import fingerprint
from hyperflax.checkpoints.tensors import StorageDtype, load_tree, rounded, save_tree
from hyperflax.errors import AdapterError, CheckpointError
from hyperflax.files import atomic_directory, fetched, read_schema, write_json
from hyperflax.types import PyTree
from hyperflax.versions import versions

FORMAT, VERSION = "hyperflax-task-adapters", 1
_JSON, _WEIGHTS = "task_adapters.json", "task_adapters.safetensors"


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


@dataclasses.dataclass(frozen=True)
class _File:
    """Schema 1 of task_adapters.json. `fingerprint` is that of the tree as it is loaded."""

    format: str
    schema_version: int
    tasks: tuple[str, ...]
    base_fingerprint: Fingerprint
    base_digest: str
    versions: dict[str, str]
    provenance: dict[str, Any]
    fingerprint: Fingerprint
    spec: dict[str, Any]


_METADATA = tuple(field.name for field in dataclasses.fields(TaskAdaptersMetadata))


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
    _check(adapters, spec, metadata.tasks, f"{directory}")
    document = {
        "format": FORMAT,
        "schema_version": VERSION,
        **configs.to_json(metadata),
        "fingerprint": fingerprint(rounded(adapters, dtype)),
        "spec": spec.to_json(),
    }
    checked_json(_File, document, f"{directory}: metadata")
    with atomic_directory(directory, overwrite=overwrite, owned=(_JSON, _WEIGHTS), marker=_JSON) as folder:
        save_tree(folder / _WEIGHTS, adapters, dtype=dtype)
        write_json(folder / _JSON, document)


def load_task_adapters(directory: Location | str) -> StoredTaskAdapters:
    """Reads what `save_task_adapters` wrote, here or in a bucket, as numpy arrays.

    Raises:
      CheckpointError: a file is missing, damaged, from elsewhere, or does not belong to the other; names file and key
        or leaf.
    """
    with fetched(directory) as folder:
        content = read_schema(folder / _JSON, _File, file_format=FORMAT, version=VERSION)
        spec = spec_from(content.spec, folder / _JSON)
        tree = load_tree(folder / _WEIGHTS)
    try:
        _check(tree, spec, content.tasks, f"{folder / _WEIGHTS}")
    except AdapterError as error:
        raise CheckpointError(f"{folder / _WEIGHTS}: does not fit the spec in {_JSON}: {error}") from error
    check_fingerprint(folder / _WEIGHTS, tree, content.fingerprint, _JSON)
    return StoredTaskAdapters(tree, spec, TaskAdaptersMetadata(**{name: getattr(content, name) for name in _METADATA}))


def _check(adapters: PyTree, spec: AdapterSpec, tasks: tuple[str, ...], where: str) -> None:
    """Raises AdapterError where the tree does not fit the spec, CheckpointError where rows and names do not agree."""
    spec.validate(adapters, batch_dims=1)
    rows = next(iter(spec.flatten(adapters).values())).shape[0]
    if rows != len(tasks) or len(set(tasks)) != len(tasks):
        raise CheckpointError(f"{where}: expected an adapter for each of {len(set(tasks))} tasks, got {rows}")
