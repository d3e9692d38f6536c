"""Safetensors files tensor by tensor, so that a model never lies in memory twice.

A file is eight bytes with the header's length, a json header `{name: {dtype, shape, data_offsets}}` and the tensors'
bytes (https://github.com/huggingface/safetensors, "Format"). Both ways are written here: the library wants every tensor
in its final layout at once to write, and maps the whole file into memory to read, page by page, beside the copies that
it returns. What it checks of a header is checked here; the tests hold the two to each other.

>>> write_tensors("model.safetensors", [Tensor("shared.weight", (32128, 512), np.dtype("float32"), lambda: table)])
>>> with open_tensors("model.safetensors") as tensors:
...     tensors.shapes["shared.weight"], tensors.read("shared.weight")
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np

from hyperflax.buckets import BucketPath, Location, locate
from hyperflax.errors import CheckpointError
from hyperflax.files import atomic_file, require_file
from hyperflax.json_files import parse_json

_NAMES = {
    np.dtype(np.float64): "F64",
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
# Every dtype that the library knows, in bits; the others here are told of and not read.
_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64, "BOOL": 8}
_BITS |= {f"F8_{form}": 8 for form in ("E4M3", "E5M2", "E8M0", "E4M3FNUZ", "E5M2FNUZ")}
_BITS |= {f"{kind}{bits}": bits for kind in "IU" for bits in (8, 16, 32, 64)}
_BITS |= {"BF16": 16, "F16": 16, "F32": 32, "F64": 64}
_MAX_HEADER = 100_000_000  # the library's own limit
_RANGE = 64 * 2**20  # bytes of one request to a bucket


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor to be written; `values` is called when its turn comes and returns an array of this shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    values: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


Fill: TypeAlias = Callable[[int, memoryview], int]
"""Reads from a place of a file into a buffer, as much as one call gives, and returns the number of bytes."""


@dataclasses.dataclass(frozen=True)
class OpenTensors:
    """A file open for reading: the tensors' shapes and dtypes, known without reading them.

    Attributes:
      path: the file.
      shapes: by name.
      dtypes: by name; None where it holds no floating-point numbers.
      stored: by name, the dtype as the file calls it, such as `I64`, and the number of bytes.
    """

    path: Location
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype | None]
    stored: dict[str, tuple[str, int]]
    _starts: dict[str, int]
    _fill: Fill

    def read(self, name: str) -> np.ndarray:
        """Returns one tensor. Raises CheckpointError if it holds no floating-point numbers or the file was cut."""
        dtype = self.dtypes[name]
        if dtype is None:
            raise CheckpointError(f"{self.path}: tensor '{name}': expected floating-point numbers of 16 to 64 bits")
        try:
            array = np.empty(self.shapes[name], dtype)
        except (MemoryError, ValueError) as error:  # such as a shape [0, 2**62], or one of a file of unknown size
            raise CheckpointError(f"{self.path}: tensor '{name}': cannot be read, {error}") from error
        values = array.reshape(-1).view(np.uint8).data
        done = _filled(self._fill, self._starts[name], values)
        if done < len(values):
            raise CheckpointError(
                f"{self.path}: tensor '{name}': cannot be read, expected {len(values):,} bytes, got {done:,}"
            )
        return array


@contextlib.contextmanager
def open_tensors(path: Location | str) -> Iterator[OpenTensors]:
    """Opens a safetensors file, local or in a bucket, whoever wrote it; nothing but the header is read.

    Raises:
      CheckpointError: no file, or a truncated or foreign one.
    """
    path = locate(path)
    with contextlib.ExitStack() as stack:
        fill, size = _opened(path, stack)
        head = bytearray(8)
        found = _filled(fill, 0, memoryview(head))
        length = int.from_bytes(head, "little")
        if found != 8 or length > _MAX_HEADER or (size is not None and length > size - 8):
            raise CheckpointError(f"{path}: expected a safetensors file, its header cannot be {length:,} bytes long")
        header = bytearray(length)
        found = _filled(fill, 8, memoryview(header))
        yield OpenTensors(path, *_checked(parse_json(bytes(header[:found]), path), path, 8 + length, size), fill)


def _opened(path: Location, stack: contextlib.ExitStack) -> tuple[Fill, int | None]:
    """Returns what reads the file, and its size, which a bucket's list does not tell: a file that was cut there is
    noticed when the tensor that it lacks is read."""
    if isinstance(path, BucketPath):

        def fetch(start: int, into: memoryview) -> int:
            part = path.read_bytes(start, start + min(_RANGE, len(into)))
            into[: len(part)] = part
            return len(part)

        return fetch, None
    require_file(path)
    stream = stack.enter_context(path.open("rb", buffering=0))

    def read(start: int, into: memoryview) -> int:
        stream.seek(start)
        return stream.readinto(into)

    return read, path.stat().st_size


def _filled(fill: Fill, start: int, into: memoryview) -> int:
    """Fills the buffer from a place of the file on; returns the number of bytes, smaller at the file's end."""
    done = 0
    while done < len(into) and (count := fill(start + done, into[done:])):
        done += count
    return done


