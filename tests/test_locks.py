"""One process in a folder at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from hyperflax import locks
from hyperflax.errors import BusyError, CheckpointError, ConfigError


def working_in(folder: pathlib.Path, lock: str = "alone_in") -> subprocess.Popen:
    """Another process, which is at work in the folder, or at the file, when this returns and stays there."""
    code = (
        f"import sys\nfrom hyperflax.locks import {lock} as alone\nwith alone(sys.argv[1]): print(flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "\n"
    return other


def test_a_second_process_is_refused_until_the_first_one_is_gone(tmp_path):
    folder = tmp_path / "deep" / "run"
    with working_in(folder) as other:
        told = f"{folder}: process {other.pid} on {os.uname().nodename} is at work in it; stop it, or choose another"
        with pytest.raises(BusyError, match=re.escape(told)), locks.alone_in(folder):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
        with locks.alone_in(folder):
            pass


def test_a_second_process_at_a_file_is_refused_and_others_beside_it_are_not(tmp_path):
    file = tmp_path / "deep" / "answers"
    with working_in(file, "alone_at") as other:
        told = f"{file}: process {other.pid} on {os.uname().nodename} is at work on it; stop it, or choose another file"
        with pytest.raises(BusyError, match=re.escape(told)), locks.alone_at(file):
            pass
        with locks.alone_at(file.with_name("others")), locks.alone_in(file.parent):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
        with locks.alone_at(file):
            assert (tmp_path / "deep" / ".answers.lock").exists()
    assert [path.name for path in file.parent.iterdir()] == [locks.LOCK]


def test_a_lock_that_is_removed_while_one_asks_for_it_is_asked_for_anew(tmp_path, monkeypatch):
    """Else two hold one each: of the file that was there, and of the one that is."""
    flock, lock = fcntl.flock, tmp_path / ".answers.lock"

    def slow(descriptor, how):
        monkeypatch.undo()
        lock.unlink()
        flock(descriptor, how)

    monkeypatch.setattr("fcntl.flock", slow)
    with locks.alone_at(tmp_path / "answers"), lock.open() as second, pytest.raises(BlockingIOError):
        flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_process_may_ask_again_for_what_it_holds(tmp_path):
    with locks.alone_in(tmp_path):
        with locks.alone_in(tmp_path):
            pass
        # Another process, to the lock: it has another name, here one on another host.
        (tmp_path / locks.LOCK).write_text("123 elsewhere 4567")
        told = f"process 123 on elsewhere is at work in it (if that host is gone, delete {tmp_path}/.lock)"
        with pytest.raises(BusyError, match=re.escape(told)), locks.alone_in(tmp_path):
            pass


def test_hosts_that_do_not_share_the_folder_are_told(tmp_path, monkeypatch):
    """Two processes would wait for each other's part of the first checkpoint for ever."""
    monkeypatch.setattr(locks, "PATIENCE", 0.0)
    monkeypatch.setattr(locks.Processes, "running", lambda: locks.Processes(1, 2))
    told = f"{tmp_path}: expected a folder that all hosts of the job share, or an address in a bucket; what the first"
    with pytest.raises(ConfigError, match=re.escape(told)), locks.alone_in(tmp_path):
        pass


@pytest.mark.parametrize("name", ["run", "."])
def test_a_folder_in_which_nothing_can_be_written_is_told_by_all_hosts_at_once(tmp_path, monkeypatch, name):
    """Not that the hosts do not share it, which they would find a minute and a half later."""
    (tmp_path / "file").write_text("")  # nothing can be made there, as in a folder that is read-only
    folder = tmp_path / "file" / "run" if name == "run" else tmp_path
    if name == ".":
        (tmp_path / locks.LOCK).mkdir()
    told = f"{folder}: nothing can be written there ("
    with pytest.raises(CheckpointError, match=re.escape(told)) as caught, locks.alone_in(folder):
        pass
    first = []
    monkeypatch.setattr(locks.Processes, "running", lambda: locks.Processes(0, 2))
    monkeypatch.setattr(locks.Processes, "told_by_first", lambda processes, text: first.append(text) or text)
    with pytest.raises(CheckpointError, match=re.escape(told)), locks.alone_in(folder):
        pass
    monkeypatch.setattr(locks.Processes, "running", lambda: locks.Processes(1, 2))
    monkeypatch.setattr(locks.Processes, "told_by_first", lambda processes, text: first[0])
    with pytest.raises(CheckpointError, match=re.escape(str(caught.value))), locks.alone_in(folder):
        pass


def test_what_cannot_be_locked_is_no_obstacle(tmp_path, monkeypatch, caplog):
    def unsupported(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with locks.alone_in(tmp_path):
        pass
    assert f"{tmp_path}: cannot be locked ([Errno {errno.ENOLCK}] No locks available)" in caplog.text


def test_a_bucket_and_the_other_processes_of_a_job_lock_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with locks.alone_in("gs://bucket/run"), locks.alone_at("gs://bucket/answers"):
        pass
    monkeypatch.setattr(locks.Processes, "running", lambda: locks.Processes(1, 2))
    (tmp_path / locks.LOCK).write_text("the first one's")
    with locks.alone_in(tmp_path):
        assert (tmp_path / locks.LOCK).read_text() == "the first one's"
