"""The msgpack file of a T5X checkpoint: which leaves there are, and where each one's values lie.

`checkpoint_<step>/checkpoint` is a flax msgpack map `{version, optimizer: {target, state}}`; version 0 files lack the
outer map. A leaf is an array inside the file (ExtType 1), a numpy scalar (ExtType 3), an array in pieces (flax splits
those above 1 GiB) or a TensorStore spec of a zarr array beside the file. Nothing is executed and no array is decoded
before its place in the tree is known, so that every error names the leaf.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import IO, Any

import msgpack
import numpy as np

from hyperflax.buckets import BucketPath, Location, locate
from hyperflax.checkpoints.zarr import dtype_of
from hyperflax.errors import CheckpointError
from hyperflax.files import read_bytes, require_file

NEWEST_VERSION = 3
LEGACY_FILE = "checkpoint"
_STEP_DIRECTORY = re.compile(r"checkpoint_(0|[1-9][0-9]{0,18})")
_NDARRAY, _SCALAR = 1, 3
_PIECES = "__msgpack_chunked_array__"
_MAX_DEPTH = 64
_READ_BYTES = 2**20


@dataclasses.dataclass(frozen=True)
class Packed:
    """An extension of msgpack, still in bytes."""

    code: int
    data: bytes


@dataclasses.dataclass(frozen=True)
class Stored:
    """A leaf whose values lie in a zarr array.

    Attributes:
      directory: the array's directory, inside the checkpoint's.
      shape, dtype: what the msgpack file says about it, None where it says nothing.
    """

    directory: Location
    shape: tuple[int, ...] | None
    dtype: np.dtype | None


@dataclasses.dataclass(frozen=True)
class T5XIndex:
    """A checkpoint's table of contents.

    Attributes:
      file: the msgpack file.
      version: 0, 2 or 3; before 3, bfloat16 was stored as uint16.
      tree: `{"target": ..., "state": ...}`, decoded where it was asked for.
    """

    file: Location
    version: int
    tree: dict[str, Any]

    def leaves(self, *branch: str) -> dict[str, np.ndarray | Stored]:
        """Returns `{path: leaf}` below a branch, inline arrays decoded. A leaf of None (untouched state) is left out.

        What is decoded takes the place of its bytes in `tree`, so that no second copy of it stays.

        Raises:
          CheckpointError: the branch is missing, or a leaf in it is broken; names file and leaf.
        """
        found = {}
        for path, where, holder, key in self._below(branch):
            holder[key] = found[path] = self._leaf(holder[key], where)
        return found

    def paths(self, *branch: str) -> list[str]:
        """Returns the paths of the leaves below a branch, none of which is decoded. Raises as `leaves` does."""
        return [path for path, *_ in self._below(branch)]

    def _below(self, branch: tuple[str, ...]) -> Iterator[tuple[str, str, dict[str, Any], str]]:
        holder: Any = {"": self.tree}
        key = ""
        for name in branch:
            if not isinstance(holder[key], Mapping) or name not in holder[key]:
                raise CheckpointError(f"{self.file}: expected '{'/'.join(branch)}', '{name}' is missing")
            holder, key = holder[key], name
        yield from self._walk(holder, key, "", "/".join(branch))

    def _walk(
        self, holder: dict[str, Any], key: str, path: str, where: str
    ) -> Iterator[tuple[str, str, dict[str, Any], str]]:
        """Yields every leaf's path below the branch and from the top, and the map and the key where it stands."""
        node = holder[key]
        if isinstance(node, dict) and _PIECES not in node and not isinstance(node.get("driver"), str):
            if path.count("/") >= _MAX_DEPTH:
                raise CheckpointError(f"{self.file}: leaf '{where}': nested deeper than {_MAX_DEPTH}")
            for name in sorted(node, key=str):
                if not isinstance(name, str) or not name or "/" in name:
                    raise CheckpointError(f"{self.file}: '{where}': expected names without '/', got {name!r}")
                yield from self._walk(node, name, f"{path}/{name}" if path else name, f"{where}/{name}")
        elif node is not None:
            yield path, where, holder, key

    def _leaf(self, node: Any, where: str) -> np.ndarray | Stored:
        if isinstance(node, np.ndarray | Stored):  # decoded before
            return node
        if not isinstance(node, Mapping):
            return self._inline(node, where)
        return self._pieces(node, where) if _PIECES in node else self._stored(node, where)

    def _inline(self, node: Any, where: str) -> np.ndarray:
        if isinstance(node, bool | int | float):
            try:
                return np.asarray(node)
            except OverflowError as error:
                raise CheckpointError(f"{self.file}: leaf '{where}': {error}") from error
        if not isinstance(node, Packed) or node.code not in (_NDARRAY, _SCALAR):
            raise CheckpointError(f"{self.file}: leaf '{where}': expected an array, got {_told(node)}")
        return self._decode(node, where)

    def _decode(self, packed: Packed, where: str) -> np.ndarray:
        try:
            shape, name, buffer = msgpack.unpackb(packed.data, raw=True, strict_map_key=True)
            dtype = dtype_of(name.decode("ascii"))
            sizes = tuple(shape)
        except (ValueError, TypeError, AttributeError, RecursionError, msgpack.UnpackException) as error:
            raise CheckpointError(f"{self.file}: leaf '{where}': expected (shape, dtype, bytes), {error}") from error
        if dtype is None:
            raise CheckpointError(f"{self.file}: leaf '{where}': expected a dtype of numbers, got {name[:32]!r}")
        if len(sizes) > 32 or not all(isinstance(size, int) and 0 <= size < 2**63 for size in sizes):
            raise CheckpointError(f"{self.file}: leaf '{where}': expected a shape, got {sizes[:33]!r}")
        if not isinstance(buffer, bytes) or len(buffer) != math.prod(sizes) * dtype.itemsize:
            told = f"{len(buffer):,} bytes" if isinstance(buffer, bytes) else _told(buffer)
            raise CheckpointError(
                f"{self.file}: leaf '{where}': expected {math.prod(sizes) * dtype.itemsize:,} bytes for shape {sizes} "
                f"of {dtype}, got {told}"
            )
        return np.frombuffer(buffer, dtype).reshape(sizes).copy()  # the copy can be written to, the buffer could not

    def _pieces(self, node: Mapping[str, Any], where: str) -> np.ndarray:
        shape, chunks = ([], [])
        for name, out in (("shape", shape), ("chunks", chunks)):
            part = node.get(name)
            if not isinstance(part, Mapping) or set(part) != {str(i) for i in range(len(part))}:
                raise CheckpointError(f"{self.file}: leaf '{where}': an array in pieces without '{name}'")
            out.extend(self._inline(part[str(i)], f"{where}/{name}/{i}") for i in range(len(part)))
        sizes = tuple(int(size) for size in shape if size.ndim == 0 and size.dtype.kind in "iu")
        flat = [piece for piece in chunks if piece.ndim == 1 and piece.dtype == chunks[0].dtype]
        if not flat or len(sizes) != len(shape) or len(flat) != len(chunks) or min(sizes, default=0) < 0:
            raise CheckpointError(f"{self.file}: leaf '{where}': expected sizes and flat pieces of one dtype")
        if math.prod(sizes) != sum(piece.size for piece in flat):
            raise CheckpointError(
                f"{self.file}: leaf '{where}': expected {math.prod(sizes):,} values for shape {sizes}, "
                f"the pieces hold {sum(piece.size for piece in flat):,}"
            )
        return np.concatenate(flat).reshape(sizes)

    def _stored(self, node: Mapping[str, Any], where: str) -> Stored:
        store = node.get("kvstore")
        store = store if isinstance(store, Mapping) else {}
        path = store.get("path", node.get("path"))  # TensorStore before 0.1.14 had it one level higher
        if node["driver"] != "zarr":
            raise CheckpointError(f"{self.file}: leaf '{where}': expected driver 'zarr', got {node['driver'][:40]!r}")
        if not isinstance(path, str):
            raise CheckpointError(f"{self.file}: leaf '{where}': expected a path in the TensorStore spec, found none")
        metadata = node.get("metadata")
        shape = metadata.get("shape") if isinstance(metadata, Mapping) else None
        if shape is not None and not (isinstance(shape, list) and all(type(size) is int for size in shape)):
            raise CheckpointError(f"{self.file}: leaf '{where}': expected a shape, got {_told(shape)}")
        return Stored(
            _inside(self.file, where, path), None if shape is None else tuple(shape), dtype_of(node.get("dtype"))
        )


