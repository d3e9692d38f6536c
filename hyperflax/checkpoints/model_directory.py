"""The model directory: a hypermodel whole, the frozen base model and the hypernetwork, ready to adapt and predict.

    hypermodel.json            T5 configuration, hypernetwork's class and configuration, adapter spec, vocabulary,
                               episode layout, results, provenance, versions, fingerprints
    base.safetensors           the base model's parameters
    hypernetwork.safetensors   the hypernetwork's
    spiece.model               or whatever files the vocabulary needs

It is plain data: classes are named, not pickled, and turned into objects by `hyperflax.load`. Stored as bfloat16, a
model takes half the space; what is loaded then is the rounded values in float32, with the fingerprint of those.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import msgspec

from hyperflax.adapters.spec import AdapterSpec
from hyperflax.buckets import Location, fetched, locate
from hyperflax.checkpoints.documents import Fingerprint, check_fingerprint, checked, spec_from
from hyperflax.checkpoints.fingerprint import PREFIX, fingerprint
from hyperflax.checkpoints.shapes import check_shapes
from hyperflax.checkpoints.tensors import StorageDtype, load_tree, rounded, save_tree
from hyperflax.errors import CheckpointError
from hyperflax.files import atomic_directory, read_bytes
from hyperflax.json_files import read_schema, write_json
from hyperflax.types import PyTree, T5Config
from hyperflax.versions import versions

MODEL_FORMAT = "hyperflax-hypermodel"
MODEL_VERSION = 1
_JSON, _BASE, _HYPERNETWORK = "hypermodel.json", "base.safetensors", "hypernetwork.safetensors"
_OWN = (_JSON, _BASE, _HYPERNETWORK)

# A vocabulary's file keeps its name, whatever it is, but for what would lead to another folder or hide it.
FileName = Annotated[str, msgspec.Meta(pattern=r"^[^./\\:\x00-\x1f\x7f][^/\\:\x00-\x1f\x7f]{0,127}\Z")]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


@dataclasses.dataclass(frozen=True, eq=False)
class ModelParts:
    """Everything that a model directory holds.

    Attributes:
      name: short name for people, `strings`.
      t5: the base model's T5Config, as json.
      base: its parameters, nested dict.
      hypernetwork_class: the class's name.
      hypernetwork_config: its configuration, as json.
      hypernetwork_params: its parameters, nested dict; None where they were left on the disk.
      spec: the adapters that it generates.
      vocabulary: the vocabulary's description, as json.
      episode: how support and inputs are laid out, as json.
      results: what was measured, as json.
      provenance: data, run and anything else worth keeping, as json.
      created_with: the command.
      versions: of the software that made it.
      files: content by name of the files that the vocabulary needs.
    """

    name: str
    t5: Mapping[str, Any]
    base: PyTree
    hypernetwork_class: str
    hypernetwork_config: Mapping[str, Any]
    hypernetwork_params: PyTree | None
    spec: AdapterSpec
    vocabulary: Mapping[str, Any]
    episode: Mapping[str, Any]
    results: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    created_with: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=versions)
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def base_fingerprint(self) -> str:
        """What adapters for this model name as their base."""
        return fingerprint(self.base)

    @functools.cached_property
    def hypernetwork_fingerprint(self) -> str:
        """Of the hypernetwork's parameters."""
        return fingerprint(self.hypernetwork_params)

    @property
    def id(self) -> str:
        """What adapters name as their hypermodel: its name and twelve digits of the hypernetwork's fingerprint."""
        return f"{self.name}@{self.hypernetwork_fingerprint.removeprefix(PREFIX)[:12]}"

    def rounded(self, dtype: StorageDtype | None) -> ModelParts:
        """Returns the model as it will be after saving in `dtype` and loading."""
        if dtype is None:
            return self
        base, hypernetwork = rounded(self.base, dtype), rounded(self.hypernetwork_params, dtype)
        return dataclasses.replace(self, base=base, hypernetwork_params=hypernetwork)


@dataclasses.dataclass(frozen=True)
class _Hypernetwork:
    class_name: Name
    config: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _ModelFile:
    """Schema 1 of hypermodel.json. `files` holds the SHA-256 of each."""

    format: str
    schema_version: int
    name: Name
    base_fingerprint: Fingerprint
    hypernetwork_fingerprint: Fingerprint
    created_with: str
    versions: dict[str, str]
    results: dict[str, Any]
    provenance: dict[str, Any]
    files: dict[FileName, Fingerprint]
    vocabulary: dict[str, Any]
    episode: dict[str, Any]
    t5: dict[str, Any]
    hypernetwork: _Hypernetwork
    spec: dict[str, Any]


