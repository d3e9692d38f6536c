"""One job in a folder, or at a file, at a time.

>>> with alone_in("runs/first"):
...     ...
>>> with alone_at("answers.jsonl"):
...     ...
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import pathlib
import secrets
import socket
import time
from collections.abc import Iterator

from hyperflax.buckets import Location, locate, locate_file
from hyperflax.errors import BusyError, CheckpointError, ConfigError
from hyperflax.processes import Processes

LOCK = ".lock"
PATIENCE = 90.0  # seconds
_PROCESS_NAME = secrets.token_hex(8)  # two containers on one host may have the same process id

_LOG = logging.getLogger("hyperflax.locks")


@contextlib.contextmanager
def alone_in(folder: Location | str) -> Iterator[None]:
    """Keeps other processes from working in a folder while this one does; makes the folder.

    It holds an advisory lock on the file `LOCK`, which the system releases however the process ends. The process may
    ask again for what it holds. Of a job's processes, which all come here, the first asks for all. Where nothing can be
    locked, such as on some network disks, it warns and goes on. In a bucket there are no locks.

    Raises:
      BusyError: another process is at work there; in every process of the job.
      CheckpointError: the first process cannot make the folder or write there; in every process.
      ConfigError: the job's processes do not share the folder, each has one of that name; in every process.
    """
    place, processes = locate(folder), Processes.running()
    descriptor, refused = None, ""
    if isinstance(place, pathlib.Path):
        try:
            descriptor = _lock(place / LOCK, f"{place}", "in it", "folder") if processes.first else None
        except (BusyError, CheckpointError) as error:
            refused = f"{type(error).__name__} {error}"
        kind, _, refused = processes.told_by_first(refused).partition(" ")
        if refused:
            raise {"BusyError": BusyError, "CheckpointError": CheckpointError}[kind](refused)
    try:
        require_shared(place, LOCK, processes)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextlib.contextmanager
def alone_at(file: Location | str) -> Iterator[None]:
    """Keeps other processes from making a file while this one does; makes its folder.

    As `alone_in`, by a lock on `.NAME.lock` beside it, which is there as long as it is held. Of a job's processes each
    asks for its own file.

    Raises:
      BusyError: another process is making it.
      CheckpointError: nothing can be written beside it.
    """
    place = locate_file(file)
    if not isinstance(place, pathlib.Path):
        yield
        return
    lock = place.with_name(f".{place.name}{LOCK}")
    descriptor = _lock(lock, f"{place}", "on it", "file")
    try:
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):  # not everybody who may write may remove
                os.unlink(lock)
            os.close(descriptor)


def require_shared(folder: Location, file: str, processes: Processes) -> None:
    """Returns once all processes of a job, which all come here, see the file that the first one has made in a folder.

    Raises:
      ConfigError: they do not share the folder, each has one of that name; in every process.
    """
    if isinstance(folder, pathlib.Path) and not processes.all_see(processes.first or _appears(folder / file)):
        raise ConfigError(
            f"{folder}: expected a folder that all hosts of the job share, or an address in a bucket; what the "
            "first process writes there is not seen by another"
        )


def _appears(file: pathlib.Path) -> bool:
    """Whether a file that another host has made is there, or comes: a network disk may show it a minute later."""
    deadline = time.monotonic() + PATIENCE
    while not file.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def _lock(file: pathlib.Path, what: str, where: str, kind: str) -> int | None:
    """Returns a file descriptor that holds a lock until it is closed; None if nothing more is to be held.

    The others are words of the refusal: what is locked, where a process is at work, and what else to choose.
    """
    host = socket.gethostname()
    me = f"{os.getpid()} {host} {_PROCESS_NAME}"
    with contextlib.ExitStack() as on_failure:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
            on_failure.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = ""
                with contextlib.suppress(FileNotFoundError):  # the other one is done meanwhile
                    holder = file.read_text(encoding="utf-8", errors="replace")
                if holder == me:
                    return None
                pid, its_host, *_ = [*holder.split(), "?", "?"]
                gone = "" if its_host == host else f" (if that host is gone, delete {file})"
                raise BusyError(
                    f"{what}: process {pid} on {its_host} is at work {where}{gone}; stop it, or choose another {kind}"
                ) from None
            except OSError as error:
                _LOG.warning(
                    "%s: cannot be locked (%s); nothing keeps a second process from working %s", what, error, where
                )
                return None
            if not _is_at(file, descriptor):  # who held it has removed it meanwhile
                return _lock(file, what, where, kind)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, me.encode())
        except OSError as error:
            raise CheckpointError(f"{what}: nothing can be written there ({error})") from error
        on_failure.pop_all()
    return descriptor


def _is_at(file: pathlib.Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except FileNotFoundError:
        return False
