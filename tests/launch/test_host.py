"""launch/host.sh by itself: it starts once, outlives its caller, tells the exit code, and stops."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time

SCRIPT = pathlib.Path(__file__).resolve().parent.parent.parent / "launch/host.sh"
TIMEOUT = 120
WAITING = "trap 'echo saved; exit 75' TERM; echo waiting; while :; do sleep 0.1; done"


def call(folder: pathlib.Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", SCRIPT, *arguments], cwd=folder, env=os.environ | environment, capture_output=True, text=True
    )


def start(folder: pathlib.Path, launch: str, script: str) -> subprocess.Popen:
    """Starts a command and returns once it has printed a line."""
    command = ["bash", SCRIPT, launch, "bash", "-c", script]
    caller = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, start_new_session=True)
    assert caller.stdout.readline() == b"waiting\n"
    return caller


def test_output_and_exit_code_come_back(tmp_path: pathlib.Path):
    words = ["a b", "$HOME", "'", ""]
    done = call(tmp_path, "first", "bash", "-c", 'printf "<%s>" "$@"; echo err >&2; exit 7', "name", *words)
    assert done.returncode == 7
    assert done.stdout == "<a b><$HOME><'><>err\n"
    assert (tmp_path / "run.log").read_text() == done.stdout
    again = call(tmp_path, "first", "bash", "-c", "echo never")
    assert (again.returncode, again.stdout) == (7, "")
    later = call(tmp_path, "second", "echo", "later")
    assert (later.returncode, later.stdout) == (0, "later\n")
    assert (tmp_path / "run.log").read_text() == done.stdout + "later\n"


def test_a_broken_connection_is_taken_up_again(tmp_path: pathlib.Path):
    caller = start(tmp_path, "first", "echo waiting; until [[ -f go ]]; do sleep 0.1; done; echo done; exit 3")
    os.killpg(caller.pid, signal.SIGKILL)
    caller.communicate(timeout=TIMEOUT)
    again = subprocess.Popen(["bash", SCRIPT, "first", "echo", "never"], cwd=tmp_path, stdout=subprocess.PIPE)
    time.sleep(1)
    (tmp_path / "go").touch()
    again.communicate(timeout=TIMEOUT)
    assert again.returncode == 3
    assert (tmp_path / "run.log").read_text() == "waiting\ndone\n"


def test_stop_lets_it_save(tmp_path: pathlib.Path):
    caller = start(tmp_path, "first", WAITING)
    assert call(tmp_path, "stop").stdout == "host.sh: stopping first\n"
    caller.communicate(timeout=TIMEOUT)
    assert caller.returncode == 75
    assert (tmp_path / "run.log").read_text() == "waiting\nsaved\n"
    assert call(tmp_path, "stop").stdout == ""


def test_a_command_whose_number_could_not_be_written_is_stopped_all_the_same(tmp_path: pathlib.Path):
    """The disk was full, or an earlier version of the script has started it: the shell passes the signal on, once."""
    (tmp_path / ".run.command").mkdir()
    caller = start(tmp_path, "first", WAITING)
    assert not (tmp_path / "run.command").exists()
    assert call(tmp_path, "stop").stdout == "host.sh: stopping first\n"
    caller.communicate(timeout=TIMEOUT)
    assert caller.returncode == 75
    assert (tmp_path / "run.log").read_text() == "waiting\nsaved\n"


def test_a_machine_that_shuts_down_is_heard_once(tmp_path: pathlib.Path):
    """It signals all processes; a training run is saved at the first SIGTERM and ends at once at the second."""
    script = tmp_path / "run.py"
    script.write_text(
        "import signal, sys, time\n"
        "def told(*_):\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
        "    time.sleep(2)\n"
        "    sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, told)\n"
        "print('waiting', flush=True)\n"
        "time.sleep(60)\n"
    )
    caller = start(tmp_path, "first", f"exec {sys.executable} {script}")
    group = int((tmp_path / "run.pid").read_text().split()[1])
    for number in (signal.SIGTERM, signal.SIGHUP):
        os.killpg(group, number)
    caller.communicate(timeout=TIMEOUT)
    assert caller.returncode == 75


def test_another_launch_stops_the_one_before(tmp_path: pathlib.Path):
    caller = start(tmp_path, "first", WAITING)
    done = call(tmp_path, "second", "echo", "mine")
    assert (done.returncode, done.stdout) == (0, "host.sh: stopping first\nmine\n")
    caller.communicate(timeout=TIMEOUT)


def test_what_does_not_stop_is_killed(tmp_path: pathlib.Path):
    caller = start(tmp_path, "first", "trap '' TERM; echo waiting; while :; do sleep 0.1; done")
    done = call(tmp_path, "stop", STOP_SECONDS="1")
    assert "did not stop within 1 seconds; killed" in done.stdout
    caller.communicate(timeout=TIMEOUT)
    assert caller.returncode == 137


def test_another_boot_s_process_is_left_alone(tmp_path: pathlib.Path):
    """The process number of before a reboot may be anybody's now."""
    (tmp_path / "run.launch").write_text("first\n")
    (tmp_path / "run.pid").write_text(f"another-boot {os.getpgid(0)}\n")
    assert call(tmp_path, "stop").stdout == ""
    ended = call(tmp_path, "first", "echo", "never")
    assert (ended.returncode, ended.stdout) == (143, "host.sh: a reboot has ended the command\n")
    assert call(tmp_path, "second", "echo", "mine").stdout == "mine\n"
