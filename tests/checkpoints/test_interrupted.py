"""convert, export and import, killed at every moment: what looks like a result is whole."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from hyperflax.adapters import LoRA, build_spec
from hyperflax.checkpoints.artefacts import Adapter, AdapterMetadata, load_adapter
from hyperflax.checkpoints.fingerprint import fingerprint
from hyperflax.checkpoints.forms import form_of, read_model
from hyperflax.checkpoints.huggingface import write_huggingface
from hyperflax.checkpoints.peft import read_peft, write_peft
from hyperflax.errors import CheckpointError
from tests.adapters.micro import random_tree
from tests.checkpoints.directories import CONFIG, base

COMMANDS = {
    "huggingface": (["convert", "model", "--to", "huggingface"], read_model),
    "t5x": (["convert", "model", "--to", "t5x"], read_model),
    "orbax": (["convert", "model", "--to", "orbax"], read_model),
    "peft": (["export", "adapter", "--format", "peft"], read_peft),
    "merged": (["export", "adapter", "--format", "merged", "--base", "model"], read_model),
    "adapter": (["import", "peft"], load_adapter),
}
"""The command without its destination, and what reads the result, by the result's name."""

# A fork dies at its n-th opening of a file for writing, making of a folder, renaming or removal. (TensorStore's own
# files are none of these; they lie in folders that are.) Nothing before the forks may start TensorStore's threads.
KILLED = """
import json, os, pathlib, signal, sys
from hyperflax.cli.main import main
from tests.checkpoints.test_interrupted import looks_complete

command = sys.argv[1:]
moments, complete = 0, []
while True:
    moments += 1
    folder = pathlib.Path("results", str(moments), "result")
    folder.parent.mkdir(parents=True)
    child = os.fork()
    if child == 0:
        calls = 0

        def watch(event, args):
            global calls
            writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
            if (writes and args[0] != os.devnull) or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
                calls += 1
                if calls == moments:
                    os.kill(os.getpid(), signal.SIGKILL)

        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.addaudithook(watch)
        place = ["--out", str(folder)] if command[0] != "convert" else []
        code = main([*command[:2], *([str(folder)] if not place else place), *command[2:]])
        os._exit(code)
    status = os.waitpid(child, 0)[1]
    for left in folder.parent.iterdir():
        assert left.name == "result" or left.name.startswith(".result."), left
    if looks_complete(folder):
        complete.append(str(folder))
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, os.WEXITSTATUS(status)
        break
    assert moments < 300
print(json.dumps([moments, complete]))
"""


def looks_complete(folder: pathlib.Path) -> bool:
    try:
        form_of(folder)
    except CheckpointError:
        return False
    return True


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_any_moment(name, tmp_path):
    write_huggingface(tmp_path / "model", base(), CONFIG)
    spec = build_spec(LoRA(rank=2), CONFIG)
    Adapter(random_tree(spec, 0), spec, AdapterMetadata(fingerprint(base()))).save(tmp_path / "adapter")
    write_peft(tmp_path / "peft", load_adapter(tmp_path / "adapter"))
    command, read = COMMANDS[name]
    here = str(pathlib.Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, *sys.path]), "PYTHONDONTWRITEBYTECODE": "1"}
    program = [sys.executable, "-W", "ignore", "-c", KILLED, *command]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    moments, complete = json.loads(done.stdout.splitlines()[-1])
    assert moments > 4
    assert f"results/{moments}/result" in complete
    whole = read(tmp_path / "results" / str(moments) / "result")
    for folder in complete:
        assert result(read(tmp_path / folder)) == result(whole), folder


def result(found) -> str:
    """The fingerprint of a model's parameters, or of an adapter's tree."""
    return fingerprint(found.params if hasattr(found, "params") else found.tree)
