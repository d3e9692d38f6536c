"""launch/slurm.sh as a job of two pretended nodes."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time

import pytest

from tests.launch.worlds import BIN, HOSTILE, REPOSITORY, TIMEOUT, World

RUN = ["--gin_file=runs/a.gin", f"--python={BIN}/remote-python"]
JOB = {"SLURM_JOB_ID": "7", "SLURM_STATE": "RUNNING", "SLURM_SUBMIT_DIR": str(REPOSITORY)}


def test_every_node_runs_the_same_and_keeps_its_log(world: World):
    bindings = [f"--gin.X{number}={value}" for number, value in enumerate(HOSTILE)]
    done = world.run("launch/slurm.sh", *RUN, *bindings, "--setup", "export A='x y'; echo set up", **JOB)
    assert done.returncode == 0, done.stderr
    for number in "01":
        assert (world.hosts / number / "run/python-hyperflax.train").read_text() == "".join(
            f"{word}\n" for word in ["-m", "hyperflax.train", "--gin_file=runs/a.gin", "--multiprocess", *bindings]
        )
        assert (world.here / f"hyperflax-logs/7/node-{number}.log").read_text() == f"set up\nrunning on {number}\n"
    assert world.lines("scontrol") == []


@pytest.mark.parametrize("name", ["USR1", "TERM"])
def test_a_signal_saves_the_run_and_queues_the_job_again(world: World, name: str):
    """USR1 comes to the batch shell before the time is up; TERM, at a preemption, to the tasks as well.

    A second SIGTERM would end them unsaved, and so would one to srun.
    """
    for number in "01":
        world.plan(number, "wait")
    job = world.start("launch/slurm.sh", *RUN, **JOB)
    while len(world.lines("waiting")) < 2:
        assert job.poll() is None, job.communicate()
        time.sleep(0.2)
    os.kill(job.pid, getattr(signal, f"SIG{name}"))
    if name == "TERM":
        subprocess.run([BIN / "scancel", "--signal=TERM", "7"], env=world.environment, check=True)
    _, error = job.communicate(timeout=TIMEOUT)
    assert job.returncode == 75, error
    assert world.lines("scontrol") == ["requeue 7"]
    for number in "01":
        assert (world.here / f"hyperflax-logs/7/node-{number}.log").read_text() == f"running on {number}\nsaved\n"


@pytest.mark.parametrize(
    ("code", "environment", "said"),
    [
        (3, {}, "the run failed with code 3"),
        (75, {"SLURM_STATE": "COMPLETING"}, "the job is COMPLETING and not queued again"),
        (75, {"SLURM_RESTART_COUNT": "5"}, "given up after 5 restarts"),
    ],
)
def test_a_job_that_failed_or_was_cancelled_is_not_queued_again(world: World, code, environment, said):
    world.plan("1", code)
    done = world.run("launch/slurm.sh", *RUN, "--max_restarts=5", **JOB | environment)
    assert done.returncode == code
    assert said in done.stderr
    assert world.lines("scontrol") == []


def test_a_controller_that_does_not_answer_keeps_no_job_from_the_queue(world: World):
    world.plan("0", 75)
    done = world.run("launch/slurm.sh", *RUN, **JOB | {"SLURM_STATE": ""})
    assert done.returncode == 75
    assert "the job goes back into the queue" in done.stderr
    assert world.lines("scontrol") == ["requeue 7"]


def test_slurm_runs_a_copy_of_the_script(world: World):
    copy = world.folder / "slurm_script"
    shutil.copy(REPOSITORY / "launch/slurm.sh", copy)
    command, environment = [copy, *RUN, "--dry_run"], world.environment
    done = subprocess.run(command, cwd=world.here, env=environment | JOB, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lost = environment | JOB | {"SLURM_SUBMIT_DIR": str(world.here)}
    done = subprocess.run(command, cwd=world.here, env=lost, capture_output=True, text=True)
    assert done.returncode == 2
    assert "submit the job from hyperflax's folder" in done.stderr


def test_a_dry_run_prints_each_command_and_runs_none(world: World):
    done = world.run("launch/slurm.sh", "--gin_file=f", f"--gin.X={HOSTILE[1]}", "--setup=module load a", "--dry_run")
    assert done.returncode == 0, done.stderr
    assert not (world.here / "hyperflax-logs").exists()
    assert subprocess.run(["bash", "-n"], input=done.stdout, text=True).returncode == 0
    make, step, requeue = [shlex.split(line) for line in done.stdout.splitlines() if not line.startswith("#")]
    assert make == ["mkdir", "-p", "hyperflax-logs/JOB"]
    assert step[:-1] == [
        *("srun", "--ntasks-per-node=1", "--output=hyperflax-logs/JOB/node-%n.log", "--open-mode=append", "bash", "-c"),
    ]
    assert shlex.split(step[-1]) == [
        *("module", "load", "a", "&&", "exec", ".venv/bin/python", "-m", "hyperflax.train", "--gin_file=f"),
        *("--multiprocess", f"--gin.X={HOSTILE[1]}"),
    ]
    assert requeue == ["scontrol", "requeue", "JOB"]


def test_mistakes_are_named(world: World):
    done = world.run("launch/slurm.sh", *RUN)
    assert done.returncode == 2
    assert "there is no Slurm job: start it with sbatch" in done.stderr