def save_model_directory(
    directory: Location | str, parts: ModelParts, *, dtype: StorageDtype | None = None, overwrite: bool = False
) -> ModelParts:
    """Writes a model directory; an interruption leaves nothing that looks like one.

    Args:
      directory: where to. It must not exist, or be empty, unless `overwrite`.
      parts: the model.
      dtype: "bfloat16" stores float32 leaves in half the space and rounds them.
      overwrite: replace a model directory that is there; one that holds other files as well is left alone.

    Returns:
      The model as it will be loaded, with the rounded values: its fingerprints are those in the directory.

    Raises:
      CheckpointError: the base does not fit its configuration (every leaf is listed), a description is no json, the
        directory may not be replaced, or the model was read without its hypernetwork.
    """
    if parts.hypernetwork_params is None:
        raise CheckpointError(f"{directory}: expected a whole model, got '{parts.name}' without its hypernetwork")
    parts = parts.rounded(dtype)
    check_shapes(parts.base, checked(T5Config, dict(parts.t5), f"{directory}: t5"), where=f"{directory}: base")
    document = {
        "format": MODEL_FORMAT,
        "schema_version": MODEL_VERSION,
        "name": parts.name,
        "base_fingerprint": parts.base_fingerprint,
        "hypernetwork_fingerprint": parts.hypernetwork_fingerprint,
        "created_with": parts.created_with,
        "versions": dict(parts.versions),
        "results": dict(parts.results),
        "provenance": dict(parts.provenance),
        "files": {name: _sha256(content) for name, content in sorted(parts.files.items())},
        "vocabulary": dict(parts.vocabulary),
        "episode": dict(parts.episode),
        "t5": dict(parts.t5),
        "hypernetwork": {"class_name": parts.hypernetwork_class, "config": dict(parts.hypernetwork_config)},
        "spec": parts.spec.to_json(),
    }
    checked(_ModelFile, document, str(directory))
    _check_names(document["files"], str(directory))
    owned = {*_OWN, *parts.files, *_files_of(locate(directory))}
    with atomic_directory(directory, overwrite=overwrite, owned=owned, marker=_JSON) as folder:
        save_tree(folder / _BASE, parts.base, dtype=dtype)
        save_tree(folder / _HYPERNETWORK, parts.hypernetwork_params, dtype=dtype)
        for name, content in parts.files.items():
            (folder / name).write_bytes(content)
        write_json(folder / _JSON, document)
    return parts


def load_model_directory(
    directory: pathlib.Path | str, *, hypernetwork: bool = True, progress: Callable[[int], None] = lambda nbytes: None
) -> ModelParts:
    """Reads what `save_model_directory` wrote; trees come back as numpy arrays.

    Args:
      directory: where from.
      hypernetwork: False leaves its parameters on the disk, for who has adapters already.
      progress: called with the number of bytes read, array by array.

    Raises:
      CheckpointError: a file is missing, damaged, from elsewhere, or does not belong to the others; names the file and
        the key or leaf.
    """
    folder = pathlib.Path(directory)
    file = folder / _JSON
    content = read_schema(file, _ModelFile, file_format=MODEL_FORMAT, version=MODEL_VERSION)
    _check_names(content.files, str(file))
    config = checked(T5Config, content.t5, f"{file}: key 't5'")
    spec = spec_from(content.spec, file)
    base = load_tree(folder / _BASE, progress=progress)
    check_shapes(base, config, where=str(folder / _BASE))
    check_fingerprint(folder / _BASE, base, content.base_fingerprint, _JSON)
    params = None
    if hypernetwork:
        params = load_tree(folder / _HYPERNETWORK, progress=progress)
        check_fingerprint(folder / _HYPERNETWORK, params, content.hypernetwork_fingerprint, _JSON)
    files = {}
    for name, expected in content.files.items():
        files[name] = read_bytes(folder / name)
        if _sha256(files[name]) != expected:
            raise CheckpointError(f"{folder / name}: expected {expected}, the file has {_sha256(files[name])}")
    parts = ModelParts(
        name=content.name,
        t5=content.t5,
        base=base,
        hypernetwork_class=content.hypernetwork.class_name,
        hypernetwork_config=content.hypernetwork.config,
        hypernetwork_params=params,
        spec=spec,
        vocabulary=content.vocabulary,
        episode=content.episode,
        results=content.results,
        provenance=content.provenance,
        created_with=content.created_with,
        versions=content.versions,
        files=files,
    )
    vars(parts)["base_fingerprint"] = content.base_fingerprint  # just checked, and slow to compute again
    if hypernetwork:
        vars(parts)["hypernetwork_fingerprint"] = content.hypernetwork_fingerprint
    return parts


def fetched_model(
    path: Location | str, *, hypernetwork: bool = True
) -> contextlib.AbstractContextManager[pathlib.Path]:
    """Yields a model directory on this machine, see `fetched`; `hypernetwork` is for `load_model_directory`, too."""
    return fetched(path, _JSON, wanted=lambda name: hypernetwork or name != _HYPERNETWORK)


def is_model_directory(path: Location | str) -> bool:
    """Whether a model directory, whole or damaged, stands at `path`."""
    return (locate(path) / _JSON).is_file()


def read_model_provenance(path: Location | str) -> Mapping[str, Any]:
    """Returns `ModelParts.provenance` of a model directory; of all its files, one small one is read.

    Raises:
      CheckpointError: that file is missing, damaged or from elsewhere.
    """
    file = locate(path) / _JSON
    return read_schema(file, _ModelFile, file_format=MODEL_FORMAT, version=MODEL_VERSION).provenance


def collect_files(write: Callable[[pathlib.Path], None]) -> dict[str, bytes]:
    """Returns what `write` puts into the folder it is given: `collect_files(vocabulary.write_files)`."""
    with tempfile.TemporaryDirectory() as folder:
        write(pathlib.Path(folder))
        return {path.name: path.read_bytes() for path in sorted(pathlib.Path(folder).iterdir())}


def _check_names(files: Mapping[str, str], where: str) -> None:
    for name in files:
        if name in _OWN:
            raise CheckpointError(f"{where}: files: '{name}' is a name of hyperflax's own")


def _files_of(folder: Location) -> tuple[str, ...]:
    """Files that the model directory which is there says are its own."""
    with contextlib.suppress(CheckpointError):
        content = read_schema(folder / _JSON, _ModelFile, file_format=MODEL_FORMAT, version=MODEL_VERSION)
        return tuple(content.files)
    return ()


def _sha256(content: bytes) -> str:
    return PREFIX + hashlib.sha256(content).hexdigest()
