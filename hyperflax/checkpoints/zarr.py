"""Zarr v2 arrays as T5X writes them: `.zarray` plus one file per chunk, read with TensorStore.

Everything a file claims is checked against what lies on the disk before memory is asked for: chunks must be there
(zarr itself reads a missing one as zeros), may not be smaller than their compressor can make them and no larger than
their array, and all arrays together no larger than the machine's memory. TensorStore stops inflating at the size that
the metadata promise, so a compressed bomb ends in an error too. In a bucket, chunks are looked for and not measured.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from hyperflax.buckets import BucketPath, Location, kvstore
from hyperflax.errors import CheckpointError
from hyperflax.json_files import read_json

# How many bytes one stored byte can stand for at most. Deflate's limit is 1032; a zstd block of 128 KiB takes 4 bytes.
# T5X writes gzip or nothing, and zstd on request; blosc is TensorStore's own default. Others do not notice a cut end.
_RATIO = {None: 1, "gzip": 1032, "zstd": 32768, "blosc": 32768}
_PROMISE = {"gzip": (-4, os.SEEK_END), "blosc": (4, os.SEEK_SET)}
_SLACK = 2**16
_MAX_CHUNK_BYTES = 2**40
_SMALL_CHUNK_BYTES = 16 * 2**20
_MAX_DIMENSIONS = 32
_CORES = max(2, os.cpu_count() or 2)
# More under way, or more threads that read, is no faster; freed chunks stay with their threads and raise the peak.
_IN_FLIGHT_BYTES = _CORES * 16 * 2**20
FILE_THREADS = 2 * _CORES


@dataclasses.dataclass(frozen=True)
class ZarrArray:
    """An array on disk that has passed the checks: `directory` holds `.zarray` and all chunks.

    `kvstore` is TensorStore's name of the place where it is no directory of its own, as in Orbax's files.
    """

    leaf: str
    directory: Location
    shape: tuple[int, ...]
    dtype: np.dtype
    driver: str = "zarr"
    kvstore: Mapping[str, Any] | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def inspect_array(leaf: str, directory: Location) -> ZarrArray:
    """Reads `.zarray` and looks at every chunk file's size, not at its content.

    Args:
      leaf: the parameter's path, for errors.
      directory: where the array lies.

    Raises:
      CheckpointError: names the file and the leaf.
    """

    def require(holds: bool, key: str, expected: str) -> None:
        if not holds:
            raise CheckpointError(f"{file}: leaf '{leaf}': '{key}': expected {expected}, got {metadata.get(key)!r}")

    file = directory / ".zarray"
    try:
        metadata: Any = read_json(file)
    except CheckpointError as error:
        raise CheckpointError(f"{error} (leaf '{leaf}')") from error
    require(metadata.get("zarr_format") == 2, "zarr_format", "2")
    shape, chunks, separator = metadata.get("shape"), metadata.get("chunks"), metadata.get("dimension_separator", ".")
    require(_is_shape(shape, 0), "shape", f"up to {_MAX_DIMENSIONS} sizes")
    require(_is_shape(chunks, 1) and len(chunks) == len(shape), "chunks", f"{len(shape)} positive sizes")
    require(separator in (".", "/"), "dimension_separator", "'.' or '/'")
    require(metadata.get("filters") in (None, []), "filters", "none")
    require(metadata.get("order", "C") in ("C", "F"), "order", "'C' or 'F'")
    dtype: Any = dtype_of(metadata.get("dtype"))
    require(dtype is not None, "dtype", "a number type such as '<f4' or 'bfloat16'")
    compressor = metadata.get("compressor")
    name = compressor.get("id") if isinstance(compressor, Mapping) else compressor
    require((name is None or isinstance(name, str)) and name in _RATIO, "compressor", f"one of {list(_RATIO)}")
    # Blosc allocates whatever a chunk says that it holds, and nobody looks into those of a bucket beforehand.
    require(name != "blosc" or not isinstance(directory, BucketPath), "compressor", "gzip, zstd or none in a bucket")
    array = ZarrArray(leaf, directory, tuple(shape), dtype)
    chunk_bytes = math.prod(chunks) * dtype.itemsize
    require(chunk_bytes <= _MAX_CHUNK_BYTES, "chunks", f"chunks of at most {_MAX_CHUNK_BYTES:,} bytes")
    for chunk in _chunk_files(directory, shape, chunks, separator):
        if isinstance(chunk, BucketPath):
            if not chunk.is_file():
                raise CheckpointError(f"{chunk}: leaf '{leaf}': chunk is missing")
        else:
            _check_chunk(leaf, chunk, name, chunk_bytes)
    require(chunk_fits(chunk_bytes, array), "chunks", f"chunks no larger than the array of {array.nbytes:,} bytes")
    return array


def chunk_fits(chunk_bytes: int, array: ZarrArray) -> bool:
    """Whether a chunk is small or no larger than its array: nothing is inflated that the array does not need."""
    return chunk_bytes <= max(array.nbytes, _SMALL_CHUNK_BYTES)


def read_arrays(
    arrays: Mapping[str, ZarrArray],
    finish: Callable[[str, np.ndarray], np.ndarray],
    progress: Callable[[int], None] = lambda nbytes: None,
) -> dict[str, np.ndarray]:
    """Reads all arrays, the largest first, many at a time, see `in_flight_bytes`.

    Args:
      arrays: by any name.
      finish: applied to each array as it arrives (to cast it), so that the tree never exists twice.
      progress: called with the number of bytes of each array as it arrives.

    Raises:
      CheckpointError: a chunk is damaged or truncated, or the arrays are larger than the machine's memory.
    """
    import tensorstore as ts

    claimed, memory = sum(array.nbytes for array in arrays.values()), _memory_bytes()
    if claimed > memory:  # zeros compress well: a file of megabytes can stand for terabytes
        where = next(iter(arrays.values())).directory.parent
        raise CheckpointError(
            f"{where}: arrays of {claimed:,} bytes; expected at most this machine's {memory:,} of memory"
        )
    context = ts.Context({"file_io_concurrency": {"limit": FILE_THREADS}})
    opened = {path: ts.open(spec_of(array), open=True, read=True, context=context) for path, array in arrays.items()}
    reading: collections.deque[tuple[str, Any]] = collections.deque()
    done: dict[str, np.ndarray] = {}
    arrived, in_flight, limit = 0, 0, in_flight_bytes(claimed)

    def room(nbytes: int) -> bool:
        # An array that is one chunk keeps one core busy. Until most has arrived there is memory for one on every core:
        # as it is stored, inflated, and as the array.
        early = len(reading) < _CORES and arrived + 3 * (in_flight + nbytes) <= 6 * claimed // 5
        return early or in_flight + nbytes <= limit

    def wait(path: str, future: Any) -> Any:
        try:
            return future.result()
        except (ValueError, OSError, NotImplementedError) as error:
            raise unreadable(arrays[path], str(error)) from error

    for path in [*sorted(arrays, key=lambda path: -arrays[path].nbytes), None]:
        while reading and (path is None or not room(arrays[path].nbytes)):
            ready, future = reading.popleft()
            done[ready] = finish(ready, wait(ready, future))
            nbytes = arrays[ready].nbytes
            progress(nbytes)
            arrived, in_flight = arrived + nbytes, in_flight - nbytes
        if path is not None:
            store = wait(path, opened.pop(path))
            if store.shape != arrays[path].shape or store.dtype.numpy_dtype != arrays[path].dtype:
                raise unreadable(arrays[path], "the metadata changed meanwhile")
            reading.append((path, store.read(order="C")))
            in_flight += arrays[path].nbytes
    return {path: done[path] for path in arrays}


def in_flight_bytes(total: int) -> int:
    """Returns how many bytes of arrays may be under way at any moment, of so many in all.

    16 MiB a core, and a sixteenth of the whole where that is more: the arrays of a large model are too large for two of
    them to fit into the first, and one array that is one chunk keeps one core busy.
    """
    return max(_IN_FLIGHT_BYTES, total // 16)


def chunk_size(total: int) -> int:
    """Returns the size of the chunks to write, of so many bytes in all: T5X's 64 MiB, less for models below 4 GiB.

    A chunk is compressed by one core, and is there several times over meanwhile.
    """
    return min(64 * 2**20, max(4 * 2**20, total // 64))


def unreadable(array: ZarrArray, reason: str) -> CheckpointError:
    """Returns the error for an array whose values cannot be had."""
    return CheckpointError(f"{array.directory}: leaf '{array.leaf}': cannot be read, {reason}")


def dtype_of(name: Any) -> np.dtype | None:
    """Returns the native numpy dtype for zarr's or T5X's name of it; None for anything but plain numbers."""
    if name == "bfloat16":
        return np.dtype(ml_dtypes.bfloat16)
    if not isinstance(name, str) or len(name) > 16:
        return None
    try:
        dtype = np.dtype(name)
    except (TypeError, ValueError):
        return None
    return dtype.newbyteorder("=") if dtype.kind in "biuf" and dtype.itemsize <= 8 else None


def is_floating(dtype: np.dtype) -> bool:
    """Whether numbers of this dtype are weights, and not counts; bfloat16 is no kind of numpy's own."""
    return dtype.kind == "f" or dtype == np.dtype(ml_dtypes.bfloat16)


