"""One job in a folder at a time.

>>> with alone_in("runs/first"):
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

from hyperflax.buckets import Location, locate
from hyperflax.errors import BusyError, ConfigError
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
      ConfigError: the job's processes do not share the folder, each has one of that name; in every process.
    """
    place, processes = locate(folder), Processes.running()
    descriptor, refused = None, ""
    if isinstance(place, pathlib.Path):
        try:
            descriptor = _lock(place) if processes.first else None
        except BusyError as error:
            refused = str(error)
        if refused := processes.told_by_first(refused):
            raise BusyError(refused)
    try:
        require_shared(place, LOCK, processes)
        yield
    finally:
        if descriptor is not None:
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
