"""T5 weights in Hugging Face's form: config.json and safetensors files, read and written without torch.

    config.json                                   see `hf_config.py`
    model.safetensors                             the weights, or
    model.safetensors.index.json                  {"weight_map": {name: file}} and
    model-00001-of-00002.safetensors ...          the files that it names
    spiece.model, tokenizer_config.json           the vocabulary

Matrices come out as transposed views of what was read, so that nothing is copied twice; jax lays them out as it likes.
`.bin` files are pickles, which run code when they are opened: they are refused with advice, never read.

>>> params, config = read_huggingface("flan-t5-small")
>>> T5(config).apply({"params": params}, encoder_tokens, decoder_tokens)
>>> write_huggingface("copy", params, config)
"""

from __future__ import annotations

import contextlib
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hyperflax import trees
from hyperflax.buckets import Location, locate
from hyperflax.checkpoints.fingerprint import as_numpy
from hyperflax.checkpoints.hf_config import from_hf, to_hf
from hyperflax.checkpoints.hf_names import HEAD, SHARED, Weight, weights
from hyperflax.checkpoints.safetensors_files import OpenTensors, Tensor, open_tensors, write_tensors
from hyperflax.checkpoints.shapes import check_shapes
from hyperflax.checkpoints.zarr import floating_dtype
from hyperflax.errors import CheckpointError
from hyperflax.files import atomic_directory
from hyperflax.json_files import read_json, write_json
from hyperflax.models.stacking import unstack_layers
from hyperflax.types import PyTree, T5Config

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9

# The same table under its other names; files hold any of them, often several.
_TABLES = (SHARED, "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# The first T5 checkpoints hold a table that no layer reads; transformers passes over it too.
_UNREAD = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)
_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\.safetensors")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.bin")
_OTHERS = ("tf_model.h5", "flax_model.msgpack")

Progress = Callable[[int], None]


def read_config(path: Location | str) -> T5Config:
    """Returns the configuration in a model's directory; see `hf_config.from_hf`."""
    file = locate(path) / CONFIG
    return from_hf(read_json(file), str(file))


def weight_files(path: Location | str) -> tuple[str, ...]:
    """Returns the names of a model's safetensors files. Raises CheckpointError where there are none, with advice."""
    folder = locate(path)
    if (folder / INDEX).is_file():
        return tuple(sorted(set(_weight_map(folder).values())))
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder}: {_what_else(folder)}")
    return (WEIGHTS,)


def read_huggingface(
    path: Location | str, *, dtype: str | None = None, progress: Progress = lambda nbytes: None
) -> tuple[dict[str, Any], T5Config]:
    """Reads a model's directory.

    Args:
      path: the directory, local or in a bucket.
      dtype: cast the weights to this dtype, `"float32"` or `"bfloat16"`; None keeps what is stored.
      progress: called with the number of bytes read, weight by weight.

    Returns:
      The parameters with T5X's names, numpy arrays in unrolled layers, and the configuration.

    Raises:
      CheckpointError: no such model, weights only as pickles, a damaged file, or weights that do not fit config.json:
        every missing, unexpected and wrongly shaped one is listed.
    """
    folder = locate(path)
    target = None if dtype is None else floating_dtype(dtype, path)
    config = read_config(folder)
    with contextlib.ExitStack() as stack:
        where = _locate(folder, stack)
        umt5_as_tied = config.relative_bias == "per_layer" and config.logits_via_embedding
        if umt5_as_tied and HEAD in where and not _is_table(where, HEAD):
            config = config.replace(logits_via_embedding=False)  # so transformers 5 writes every umT5
        _check(folder, where, weights(config), config)
        flat = {}
        for weight in weights(config):
            name = next(name for name in _names(weight) if name in where)
            values = where[name].read(name)
            progress(values.nbytes)
            if target is not None and values.dtype != target:
                values = values.astype(target)
            flat[weight.path] = values.T if weight.transposed else values
    return trees.unflatten(flat), config


def write_huggingface(
    directory: pathlib.Path | str,
    params: PyTree,
    config: T5Config,
    *,
    shard_bytes: int = SHARD_BYTES,
    files: Mapping[str, bytes] | None = None,
    progress: Progress = lambda nbytes: None,
) -> None:
    """Writes a directory that `T5ForConditionalGeneration.from_pretrained` loads (UMT5's for per-layer biases).

    Args:
      directory: where to. It must not exist, or be empty.
      params: T5X's names, layers unrolled or scanned as `config.scan_layers` says.
      config: their configuration.
      shard_bytes: most bytes in one file, a single larger weight apart.
      files: further files by name, such as a vocabulary's.
      progress: called with the number of bytes written, weight by weight.

    Raises:
      CheckpointError: the parameters do not fit the configuration, transformers has no such T5, or the directory may
        not be replaced.
    """
    check_shapes(params, config, where=f"{directory}: parameters")
    flat = trees.flatten(unstack_layers(params, config) if config.scan_layers else params)
    tensors = [_tensor(weight, flat[weight.path], progress) for weight in weights(config)]
    document = to_hf(config, dtype=_common_dtype(tensors))
    shards = _shards(tensors, shard_bytes)
    with atomic_directory(directory) as folder:
        for name, shard in shards.items():
            write_tensors(folder / name, shard)
        if len(shards) > 1:
            total = sum(tensor.nbytes for tensor in tensors)
            weight_map = {tensor.name: name for name, shard in shards.items() for tensor in shard}
            write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        for name, content in (files or {}).items():
            (folder / name).write_bytes(content)
        write_json(folder / CONFIG, document)


