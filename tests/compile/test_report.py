"""What fits a chip is what the compiler takes: programs near its limit, and its words of refusal."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks.compile.results import _row
from hyperflax.compile.report import _refused, fits, table

# Arguments of 16.51 GB and of 17.20 GB. A v5e has 16 GB by its vendor's page and 15.75 GiB, 16.91 GB, by the compiler.
NEAR_THE_LIMIT = """
import json
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from hyperflax.compile.programs import Program
from hyperflax.compile.report import compile_program
from hyperflax.compile.topology import topology_devices

mesh = Mesh(np.array(topology_devices("v5e:2x2")), ("data",))
for rows in (7872, 8200):
    given = jax.ShapeDtypeStruct((rows, 2**20), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec()))
    program = Program("train", jax.jit(lambda x: x[:1, :1].sum()), (given,), mesh, rows=1, model_flops=1)
    print(json.dumps(compile_program(program, "v5e:2x2")[0]))
"""


def test_what_the_compiler_takes_fits_and_what_it_refuses_does_not(tpu_library: pathlib.Path) -> None:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TPU_LIBRARY_PATH": str(tpu_library)}
    done = subprocess.run([sys.executable, "-c", NEAR_THE_LIMIT], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    taken, refused = map(json.loads, done.stdout.splitlines())
    assert fits(taken)
    assert (taken["hbm"]["arguments"], taken["hbm"]["capacity"]) == (7872 * 2**21, 16e9)
    assert not fits(refused)
    assert refused["hbm"]["total"] == pytest.approx(8200 * 2**21, rel=1e-3)
    assert refused["hbm"]["capacity"] == 15.75 * 2**30


@pytest.mark.parametrize(
    ("words", "memory", "cell"),
    [
        (
            "Ran out of memory in memory space hbm. Used 96.74G of 95.74G hbm. Exceeded by 1.00G.",
            {"total": int(96.74 * 2**30), "capacity": int(95.74 * 2**30)},
            "103.9 of 103: does not fit",
        ),
        (
            "Ran out of memory on HBM, the total memory required for HLO temporaries (16.02G) exceeds available HBM "
            "(15.75G).",
            {"total": int(16.02 * 2**30), "capacity": int(15.75 * 2**30)},
            "17.2 of 17: does not fit",
        ),
        ("Ran out of memory in memory space vmem. Used 20.00M of 16.00M vmem.", {}, "does not fit"),  # beside products
    ],
)
def test_sizes_beside_a_refusal_are_the_compilers(words: str, memory: dict[str, int], cell: str) -> None:
    report = {"program": "train", "topology": "v5e:2x2", "chips": 4, "mesh": {"data": 4}, "tasks": 8}
    report |= {"hbm": _refused(f"RESOURCE_EXHAUSTED: {words}\n\nLargest program allocations"), "seconds": {}}
    assert report["hbm"] == {**memory, "refusal": f"RESOURCE_EXHAUSTED: {words}"}
    assert not fits(report)
    assert "does NOT fit" in (told := table(report))
    assert words in told
    seconds = {"seconds": {"lowering": 1.0, "compiling": 2.0}}
    assert f"| {cell} |" in _row("run", {**report, **seconds})
