"""Checkpoints written by T5X itself, against the arrays that it held when it wrote them."""

from __future__ import annotations

import pathlib

import ml_dtypes
import numpy as np
import pytest

from hyperflax import trees
from hyperflax.checkpoints import check_shapes, from_scalable, infer_t5_config, read_t5x_checkpoint
from hyperflax.checkpoints.t5x import look_at_t5x_state
from hyperflax.errors import CheckpointError
from hyperflax.types import T5Config

MICRO = T5Config(
    vocab_size=64, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=2, num_decoder_layers=2
)


@pytest.fixture(scope="module")
def checkpoints(materialised: pathlib.Path) -> pathlib.Path:
    return materialised / "t5x" / "checkpoints"


def truth(file: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(file) as state:
        return {name.removeprefix("target/"): state[name] for name in state.files if name.startswith("target/")}


@pytest.mark.parametrize("form", ["micro_legacy_f32", "micro_legacy_f32_inline", "micro_legacy_f32_inference"])
def test_float32_forms_give_the_arrays_bit_for_bit(checkpoints, form):
    found = trees.flatten(read_t5x_checkpoint(checkpoints / form / "checkpoint_1000"))
    expected = truth(checkpoints / "micro_state.npz")
    assert found.keys() == expected.keys()
    for path, array in found.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, expected[path], err_msg=path)
        assert array.flags.writeable


def test_bfloat16_target_is_the_rounded_truth(checkpoints):
    found = trees.flatten(read_t5x_checkpoint(checkpoints / "micro_legacy_bf16"))
    expected = truth(checkpoints / "micro_state.npz")
    assert found.keys() == expected.keys()
    for path, array in found.items():
        assert array.dtype == ml_dtypes.bfloat16
        rounded = expected[path].astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(array.view(np.uint16), rounded.view(np.uint16), err_msg=path)
    upcast = trees.flatten(read_t5x_checkpoint(checkpoints / "micro_legacy_bf16", dtype="float32"))
    for path, array in upcast.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, found[path].astype(np.float32), err_msg=path)


def test_scanned_layers_come_as_they_are(checkpoints):
    params = read_t5x_checkpoint(checkpoints / "micro_scalable_legacy_f32")
    found, expected = trees.flatten(params), truth(checkpoints / "micro_scalable_state.npz")
    assert found.keys() == expected.keys()
    for path, array in found.items():
        np.testing.assert_array_equal(array, expected[path], err_msg=path)
    assert found["encoder/encoder/attention/query/kernel"].shape == (16, 2, 2, 8)


def test_scalable_layout_becomes_the_scanned_one_layer_by_layer(checkpoints):
    params = read_t5x_checkpoint(checkpoints / "micro_scalable_legacy_f32")
    before, after = trees.flatten(params), trees.flatten(from_scalable(params))
    config = MICRO.replace(scan_layers=True, relative_bias="per_layer")
    check_shapes(from_scalable(params), config)
    assert infer_t5_config(params) == config
    for layer in range(2):
        query = before["decoder/decoder/self_attention/query/kernel"][:, layer].reshape(16, 16)  # [E, (H, D)]
        np.testing.assert_array_equal(after["decoder/layers/self_attention/query/kernel"][:, layer], query)
        out = before["decoder/decoder/self_attention/out/kernel"][:, layer].reshape(16, 16)  # [(H, D), E]
        np.testing.assert_array_equal(after["decoder/layers/self_attention/out/kernel"][:, layer], out)
        np.testing.assert_array_equal(
            after["encoder/layers/mlp/wo/kernel"][:, layer], before["encoder/encoder/mlp/wo/kernel"][:, layer]
        )


@pytest.mark.parametrize(
    "form",
    [
        "micro_legacy_f32",
        "micro_legacy_f32_inline",
        "micro_legacy_bf16",
        "micro_legacy_f32_inference",
        "micro_scalable_legacy_f32",
        "tiny_legacy_f32_from_train_py",
    ],
)
def test_step_is_read(checkpoints, form):
    assert look_at_t5x_state(checkpoints / form)[0] == 1000
    assert look_at_t5x_state(checkpoints / form / "checkpoint_1000" / "checkpoint")[0] == 1000


@pytest.mark.parametrize("form", ["micro_legacy_f32", "micro_legacy_bf16"])
def test_configuration_is_inferred(checkpoints, form):
    assert infer_t5_config(read_t5x_checkpoint(checkpoints / form)) == MICRO


def test_run_directory_of_train_py(checkpoints):
    params = read_t5x_checkpoint(checkpoints / "tiny_legacy_f32_from_train_py")
    config = infer_t5_config(params)
    assert (config.vocab_size, config.emb_dim, config.num_heads, config.head_dim, config.mlp_dim) == (
        384,
        64,
        4,
        16,
        128,
    )
    check_shapes(params, config)


def test_orbax_form_is_named(checkpoints):
    with pytest.raises(CheckpointError, match="Orbax"):
        read_t5x_checkpoint(checkpoints / "micro_orbax_f32")
