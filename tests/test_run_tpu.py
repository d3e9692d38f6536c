"""run_tpu.sh against two pretended hosts: what arrives there, word for word."""

from __future__ import annotations

import os
import pathlib
import shlex
import shutil
import subprocess

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent

# Stands in for gcloud: a host is a folder, `ssh` runs the command there, `scp` copies into it.
GCLOUD = """#!/usr/bin/env bash
set -euo pipefail
[[ "$1 $2 $3" == "compute tpus tpu-vm" ]] || exit 64
verb=$4; shift 4
files=() command="" flags=()
for word in "$@"; do
  case $word in
    --command=*) command=${word#*=} ;;
    --*) flags+=("$word") ;;
    *) files+=("$word") ;;
  esac
done
echo "$verb ${flags[*]}" >> "$HOSTS/calls"
for host in "$HOSTS"/host*; do
  if [[ $verb == scp ]]; then
    target=${files[${#files[@]}-1]}
    cp "${files[@]:0:${#files[@]}-1}" "$host/${target#*:}"
  else
    (cd "$host" && bash -c "$command")
  fi
done
"""

# Stands in for Python on a host: `-m venv` makes an environment of itself, everything is written down.
PYTHON = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "$PWD/python-$2"
if [[ $2 == venv ]]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; fi
if [[ $2 == hyperflax.* ]]; then echo "running on $PWD"; exit "${FAKE_EXIT:-0}"; fi
"""

SLICE = ["--name", "slice-1", "--zone=zone-a", "--project", "my-project"]


@pytest.fixture
def hosts(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    for name in ("bin", "hosts/host0", "hosts/host1"):
        (tmp_path / name).mkdir(parents=True)
    for name, text in (("gcloud", GCLOUD), ("remote-python", PYTHON)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("HOSTS", str(tmp_path / "hosts"))
    return tmp_path / "hosts"


def run_tpu(*arguments: str, cwd: pathlib.Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run([REPOSITORY / "run_tpu.sh", *arguments], cwd=cwd, capture_output=True, text=True)


def test_every_host_installs_and_runs_the_same(hosts: pathlib.Path, tmp_path: pathlib.Path):
    (tmp_path / "my run.gin").write_text("X = 1")
    (tmp_path / "hyperflax-1-py3-none-any.whl").write_text("a wheel")
    done = run_tpu(
        *SLICE,
        *("--gin_file", "runs/shipped.gin", "--gin_file", "my run.gin", "--gin.MODEL_DIR='gs://bucket/a b'"),
        *("--gin.NAMES=['it''s', \"$HOME\"]", "--module=my_pkg.my_tasks", "--wheel", "hyperflax-1-py3-none-any.whl"),
        *("--python", "remote-python", "--setup", "touch ready; echo set up", "--extras", "tpu,seqio"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    for host in (hosts / "host0", hosts / "host1"):
        assert (host / "ready").exists()
        folder = host / "hyperflax-run"
        assert (folder / "my run.gin").read_text() == "X = 1"
        assert (folder / "core.lock").read_text() == (REPOSITORY / "requirements/core.lock").read_text()
        assert (folder / "python-pip").read_text().splitlines() == [
            *("-m", "pip", "install", "--quiet", "--constraint", "core.lock"),
            "./hyperflax-1-py3-none-any.whl[tpu,seqio]",
        ]
        assert (folder / "python-hyperflax.train").read_text().splitlines() == [
            *("-m", "hyperflax.train", "--gin_file=runs/shipped.gin", "--gin_file=my run.gin", "--multiprocess"),
            *("--gin.MODEL_DIR='gs://bucket/a b'", "--gin.NAMES=['it''s', \"$HOME\"]", "--module=my_pkg.my_tasks"),
        ]
        assert (folder / "run.log").read_text() == f"running on {folder}\n"
    for call in (hosts / "calls").read_text().splitlines():
        assert call.split(" ", 1)[1] == "--zone=zone-a --project=my-project --worker=all"


def test_a_failing_run_fails(hosts: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    for host in hosts.iterdir():
        (host / "hyperflax-run/.venv/bin").mkdir(parents=True)
        shutil.copy(hosts.parent / "bin/remote-python", host / "hyperflax-run/.venv/bin/python")
    again = [*SLICE, "--gin_file=runs/a.gin", "--skip_install", "--command=evaluate"]
    assert run_tpu(*again).returncode == 0
    monkeypatch.setenv("FAKE_EXIT", "3")
    assert run_tpu(*again).returncode == 3
    assert (hosts / "host0/hyperflax-run/python-hyperflax.evaluate").exists()
    assert not (hosts / "host0/hyperflax-run/python-pip").exists()


def test_a_dry_run_prints_each_command_and_runs_none(hosts: pathlib.Path):
    done = run_tpu(*SLICE, "--gin_file=runs/a.gin", "--gin.STEPS=3", "--internal_ip", "--worker=0", "--dry_run")
    assert done.returncode == 0, done.stderr
    assert not (hosts / "calls").exists()
    commands = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [command[4] if command[0] == "gcloud" else "wheel" for command in commands] == [
        *("ssh", "wheel", "scp", "ssh", "ssh"),
    ]
    assert commands[-1] == [
        *("gcloud", "compute", "tpus", "tpu-vm", "ssh", "slice-1"),
        *("--zone=zone-a", "--project=my-project", "--internal-ip", "--worker=0"),
        "--command=set -o pipefail; cd hyperflax-run && .venv/bin/python -m hyperflax.train --gin_file=runs/a.gin "
        "--multiprocess --gin.STEPS=3 2>&1 | tee -a run.log",
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
        (["n"], "unexpected argument 'n'"),
        (["--gin.X", "1"], "--gin.X: expected --gin.NAME=VALUE"),
        ([*SLICE, "--gin_file=f", "--command=rm"], "expected train, evaluate or infer, got 'rm'"),
        ([*SLICE, "--gin_file=f", "--folder=a; b"], "expected a plain relative path, got 'a; b'"),
        ([*SLICE, "--gin_file=f", "--wheel=absent.whl"], "no file 'absent.whl'"),
        ([*SLICE, "--gin_file=setup.py", "--gin_file=./setup.py"], "two files are named 'setup.py'"),
    ],
)
def test_mistakes_are_named(hosts: pathlib.Path, arguments: list[str], complaint: str):
    done = run_tpu(*arguments, cwd=REPOSITORY)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert not (hosts / "calls").exists()


def test_help():
    done = run_tpu("--help")
    assert done.returncode == 0
    for option in ("--name", "--zone", "--project", "--gin_file", "--dry_run"):
        assert option in done.stdout
