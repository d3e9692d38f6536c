"""run_tpu.sh against a pretended slice of two hosts: what arrives there, word for word, and what becomes of it."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time

import pytest

from tests.launch.worlds import HOSTILE, REPOSITORY, TIMEOUT, World

SLICE = ["--name", "slice-1", "--zone=zone-a"]
CREATE = ["--create", "--accelerator_type=v4-16", "--runtime_version=rv"]
RUN = ["--gin_file=runs/a.gin", "--wheel=a.whl", "--python=remote-python", "--backoff_seconds=0", "--poll_seconds=0"]


def test_every_host_installs_and_runs_the_same(world: World):
    world.make_slice()
    (world.here / "my run.gin").write_text("X = 1")
    (world.here / "-a $b`:c.gin").write_text("Y = 1")
    bindings = [f"--gin.X{number}={value}" for number, value in enumerate(HOSTILE)]
    done = world.run(
        "run_tpu.sh",
        *(*SLICE, *RUN, "--gin_file", "my run.gin", "--gin_file=-a $b`:c.gin", *bindings, "--project=my-project"),
        *("--module=my_pkg.my_tasks", "--setup", "touch ready; echo set up", "--extras", "tpu,seqio"),
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "is no file here" in line] == [
        "run_tpu.sh: --gin_file: 'runs/a.gin' is no file here; the hosts look for it"
    ]
    for number in "01":
        assert (world.hosts / number / "ready").exists()
        folder = world.hosts / number / "hyperflax-run"
        assert (folder / "my run.gin").read_text() == "X = 1"
        assert (folder / "-a $b`:c.gin").read_text() == "Y = 1"
        assert (folder / "core.lock").read_text() == (REPOSITORY / "requirements/core.lock").read_text()
        assert (folder / "python-pip").read_text().splitlines() == [
            *("-m", "pip", "install", "--quiet", "--constraint", "core.lock", "./a.whl[tpu,seqio]"),
            # pip leaves another wheel of the same version alone: this one has the code of now.
            *("-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", "./a.whl"),
        ]
        assert (folder / "python-hyperflax.train").read_text() == "".join(
            f"{word}\n"
            for word in [
                *("-m", "hyperflax.train", "--gin_file=runs/a.gin", "--gin_file=my run.gin"),
                *("--gin_file=-a $b`:c.gin", "--multiprocess", *bindings, "--module=my_pkg.my_tasks"),
            ]
        )
        assert (folder / "run.log").read_text() == f"running on {number}\n"
    assert "running on 0\nrunning on 1\n" in done.stdout
    assert world.logs() == {"0/worker-0.log": "running on 0\n", "0/worker-1.log": "running on 1\n"}
    assert all("--zone=zone-a --project=my-project" in call for call in world.lines("calls"))
    assert world.calls("create", "delete") == []


def test_a_failing_run_ends_with_its_code_and_its_logs(world: World):
    world.make_slice()
    world.plan("1", 3)
    done = world.run("run_tpu.sh", *SLICE, *CREATE, *RUN, "--command=evaluate_suite", "--delete")
    assert done.returncode == 3
    assert "failed with code 3" in done.stderr
    assert world.lines("runs") == ["0 hyperflax.evaluate_suite", "1 hyperflax.evaluate_suite"]
    assert world.logs()["0/worker-1.log"] == "running on 1\n"
    assert world.calls("create", "delete") == []


@pytest.mark.parametrize("direct", [False, True])
def test_an_absent_slice_is_made_and_deleted(world: World, direct: bool):
    flags = ["--direct"] if direct else []
    done = world.run(
        *("run_tpu.sh", *SLICE, *CREATE, *RUN, *flags, "--spot", "--create_flag=--reserved", "--delete"), QUEUED="2"
    )
    assert done.returncode == 0, done.stderr
    (create,) = [call for call in world.lines("calls") if " create" in call]
    if direct:
        assert create == ("tpu-vm create --zone=zone-a --version=rv --accelerator-type=v4-16 --spot --reserved --quiet")
        assert world.calls("delete") == ["tpu-vm delete"]
    else:
        assert create == (
            "queued-resources create --node-id=slice-1 --zone=zone-a --runtime-version=rv --accelerator-type=v4-16 "
            "--spot --reserved --quiet"
        )
        assert "slice-1 is WAITING_FOR_RESOURCES" in done.stderr
        assert world.calls("delete") == ["queued-resources delete"]
    assert len(world.lines("runs")) == 2
    assert world.state("node") is None
    assert world.state("queue") is None


def test_a_preempted_slice_is_replaced_and_a_stopped_run_resumed(world: World):
    world.plan("0", "preempt", 0, 75, 0)
    world.plan("1", 134, 143, 75, 0)
    done = world.run("run_tpu.sh", *SLICE, *CREATE, *RUN)
    assert done.returncode == 0, done.stderr
    # Lost with the first slice; SIGTERM before it trained; SIGTERM while it trained; done. The second slice stays.
    assert len(world.lines("runs")) == 8
    assert world.calls("create", "delete") == [
        *("queued-resources create", "queued-resources delete", "queued-resources create"),
    ]
    assert "slice-1 is PREEMPTED; restart 1 of 100" in done.stderr
    assert "is saved; restart 3 of 100" in done.stderr
    assert list(world.logs()) == [f"{attempt}/worker-{number}.log" for attempt in (1, 2, 3) for number in (0, 1)]
    assert sum(line.endswith("pip") for line in world.lines("calls")) == 0
    assert (world.hosts / "0/hyperflax-run/run.log").read_text() == "running on 0\n" * 3


def test_a_slice_that_is_lost_again_and_again_is_given_up(world: World):
    world.plan("0", "preempt")
    done = world.run("run_tpu.sh", *SLICE, *CREATE, *RUN, "--max_restarts=2")
    assert done.returncode == 134
    assert "given up after 2 restarts" in done.stderr
    assert world.calls("create") == ["queued-resources create"] * 3
    assert world.logs() == {}


def test_a_slice_that_does_not_come_is_waited_for_and_no_longer(world: World):
    done = world.run("run_tpu.sh", *SLICE, *CREATE, *RUN, "--max_wait=1", QUEUED="100000")
    assert done.returncode == 75
    assert "slice-1 is WAITING_FOR_RESOURCES after 1 seconds (--max_wait)" in done.stderr
    assert world.state("queue") == "WAITING_FOR_RESOURCES"
    assert world.lines("runs") == []


@pytest.mark.parametrize(
    ("state", "flags", "complaint"),
    [
        (None, [], "there is no TPU slice 'slice-1'; --create makes it"),
        ("PREEMPTED", [], "slice-1 is PREEMPTED and cannot be used again; --create replaces it"),
        ("STOPPED", CREATE, "slice-1 is STOPPED: start it or delete it"),
    ],
)
def test_a_slice_is_neither_made_nor_deleted_unasked(world: World, state: str | None, flags: list[str], complaint: str):
    if state:
        world.make_slice()
        (world.folder / "node").write_text(f"{state}\n")
    done = world.run("run_tpu.sh", *SLICE, *RUN, *flags)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert world.calls("create", "delete", "ssh") == []


def test_gcloud_that_cannot_answer_ends_it(world: World):
    world.make_slice()
    done = world.run("run_tpu.sh", *SLICE, *CREATE, *RUN, UNREACHABLE="1")
    assert done.returncode == 1
    assert done.stderr.count("ERROR: no network") == 3
    assert world.calls("create", "delete", "ssh") == []


def test_the_launcher_stops_alone_and_the_next_one_takes_over(world: World):
    """Ctrl-C leaves the hosts alone. The next launch, in the same second, stops what they run and starts its own."""
    world.make_slice()
    world.plan("0", "wait", 0)
    world.stop_the_clock()
    launcher = world.start("run_tpu.sh", *SLICE, *RUN, "--worker=0")
    while not world.lines("waiting"):
        assert launcher.poll() is None, launcher.communicate()
        time.sleep(0.2)
    os.killpg(launcher.pid, signal.SIGINT)
    _, error = launcher.communicate(timeout=TIMEOUT)
    assert launcher.returncode == 130, error
    (advice,) = [line for line in error.splitlines() if line.startswith("gcloud")]
    assert shlex.split(advice)[-2:] == ["--worker=0", "--command=cd hyperflax-run && bash host.sh stop"]
    folder = world.hosts / "0/hyperflax-run"
    assert not (folder / "run.code").exists()
    done = world.run("run_tpu.sh", *SLICE, *RUN, "--worker=0", "--skip_install")
    assert done.returncode == 0, done.stderr
    assert "host.sh: stopping" in done.stdout
    assert (folder / "run.log").read_text() == "running on 0\nsaved\nrunning on 0\n"


def test_a_dry_run_prints_each_command_and_runs_none(world: World):
    done = world.run(
        *("run_tpu.sh", *SLICE, *CREATE, "--gin_file=runs/a.gin", f"--gin.X={HOSTILE[1]}", "--internal_ip"),
        *("--worker=0", "--setup=a 'b' $c", "--spot", "--delete", "--dry_run"),
    )
    assert done.returncode == 0, done.stderr
    assert not world.lines("calls")
    assert not (world.here / "hyperflax-logs").exists()
    assert subprocess.run(["bash", "-n"], input=done.stdout, text=True).returncode == 0
    commands = [shlex.split(line) for line in done.stdout.splitlines() if not line.startswith("#")]
    assert [" ".join(command[3:5]) if command[0] == "gcloud" else command[0] for command in commands] == [
        *("make", "tpu-vm describe", "queued-resources delete", "queued-resources create", "tpu-vm describe"),
        *("tpu-vm ssh", "tpu-vm ssh", "tpu-vm scp", "tpu-vm ssh", "tpu-vm scp", "tpu-vm ssh", "tpu-vm scp"),
        "queued-resources delete",
    ]
    assert commands[5][-1] == "--command=a 'b' $c"
    *start, run = commands[10]
    assert start == [
        *("gcloud", "compute", "tpus", "tpu-vm", "ssh", "slice-1", "--zone=zone-a", "--internal-ip", "--worker=0"),
    ]
    words = shlex.split(run.removeprefix("--command="))
    assert words[:5] == ["cd", "hyperflax-run", "&&", "bash", "host.sh"]
    assert words[6:] == [
        *(".venv/bin/python", "-m", "hyperflax.train", "--gin_file=runs/a.gin", "--multiprocess"),
        f"--gin.X={HOSTILE[1]}",
    ]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--zone=z", "--gin_file=f"], "--name is missing"),
        (["--name=n", "--gin_file=f"], "--zone is missing"),
        (["--name=n", "--zone=z"], "--gin_file is missing"),
        (["--name"], "--name: expected a value after it"),
        (["--name="], "--name: expected a value, got an empty one"),
        (["--nam=n"], "unknown option '--nam'"),
        (["--dry_run=yes"], "unknown option '--dry_run'"),
        (["n"], "unexpected argument 'n'"),
        (["--gin.X", "1"], "--gin.X: expected --gin.NAME=VALUE"),
        ([*SLICE, "--gin_file=f", "--command=rm"], "expected train, evaluate, evaluate_suite or infer, got 'rm'"),
        ([*SLICE, "--gin_file=f", "--folder=a; b"], "expected a plain relative path, got 'a; b'"),
        ([*SLICE, "--gin_file=f", "--worker=0;1"], "expected all or numbers, got '0;1'"),
        ([*SLICE, "--gin_file=f", "--max_restarts=x"], "--max_restarts: expected a whole number, got 'x'"),
        ([*SLICE, "--gin_file=f", "--max_restarts=08"], "--max_restarts: expected a whole number, got '08'"),
        ([*SLICE, "--gin_file=f", "--create"], "--accelerator_type is missing"),
        ([*SLICE, "--gin_file=f", "--wheel=absent.whl"], "no file 'absent.whl'"),
        ([*SLICE, "--gin_file=a.whl", "--gin_file=./a.whl"], "two files are named 'a.whl'"),
    ],
)
def test_mistakes_are_named(world: World, arguments: list[str], complaint: str):
    done = world.run("run_tpu.sh", *arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert not world.lines("calls")


@pytest.mark.parametrize("launcher", ["run_tpu.sh", "launch/gpu_hosts.sh", "launch/slurm.sh"])
def test_help_names_every_option_once(world: World, launcher: str):
    done = world.run(launcher, "--help")
    assert done.returncode == 0
    # The lines that set the two arrays, without the rest of the launcher.
    lines = re.findall(r"^(?:options|switches)\+?=\(.*\)$", (REPOSITORY / launcher).read_text(), re.MULTILINE)
    script = "\n".join(["source launch/common.sh", *lines, 'echo "${options[@]}" "${switches[@]}"'])
    names = subprocess.run(["bash", "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert sorted(re.findall(r"^  --(\w+) ", done.stdout, re.MULTILINE)) == sorted([*names.split(), "help"])
