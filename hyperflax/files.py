"""Writing files and directories so that an interruption leaves nothing that looks complete.

A file or directory is written under a temporary name beside its final one, flushed to the disk, and renamed. A reader
sees the old content, the new one, or none. What a killed process leaves behind is called `.NAME.tmp-PID-RANDOM`, or
`.NAME.old-PID-RANDOM` where it was about to take the place of a directory that this was.

All of it takes the address of a bucket as well, where nothing can be renamed: a file is written on this machine and put
there as one object, a directory likewise, file by file, and last the one without which nobody takes it for whole.

>>> with atomic_directory(pathlib.Path("adapter")) as folder:
...     (folder / "adapter.txt").write_text("whole or not at all")
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from typing import Literal

from hyperflax.buckets import BucketPath, Location, locate, locate_file
from hyperflax.errors import CheckpointError, HyperflaxError

# Begins the names of the objects by which a bucket is tried. Who may write there and not remove leaves them.
_PROBE = ".tmp-"


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
def atomic_file(path: Location | str) -> Iterator[pathlib.Path]:
    """Yields a temporary path; on leaving without an exception it becomes `path`, replacing a file of that name.

    A link stays, and what it leads to is replaced.

    Raises:
      CheckpointError: `path` is a directory, a device or a pipe. Nothing has been written then.
    """
    path = locate_file(path)
    if isinstance(path, BucketPath):
        with tempfile.TemporaryDirectory(prefix="hyperflax-") as folder:
            temporary = pathlib.Path(folder) / path.name
            yield temporary
            path.write_bytes(temporary.read_bytes())
        return
    path = _ordinary(path)
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
def array_writing(place: Location | str) -> Iterator[None]:
    """Turns what TensorStore raises for the operating system, as of a full disk, into an error that names `place`.

    Raises:
      CheckpointError: the system refused a file.
    """
    try:
        yield
    except ValueError as error:
        # TensorStore's own type of error; that it was the system is in its text alone.
        if isinstance(error, HyperflaxError) or "os_error_code" not in str(error):
            raise
        raise CheckpointError(f"{place}: not written, {error}") from error


@contextlib.contextmanager
def atomic_directory(
    path: Location | str, *, overwrite: bool = False, owned: Collection[str] = (), marker: str | None = None
) -> Iterator[pathlib.Path]:
    """Yields a temporary directory; on leaving without an exception it becomes `path`.

    Args:
      path: the final directory. It may exist if it is empty.
      overwrite: replace an existing directory, provided that it holds nothing but names in `owned`.
      owned: file names that a directory of this kind may hold; a user's other files are never deleted.
      marker: the file without which nobody takes a directory of this kind for one; in a bucket it is removed first and
        written last. A kind without such a file is not written there.

    Raises:
      CheckpointError: `path` exists and may not be replaced, or is an address and there is no `marker`. Nothing has
        been written then.
    """
    final = locate(path)
    _require_free(final, overwrite, owned)
    if isinstance(final, BucketPath):
        if marker is None:
            raise _local_only(final)
        with tempfile.TemporaryDirectory(prefix="hyperflax-") as folder:
            yield pathlib.Path(folder)
            final.bucket.changed()  # the list is of before all that was done meanwhile
            _require_free(final, overwrite, owned)
            _put(pathlib.Path(folder), final, marker)
        return
    final = final.parent.resolve() / final.name if final.name not in ("", "..") else final.resolve()
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


def remove_left(path: Location, word: Literal["tmp", "old"]) -> None:
    """Removes what processes that were killed have left beside a directory, see the module.

    For who alone writes that directory, or it may be what another process is writing.
    """
    if isinstance(path, pathlib.Path):
        for left in path.parent.glob(f".{path.name}.{word}-*"):
            shutil.rmtree(left, ignore_errors=True)


def _put(folder: pathlib.Path, final: BucketPath, marker: str) -> None:
    """Puts the files of a directory in the place of those that are there, none of which is wanted any more."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    old = [place for place in final.iterdir() if place.name not in names and not place.name.startswith(_PROBE)]
    if (final / marker).is_file():  # not everybody who may write may remove
        (final / marker).unlink()
    for place in old:
        place.rmtree() if place.is_dir() else place.unlink()
    for name in [name for name in names if name != marker] + [marker]:
        (final / name).write_bytes((folder / name).read_bytes())


def append_lines(path: Location | str, lines: Iterable[str]) -> None:
    """Adds lines to a text file that this process alone writes; makes it and its folder. They are on the disk then.

    In a bucket the file is written anew, and never has a part of a line.
    """
    path, text = locate_file(path), "".join(f"{line}\n" for line in lines)
    if isinstance(path, BucketPath):
        path.write_bytes((path.read() or b"") + text.encode("utf-8"))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def require_file_place(path: Location | str) -> None:
    """Raises CheckpointError unless `atomic_file` can write `path`: for commands to ask before their work."""
    path = locate_file(path)
    if isinstance(path, pathlib.Path):
        _ordinary(path)
        _require_writable(path)


