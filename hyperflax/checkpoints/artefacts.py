"""The adapter directory: what `hyperflax adapt` leaves behind, and what `predict` takes.

    adapter.json          which base model, which hypermodel, which examples, how made; the spec
    adapter.safetensors   the leaves, named by their paths in the `adapters` collection

Reading one runs no code: json with a fixed schema, and safetensors. Both are checked against each other, so that a
directory put together from two others is refused. The model directory is in `model_directory.py`.

>>> save_adapter("dates", tree, spec, AdapterMetadata(base_fingerprint=fingerprint(base), refine_steps=10))
>>> adapter = load_adapter("dates")
>>> check_base(adapter, fingerprint(base))
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from typing import Annotated, Any

import msgspec

from hyperflax import configs
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.buckets import Location, locate
from hyperflax.checkpoints.fingerprint import PATTERN, fingerprint
from hyperflax.checkpoints.tensors import StorageDtype, load_tree, rounded, save_tree
from hyperflax.errors import AdapterError, CheckpointError, ConfigError
from hyperflax.files import atomic_directory, fetched, read_schema, write_json
from hyperflax.types import PyTree
from hyperflax.versions import versions

Fingerprint = Annotated[str, msgspec.Meta(pattern=PATTERN)]
Count = Annotated[int, msgspec.Meta(ge=0)]

ADAPTER_FORMAT = "hyperflax-adapter"
ADAPTER_VERSION = 1
_JSON, _WEIGHTS = "adapter.json", "adapter.safetensors"
ADAPTER_FILES = (_JSON, _WEIGHTS)


@dataclasses.dataclass(frozen=True)
class AdapterMetadata:
    """Where an adapter comes from.

    Attributes:
      base_fingerprint: of the base model that it belongs to; None if that is unknown (an import from elsewhere).
      hypermodel: `ModelParts.id` of the hypermodel that generated it; None for an adapter from elsewhere.
      support_hash: of the examples that it was made from, see `support_hash`; None if there were none.
      refine_steps: gradient steps on those examples after it was generated.
      created_with: the command.
      versions: of the software that made it.
      provenance: anything else worth keeping, as json.
    """

    base_fingerprint: Fingerprint | None
    hypermodel: str | None = None
    support_hash: Fingerprint | None = None
    refine_steps: Count = 0
    created_with: str = ""
    versions: dict[str, str] = dataclasses.field(default_factory=versions)
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter for one task: the tree that layers read, the spec that it fits, and where it comes from."""

    tree: PyTree
    spec: AdapterSpec
    metadata: AdapterMetadata


@dataclasses.dataclass(frozen=True)
class _AdapterFile:
    """Schema 1 of adapter.json. `fingerprint` is the adapter's own, of the tree as it is loaded."""

    format: str
    schema_version: int
    base_fingerprint: Fingerprint | None
    hypermodel: str | None
    support_hash: Fingerprint | None
    refine_steps: Count
    created_with: str
    versions: dict[str, str]
    provenance: dict[str, Any]
    fingerprint: Fingerprint
    spec: dict[str, Any]


_METADATA = tuple(field.name for field in dataclasses.fields(AdapterMetadata))


def save_adapter(
    directory: Location | str,
    adapters: PyTree,
    spec: AdapterSpec,
    metadata: AdapterMetadata,
    *,
    dtype: StorageDtype | None = None,
    overwrite: bool = False,
    beside_others: bool = False,
) -> None:
    """Writes an adapter directory; an interruption leaves nothing that looks like one.

    Args:
      directory: where to. It must not exist, or be empty, unless `overwrite` or `beside_others`.
      adapters: the tree that layers read, for one task, unrolled layers.
      spec: what the tree must fit.
      metadata: where it comes from.
      dtype: "bfloat16" halves the file and rounds the values.
      overwrite: replace an adapter directory that is there; one that holds other files as well is left alone.
      beside_others: write into a directory that is there and keep its other files: the folder of a run. Interrupted
        between the two files it leaves an adapter that `load_adapter` refuses.

    Raises:
      AdapterError: the tree does not fit the spec.
      CheckpointError: the directory may not be replaced, or the metadata are not what the schema asks for.
    """
    spec.validate(adapters)
    try:
        origin = configs.to_json(metadata)
    except TypeError as error:
        raise CheckpointError(f"{directory}: metadata: {error}") from error
    document = {
        "format": ADAPTER_FORMAT,
        "schema_version": ADAPTER_VERSION,
        **origin,
        "fingerprint": fingerprint(rounded(adapters, dtype)),
        "spec": spec.to_json(),
    }
    checked_json(_AdapterFile, document, f"{directory}: metadata")
    whole = atomic_directory(directory, overwrite=overwrite, owned=ADAPTER_FILES, marker=_JSON)
    with contextlib.nullcontext(locate(directory)) if beside_others else whole as folder:
        save_tree(folder / _WEIGHTS, adapters, dtype=dtype)
        write_json(folder / _JSON, document)


def load_adapter(directory: Location | str) -> Adapter:
    """Reads what `save_adapter` wrote, here or in a bucket.

    Returns:
      The adapter, its tree nested dicts of numpy arrays.

    Raises:
      CheckpointError: a file is missing, damaged, from elsewhere, or does not belong to the other; names file and
        key or leaf.
    """
    with fetched(directory) as folder:
        content = read_schema(folder / _JSON, _AdapterFile, file_format=ADAPTER_FORMAT, version=ADAPTER_VERSION)
        spec = spec_from(content.spec, folder / _JSON)
        tree = load_tree(folder / _WEIGHTS)
    try:
        spec.validate(tree)
    except AdapterError as error:
        raise CheckpointError(f"{folder / _WEIGHTS}: does not fit the spec in {_JSON}: {error}") from error
    check_fingerprint(folder / _WEIGHTS, tree, content.fingerprint, _JSON)
    return Adapter(tree, spec, AdapterMetadata(**{name: getattr(content, name) for name in _METADATA}))


def check_base(adapter: Adapter, base_fingerprint: str, *, allow_unknown: bool = False) -> None:
    """Returns nothing if the adapter was made for the base model with this fingerprint.

    Args:
      adapter: as loaded.
      base_fingerprint: of the model that it is about to be used with.
      allow_unknown: accept an adapter that names no base model.

    Raises:
      AdapterError: it was made for another base model, or for an unknown one; names both fingerprints.
    """
    made_for = adapter.metadata.base_fingerprint
    if made_for == base_fingerprint or (made_for is None and allow_unknown):
        return
    told = f"was made for the base model {made_for}" if made_for else "does not say which base model it was made for"
    raise AdapterError(f"the adapter {told}; this base model is {base_fingerprint}")


# Shared with model_directory.py.


def checked_json(schema: type, document: Any, where: str) -> None:
    """Raises CheckpointError unless `document` obeys the schema, so that nothing is written that cannot be read."""
    try:
        configs.from_json(schema, document, where)
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def spec_from(data: dict[str, Any], file: pathlib.Path) -> AdapterSpec:
    """The spec in a json file; CheckpointError naming the file and the entry if it is none."""
    try:
        return AdapterSpec.from_json(data)
    except (AdapterError, ConfigError) as error:
        raise CheckpointError(f"{file}: key 'spec': {error}") from error


def check_fingerprint(file: pathlib.Path, tree: PyTree, expected: str, document: str) -> None:
    """Raises CheckpointError naming both fingerprints if `tree` is not the one that `document` was written with."""
    found = fingerprint(tree)
    if found != expected:
        raise CheckpointError(
            f"{file}: holds other values than {document} was written with: expected {expected}, found {found}"
        )
