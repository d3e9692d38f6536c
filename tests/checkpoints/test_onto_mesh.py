"""Checkpoints read straight onto a mesh, against the same ones read whole."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from hyperflax.checkpoints.onto_mesh import Source, read_onto_mesh
from hyperflax.checkpoints.orbax_form import write_orbax
from hyperflax.checkpoints.t5x_writer import write_t5x_checkpoint
from hyperflax.errors import CheckpointError
from tests.checkpoints.directories import CONFIG, base

HERE = pathlib.Path(__file__).resolve().parent
ONE = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])


def test_every_device_gets_its_part_of_what_t5x_wrote(materialised: pathlib.Path, tmp_path: pathlib.Path):
    checkpoints = materialised / "t5x" / "checkpoints"
    forms = (
        "micro_legacy_f32",
        "micro_legacy_f32_inline",
        "micro_legacy_bf16",
        "micro_orbax_f32",
        "micro_scalable_legacy_f32",
    )
    command = [sys.executable, str(HERE / "read_sharded.py"), *(str(checkpoints / form) for form in forms)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["read", "5"]


@pytest.mark.parametrize("heads", [None, (2, 3), (0, 2)])
def test_a_part_need_not_begin_with_a_head(heads):
    """Four devices share three heads of four features."""
    leaf = np.arange(3 * 2 * 4 * 3, dtype=np.float32).reshape((3, 2, 3, 4) if heads == (2, 3) else (3, 2, 4, 3))
    source = Source(leaf, lambda part: part, heads)
    whole = leaf
    if heads == (2, 3):
        whole = leaf.reshape(3, 2, 12)
    elif heads:
        whole = np.stack([leaf[:, layer].reshape(12, 3) for layer in range(2)], axis=1)
    assert source.shape == whole.shape
    for axis, size in enumerate(whole.shape):
        for start in range(size):
            for stop in range(start + 1, size + 1):
                part = tuple((start, stop) if i == axis else (0, length) for i, length in enumerate(whole.shape))
                found = source.taken(leaf[tuple(slice(*ends) for ends in source.stored(part))], part)
                np.testing.assert_array_equal(found, whole[tuple(slice(*ends) for ends in part)])


@pytest.mark.parametrize("write", [write_t5x_checkpoint, write_orbax])
def test_another_model_is_refused_before_a_value_is_read(write, tmp_path: pathlib.Path):
    params = base()
    del params["encoder"]["encoder_norm"]
    params["decoder"]["decoder_norm"]["scale"] = np.zeros(9, np.float32)
    write(tmp_path / "wrong", params, step=1)

    def nowhere(path: str, shape: tuple[int, ...]) -> jax.sharding.Sharding:
        raise AssertionError(path)

    with pytest.raises(CheckpointError) as caught:
        read_onto_mesh(tmp_path / "wrong", CONFIG, nowhere)
    assert "encoder/encoder_norm/scale" in str(caught.value)
    assert "decoder/decoder_norm/scale" in str(caught.value)
    assert "(8,)" in str(caught.value)
    assert "(9,)" in str(caught.value)


def test_a_damaged_chunk_is_named(tmp_path: pathlib.Path):
    write_t5x_checkpoint(tmp_path / "run", base(), step=1)
    chunk = next((tmp_path / "run").rglob("target.token_embedder.embedding/0.0"))
    content = bytearray(chunk.read_bytes())
    content[12:-8] = bytes(len(content) - 20)
    chunk.write_bytes(content)
    with pytest.raises(CheckpointError, match="target/token_embedder/embedding"):
        read_onto_mesh(tmp_path / "run", CONFIG, lambda path, shape: ONE)
