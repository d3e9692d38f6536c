"""The model reproduces the arrays that T5X itself computed."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperflax import trees
from hyperflax.models.relative_bias import bucket
from hyperflax.models.t5 import T5
from hyperflax.objectives.token_loss import token_loss
from tests.models import t5_cases as cases


@pytest.mark.parametrize("name", ["unpacked", "packed", "random"])
def test_tiny_forward(goldens: pathlib.Path, name: str) -> None:
    params = cases.subtree(cases.load(goldens, "tiny_params_init"), "params")
    batch = cases.subtree(cases.load(goldens, "tiny_inputs"), name)
    expected = cases.subtree(cases.load(goldens, "tiny_forward_init"), name)
    model = T5(cases.TINY)
    logits = model.apply({"params": params}, **cases.model_inputs(batch))
    assert logits.dtype == jnp.float32
    cases.assert_close(logits, expected["logits"])
    segments = batch.get("encoder_segment_ids")
    encoded = model.apply({"params": params}, batch["encoder_input_tokens"], segments, method="encode")
    cases.assert_close(encoded, expected["encoded"])


def test_bfloat16_compute(goldens: pathlib.Path) -> None:
    params = cases.subtree(cases.load(goldens, "tiny_params_init"), "params")
    batch = cases.subtree(cases.load(goldens, "tiny_inputs"), "unpacked")
    logits = T5(cases.TINY.replace(dtype="bfloat16")).apply({"params": params}, **cases.model_inputs(batch))
    assert logits.dtype == jnp.float32
    expected = cases.load(goldens, "tiny_forward_init")["unpacked/logits_bf16_compute"]
    np.testing.assert_allclose(logits, expected, atol=0.1)


def test_micro_forward(goldens: pathlib.Path) -> None:
    params = cases.subtree(cases.load(goldens, "micro_params_init"), "params")
    arrays = cases.load(goldens, "micro_forward")
    logits = T5(cases.MICRO).apply({"params": params}, **cases.model_inputs(cases.subtree(arrays, "batch0")))
    cases.assert_close(logits, arrays["logits"])


def test_t5_1_0(goldens: pathlib.Path) -> None:
    arrays = cases.load(goldens, "micro_t5_1_0")
    model = T5(cases.MICRO_1_0)
    batch = cases.model_inputs(cases.subtree(arrays, "batch0"))
    cases.assert_close(model.apply({"params": cases.subtree(arrays, "params")}, **batch), arrays["logits"])


@pytest.mark.parametrize(("config", "name"), [(cases.TINY, "tiny_params_init"), (cases.MICRO_1_0, "micro_t5_1_0")])
def test_init_gives_the_tree_of_t5x(goldens: pathlib.Path, config: cases.T5Config, name: str) -> None:
    expected = trees.flatten(cases.subtree(cases.load(goldens, name), "params"))
    tokens = jnp.ones((1, 4), jnp.int32)
    params = jax.eval_shape(T5(config).init, jax.random.key(0), tokens, tokens)["params"]
    shapes = {path: x.shape for path, x in trees.flatten(params).items()}
    assert shapes == {path: x.shape for path, x in expected.items()}


@pytest.mark.parametrize(
    ("key", "bidirectional", "num_buckets", "max_distance"),
    [("bidirectional_32_128", True, 32, 128), ("causal_32_128", False, 32, 128), ("bidirectional_16_64", True, 16, 64)],
)
def test_buckets(goldens: pathlib.Path, key: str, bidirectional: bool, num_buckets: int, max_distance: int) -> None:
    arrays = cases.load(goldens, "relpos_buckets")
    got = bucket(
        arrays["relative_position"], bidirectional=bidirectional, num_buckets=num_buckets, max_distance=max_distance
    )
    np.testing.assert_array_equal(got, arrays[key])


def test_loss_and_every_gradient(goldens: pathlib.Path) -> None:
    params = cases.subtree(cases.load(goldens, "micro_params_init"), "params")
    arrays = cases.load(goldens, "micro_forward")
    batch = cases.subtree(arrays, "batch0")

    @jax.jit
    @jax.value_and_grad
    def loss(params: dict) -> jax.Array:
        logits = T5(cases.MICRO).apply({"params": params}, **cases.model_inputs(batch))
        targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
        return token_loss(logits, targets, weights, z_loss=1e-4, label_smoothing=0.1).loss_sum

    value, grads = loss(params)
    cases.assert_close(value, arrays["loss_z1e-4_ls0.1"])
    got, expected = trees.flatten(grads), trees.flatten(cases.subtree(arrays, "grads"))
    assert got.keys() == expected.keys()
    for path, gradient in expected.items():
        np.testing.assert_allclose(got[path], gradient, rtol=1e-3, atol=1e-6, err_msg=path)
