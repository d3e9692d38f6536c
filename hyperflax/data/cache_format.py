"""The token cache on disk: a folder of ArrayRecord shards, an index and two readable files.

```
manifest.json          vocabulary, counts, mixing rates, size and sha256 of every other file
tasks.jsonl            one line a task: name (and its own inside a seqio Task), group, category, data sets, definition
                       and positives (token ids)
index.npy              int32 [examples, 3]: task number, tokens of inputs, tokens of targets; in record order
examples-00000.array_record, ...    one record an example, `records_per_shard` each (the last may have fewer)
*.model                the sentencepiece model, if the vocabulary has one
```

A record, little-endian, no padding:

```
uint32 x 4    n_inputs, n_targets, n_options, n_references
int32 x n     inputs, then targets
n_options x     uint32 n, int32 x n        an answer option
n_references x  uint32 n, UTF-8 bytes x n  an accepted answer
```

Token ids come without end of sequence. Nothing here depends on shots, lengths or sentinels: episodes are made on
reading.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from hyperflax.buckets import Location
from hyperflax.data.examples import Example, TaskInfo
from hyperflax.errors import DataError
from hyperflax.files import read_if_there

FORMAT = "hyperflax token cache"
SCHEMA = 1
MANIFEST, TASKS, INDEX = "manifest.json", "tasks.jsonl", "index.npy"

_HEADER = struct.Struct("<4I")
_COUNT = struct.Struct("<I")


def shard_name(number: int) -> str:
    return f"examples-{number:05d}.array_record"


def encode_record(example: Example) -> bytes:
    """The record of one example."""
    inputs, targets, options, references = example
    parts = [_HEADER.pack(len(inputs), len(targets), len(options), len(references)), _ids(inputs), _ids(targets)]
    for option in options:
        parts += (_COUNT.pack(len(option)), _ids(option))
    for reference in references:
        text = reference.encode("utf-8")
        parts += (_COUNT.pack(len(text)), text)
    return b"".join(parts)


def decode_record(data: bytes) -> Example:
    """The example of one record.

    Raises:
      DataError: the lengths inside do not add up to the record's size, or a reference is no UTF-8.
    """
    try:
        n_inputs, n_targets, n_options, n_references = _HEADER.unpack_from(data)
        at = _HEADER.size
        inputs, at = _take_ids(data, at, n_inputs)
        targets, at = _take_ids(data, at, n_targets)
        if not n_options and not n_references and at == len(data):
            return Example(inputs, targets)
        options = []
        for _ in range(n_options):
            (size,) = _COUNT.unpack_from(data, at)
            option, at = _take_ids(data, at + _COUNT.size, size)
            options.append(option)
        references = []
        for _ in range(n_references):
            (size,) = _COUNT.unpack_from(data, at)
            text = data[at + _COUNT.size : at + _COUNT.size + size]
            references.append(text.decode("utf-8"))
            at += _COUNT.size + size
    except (struct.error, ValueError) as error:
        raise DataError(f"expected a record of {FORMAT} schema {SCHEMA}, got {len(data)} bytes ({error})") from error
    if at != len(data):
        raise DataError(f"expected a record of {at} bytes by its own lengths, got {len(data)}")
    return Example(inputs, targets, tuple(options), tuple(references))


def _ids(tokens: np.ndarray) -> bytes:
    return np.ascontiguousarray(tokens, "<i4").tobytes()


def _take_ids(data: bytes, at: int, count: int) -> tuple[np.ndarray, int]:
    return np.frombuffer(data, "<i4", count, at).astype(np.int32, copy=False), at + 4 * count


def encode_task(name: str, info: TaskInfo, group: int) -> str:
    """The line of one task."""
    positives = [
        {"inputs": p.inputs.tolist(), "targets": p.targets.tolist(), "references": list(p.references)}
        for p in info.positives
    ]
    row = {"name": name, "group": group, "category": info.category, "data_sets": list(info.data_sets)}
    row |= {"definition": info.definition.tolist(), "positives": positives}
    row |= {"own_name": info.own_name} if info.own_name else {}
    return json.dumps(row, ensure_ascii=False)


def decode_task(line: str) -> tuple[str, TaskInfo, int]:
    """Name, info and group of one task.

    Raises:
      DataError: no JSON, or a key is missing.
    """
    try:
        row = json.loads(line)
        positives = tuple(
            Example(np.asarray(p["inputs"], np.int32), np.asarray(p["targets"], np.int32), (), tuple(p["references"]))
            for p in row["positives"]
        )
        definition = np.asarray(row["definition"], np.int32)
        # Earlier caches do not know their data sets.
        data_sets = tuple(row.get("data_sets", ()))
        info = TaskInfo(definition, positives, row["category"], data_sets, row.get("own_name", ""))
        return row["name"], info, int(row["group"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"expected a task with name, group, category, definition, positives ({error!r})") from error


def file_entry(path: pathlib.Path) -> dict[str, Any]:
    """Name, size and sha256 of a file, as the manifest lists it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def require_size(file: pathlib.Path, entry: Mapping[str, Any]) -> None:
    """Raises DataError unless a file has as many bytes as its entry in the manifest says."""
    if (size := file.stat().st_size) != entry["bytes"]:
        raise DataError(f"{file}: expected {entry['bytes']} bytes, got {size}")


def read_manifest(directory: Location) -> dict[str, Any]:
    """The manifest of a cache, checked against the files beside it by name and, on this machine, by size.

    Raises:
      DataError: no cache there, another schema, or a file absent or of another size; the file is named.
    """
    path = directory / MANIFEST
    content = read_if_there(path)
    if content is None:
        raise DataError(f"{path}: expected the manifest of a token cache, there is no such file")
    try:
        manifest = json.loads(content.decode("utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: expected JSON, got {error}") from error
    found = (manifest.get("format"), manifest.get("schema")) if isinstance(manifest, Mapping) else None
    if found != (FORMAT, SCHEMA):
        raise DataError(f"{path}: expected format {FORMAT!r} schema {SCHEMA}, got {found}")
    for entry in manifest["files"]:
        file = directory / entry["file"]
        if not file.is_file():
            raise DataError(f"{file}: listed in {MANIFEST}, there is no such file")
        if isinstance(file, pathlib.Path):
            require_size(file, entry)
    return manifest