# Reading


def _locate(folder: Location, stack: contextlib.ExitStack) -> dict[str, OpenTensors]:
    """Opens the weight files of a directory; returns the file of every tensor."""
    opened = {file: stack.enter_context(open_tensors(folder / file)) for file in weight_files(folder)}
    if WEIGHTS in opened:
        return dict.fromkeys(opened[WEIGHTS].shapes, opened[WEIGHTS])
    weight_map = _weight_map(folder)
    for name, file in weight_map.items():
        if name not in opened[file].shapes:
            raise CheckpointError(f"{folder / file}: expected the weight '{name}', as {INDEX} says; it is not there")
    for file, tensors in opened.items():
        for name in tensors.shapes:
            if weight_map.get(name) != file:
                raise CheckpointError(f"{folder / file}: weight '{name}': {INDEX} says nothing of it here")
    return {name: opened[file] for name, file in weight_map.items()}


def _weight_map(folder: Location) -> dict[str, str]:
    """The file of every weight, by the index. Names in it may not lead out of the directory."""
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX}: key 'weight_map': expected an object of names and files")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _SHARD.fullmatch(file) or file == WEIGHTS:
            raise CheckpointError(f"{folder / INDEX}: weight '{name}': expected a plain file name, got {file!r:.200}")
    return weight_map


def _what_else(folder: Location) -> str:
    """Says what to do where there are no safetensors files."""
    pickles = [name for name in _PICKLES if (folder / name).exists()]
    if pickles:
        return (
            f"expected {WEIGHTS}, found {pickles[0]}: a pickle, which can run any code when it is opened, and which "
            "hyperflax never reads. Most models on the hub have safetensors as well; else, with torch and a file that "
            "you trust: "
            "T5ForConditionalGeneration.from_pretrained(DIR).save_pretrained(OUT, safe_serialization=True)"
        )
    others = [name for name in _OTHERS if (folder / name).exists()]
    return f"expected {WEIGHTS} or {INDEX}, found {others[0] if others else 'neither'}"


def _names(weight: Weight) -> tuple[str, ...]:
    return _TABLES if weight.name == SHARED else (weight.name,)


def _check(folder: Location, where: Mapping[str, OpenTensors], expected: list[Weight], config: T5Config) -> None:
    """Compares the names and shapes of all tensors with what the configuration asks for."""
    shapes = {name: weight.shape for weight in expected for name in _names(weight)}
    if config.logits_via_embedding:
        shapes[HEAD] = shapes[SHARED]
    optional = {*_TABLES, *([HEAD] if config.logits_via_embedding else []), *_UNREAD}
    problems = []
    if not any(name in where for name in _TABLES):
        problems.append(f"'{SHARED}': expected shape {shapes[SHARED]}, the weight is missing")
    for name in sorted({*shapes, *where}):
        found = where[name].shapes[name] if name in where else None
        if found is None and name not in optional:
            problems.append(f"'{name}': expected shape {shapes[name]}, the weight is missing")
        elif found is not None and name not in shapes and name not in _UNREAD:
            problems.append(f"'{name}': unexpected weight, found shape {found}")
        elif found is not None and name in shapes and found != shapes[name]:
            problems.append(f"'{name}': expected shape {shapes[name]}, found {found}")
    if problems:
        lines = "\n  ".join(problems)
        raise CheckpointError(f"{folder}: {len(problems)} weights do not fit {CONFIG}\n  {lines}")
    tables = [name for name in (*_TABLES, *([HEAD] if config.logits_via_embedding else [])) if name in where]
    for name in tables[1:]:
        if not _is_table(where, name):
            raise CheckpointError(
                f"{folder}: '{name}': expected the values of '{tables[0]}', as T5 has one table for both; they differ"
            )


def _is_table(where: Mapping[str, OpenTensors], name: str) -> bool:
    """Whether a tensor holds the embedding table."""
    table = next((table for table in _TABLES if table in where), name)
    return table == name or np.array_equal(where[name].read(name), where[table].read(table))


# Writing


def _tensor(weight: Weight, leaf: Any, progress: Progress) -> Tensor:
    def values() -> np.ndarray:
        array = as_numpy(weight.path, leaf)
        progress(array.nbytes)
        return array.T if weight.transposed else array

    return Tensor(weight.name, weight.shape, np.dtype(leaf.dtype), values)


def _common_dtype(tensors: list[Tensor]) -> str:
    dtypes = {tensor.dtype.name for tensor in tensors}
    return dtypes.pop() if len(dtypes) == 1 else "float32"


def _shards(tensors: list[Tensor], most: int) -> dict[str, list[Tensor]]:
    """Deals the tensors out, in their order, to files of at most `most` bytes."""
    shards: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > most:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    if len(shards) == 1:
        return {WEIGHTS: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, 1)}