def read_index(path: Location | str, step: int | None = None) -> T5XIndex:
    """Reads the msgpack file of a checkpoint; arrays beside it are not touched.

    Args:
      path: the checkpoint's directory, its msgpack file, or a run's directory with `checkpoint_<step>` inside; a local
        path, or a directory in a bucket.
      step: which one of a run's checkpoints; the latest by default.

    Raises:
      CheckpointError: names the file and what is wrong with it.
    """
    file = find_checkpoint(path, step)
    try:
        with _opened(file) as stream:
            tree = _unpacked(stream)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        reason = str(error) or type(error).__name__
        # Of another name it may be anything: weights that lie in a directory, and that directory is what is asked for.
        what = "" if file.name == LEGACY_FILE else "a checkpoint's directory, or "
        raise CheckpointError(f"{file}: expected {what}a msgpack file as T5X writes it, {reason[:200]}") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{file}: expected a msgpack map with 'version' and 'optimizer', got {_told(tree)}")
    version = tree.get("version", 0)
    if not isinstance(version, int) or isinstance(version, bool) or not 0 <= version <= NEWEST_VERSION:
        raise CheckpointError(f"{file}: expected a version from 0 to {NEWEST_VERSION}, got {_told(version)}")
    if version and "optimizer" not in tree:
        raise CheckpointError(f"{file}: expected the key 'optimizer', got {sorted(map(str, tree))[:8]}")
    return T5XIndex(file, version, tree["optimizer"] if version else tree)


