"""Reading a token cache: an `ExampleSource` over ArrayRecord shards, without TensorFlow or seqio."""

from __future__ import annotations

import pathlib
import shutil
import tempfile
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from hyperflax.buckets import BucketPath, Location, locate
from hyperflax.data import cache_format as form
from hyperflax.data import vocabularies
from hyperflax.data.examples import Example, TaskInfo
from hyperflax.data.vocabularies import Vocabulary
from hyperflax.errors import DataError
from hyperflax.files import atomic_file


class CachedSource:
    """An `ExampleSource` that reads single records of a token cache; safe to share between threads.

    Of a cache in a bucket each file is copied to a temporary folder of this machine when it is first needed: shuffled
    reading asks for every shard, again and again.

    Args:
      directory: of the cache, or its address in a bucket.
      verify: compare the sha256 of every file (reads the whole cache); sizes are always compared.

    Raises:
      DataError: see `read_manifest`; a file that does not match its sha256 is named.
    """

    def __init__(self, directory: Location | str, *, verify: bool = False):
        self.directory = locate(directory)
        self.manifest = form.read_manifest(self.directory)
        self._copies: pathlib.Path | None = None
        if isinstance(self.directory, BucketPath):
            self._copies = pathlib.Path(tempfile.mkdtemp(prefix="hyperflax-cache-"))
            weakref.finalize(self, shutil.rmtree, self._copies, ignore_errors=True)
        self._lock = threading.Lock()
        if verify:
            for entry in self.manifest["files"]:
                if (found := form.file_entry(self._local(entry["file"]))) != entry:
                    raise DataError(
                        f"{self.directory / entry['file']}: expected sha256 {entry['sha256']}, got {found['sha256']}"
                    )
        self.vocabulary = self._read_vocabulary()
        rates = self.manifest["group_rates"]
        self.group_rates = None if rates is None else np.asarray(rates, np.float64)
        self._read_tasks()
        self._read_index()
        self._per_shard = int(self.manifest["records_per_shard"])
        self._readers: dict[int, Any] = {}

    def _local(self, name: str) -> pathlib.Path:
        """Where a file of the cache lies on this machine."""
        if self._copies is None:
            return pathlib.Path(str(self.directory), name)
        if pathlib.PurePath(name).name != name:
            raise DataError(f"{self.directory}: expected a plain file name, got {name!r:.100}")
        copy = self._copies / name
        if not copy.exists():
            with atomic_file(copy) as temporary:
                temporary.write_bytes((self.directory / name).read_bytes())
            form.require_size(copy, next(entry for entry in self.manifest["files"] if entry["file"] == name))
        return copy

    def _read_vocabulary(self) -> Vocabulary:
        description = self.manifest["vocabulary"]
        for name in (entry["file"] for entry in self.manifest["files"]):
            if name == description.get("file"):
                return vocabularies.from_json(description, self._local(name).parent)
        return vocabularies.from_json(description, str(self.directory))  # it needs no file, or lacks one

    def _read_tasks(self) -> None:
        path = self._local(form.TASKS)
        rows = []
        for number, line in enumerate(path.read_text("utf-8").removesuffix("\n").split("\n"), start=1):
            try:
                rows.append(form.decode_task(line))
            except DataError as error:
                raise DataError(f"{path}:{number}: {error}") from error
        self.task_names = tuple(name for name, _, _ in rows)
        self._infos = [info for _, info, _ in rows]
        if "seed" in self.manifest["origin"] and self.group_rates is not None and len(self.group_rates) > 1:
            # A seqio Mixture of an earlier version, which did not write a task's own name: it follows the first slash,
            # as there is none in a seqio Task's.
            own = [name.partition("/")[2] for name in self.task_names]
            self._infos = [info._replace(own_name=name) for info, name in zip(self._infos, own, strict=True)]
        self.groups = np.asarray([group for _, _, group in rows], np.int32)

    def _read_index(self) -> None:
        path = self._local(form.INDEX)
        try:
            index = np.load(path, allow_pickle=False)
        except ValueError as error:
            raise DataError(f"{path}: expected an int32 array, got {error}") from error
        shape = (self.manifest["num_examples"], 3)
        if index.shape != shape or index.dtype != np.int32:
            raise DataError(f"{path}: expected int32 {shape}, got {index.dtype} {index.shape}")
        if index[:, 0].min() < 0 or index[:, 0].max() >= len(self.task_names):
            raise DataError(f"{path}: expected task numbers below {len(self.task_names)}, got {index[:, 0].max()}")
        self.sizes = np.bincount(index[:, 0], minlength=len(self.task_names)).astype(np.int64)
        self._records = np.argsort(index[:, 0], kind="stable")
        self._lengths = index[self._records, 1:]
        self._first = np.concatenate([[0], np.cumsum(self.sizes)]).tolist()

    def example(self, task: int, index: int) -> Example:
        return self.gather([(task, [index])])[0][0]

    def examples(self, task: int, indices: Sequence[int]) -> list[Example]:
        return self.gather([(task, indices)])[0]

    def gather(self, requests: Sequence[tuple[int, Sequence[int]]]) -> list[list[Example]]:
        records: list[int] = []
        for task, indices in requests:
            size, first = int(self.sizes[task]), self._first[task]
            if len(indices) and not 0 <= min(indices) <= max(indices) < size:
                raise DataError(f"task '{self.task_names[task]}': expected indices below {size}, got {max(indices)}")
            records += self._records[first + np.asarray(indices, np.int64)].tolist()
        found = iter(self._read(records))
        return [[next(found) for _ in indices] for _, indices in requests]

    def lengths(self, task: int) -> np.ndarray:
        return self._lengths[self._first[task] : self._first[task + 1]]

    def info(self, task: int) -> TaskInfo:
        return self._infos[task]

    def _read(self, records: Sequence[int]) -> list[Example]:
        """Reads records, shard by shard: one call for many records costs little more than a call for one."""
        wanted: dict[int, list[int]] = {}
        for at, record in enumerate(records):
            wanted.setdefault(record // self._per_shard, []).append(at)
        examples: dict[int, Example] = {}
        for shard, places in wanted.items():
            within = [records[at] % self._per_shard for at in places]
            try:
                data = self._reader(shard).read(within)
            except (RuntimeError, ValueError, IndexError):
                data = [self._read_one(shard, record) for record in within]  # finds and names the broken one
            for at, record, item in zip(places, within, data, strict=True):
                try:
                    examples[at] = form.decode_record(item)
                except DataError as error:
                    raise self._broken(shard, record, error) from error
        return [examples[at] for at in range(len(records))]

    def _read_one(self, shard: int, record: int) -> bytes:
        try:
            return self._reader(shard).read([record])[0]
        except (RuntimeError, ValueError, IndexError) as error:
            raise self._broken(shard, record, error) from error

    def _broken(self, shard: int, record: int, error: Exception) -> DataError:
        return DataError(f"{self.directory / form.shard_name(shard)}, record {record}: cannot be read ({error})")

    def _reader(self, shard: int) -> Any:
        reader = self._readers.get(shard)
        if reader is None:
            from array_record.python import array_record_module

            with self._lock:
                if shard not in self._readers:
                    path = self._local(form.shard_name(shard))
                    # Read-ahead would fetch megabytes for a record, and threads cost more than a batch's records.
                    options = "readahead_buffer_size:0,max_parallelism:1"
                    self._readers[shard] = array_record_module.ArrayRecordReader(str(path), options)
                reader = self._readers[shard]
        return reader
