"""Writing a token cache: tokenised examples as ArrayRecord shards with a manifest.

Written once, by whoever has seqio; read by `cache_source.CachedSource` wherever there is numpy and array_record.

>>> import tempfile
>>> from hyperflax.data.cache_source import CachedSource
>>> from hyperflax.data.examples import InMemorySource, stream_of
>>> from hyperflax.data.vocabularies import Bytes
>>> source = InMemorySource.from_strings({"upper": [("a", "A"), ("b", "B")]}, Bytes())
>>> with tempfile.TemporaryDirectory() as folder:
...     _ = write_cache(stream_of(source), f"{folder}/cache", Bytes())
...     CachedSource(f"{folder}/cache").example(0, 1).targets.tolist()
[69]
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hyperflax import __version__
from hyperflax.buckets import Location, locate
from hyperflax.data import cache_format as form
from hyperflax.data.examples import StreamedExample
from hyperflax.data.vocabularies import Vocabulary
from hyperflax.errors import DataError
from hyperflax.files import atomic_directory


def write_cache(
    stream: Iterable[StreamedExample],
    out_dir: Location | str,
    vocabulary: Vocabulary,
    *,
    group_rates: Sequence[float] | np.ndarray | None = None,
    origin: Mapping[str, Any] | None = None,
    records_per_shard: int = 65_536,
) -> dict[str, Any]:
    """Writes a token cache in one pass; memory grows by 12 bytes an example.

    The folder appears under its name only when it is complete.

    Args:
      stream: the examples; `stream_of(source)` for a source, `seqio_stream(...)` for a seqio Task.
      out_dir: a folder that does not exist yet, or is empty; or such a place in a bucket, to which it is copied when
        it is complete.
      vocabulary: of the tokens.
      group_rates: mixing rates of the stream's groups, see `ExampleSource`.
      origin: where the examples come from (mixture, split ...), kept in the manifest.
      records_per_shard: examples in a shard file.

    Returns:
      The manifest.

    Raises:
      DataError: the folder is not empty, the stream is, or a token is outside the vocabulary.
    """
    out_dir = locate(out_dir)
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise DataError(f"{out_dir}: expected a folder that does not exist yet, or is empty")
    with atomic_directory(out_dir, marker=form.MANIFEST) as temporary:
        names, count = _write_examples(stream, temporary, vocabulary, records_per_shard)
        vocabulary.write_files(temporary)
        files = [form.file_entry(path) for path in sorted(temporary.iterdir())]
        manifest = {
            "format": form.FORMAT,
            "schema": form.SCHEMA,
            "hyperflax": __version__,
            "origin": dict(origin or {}),
            "vocabulary": vocabulary.to_json(),
            "features": {
                "inputs": "int32 [n]",
                "targets": "int32 [n]",
                "options": "int32 [n] each",
                "references": "text",
            },
            "group_rates": None if group_rates is None else [float(rate) for rate in group_rates],
            "num_tasks": len(names),
            "num_examples": count,
            "records_per_shard": records_per_shard,
            "files": files,
        }
        (temporary / form.MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return manifest


def _write_examples(
    stream: Iterable[StreamedExample], folder: pathlib.Path, vocabulary: Vocabulary, per_shard: int
) -> tuple[list[str], int]:
    """Writes shards, index and tasks; returns the task names and the number of examples."""
    from array_record.python import array_record_module

    numbers: dict[str, int] = {}
    lines: list[str] = []
    index = np.zeros((1024, 3), np.int32)
    writer, count = None, 0
    try:
        for task, example, info, group in stream:
            if task not in numbers:
                numbers[task] = len(numbers)
                lines.append(form.encode_task(task, info, group))
            for ids in (example.inputs, example.targets, *example.options):
                if len(ids) and not 0 <= ids.min() <= ids.max() < vocabulary.vocab_size:
                    raise DataError(
                        f"task '{task}': expected token ids in [0, {vocabulary.vocab_size}), got {ids.max()}"
                    )
            if writer is None or count % per_shard == 0:
                if writer is not None:
                    writer.close()
                path = folder / form.shard_name(count // per_shard)
                writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
            writer.write(form.encode_record(example))
            if count == len(index):
                index = np.concatenate([index, np.zeros_like(index)])
            index[count] = (numbers[task], len(example.inputs), len(example.targets))
            count += 1
    finally:
        if writer is not None:
            writer.close()
    if not count:
        raise DataError(f"{folder.name}: expected at least one example to cache, got none")
    np.save(folder / form.INDEX, index[:count], allow_pickle=False)
    (folder / form.TASKS).write_text("".join(line + "\n" for line in lines), "utf-8")
    return list(numbers), count
