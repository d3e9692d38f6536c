"""Writing files so that an interruption leaves nothing that looks complete, and reading json that nobody vouches for.

A file or directory is written under a temporary name beside its final one, flushed to the disk, and renamed. A reader
sees the old content, the new one, or none. What a killed process leaves behind is called `.NAME.tmp-PID-RANDOM`. The
folder of a run has one process that works in it at a time: `alone_in`.

>>> with atomic_directory(pathlib.Path("adapter")) as folder:
...     write_json(folder / "adapter.json", {"format": "hyperflax-adapter"})
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import pathlib
import secrets
import shutil
import socket
from collections.abc import Collection, Iterator
from typing import Any, TypeVar

from hyperflax import configs
from hyperflax.errors import BusyError, CheckpointError, ConfigError
from hyperflax.processes import Processes

Schema = TypeVar("Schema")

MAX_JSON_BYTES = 64 * 2**20
"""A spec of 100,000 leaves takes a third of it; anything larger was not written by hyperflax."""

LOCK = ".lock"
_PROCESS_NAME = secrets.token_hex(8)  # two containers on one host may have the same process id

_LOG = logging.getLogger("hyperflax.files")


def _beside(path: pathlib.Path, word: str) -> pathlib.Path:
    return path.with_name(f".{path.name}.{word}-{os.getpid()}-{secrets.token_hex(4)}")


def fsync(path: pathlib.Path | str) -> None:
    """Waits until a file's content, or a directory's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: pathlib.Path | str) -> Iterator[pathlib.Path]:
    """Yields a temporary path; on leaving without an exception it becomes `path`, replacing a file of that name."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, "tmp")
    try:
        yield temporary
        fsync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync(path.parent)


@contextlib.contextmanager
def atomic_directory(
    path: str | os.PathLike[str], *, overwrite: bool = False, owned: Collection[str] = ()
) -> Iterator[pathlib.Path]:
    """Yields a temporary directory; on leaving without an exception it becomes `path`.

    Args:
      path: the final directory. It may exist if it is empty.
      overwrite: replace an existing directory, provided that it holds nothing but names in `owned`.
      owned: file names that a directory of this kind may hold; a user's other files are never deleted.

    Raises:
      CheckpointError: `path` exists and may not be replaced. Nothing has been written then.
    """
    final = pathlib.Path(path)
    final = final.parent.resolve() / final.name if final.name not in ("", "..") else final.resolve()
    _require_free(final, overwrite, owned)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(final, "tmp")
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                fsync(os.path.join(folder, name))
            fsync(folder)
        _require_free(final, overwrite, owned)
        _move_into_place(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    fsync(final.parent)


@contextlib.contextmanager
def alone_in(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keeps other processes from working in a folder while this one does; makes the folder.

    It holds an advisory lock on the file `LOCK`, which the system releases however the process ends. The process may
    ask again for what it holds. Of a job's processes the first asks for all. Where nothing can be locked, such as on
    some network disks, it warns and goes on.

    Raises:
      BusyError: another process is at work there.
    """
    descriptor = _lock(pathlib.Path(folder)) if Processes.running().first and "://" not in os.fspath(folder) else None
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(folder: pathlib.Path) -> int | None:
    """Returns a file descriptor that holds the folder's lock until it is closed; None if nothing more is to be held."""
    file, host = folder / LOCK, socket.gethostname()
    me = f"{os.getpid()} {host} {_PROCESS_NAME}"
    with contextlib.ExitStack() as on_failure:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
            on_failure.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, me.encode())
        except BlockingIOError:
            holder = file.read_text(encoding="utf-8", errors="replace")
            if holder == me:
                return None
            pid, its_host, *_ = [*holder.split(), "?", "?"]
            gone = "" if its_host == host else f" (if that host is gone, delete {file})"
            raise BusyError(
                f"{folder}: process {pid} on {its_host} is at work in it{gone}; stop it, or choose another folder"
            ) from None
        except OSError as error:
            _LOG.warning("%s: cannot be locked (%s); nothing keeps a second process from working in it", folder, error)
            return None
        on_failure.pop_all()
    return descriptor


