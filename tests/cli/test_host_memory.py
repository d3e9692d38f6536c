"""Freed memory stays with the process: no new pages for a block as large as one that was just given back."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Blocks of 48 MiB, taken, written and freed in turn by two threads, as the devices of one process do.
ALLOCATE = """
import resource, sys, threading
import numpy as np
from hyperflax.cli.host_memory import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else None)
def work():
    for _ in range(20):
        np.ones(6 * 2**20)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(2):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str, **variables: str) -> tuple[str, int]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    out = subprocess.run(
        [sys.executable, "-c", ALLOCATE, mode], check=True, stdout=subprocess.PIPE, text=True,
        env={**environment, **variables},
    ).stdout.split()  # fmt: skip
    return out[0], int(out[1])


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc alone can be told")
def test_blocks_that_are_taken_again_cost_no_new_pages() -> None:
    _, default = faults("default")
    answer, kept = faults("keep")
    assert answer == "True"
    assert kept < default / 4


def test_what_the_user_set_stays() -> None:
    assert faults("keep", MALLOC_ARENA_MAX="2")[0] == "False"
