"""Rules that must cover every parameter, and sharded steps equal to the unsharded one."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from hyperflax.errors import ConfigError
from hyperflax.training.partitioning import LOGICAL_RULES, Partitioner, make_mesh

SCRIPT = pathlib.Path(__file__).with_name("sharded_steps.py")


@pytest.fixture(scope="module")
def sharded() -> dict:
    """Eight CPU devices need a process of their own."""
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", ["t5/fsdp", "t5/all", "hypermodel/data", "hypermodel/all", "muon/all"])
def test_sharded_step_equals_unsharded(sharded, case):
    found = sharded[case]
    assert found["worst"] < 1e-5
    np.testing.assert_allclose(*found["loss"], rtol=1e-5)
    assert found["donated"]
    assert found["in_place"]
    if case.endswith("data"):
        assert found["split"] == found["slots_split"] == 0
    else:
        # All of a T5 but the relative-position biases (2 heads on 8 shards) lies in pieces; so do their momenta.
        assert found["split"] > 0.6 * found["leaves"]
        assert found["slots_split"] >= found["split"]


@pytest.mark.parametrize(("case", "axes"), [("hypermodel", ["data", "fsdp"]), ("t5", [])])
def test_validation_follows_the_mesh_where_its_batch_divides(sharded, case, axes):
    """Over the 4 data shards of the mesh: 8 tasks do, 6 do not."""
    np.testing.assert_allclose(*sharded[case]["loss"], rtol=1e-5)
    assert sharded[case]["axes"] == axes


def test_batch_is_split_over_both_data_axes(sharded):
    assert sharded["batch"]


# Sizes are all that a rule looks at.
MESH = types.SimpleNamespace(shape={"data": 2, "fsdp": 4, "model": 2})


def test_rules():
    partitioner = Partitioner(MESH)
    assert partitioner.spec("k", (8, 6), ("embed", "mlp")) == P("fsdp", "model")
    assert partitioner.spec("k", (6, 8), ("embed", "mlp")) == P(None, "model")
    assert partitioner.spec("k", (4, 4), ("vocab", "heads")) == P("model", None)
    assert partitioner.spec("k", (8, 3, 4), ("batch", None, "embed")) == P(("data", "fsdp"), None, None)
    own = Partitioner(MESH, (("embed", "data"), *LOGICAL_RULES))
    assert own.spec("k", (8,), ("embed",)) == P("data")


def test_every_parameter_must_be_covered():
    partitioner = Partitioner(MESH)
    with pytest.raises(ConfigError, match="parameter 'a/b': no rule covers its logical axis 'fancy'"):
        partitioner.spec("a/b", (2,), ("fancy",))
    with pytest.raises(ConfigError, match=r"parameter 'a/b' \(2, 3\): 1 logical axis names"):
        partitioner.spec("a/b", (2, 3), ("embed",))
    with pytest.raises(ConfigError, match=r"parameter 'mystery/weights' \(2,\): no logical axis names"):
        Partitioner().shardings({"mystery": {"weights": np.zeros(2)}}, {"mystery": {"weights": None}})


def test_mesh_sizes_must_fit():
    count = len(jax.devices())
    assert dict(make_mesh().shape) == {"data": count, "fsdp": 1, "model": 1}
    with pytest.raises(ConfigError, match="does not make"):
        make_mesh(data=count + 1)
    with pytest.raises(ConfigError, match="at most one -1"):
        make_mesh(data=-1, fsdp=-1)


def test_rows_must_divide():
    partitioner = Partitioner(MESH)
    with pytest.raises(ConfigError, match="batch feature 'x': 6 rows do not divide over 8 data shards"):
        partitioner.place_batch({"x": np.zeros((6, 2))})
