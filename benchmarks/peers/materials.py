"""The same weights, adapters and tokens for every side: drawn once, and written in the forms in which each side reads.

    FOLDER/base-LAYERS/                   transformers' form, which hyperflax reads, too
    FOLDER/NAME-LAYERS-NUMBER/            PEFT's form
    FOLDER/hypermodel/                    a model directory, for processes that are started

The values are random: what is measured does not depend on them, as long as attention and logits have their usual size.

>>> write_materials(entry, shape, folder)
>>> params, config = read_huggingface(base_directory(folder, entry.layers))
"""

from __future__ import annotations

import math
import pathlib
import zlib
from typing import Any

import numpy as np

from benchmarks.peers.case import ADAPTERS, Entry
from hyperflax import trees
from hyperflax.adapters.kinds import build_spec
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.checkpoints.artefacts import Adapter, AdapterMetadata
from hyperflax.checkpoints.huggingface import write_huggingface
from hyperflax.checkpoints.peft import write_peft
from hyperflax.checkpoints.shapes import expected_shapes
from hyperflax.types import Batch, PyTree, T5Config

START = -1  # number of the adapter that training starts from
FACTORED = 1  # Adafactor factors matrices of at least this size: all of them, as transformers' does


def tokens(entry: Entry, shape: T5Config) -> Batch:
    """Returns inputs and targets [rows, length], int32, without padding."""
    rng = np.random.default_rng(0)
    source, target = (
        rng.integers(2, shape.vocab_size, (entry.rows, length)).astype(np.int32)
        for length in (entry.source, entry.target)
    )
    shifted = np.pad(target, ((0, 0), (1, 0)))[:, :-1]
    return {"encoder_input_tokens": source, "decoder_input_tokens": shifted, "decoder_target_tokens": target}


def support(entry: Entry, shape: T5Config) -> np.ndarray:
    """Returns the tokens of a support, int32 [1, length]."""
    return np.random.default_rng(1).integers(2, shape.vocab_size, (1, entry.support)).astype(np.int32)


def spec_of(entry: Entry, shape: T5Config) -> AdapterSpec:
    """Returns the spec of an entry's adapters."""
    return build_spec(ADAPTERS[entry.adapter], entry.t5(shape))


def adapter(entry: Entry, shape: T5Config, number: int) -> PyTree:
    """Returns an adapter: number 0, 1, ... with values everywhere, or `START`, which changes nothing yet."""
    flat = {}
    for leaf in spec_of(entry, shape).leaves:
        std = leaf.init_std if number == START else 0.1
        rng = np.random.default_rng([number - START, zlib.crc32(leaf.path.encode())])
        flat[leaf.path] = np.float32(std) * rng.standard_normal(leaf.shape, np.float32)
    return trees.unflatten(flat)


def base_params(config: T5Config) -> dict[str, Any]:
    """Returns parameters of the usual size: products keep the variance of what goes in, attention's logits too."""
    rng, flat = np.random.default_rng(2), {}
    for path, shape in expected_shapes(config).items():
        values = rng.standard_normal(shape, np.float32)
        if path.endswith("/scale"):
            values = np.ones(shape, np.float32)
        elif path.endswith("/kernel"):
            values *= np.float32(1 / math.sqrt(shape[0] * (config.head_dim if "/query/" in path else 1)))
        flat[path] = values
    return trees.unflatten(flat)


def like(shapes: PyTree) -> PyTree:
    """Returns random values for a tree of shapes; small ones, as nobody reads the result."""
    rng = np.random.default_rng(3)
    flat = {path: 0.02 * rng.standard_normal(leaf.shape, np.float32) for path, leaf in trees.flatten(shapes).items()}
    return trees.unflatten({path: values.astype(np.float32) for path, values in flat.items()})


def base_directory(folder: pathlib.Path, layers: int) -> pathlib.Path:
    """Where the base model of so many layers lies."""
    return folder / f"base-{layers}"


def adapter_directory(folder: pathlib.Path, entry: Entry, number: int) -> pathlib.Path:
    """Where an adapter lies in PEFT's form."""
    return folder / f"{entry.adapter}-{entry.layers}-{number}"


def write_materials(entry: Entry, shape: T5Config, folder: pathlib.Path) -> None:
    """Writes what the entry's side will read, as far as it is not there yet."""
    base = base_directory(folder, entry.layers)
    if entry.program != "matmul" and not base.exists():
        write_huggingface(base, base_params(entry.t5(shape)), entry.t5(shape))
    if entry.side != "transformers" or not entry.adapter:
        return
    for number in [START] if entry.program == "train_lora" else range(entry.adapters):
        directory = adapter_directory(folder, entry, number)
        if not directory.exists():
            tree = adapter(entry, shape, number)
            write_peft(directory, Adapter(tree, spec_of(entry, shape), AdapterMetadata(base_fingerprint=None)))
