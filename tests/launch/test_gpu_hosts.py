"""launch/gpu_hosts.sh against two pretended hosts."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time

import pytest

from tests.launch.worlds import HOSTILE, TIMEOUT, World

RUN = ["--gin_file=runs/a.gin", "--wheel=a.whl", "--python=remote-python", "--backoff_seconds=0"]


@pytest.fixture
def hosts(world: World) -> World:
    for name in ("gpu0", "me@gpu1"):
        (world.hosts / name).mkdir()
    return world


def test_every_process_knows_its_number_and_the_first_host(hosts: World):
    (hosts.here / "my run.gin").write_text("X = 1")
    bindings = [f"--gin.X{number}={value}" for number, value in enumerate(HOSTILE)]
    done = hosts.run("launch/gpu_hosts.sh", "--hosts=me@gpu1,gpu0", *RUN, "--gin_file=my run.gin", *bindings)
    assert done.returncode == 0, done.stderr
    for number, name in enumerate(("me@gpu1", "gpu0")):
        folder = hosts.hosts / name / "hyperflax-run"
        assert (folder / "my run.gin").read_text() == "X = 1"
        installed = (folder / "python-pip").read_text().splitlines()
        assert [word for word in installed if "a.whl" in word] == ["./a.whl[cuda]", "./a.whl"]
        assert "--force-reinstall" in installed
        assert (folder / "python-hyperflax.train").read_text() == "".join(
            f"{word}\n"
            for word in [
                *("-m", "hyperflax.train", "--gin_file=runs/a.gin", "--gin_file=my run.gin", "--multiprocess"),
                *(*bindings, "--coordinator_address=gpu1:12321", "--process_count=2", f"--process_index={number}"),
            ]
        )
    assert sorted(done.stdout.splitlines()) == ["0: running on me@gpu1", "1: running on gpu0"]
    assert hosts.logs() == {"0/host-0.log": "running on me@gpu1\n", "0/host-1.log": "running on gpu0\n"}


def test_one_host_that_asks_for_it_starts_all_again(hosts: World):
    """The others fail when they miss it, which is no reason to give up."""
    hosts.plan("gpu0", 1, 0)
    hosts.plan("me@gpu1", 75, 0)
    done = hosts.run("launch/gpu_hosts.sh", "--hosts=gpu0,me@gpu1", *RUN)
    assert done.returncode == 0, done.stderr
    assert len(hosts.lines("runs")) == 4
    assert "is saved; restart 1 of 100" in done.stderr


@pytest.mark.parametrize("other", [0, 1])
def test_a_broken_connection_is_taken_up_again(hosts: World, other: int):
    """Nothing that is done is done again; where another host failed meanwhile, all start again."""
    (hosts.folder / "breaks-gpu0").touch()
    hosts.plan("me@gpu1", other, 0)
    done = hosts.run("launch/gpu_hosts.sh", "--hosts=gpu0,me@gpu1", *RUN)
    assert done.returncode == 0, done.stderr
    assert "gpu0 ended with code 255" in done.stderr
    assert "the connection to a host broke; restart 1 of 100" in done.stderr
    assert len(hosts.lines("runs")) == (2 if other == 0 else 4)


def test_a_failing_run_ends_with_its_code(hosts: World):
    hosts.plan("me@gpu1", 3)
    done = hosts.run("launch/gpu_hosts.sh", "--hosts=gpu0,me@gpu1", *RUN)
    assert done.returncode == 3
    assert "me@gpu1 ended with code 3" in done.stderr
    assert len(hosts.logs()) == 2


def test_a_host_that_was_never_there_is_not_waited_for(hosts: World):
    done = hosts.run("launch/gpu_hosts.sh", "--hosts=gpu0,gpu9", *RUN)
    assert done.returncode == 255
    assert "could not resolve hostname gpu9" in done.stderr
    assert hosts.lines("runs") == []


def test_hosts_that_share_one_home_are_refused_before_anything_is_installed(hosts: World):
    """One folder would hold the processes of both: each would stop the other's."""
    (hosts.hosts / "gpu2").symlink_to("gpu0")
    for names, told in (("gpu0,me@gpu1,gpu2", "gpu0 and gpu2"), ("gpu0,gpu0", "gpu0 and gpu0")):
        done = hosts.run("launch/gpu_hosts.sh", f"--hosts={names}", *RUN)
        assert done.returncode == 2
        assert f"expected hosts with a home each, got {told} with the same hyperflax-run" in done.stderr
    assert not (hosts.hosts / "gpu0/hyperflax-run/python-pip").exists()
    assert hosts.lines("runs") == []


def test_ctrl_c_leaves_the_hosts_running_and_nothing_here(hosts: World):
    hosts.plan("gpu0", "wait")
    launcher = hosts.start("launch/gpu_hosts.sh", "--hosts=gpu0", *RUN)
    while not hosts.lines("waiting"):
        assert launcher.poll() is None, launcher.communicate()
        time.sleep(0.2)
    os.kill(launcher.pid, signal.SIGINT)
    _, error = launcher.communicate(timeout=TIMEOUT)  # returns only when nobody holds the launcher's output any more
    assert launcher.returncode == 130
    (advice,) = [line for line in error.splitlines() if line.startswith("ssh")]
    folder = hosts.hosts / "gpu0/hyperflax-run"
    assert not (folder / "run.code").exists()
    stopped = subprocess.run(shlex.split(advice), env=hosts.environment, capture_output=True, text=True)
    assert stopped.returncode == 0, stopped.stderr
    assert (folder / "run.code").read_text() == "75\n"


def test_a_dry_run_prints_each_command_and_runs_none(hosts: World):
    done = hosts.run(
        "launch/gpu_hosts.sh",
        "--hosts=gpu0,me@gpu1",
        "--gin_file=f",
        f"--gin.X={HOSTILE[1]}",
        "--env=A=x 'y'",
        "--dry_run",
    )
    assert done.returncode == 0, done.stderr
    assert not hosts.lines("calls")
    assert subprocess.run(["bash", "-n"], input=done.stdout, text=True).returncode == 0
    commands = [shlex.split(line) for line in done.stdout.splitlines() if not line.startswith("#")]
    assert [command[0] for command in commands] == [
        "make",
        *["ssh"] * 4,  # a folder on each, and whether it is its own
        *["scp", "ssh", "scp"] * 2,
        "ssh",
        "ssh",
        "scp",
        "scp",
    ]
    assert shlex.split(commands[12][-1])[6:] == [
        *("env", "A=x 'y'"),
        *(".venv/bin/python", "-m", "hyperflax.train", "--gin_file=f", "--multiprocess", f"--gin.X={HOSTILE[1]}"),
        *("--coordinator_address=gpu0:12321", "--process_count=2", "--process_index=1"),
    ]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--gin_file=f"], "--hosts is missing"),
        (["--hosts=a,-b", "--gin_file=f"], "expected names with commas between them, got 'a,-b'"),
        (["--hosts=a"], "--gin_file is missing"),
        (["--hosts=a", "--gin_file=f", "--env=1=a"], "--env: expected NAME=VALUE, got '1=a'"),
        (["--hosts=a", "--zone=z", "--gin_file=f"], "unknown option '--zone'"),
    ],
)
def test_mistakes_are_named(hosts: World, arguments: list[str], complaint: str):
    done = hosts.run("launch/gpu_hosts.sh", *arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert not hosts.lines("calls")
