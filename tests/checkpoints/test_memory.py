"""Reading and writing hold little more than the tree: the peak of a process that does nothing else."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

# What may be under way is a share of a large model, and much of this small one where there are many cores.
# The arrays of a large model go back to the system when they are freed; malloc keeps those of this one, unless told.
ONE = """
import json, pathlib, sys
from benchmarks.checkpoint_io import one
from hyperflax.checkpoints import zarr
zarr._IN_FLIGHT_BYTES = 2**20
print(json.dumps(one(sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]), 90)))
"""


def measured(action: str, form: str, folder: pathlib.Path) -> dict[str, float]:
    command = [sys.executable, "-c", ONE, action, form, str(folder)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("form", ["t5x_scalable", "orbax_scalable", "orbax"])
def test_the_tree_is_never_there_twice(form: str, tmp_path: pathlib.Path) -> None:
    """The layouts that are made on the way, and the writer that is not ours."""
    written = measured("write", form, tmp_path)
    assert 1 + written["grown"] / written["tree"] <= 1.3
    assert measured("read", form, tmp_path)["grown"] / written["tree"] <= 1.3
