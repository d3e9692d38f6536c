"""The T5 directory: a plain T5 as a training run leaves it.

    t5.json            T5 configuration, vocabulary, results, versions, fingerprint
    t5.safetensors     the parameters, T5X's names
    spiece.model       or whatever files the vocabulary needs

`forms.load_base` reads it, and a T5 in any other form.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from hyperflax import configs
from hyperflax.buckets import Location, locate
from hyperflax.checkpoints.documents import Fingerprint, check_fingerprint, checked
from hyperflax.checkpoints.fingerprint import fingerprint
from hyperflax.checkpoints.model_directory import collect_files
from hyperflax.checkpoints.shapes import check_shapes
from hyperflax.checkpoints.tensors import StorageDtype, load_tree, rounded, save_tree
from hyperflax.data.vocabularies import Vocabulary, from_json
from hyperflax.errors import CheckpointError
from hyperflax.files import atomic_directory
from hyperflax.json_files import read_schema, write_json
from hyperflax.types import PyTree, T5Config
from hyperflax.versions import versions

T5_FORMAT = "hyperflax-t5"
T5_VERSION = 1
_JSON, _WEIGHTS = "t5.json", "t5.safetensors"


@dataclasses.dataclass(frozen=True)
class _T5File:
    """Schema 1 of t5.json."""

    format: str
    schema_version: int
    fingerprint: Fingerprint
    versions: dict[str, str]
    results: dict[str, Any]
    t5: dict[str, Any]
    vocabulary: dict[str, Any]
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)


def save_t5(
    directory: Location | str,
    params: PyTree,
    config: T5Config,
    vocabulary: Vocabulary,
    *,
    results: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    dtype: StorageDtype | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a T5 directory; an interruption leaves nothing that looks like one.

    `overwrite` replaces one that is there, with its vocabulary; one that holds other files as well is left alone.

    Raises:
      CheckpointError: the parameters do not fit the configuration, or the directory may not be replaced.
    """
    params = rounded(params, dtype)
    check_shapes(params, config, where=f"{directory}: parameters")
    files = collect_files(vocabulary.write_files)
    document = {
        "format": T5_FORMAT,
        "schema_version": T5_VERSION,
        "fingerprint": fingerprint(params),
        "versions": versions(),
        "results": dict(results or {}),
        "t5": configs.to_json(config),
        "vocabulary": dict(vocabulary.to_json()),
        "provenance": dict(provenance or {}),
    }
    checked(_T5File, document, str(directory))
    owned = (_JSON, _WEIGHTS, *files, *_files_of(locate(directory)))
    with atomic_directory(directory, overwrite=overwrite, owned=owned, marker=_JSON) as folder:
        save_tree(folder / _WEIGHTS, params, dtype=dtype)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        write_json(folder / _JSON, document)


def _files_of(folder: Location) -> tuple[str, ...]:
    """The vocabulary's file of the T5 directory which is there, if it has one."""
    with contextlib.suppress(CheckpointError):
        content = read_schema(folder / _JSON, _T5File, file_format=T5_FORMAT, version=T5_VERSION)
        return (str(content.vocabulary.get("file")),)
    return ()


def read_t5_provenance(directory: Location | str) -> dict[str, Any]:
    """Returns what a T5 directory records of its training; {} of what is none. Raises CheckpointError if damaged."""
    file = locate(directory) / _JSON
    if not file.is_file():
        return {}
    return read_schema(file, _T5File, file_format=T5_FORMAT, version=T5_VERSION).provenance


def load_t5(
    directory: pathlib.Path | str, *, progress: Callable[[int], None] = lambda nbytes: None
) -> tuple[dict[str, Any], T5Config, Vocabulary]:
    """Reads what `save_t5` wrote; `progress` is called with the number of bytes read, array by array.

    Raises:
      CheckpointError: a file is missing, damaged, or does not belong to the others.
      DataError: the vocabulary's file does.
    """
    folder = pathlib.Path(directory)
    content = read_schema(folder / _JSON, _T5File, file_format=T5_FORMAT, version=T5_VERSION)
    params = load_tree(folder / _WEIGHTS, progress=progress)
    check_fingerprint(folder / _WEIGHTS, params, content.fingerprint, _JSON)
    config = checked(T5Config, content.t5, f"{folder / _JSON}: key 't5'")
    return params, config, from_json(content.vocabulary, folder)
