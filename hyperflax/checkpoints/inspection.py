"""What lies in a checkpoint or adapter, told without reading its values.

>>> found = inspect_path("flan-t5-small")
>>> found.form, found.origin["model_type"], found.leaves[0]
('huggingface', 't5', Entry(path='decoder.block.0...', shape=(384, 512), dtype='float32', nbytes=786432))
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from hyperflax.buckets import Location, locate
from hyperflax.checkpoints import huggingface, peft
from hyperflax.checkpoints.forms import Form, form_of
from hyperflax.checkpoints.orbax_form import find_orbax, open_arrays
from hyperflax.checkpoints.safetensors_files import open_tensors
from hyperflax.checkpoints.t5x_index import Stored, read_index
from hyperflax.checkpoints.zarr import inspect_array
from hyperflax.json_files import read_json

# What a json file of each form tells of where the thing comes from.
_ORIGIN = {
    "adapter": ("adapter.json", ("base_fingerprint", "hypermodel", "support_hash", "refine_steps", "created_with")),
    "task_adapters": ("task_adapters.json", ("base_fingerprint",)),
    "hypermodel": ("hypermodel.json", ("name", "base_fingerprint", "hypernetwork_fingerprint", "created_with")),
    "t5": ("t5.json", ("fingerprint",)),
    "huggingface": (huggingface.CONFIG, ("model_type", "architectures", "transformers_version")),
    "peft": (peft.CONFIG, ("peft_type", "base_model_name_or_path", "peft_version")),
}
_WEIGHTS = {
    "adapter": ("adapter.safetensors",),
    "task_adapters": ("task_adapters.safetensors",),
    "hypermodel": ("base.safetensors", "hypernetwork.safetensors"),
    "t5": ("t5.safetensors",),
    "peft": (peft.WEIGHTS,),
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array, by the name that it has in the file."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What `inspect_path` found.

    Attributes:
      form: see `forms`.
      origin: where it comes from, as far as it says so.
      leaves: every array, sorted by path.
    """

    form: Form
    origin: Mapping[str, Any]
    leaves: list[Entry]

    @property
    def nbytes(self) -> int:
        return sum(leaf.nbytes for leaf in self.leaves)


def inspect_path(path: Location | str) -> Inspection:
    """Looks at any checkpoint, model or adapter.

    Raises:
      CheckpointError: nothing that hyperflax knows, or a damaged file; names it.
    """
    folder = locate(path)
    form = form_of(folder)
    if form == "t5x":
        return _t5x(folder)
    if form == "orbax":
        return _orbax(folder)
    name, keys = _ORIGIN[form]
    content = read_json(folder / name)
    origin = {key: content.get(key) for key in keys if key in content}
    if form == "peft":
        known = (folder / peft.ORIGIN).is_file()
        origin["base_fingerprint"] = read_json(folder / peft.ORIGIN).get("base_fingerprint") if known else None
    files = _WEIGHTS[form] if form != "huggingface" else huggingface.weight_files(folder)
    entries = [entry for file in files for entry in _safetensors(folder / file, form == "hypermodel")]
    return Inspection(form, origin, sorted(entries, key=lambda entry: entry.path))


def _safetensors(file: Location, named: bool) -> list[Entry]:
    """The arrays of one file; `named` puts its name before theirs, where two files may hold the same ones."""
    entries = []
    with open_tensors(file) as tensors:
        for name, shape in tensors.shapes.items():
            dtype, (stored, nbytes) = tensors.dtypes[name], tensors.stored[name]
            path = f"{pathlib.PurePath(file.name).stem}/{name}" if named else name
            entries.append(Entry(path, shape, stored.lower() if dtype is None else dtype.name, nbytes))
    return entries


def _t5x(folder: Location) -> Inspection:
    index = read_index(folder)
    entries = []
    for branch in ("target", "state"):
        for path, leaf in index.leaves(branch).items():
            where = f"{branch}/{path}"
            found = inspect_array(where, leaf.directory) if isinstance(leaf, Stored) else leaf
            entries.append(_entry(where, found.shape, found.dtype))
    return Inspection("t5x", {"file": str(index.file), "version": index.version}, entries)


def _orbax(folder: Location) -> Inspection:
    directory = find_orbax(folder)
    assert directory is not None  # form_of has found it
    arrays = open_arrays(directory)
    entries = [_entry(path, array.shape, array.dtype) for path, array in arrays.items()]
    return Inspection("orbax", {"directory": str(directory)}, entries)


def _entry(path: str, shape: tuple[int, ...], dtype: np.dtype) -> Entry:
    return Entry(path, tuple(shape), dtype.name, math.prod(shape) * dtype.itemsize)