def _opened(file: Location) -> IO[bytes]:
    if isinstance(file, BucketPath):
        return io.BytesIO(read_bytes(file))
    require_file(file)
    try:
        return file.open("rb")
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from error


def _unpacked(stream: IO[bytes]) -> Any:
    """Decodes a file piece by piece: its arrays are never in memory beside the whole file's bytes."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    unpacker = msgpack.Unpacker(
        stream,
        read_size=_READ_BYTES,
        max_buffer_size=max(size, _READ_BYTES),
        ext_hook=Packed,
        raw=False,
        strict_map_key=True,
        object_pairs_hook=_unique,
    )
    tree = unpacker.unpack()
    if unpacker.tell() != size:
        raise ValueError(f"{size - unpacker.tell():,} bytes are left over")
    return tree


def find_checkpoint(path: Location | str, step: int | None = None) -> Location:
    """Returns the msgpack file that `path` means; see `read_index`. `checkpoint_<step>.tmp-<time>` is never taken."""
    path = locate(path)
    if path.is_file():
        check_step(path.parent, step)
        return path
    if not path.is_dir():
        raise CheckpointError(f"{path}: expected a checkpoint's directory, found nothing")
    if (path / LEGACY_FILE).is_file():
        check_step(path, step)
    else:
        run = step_directories(path)
        steps = sorted(run)
        if steps and step is not None and step not in steps:
            raise CheckpointError(f"{path}: expected checkpoint_{step}, found steps {steps}")
        # As in T5X the latest is one with its file, which is written last: where there is no rename, as in a bucket, a
        # directory may lack it.
        whole = [number for number in steps if (run[number] / LEGACY_FILE).is_file()]
        if steps:
            path = run[(whole or steps)[-1] if step is None else step]
    if (path / LEGACY_FILE).is_file():
        return path / LEGACY_FILE
    if (path / "_CHECKPOINT_METADATA").exists() or (path / "_METADATA").exists():
        raise CheckpointError(
            f"{path}: is a checkpoint in Orbax's form, not in T5X's legacy form (msgpack + zarr); `read_orbax` reads it"
        )
    raise CheckpointError(f"{path}: expected the msgpack file 'checkpoint', or directories 'checkpoint_<step>'")


def step_directories(run: Location) -> dict[int, Location]:
    """The directories `checkpoint_<step>` of a run, by step, whatever form is in them."""
    named = ((_STEP_DIRECTORY.fullmatch(entry.name), entry) for entry in run.iterdir())
    return {int(match[1]): entry for match, entry in named if match and entry.is_dir()}


def check_step(checkpoint: Location, step: int | None) -> None:
    """Raises CheckpointError where `step` asks for another checkpoint than this one, which is no run's directory."""
    if step is not None and checkpoint.name != f"checkpoint_{step}":
        raise CheckpointError(f"{checkpoint}: step: expected none, this is one checkpoint and no run, got {step}")


def check_new_step(directory: Location | str, step: object) -> None:
    """Raises CheckpointError where `step` is none that a checkpoint may be written with."""
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 2**31:
        raise CheckpointError(f"{directory}: step: expected 0 to 2**31 - 1, as T5X counts, got {step!r}")


def _inside(file: Location, where: str, relative: str) -> Location:
    """The directory of a stored leaf. A spec may only name places inside its checkpoint."""
    parts = pathlib.PurePosixPath(relative).parts
    if not parts or relative.startswith("/") or ".." in parts or "\0" in relative or "\\" in relative:
        raise CheckpointError(f"{file}: leaf '{where}': expected a path inside the checkpoint, got {relative[:200]!r}")
    if isinstance(file, BucketPath):  # which has no links
        return file.parent / "/".join(parts)
    root = file.parent.resolve()
    directory = root.joinpath(*parts)
    try:
        real = directory.resolve()
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{file}: leaf '{where}': {relative[:200]!r} cannot be followed, {error}") from error
    if not real.is_relative_to(root) or real == root:
        raise CheckpointError(f"{file}: leaf '{where}': expected a path inside the checkpoint, it leads to {real}")
    return directory


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _told(value: Any) -> str:
    return repr(value) if isinstance(value, bool | int | float) else type(value).__name__
