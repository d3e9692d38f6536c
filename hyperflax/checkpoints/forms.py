"""Which form a checkpoint has, and a T5 read from any form or written in another.

    form          known by                                    holds
    huggingface   config.json                                 a T5 as transformers keeps it
    t5x           checkpoint, or checkpoint_<step>/checkpoint    a T5 of T5X, legacy form
    orbax         state, or checkpoint_<step>/state           a T5 of T5X, Orbax's form
    t5            t5.json                                     a T5 directory of hyperflax
    hypermodel    hypermodel.json                             a model directory; its base model
    adapter       adapter.json                                an adapter directory, no T5
    task_adapters task_adapters.json                          adapters of many tasks, no T5
    peft          adapter_config.json                         an adapter as PEFT keeps it, no T5

All are read from buckets as well, `gs://...` and `s3://...`.

>>> write_model("for_t5x", read_model("flan-t5-small"), "t5x")
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import numpy as np

from hyperflax import configs, trees
from hyperflax.buckets import Location, fetched, locate
from hyperflax.checkpoints import huggingface
from hyperflax.checkpoints.hf_tokenizer import vocabulary_files
from hyperflax.checkpoints.layouts import to_minimal, to_scalable, unrolled
from hyperflax.checkpoints.model_directory import (
    fetched_model,
    is_model_directory,
    load_model_directory,
    read_model_provenance,
)
from hyperflax.checkpoints.orbax_form import (
    find_orbax,
    look_at_orbax_state,
    read_orbax,
    read_orbax_state,
    write_orbax,
)
from hyperflax.checkpoints.shapes import check_shapes, check_unseen, is_scalable, moved_from_scalable
from hyperflax.checkpoints.t5_directory import load_t5, read_t5_provenance
from hyperflax.checkpoints.t5x import look_at_t5x_state, read_t5x_checkpoint, read_t5x_state
from hyperflax.checkpoints.t5x_index import LEGACY_FILE, find_checkpoint
from hyperflax.checkpoints.t5x_writer import write_t5x_checkpoint
from hyperflax.checkpoints.zarr import floating_dtype
from hyperflax.data import vocabularies
from hyperflax.errors import CheckpointError
from hyperflax.models.stacking import unstack_layers
from hyperflax.types import PyTree, T5Config

Form = Literal["huggingface", "t5x", "orbax", "t5", "hypermodel", "adapter", "task_adapters", "peft"]
Target = Literal["t5x", "orbax", "huggingface"]
Progress: TypeAlias = Callable[[int], None]

_MARKS: dict[str, Form] = {
    "adapter.json": "adapter",
    "task_adapters.json": "task_adapters",
    "adapter_config.json": "peft",
    "hypermodel.json": "hypermodel",
    "t5.json": "t5",
    "config.json": "huggingface",
}
# What T5X's code fixes.
_T5X_BIAS = {"num_buckets": 32, "max_distance": 128}
# A vocabulary's files as they stand beside weights; what of them is there goes along.
_VOCABULARY = (
    "spiece.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "added_tokens.json",
)


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A T5 as it was found.

    Attributes:
      form: the form it was in.
      params: unrolled layers.
      config: theirs.
      step: number of training steps, 0 where the form does not tell.
      read_state: reads the optimizer's state, in T5X's names, given a function that is called with the number of bytes
        of each array; None where there is none. It is not read with the parameters: mostly nobody wants it, and it is
        larger than they are.
      scalable: whether it had scalable_t5's layout; its state has it too.
      files: the vocabulary's files, by name.
      vocabulary: the one that hyperflax recorded beside it; None in the forms of other software.
    """

    form: Form
    params: PyTree
    config: T5Config
    step: int = 0
    read_state: Callable[[Progress], PyTree] | None = None
    scalable: bool = False
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    vocabulary: vocabularies.Vocabulary | None = None