def floating_dtype(name: Any, where: object) -> np.dtype:
    """Returns the dtype that weights are to be cast to. Raises CheckpointError for a name of no floating dtype."""
    dtype = dtype_of(str(name))
    if dtype is None or not is_floating(dtype):
        raise CheckpointError(f"{where}: dtype: expected a floating dtype such as 'float32', got {name!r}")
    return dtype


def spec_of(array: ZarrArray) -> dict[str, Any]:
    """Returns TensorStore's name of an array; a missing chunk is an error, not zeros."""
    return {
        "driver": array.driver,
        "kvstore": array.kvstore or kvstore(array.directory),
        "fill_missing_data_reads": False,
    }


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _is_shape(value: Any, smallest: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= _MAX_DIMENSIONS
        and all(isinstance(size, int) and not isinstance(size, bool) and size >= smallest for size in value)
        and math.prod(value) < 2**60
    )


def _chunk_files(directory: Location, shape: list[int], chunks: list[int], separator: str) -> Iterator[Location]:
    """Names every chunk, lazily: a grid of absurd size ends at its first missing chunk."""
    counts = [-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True)]
    for number in range(math.prod(counts)):
        index = []
        for count in reversed(counts):
            number, place = divmod(number, count)
            index.append(str(place))
        yield directory / (separator.join(reversed(index)) or "0")