def _checked(
    header: dict[str, Any], path: Location, begin: int, size: int | None
) -> tuple[dict[str, tuple[int, ...]], dict[str, np.dtype | None], dict[str, tuple[str, int]], dict[str, int]]:
    """Returns the fields of `OpenTensors`; the tensors must follow one another up to the end of the file."""
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: expected a safetensors file, '__metadata__' is no object of strings")
    shapes, dtypes, stored, starts, stops = {}, {}, {}, {}, {}
    for name, told in header.items():
        try:
            bits, shape, (start, stop) = _BITS[told["dtype"]], told["shape"], told["data_offsets"]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path}: tensor '{name}': expected a known dtype, a shape and two data_offsets, got {told!r:.200}"
            ) from error
        numbers = [*shape, start, stop] if isinstance(shape, list) and len(shape) <= 32 else [None]
        if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
            raise CheckpointError(f"{path}: tensor '{name}': expected sizes and offsets, got {told!r:.200}")
        if math.prod(shape) * bits != 8 * (stop - start):
            raise CheckpointError(
                f"{path}: tensor '{name}': shape {shape} of {told['dtype']} does not take {stop - start:,} bytes"
            )
        shapes[name], dtypes[name] = tuple(shape), _DTYPES.get(told["dtype"])
        stored[name] = told["dtype"], stop - start
        starts[name], stops[name] = begin + start, begin + stop
    end = begin
    for name in sorted(starts, key=lambda name: (starts[name], stops[name])):
        if starts[name] != end:
            raise CheckpointError(f"{path}: tensor '{name}': expected to begin at byte {end:,}, got {starts[name]:,}")
        end = stops[name]
    if size is not None and end != size:
        raise CheckpointError(f"{path}: expected a safetensors file of {end:,} bytes, the file has {size:,}")
    return shapes, dtypes, stored, starts


def write_tensors(path: pathlib.Path | str, tensors: Sequence[Tensor]) -> None:
    """Writes a file, atomically, with no more than one tensor's values in memory.

    Raises:
      CheckpointError: a dtype that is no floating-point number of 16 to 64 bits.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file that does not say so
    end = 0
    for tensor in tensors:
        if tensor.dtype not in _NAMES:
            raise CheckpointError(f"{path}: tensor '{tensor.name}': expected a floating dtype, got {tensor.dtype}")
        start, end = end, end + tensor.nbytes
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # the values start at a multiple of eight bytes
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        stream.write(len(head).to_bytes(8, "little") + head)
        for tensor in tensors:
            values = np.asarray(tensor.values(), order="C")
            assert (values.shape, values.dtype) == (tensor.shape, tensor.dtype), tensor.name
            stream.write(values.reshape(-1).view(np.uint8).data)