def require_directory_place(
    path: Location | str, *, overwrite: bool = False, owned: Collection[str] = (), in_bucket: bool = False
) -> None:
    """Raises CheckpointError unless `atomic_directory` can write `path`: for commands to ask before their work.

    Args:
      path, overwrite, owned: see `atomic_directory`.
      in_bucket: whether this kind is written to buckets, having a `marker`.
    """
    final = locate(path)
    if not in_bucket:
        final = local_folder(final)
    _require_free(final, overwrite, owned)
    if isinstance(final, pathlib.Path):
        _require_writable(final)
    else:
        probe = final / f"{_PROBE}{os.getpid()}-{secrets.token_hex(4)}"
        probe.write_bytes(b"")
        with contextlib.suppress(CheckpointError):  # not everybody who may write may remove
            probe.unlink()


def require_run_place(folder: pathlib.Path, record: str, command: str) -> None:
    """Raises CheckpointError if something stands there that is no run of `command`, which leaves the file `record`."""
    if (folder / record).is_file() or not folder.exists():
        return
    if not folder.is_dir() or any(not path.name.startswith(".") for path in folder.iterdir()):
        raise CheckpointError(
            f"{folder}: expected nothing, an empty folder or a run of {command}, found something else"
        )


def local_folder(path: BucketPath | os.PathLike[str] | str) -> pathlib.Path:
    """Returns a folder that is read and renamed in as it grows, which no bucket can be.

    Raises:
      CheckpointError: an address.
    """
    found = locate(str(path))
    if isinstance(found, BucketPath):
        raise _local_only(found)
    return found


def _ordinary(path: pathlib.Path) -> pathlib.Path:
    """Returns where a path leads; a rename would put a file in the place of a device, a pipe or a link."""
    if os.path.exists(path) and not os.path.isfile(path):  # asked of the path: a pipe behind /dev/stdout has no name
        kind = "directory" if os.path.isdir(path) else "device or a pipe"
        raise CheckpointError(f"{path}: expected a file or nothing, found a {kind}")
    return pathlib.Path(os.path.realpath(path))


def _require_writable(path: pathlib.Path) -> None:
    """Makes what would be written first, in the folder or the first one above it that is there, and removes it."""
    folder = path.absolute().parent
    while not os.path.exists(folder):
        folder = folder.parent
    temporary = _beside(folder / path.absolute().name, "tmp")
    try:
        temporary.mkdir()
        temporary.rmdir()
    except OSError as error:
        raise CheckpointError(f"{path}: nothing can be written there ({error.strerror})") from error


def _local_only(path: BucketPath) -> CheckpointError:
    return CheckpointError(f"{path}: this is not written to a bucket; write it to a local folder and copy it")


def _require_free(path: Location, overwrite: bool, owned: Collection[str]) -> None:
    if isinstance(path, pathlib.Path):
        if not os.path.lexists(path):
            return
        if path.is_symlink() or not path.is_dir():
            raise CheckpointError(
                f"{path}: expected a directory or nothing, found a {'link' if path.is_symlink() else 'file'}"
            )
        if os.path.ismount(path):  # as of `docker run -v`: no rename takes its place
            raise CheckpointError(f"{path}: a file system is mounted there, which stays; name a folder inside it")
    present = sorted(found.name for found in path.iterdir())
    if isinstance(path, BucketPath):
        present = [name for name in present if not name.startswith(_PROBE)]
    if not present:
        return
    if not overwrite:
        raise CheckpointError(f"{path}: already exists and is not empty; choose another name")
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
    try:
        os.rename(final, old)
        os.rename(temporary, final)
    finally:  # however it was left, by Ctrl-C as well
        if not final.exists():
            os.rename(old, final)
    shutil.rmtree(old, ignore_errors=True)


def read_if_there(path: Location | str) -> bytes | None:
    """Returns a file's content, None where there is no file. Raises as `read_bytes` does."""
    path = locate_file(path)
    if isinstance(path, BucketPath):
        return path.read()
    return read_bytes(path) if path.exists() else None


def read_bytes(path: Location | str, *, limit: int | None = None) -> bytes:
    """Returns a file's content.

    Raises:
      CheckpointError: it is missing, cannot be read, is no ordinary file (a device, a pipe), or is longer than `limit`.
    """
    path = locate_file(path)
    if isinstance(path, BucketPath):
        content = path.read_bytes()
        if limit is not None and len(content) > limit:
            raise CheckpointError(f"{path}: expected at most {limit:,} bytes, the file has {len(content):,}")
        return content
    require_file(path)
    try:
        size = path.stat().st_size
        if limit is not None and size > limit:
            raise CheckpointError(f"{path}: expected at most {limit:,} bytes, the file has {size:,}")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


def require_file(path: pathlib.Path | str) -> None:
    """Raises CheckpointError unless `path` is an ordinary file, or a link to one."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a file, found {'something else' if path.exists() else 'nothing'}")
