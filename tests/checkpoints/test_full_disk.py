"""What a disk does not take is one error that names the place, and leaves nothing behind."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

WRITE = """
import resource, signal, sys
import jax, numpy as np
from hyperflax.checkpoints.forms import Model, write_model
from hyperflax.errors import CheckpointError
from hyperflax.training.orbax_store import OrbaxStore
from hyperflax.types import T5Config

config = T5Config(
    vocab_size=4096, emb_dim=128, num_heads=1, head_dim=8, mlp_dim=8, num_encoder_layers=1, num_decoder_layers=1
)
rng = np.random.default_rng(0)  # what compresses would fit
leaf = lambda *shape: rng.standard_normal(shape, np.float32)
form, place = sys.argv[1:]


def write():
    if form == "training":
        store = OrbaxStore(place, keep=1, asynchronous=True, read_only=False)
        store.write(1, {"params/embedding": jax.numpy.asarray(leaf(4096, 128))}, {})
        store.close()
    else:
        from hyperflax.models.t5 import T5
        shapes = jax.eval_shape(T5(config).init, jax.random.key(0), *2 * [np.ones((1, 2), np.int32)])["params"]
        write_model(place, Model("t5", jax.tree.map(lambda one: leaf(*one.shape), shapes), config), form)


resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
try:
    write()
except CheckpointError as error:
    print(error)
"""


@pytest.mark.parametrize("form", ["t5x", "orbax", "training"])
def test_a_file_that_is_refused_is_told_and_nothing_stays(form: str, tmp_path: pathlib.Path) -> None:
    """A limit on the size of files stands for a full disk: to TensorStore both are numbers of the operating system."""
    place = tmp_path / "place"
    command = [sys.executable, "-c", WRITE, form, str(place)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.startswith(f"{place}: not written, ")
    assert "File too large" in done.stdout
    if form == "training":  # whose next start deletes what has a temporary name
        assert not (place / "checkpoint_1").exists()
    else:
        assert not list(tmp_path.iterdir())