def _require_free(path: pathlib.Path, overwrite: bool, owned: Collection[str]) -> None:
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_dir():
        raise CheckpointError(
            f"{path}: expected a directory or nothing, found a {'link' if path.is_symlink() else 'file'}"
        )
    present = sorted(os.listdir(path))
    if not present:
        return
    if not overwrite:
        raise CheckpointError(f"{path}: already exists; choose another name, or ask for it to be overwritten")
    foreign = [name for name in present if name not in owned]
    if foreign:
        raise CheckpointError(
            f"{path}: not overwritten, it holds other files: {', '.join(foreign[:5])}; expected only {sorted(owned)}"
        )


def _move_into_place(temporary: pathlib.Path, final: pathlib.Path) -> None:
    if not final.exists() or not os.listdir(final):
        os.rename(temporary, final)  # over an empty directory, rename is atomic as well
        return
    old = _beside(final, "old")
    os.rename(final, old)
    try:
        os.rename(temporary, final)
    except OSError:
        os.rename(old, final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: pathlib.Path | str, value: Any) -> None:
    """Writes readable json, atomically.

    Raises:
      CheckpointError: `value` holds something that json cannot, such as NaN or an array.
    """
    try:
        text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not written, {error}") from error
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_bytes(path: pathlib.Path | str, *, limit: int | None = None) -> bytes:
    """Returns a file's content.

    Raises:
      CheckpointError: it is missing, cannot be read, is no ordinary file (a device, a pipe), or is longer than `limit`.
    """
    path = pathlib.Path(path)
    require_file(path)
    size = path.stat().st_size
    if limit is not None and size > limit:
        raise CheckpointError(f"{path}: expected at most {limit:,} bytes, the file has {size:,}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


def require_file(path: pathlib.Path | str) -> None:
    """Raises CheckpointError unless `path` is an ordinary file, or a link to one."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a file, found {'something else' if path.exists() else 'nothing'}")


def read_json(path: pathlib.Path | str) -> dict[str, Any]:
    """Returns the json object in a file.

    Raises:
      CheckpointError: no file, no UTF-8, no json, no object at the top, a key given twice, or a number that json lacks.
    """
    return parse_json(read_bytes(path, limit=MAX_JSON_BYTES), path)


def parse_json(data: bytes, where: Any) -> dict[str, Any]:
    """Returns the json object in a file's content; `where` is the file's name for errors, those of `read_json`."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"key '{next(name for name in names if names.count(name) > 1)}' is given twice")
        return found

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not json")

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError as error:
        raise CheckpointError(f"{where}: expected json, got brackets nested too deep") from error
    except ValueError as error:
        raise CheckpointError(f"{where}: expected json, {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: expected a json object, got {type(value).__name__}")
    return value


def read_schema(path: pathlib.Path | str, schema: type[Schema], *, file_format: str, version: int) -> Schema:
    """Returns the content of a json file as the frozen dataclass `schema`, every type and key checked.

    Args:
      path: the file.
      schema: a dataclass with at least the fields `format` and `schema_version`.
      file_format: what `format` has to be.
      version: the highest `schema_version` that can be read.

    Raises:
      CheckpointError: names the file and the key, what was expected and what came.
    """
    value = read_json(path)
    if value.get("format") != file_format:
        raise CheckpointError(f"{path}: key 'format': expected {file_format!r}, got {value.get('format')!r}")
    found = value.get("schema_version")
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise CheckpointError(f"{path}: key 'schema_version': expected an int from 1 to {version}, got {found!r}")
    if found > version:
        raise CheckpointError(
            f"{path}: key 'schema_version': written by a newer hyperflax ({found}), this one reads up to {version}"
        )
    try:
        return configs.from_json(schema, value, str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
