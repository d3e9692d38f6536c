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

import contextlib
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
      stream: the examples; `stream_of(source)` for a source, an `ExampleStream`'s for all that is read as it comes.
      out_dir: a folder that does not exist yet, or is empty; or such a place in a bucket, to which it is copied when
        it is complete.
      vocabulary: of the tokens.
      group_rates: mixing rates of the stream's groups, see `ExampleSource`.
      origin: where the examples come from (mixture, split ...), kept in the manifest.
      records_per_shard: examples in a shard file.

    Returns:
      The manifest.

    Raises:
      CheckpointError: the folder is not empty.
      DataError: the stream is empty, a token is outside the vocabulary, or the operating system refuses a shard, as
        on a full disk.
    """
    out_dir = locate(out_dir)
    with atomic_directory(out_dir, marker=form.MANIFEST) as temporary:
        with contextlib.closing(_Shards(temporary, records_per_shard, out_dir)) as shards:
            tasks, index = _write_examples(stream, shards, vocabulary, out_dir)
        np.save(temporary / form.INDEX, index, allow_pickle=False)
        (temporary / form.TASKS).write_text("".join(line + "\n" for line in tasks.values()), "utf-8")
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
            "num_tasks": len(tasks),
            "num_examples": len(index),
            "records_per_shard": records_per_shard,
            "files": files,
        }
        (temporary / form.MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return manifest


class _Shards:
    """ArrayRecord files of `per_shard` records each, written one after the other; `place` is for errors."""

    def __init__(self, folder: pathlib.Path, per_shard: int, place: Location):
        self._folder, self._per_shard, self._place = folder, per_shard, place
        self._writer: Any = None
        self._count = 0

    def write(self, record: bytes) -> None:
        if self._count % self._per_shard == 0:
            from array_record.python import array_record_module

            self.close()
            path = self._folder / form.shard_name(self._count // self._per_shard)
            self._writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        with self._told():
            self._writer.write(record)
        self._count += 1

    def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with self._told():
                writer.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # what ArrayRecord raises for the operating system
            raise DataError(f"{self._place}: not written, {error}") from error


def _write_examples(
    stream: Iterable[StreamedExample], shards: _Shards, vocabulary: Vocabulary, place: Location
) -> tuple[dict[str, str], np.ndarray]:
    """Writes the examples; returns the line of tasks.jsonl for each task, by name, and the index."""
    numbers: dict[str, int] = {}
    lines: dict[str, str] = {}
    index, count = np.zeros((1024, 3), np.int32), 0
    for task, example, info, group in stream:
        if task not in numbers:
            numbers[task] = len(numbers)
            lines[task] = form.encode_task(task, info, group)
        for ids in (example.inputs, example.targets, *example.options):
            if len(ids) and not 0 <= ids.min() <= ids.max() < vocabulary.vocab_size:
                raise DataError(
                    f"task '{task}': expected token ids in [0, {vocabulary.vocab_size}), got {ids.min()} to {ids.max()}"
                )
        shards.write(form.encode_record(example))
        if count == len(index):
            index = np.concatenate([index, np.zeros_like(index)])
        index[count] = (numbers[task], len(example.inputs), len(example.targets))
        count += 1
    if not count:
        raise DataError(f"{place}: expected at least one example to cache, got none")
    return lines, index[:count]