def form_of(path: Location | str, step: int | None = None) -> Form:
    """Returns the form of what lies at `path`; of a run of T5X, whose checkpoints may have either, that of `step`'s.

    The latest checkpoint counts where there is no `step`.

    Raises:
      CheckpointError: nothing that hyperflax knows, says what it looks for.
    """
    folder = locate(path)
    for mark, form in _MARKS.items():
        if (folder / mark).is_file():
            return form
    if find_orbax(folder, step) is not None:
        return "orbax"
    try:
        find_checkpoint(folder, step)
    except CheckpointError as error:
        if step is not None:  # it says which there are
            raise
        raise CheckpointError(
            f"{folder}: expected a T5 directory, a model directory, a Hugging Face model, an adapter or a checkpoint "
            f"of T5X; found none of {', '.join(_MARKS)} ({error}){_one_below(folder)}"
        ) from error
    return "t5x"


def _one_below(folder: Location) -> str:
    """Returns the hint that something known lies in a folder of this one, as the model does in that of its run."""
    with contextlib.suppress(OSError):  # a folder that may not be looked into
        for inside in folder.iterdir() if folder.is_dir() else ():
            if any((inside / mark).is_file() for mark in _MARKS):
                return f"; one is {inside}"
    return ""


def find_t5x(path: Location | str, step: int | None = None) -> tuple[Form, Location]:
    """Returns the form of a checkpoint of T5X, `t5x` or `orbax`, and its own directory.

    To be asked once for all that is read of it: a run that goes on may write a later one meanwhile. Arguments as of
    `form_of`, and errors where there is none of T5X.
    """
    path = locate(path)
    if (found := find_orbax(path, step)) is not None:
        return "orbax", found
    file = find_checkpoint(path, step)
    return "t5x", file.parent if file.name == LEGACY_FILE else file  # a file of another name was given as it is


def read_model(
    path: Location | str,
    *,
    step: int | None = None,
    dtype: str | None = None,
    progress: Progress = lambda nbytes: None,
) -> Model:
    """Reads the T5 at `path`, whatever its form.

    Args:
      path: see the module.
      step: which one of a run's checkpoints; the latest by default.
      dtype: cast the parameters to this dtype while they are read; None keeps them.
      progress: called with the number of bytes read, array by array.

    Raises:
      CheckpointError: nothing of the kind, an adapter (which is no T5), a step of a form that holds one T5, or damaged
        files.
    """
    folder = locate(path)
    form = form_of(folder, step)
    if form in ("adapter", "task_adapters", "peft"):
        told = "an adapter; `hyperflax export` and `import` take those"
        if form == "task_adapters":
            told = "adapters of tasks; those are for objectives/reconstruction.gin"
        raise CheckpointError(f"{folder}: expected a T5, found {told}")
    if step is not None and form not in ("t5x", "orbax"):
        raise CheckpointError(f"{folder}: step: expected none, {form} holds one T5, got {step}")
    if form in ("t5x", "orbax"):
        form, folder = find_t5x(folder, step)
        read, look_at_state, read_state = (
            (read_t5x_checkpoint, look_at_t5x_state, read_t5x_state)
            if form == "t5x"
            else (read_orbax, look_at_orbax_state, read_orbax_state)
        )
        steps, more = look_at_state(folder, step)
        stored = read(folder, dtype=dtype, step=step, progress=progress)
        scalable, flat = is_scalable(stored), trees.flatten(stored)
        del stored
        # Some leaves of scalable_t5 are copied on the way: each is free before the next one's turn.
        moved = dict(moved_from_scalable(name, flat.pop(name)) for name in list(flat))
        params, config = unrolled(trees.unflatten(moved))
        return Model(
            form,
            params,
            config,
            steps,
            read_state=(lambda progress: read_state(folder, step, progress=progress)) if more else None,
            scalable=scalable,
        )
    if form == "huggingface":
        files = {name: (folder / name).read_bytes() for name in _VOCABULARY if (folder / name).is_file()}
        params, config = huggingface.read_huggingface(folder, dtype=dtype, progress=progress)
        return Model(form, params, config, files=files)
    with fetched(folder, "t5.json") if form == "t5" else fetched_model(folder, hypernetwork=False) as local:
        if form == "t5":
            params, config, vocabulary = load_t5(local, progress=progress)
        else:
            parts = load_model_directory(local, hypernetwork=False, progress=progress)
            params, config = parts.base, configs.from_json(T5Config, dict(parts.t5), str(folder))
            vocabulary = vocabularies.from_json(parts.vocabulary, local)
        if config.scan_layers:
            params, config = unstack_layers(params, config), config.replace(scan_layers=False)
        if dtype is not None:
            _cast(params, floating_dtype(dtype, folder))
        return Model(form, params, config, files=vocabulary_files(vocabulary), vocabulary=vocabulary)


