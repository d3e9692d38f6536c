"""Safetensors files tensor by tensor, so that a model never lies in memory twice.

A file is eight bytes with the header's length, a json header `{name: {dtype, shape, data_offsets}}` and the tensors'
bytes (https://github.com/huggingface/safetensors, "Format"). Reading goes through the safetensors library, which checks
all of it; writing is done here, because the library wants every tensor in its final layout at once.

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
from typing import Any

import ml_dtypes
import numpy as np

from hyperflax.errors import CheckpointError
from hyperflax.files import atomic_file, require_file

_NAMES = {
    np.dtype(np.float64): "F64",
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


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


@dataclasses.dataclass(frozen=True)
class OpenTensors:
    """A file open for reading: the tensors' shapes and dtypes, known without reading them.

    Attributes:
      path: the file.
      shapes: by name.
      dtypes: by name; None where numpy has no such number.
    """

    path: pathlib.Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype | None]
    _file: Any

    def read(self, name: str) -> np.ndarray:
        """Returns one tensor. Raises CheckpointError if it holds no floating-point numbers."""
        if self.dtypes[name] is None:
            raise CheckpointError(f"{self.path}: tensor '{name}': expected floating-point numbers of 16 to 64 bits")
        try:
            return self._file.get_tensor(name)
        except (OSError, ValueError, TypeError, OverflowError) as error:  # such as a shape [0, 2**62]
            raise CheckpointError(f"{self.path}: tensor '{name}': cannot be read, {error}") from error


@contextlib.contextmanager
def open_tensors(path: pathlib.Path | str) -> Iterator[OpenTensors]:
    """Opens a safetensors file, whoever wrote it; nothing but the header is read.

    Raises:
      CheckpointError: no file, or a truncated or foreign one.
    """
    import safetensors

    path = pathlib.Path(path)
    require_file(path)
    try:
        file = safetensors.safe_open(path, framework="np")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
        shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
        dtypes = {name: _DTYPES.get(part.get_dtype()) for name, part in slices.items()}
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: expected a safetensors file, {error}") from error
    with file:
        yield OpenTensors(path, shapes, dtypes, file)


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
            values = np.ascontiguousarray(tensor.values())
            assert (values.shape, values.dtype) == (tensor.shape, tensor.dtype), tensor.name
            stream.write(values.reshape(-1).view(np.uint8).data)