def _check_chunk(leaf: str, file: os.PathLike, compressor: str | None, chunk_bytes: int) -> None:
    try:
        status = os.stat(file)
    except OSError as error:
        raise CheckpointError(f"{file}: leaf '{leaf}': chunk is missing ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{file}: leaf '{leaf}': expected a file")
    if compressor is None and status.st_size != chunk_bytes:
        expected = f"expected {chunk_bytes:,} bytes"
    elif status.st_size * _RATIO[compressor] + _SLACK < chunk_bytes:
        expected = f"cannot hold a chunk of {chunk_bytes:,} bytes"
    elif compressor is not None and status.st_size > chunk_bytes + chunk_bytes // 8 + _SLACK:
        expected = f"is too long for a chunk of {chunk_bytes:,} bytes"
    elif compressor in _PROMISE and _promised(file, compressor) != chunk_bytes % 2**32:
        expected = f"expected a {compressor} stream that says it holds {chunk_bytes:,} bytes"
    else:
        return
    raise CheckpointError(f"{file}: leaf '{leaf}': {expected}, the file has {status.st_size:,} bytes")


def _promised(file: os.PathLike, compressor: str) -> int:
    """The size that a chunk says it has.

    Blosc would allocate it unasked. Gzip's stands in its last four bytes, which TensorStore does not miss if they are
    cut off.
    """
    offset, whence = _PROMISE[compressor]
    with open(file, "rb") as stream:
        if os.fstat(stream.fileno()).st_size < 8:
            return -1
        stream.seek(offset, whence)
        return int.from_bytes(stream.read(4), "little")
