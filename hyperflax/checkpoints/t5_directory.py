"""The T5 directory: a plain T5 as a training run leaves it, and the one way to find a base model on disk.

    t5.json            T5 configuration, vocabulary, results, versions, fingerprint
    t5.safetensors     the parameters, T5X's names
    spiece.model       or whatever files the vocabulary needs

`load_base` takes such a directory, a model directory (its base model), a checkpoint of T5X in either form, or a model
in Hugging Face's form.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from hyperflax import configs
from hyperflax.buckets import Location, locate
from hyperflax.checkpoints.artefacts import Fingerprint, check_fingerprint, checked_json
from hyperflax.checkpoints.fingerprint import fingerprint
from hyperflax.checkpoints.huggingface import is_huggingface, read_huggingface
from hyperflax.checkpoints.layouts import unrolled
from hyperflax.checkpoints.model_directory import collect_files, is_model_directory, load_model_directory
from hyperflax.checkpoints.orbax_form import find_orbax, read_orbax
from hyperflax.checkpoints.shapes import check_shapes
from hyperflax.checkpoints.t5x import read_t5x_checkpoint
from hyperflax.checkpoints.tensors import StorageDtype, load_tree, rounded, save_tree
from hyperflax.data.vocabularies import Vocabulary, from_json
from hyperflax.errors import CheckpointError, ConfigError
from hyperflax.files import atomic_directory, fetched, read_schema, write_json
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


def save_t5(
    directory: Location | str,
    params: PyTree,
    config: T5Config,
    vocabulary: Vocabulary,
    *,
    results: Mapping[str, Any] | None = None,
    dtype: StorageDtype | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a T5 directory; an interruption leaves nothing that looks like one.

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
    }
    checked_json(_T5File, document, str(directory))
    with atomic_directory(directory, overwrite=overwrite, owned=(_JSON, _WEIGHTS, *files), marker=_JSON) as folder:
        save_tree(folder / _WEIGHTS, params, dtype=dtype)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        write_json(folder / _JSON, document)


def load_t5(
    directory: pathlib.Path | str, *, progress: Callable[[int], None] = lambda nbytes: None
) -> tuple[dict[str, Any], T5Config, Vocabulary]:
    """Reads what `save_t5` wrote; `progress` is called with the number of bytes read, array by array.

    Raises:
      CheckpointError: a file is missing, damaged, or does not belong to the others.
      DataError: the vocabulary's file does.
    """
    folder = pathlib.Path(directory)
    params, content = _read(folder, progress)
    try:
        config = configs.from_json(T5Config, content.t5, f"{folder / _JSON}: key 't5'")
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    return params, config, from_json(content.vocabulary, folder)


def load_base(path: Location | str, config: T5Config) -> dict[str, Any]:
    """Returns the parameters of the T5 at `path`, numpy arrays in unrolled layers.

    Args:
      path: a T5 directory, a model directory, a T5X checkpoint or a folder of them (the latest counts), or a model in
        Hugging Face's form; local or in a bucket.
      config: the shape that is expected; compute settings (dtype, dropout, scanning) are free.

    Raises:
      CheckpointError: nothing of the kind is there, its shapes differ (every leaf that does is listed), or it says that
        it computes otherwise.
    """
    folder = locate(path)
    if (folder / _JSON).is_file():
        with fetched(folder) as local:
            params, _ = _read(local)
    elif is_model_directory(folder):
        with fetched(folder) as local:
            params = load_model_directory(local).base
    elif is_huggingface(folder):
        params, found = read_huggingface(folder)
        for name in ("mlp_activations", "max_distance"):  # what shapes do not show
            if getattr(found, name) != getattr(config, name):
                raise CheckpointError(
                    f"{folder}: {name}: expected {getattr(config, name)}, found {getattr(found, name)}"
                )
    elif find_orbax(folder) is not None:
        params, _ = unrolled(read_orbax(folder))
    elif folder.is_dir():
        params, _ = unrolled(read_t5x_checkpoint(folder))
    else:
        raise CheckpointError(
            f"{folder}: expected a T5 directory, a model directory, a T5X checkpoint or a Hugging Face model, found "
            "nothing"
        )
    check_shapes(params, config.replace(scan_layers=False), where=str(folder))
    return params


def _read(
    folder: pathlib.Path, progress: Callable[[int], None] = lambda nbytes: None
) -> tuple[dict[str, Any], _T5File]:
    content = read_schema(folder / _JSON, _T5File, file_format=T5_FORMAT, version=T5_VERSION)
    params = load_tree(folder / _WEIGHTS, progress=progress)
    check_fingerprint(folder / _WEIGHTS, params, content.fingerprint, _JSON)
    return params, content