def read_provenance(path: Location | str) -> Mapping[str, Any]:
    """Returns what a model or T5 directory records of its training; {} of what is none, or is gone.

    Raises:
      CheckpointError: the file that says it is damaged.
    """
    return read_model_provenance(path) if is_model_directory(path) else read_t5_provenance(path)


def load_base(
    path: Location | str, config: T5Config, vocabulary: vocabularies.Vocabulary | None = None
) -> dict[str, Any]:
    """Returns the parameters of the T5 at `path`, numpy arrays in unrolled layers.

    Args:
      path: whatever `read_model` takes; of a folder of T5X's checkpoints the latest counts.
      config: the shape that is expected; compute settings (dtype, dropout, scanning) are free.
      vocabulary: the one that is expected, None for any; compared where the form records one.

    Raises:
      CheckpointError: nothing of the kind is there, its shapes differ (every leaf that does is listed), or it says that
        it computes otherwise or reads another vocabulary.
    """
    model = read_model(path)
    if None not in (vocabulary, model.vocabulary) and model.vocabulary != vocabulary:
        raise CheckpointError(f"{path}: vocabulary: expected {vocabulary!r}, found {model.vocabulary!r}")
    if model.form not in ("t5x", "orbax"):  # which do not tell it
        check_unseen(model.config, config, where=str(path))
    check_shapes(model.params, config.replace(scan_layers=False), where=str(path))
    return model.params


def _cast(tree: dict[str, Any], dtype: np.dtype) -> None:
    """Casts a tree of numpy arrays in place, one at a time: it is never in memory twice."""
    for name, leaf in tree.items():
        if isinstance(leaf, dict):
            _cast(leaf, dtype)
        else:
            tree[name] = leaf.astype(dtype, copy=False)


def write_model(
    directory: pathlib.Path | str,
    model: Model,
    form: Target,
    *,
    state: PyTree | None = None,
    scalable: bool = False,
    progress: Progress = lambda nbytes: None,
) -> None:
    """Writes a T5 in one of the forms of other software.

    Args:
      directory: where to. It must not exist, or be empty.
      model: as read.
      form: `huggingface`, or T5X's `t5x` and `orbax`.
      state: the optimizer's, in T5X's names and in the layout that is written; for T5X's forms only.
      scalable: write scalable_t5's layout instead of the minimal T5's; for T5X's forms only.
      progress: called with the number of bytes written, array by array.

    Raises:
      CheckpointError: that form cannot hold this model; says why.
    """
    if form == "huggingface":
        if scalable:
            raise CheckpointError(f"{directory}: scalable: expected t5x or orbax, which have such a layout, got {form}")
        huggingface.write_huggingface(directory, model.params, model.config, files=model.files, progress=progress)
        return
    for name, value in _T5X_BIAS.items():
        if getattr(model.config, name) != value:
            raise CheckpointError(
                f"{directory}: {name}: expected {value}, which T5X's code fixes and its checkpoints do not tell, got "
                f"{getattr(model.config, name)}"
            )
    write = write_t5x_checkpoint if form == "t5x" else write_orbax
    params = to_scalable(model.params, model.config) if scalable else to_minimal(model.params, model.config)[0]
    write(directory, params, step=model.step, state=state, progress=progress)
