"""Fingerprints: which base model an adapter belongs to, and which examples it was made from.

Two trees have equal fingerprints if and only if (up to a collision of SHA-256) they have the same paths, and under each
path the same dtype, shape and values bit for bit. So an equal fingerprint means the same model in the same layout and
precision. The order of keys, the order of an array's bytes in memory, and whether it is a numpy or a jax array make no
difference. What does: bfloat16 against the same numbers in float32, scanned against unrolled layers, 0.0 against -0.0.
An adapter is made for the unrolled float32 (or bfloat16) parameters that its hypermodel was trained on: take the
fingerprint of those.

>>> fingerprint({"a": np.zeros(2, np.float32)}) == fingerprint({"a": jnp.zeros(2)})
True
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from hyperflax import trees
from hyperflax.errors import CheckpointError, DataError
from hyperflax.types import PyTree

PREFIX = "sha256:"
PATTERN = r"^sha256:[0-9a-f]{64}\Z"


def as_numpy(path: str, leaf: Any) -> np.ndarray:
    """Returns an array leaf as numpy: C order, little-endian, no copy where none is needed.

    Raises:
      CheckpointError: `leaf` is no array, or one of objects, strings or records.
    """
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        raise CheckpointError(f"leaf '{path}': expected an array, got {type(leaf).__name__}")
    try:
        array = np.asarray(leaf)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"leaf '{path}': expected an array of numbers, {error}") from error
    if array.dtype.kind not in "biufcV" or array.dtype.names is not None or array.dtype.hasobject:
        raise CheckpointError(f"leaf '{path}': expected an array of numbers, got dtype {array.dtype}")
    if array.dtype.kind == "V" and array.dtype.name.startswith("void"):  # ml_dtypes' bfloat16 is of kind V as well
        raise CheckpointError(f"leaf '{path}': expected an array of numbers, got dtype {array.dtype}")
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def fingerprint(params: PyTree) -> str:
    """Returns `sha256:` and 64 hex digits for a nested dict of arrays; see the module for what equality means.

    One leaf at a time is brought to the host, so no second copy of the tree exists. About a second per gigabyte.

    Raises:
      CheckpointError: a leaf is no array of numbers, or there is none at all.
    """
    flat = trees.flatten(params)
    if not flat:
        raise CheckpointError("fingerprint: expected a tree with at least one array, got an empty one")
    digest = hashlib.sha256(b"hyperflax tree 1\n")
    for path in sorted(flat):
        array = as_numpy(path, flat[path])
        # Path, dtype and shape stand before the bytes, so that no two different trees make the same stream.
        digest.update(json.dumps([path, array.dtype.name, list(array.shape)]).encode() + b"\n")
        digest.update(array.reshape(-1).view(np.uint8).data)
    return PREFIX + digest.hexdigest()


def support_hash(examples: Iterable[Mapping[str, str]]) -> str:
    """Returns `sha256:` and 64 hex digits for a list of examples, in their order.

    Args:
      examples: `{"input": text, "target": text}`, as the lines of an examples file; further keys count as well.

    Raises:
      DataError: an example is not a mapping of strings to strings.
    """
    digest = hashlib.sha256(b"hyperflax support 1\n")
    for number, example in enumerate(examples):
        if not isinstance(example, Mapping):
            raise DataError(f"example {number}: expected a mapping with input and target, got {type(example).__name__}")
        for key, value in example.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise DataError(f"example {number}: expected text under text keys, got {key!r}: {value!r}")
        digest.update(json.dumps(dict(example), sort_keys=True).encode() + b"\n")
    return PREFIX + digest.hexdigest()
