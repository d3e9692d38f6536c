"""Scanned and unrolled layers compute the same, and the transform between them is exact."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperflax import trees
from hyperflax.adapters.kinds import build_spec
from hyperflax.adapters.layers import arrange
from hyperflax.adapters.lora import LoRA
from hyperflax.adapters.prefix import Prefix
from hyperflax.errors import CheckpointError
from hyperflax.models.stacking import stack_layers, unstack_layers
from hyperflax.models.t5 import T5
from hyperflax.types import T5Config
from tests.models import t5_cases as cases

SHALLOW_DECODER = cases.MICRO.replace(num_encoder_layers=3)


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    tokens = rng.integers(1, 64, (2, 9)).astype(np.int32)
    tokens[1, 6:] = 0
    return {
        "encoder_input_tokens": tokens,
        "decoder_input_tokens": tokens[:, :7],
        "decoder_target_tokens": tokens[:, 1:8],
    }


@pytest.mark.parametrize(("relative_bias", "remat"), [("shared", False), ("per_layer", True)])
def test_scanned_layers_give_the_same_logits_and_gradients(relative_bias: str, remat: bool) -> None:
    config = SHALLOW_DECODER.replace(relative_bias=relative_bias, remat=remat)
    scanned = config.replace(scan_layers=True)
    params = cases.random_params(config)
    spec = build_spec((LoRA(rank=2, sites=("*",)), Prefix(length=3, position_bias="preceding")), config)
    adapters = jax.tree.map(lambda x: x + 0.1, spec.materialise(spec.init(jax.random.key(1))))

    def loss(params: dict, adapters: dict, config: T5Config) -> jax.Array:
        variables = {"params": params, "adapters": arrange(adapters, spec, config)}
        return jnp.sum(jax.nn.log_softmax(T5(config).apply(variables, **batch()))[..., 3])

    one = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), static_argnums=2)
    value, (by_params, by_adapters) = one(params, adapters, config)
    value_s, (by_params_s, by_adapters_s) = one(stack_layers(params, config), adapters, scanned)
    np.testing.assert_allclose(value_s, value, rtol=1e-5)
    for path, gradient in trees.flatten(unstack_layers(by_params_s, config)).items():
        np.testing.assert_allclose(gradient, trees.flatten(by_params)[path], rtol=1e-3, atol=1e-4, err_msg=path)
    for path, gradient in trees.flatten(by_adapters_s).items():
        np.testing.assert_allclose(gradient, trees.flatten(by_adapters)[path], rtol=1e-3, atol=1e-4, err_msg=path)
        assert np.abs(gradient).max() > 0, path


@pytest.mark.parametrize("relative_bias", ["shared", "per_layer"])
def test_scanned_init_has_the_stacked_shapes(relative_bias: str) -> None:
    config = SHALLOW_DECODER.replace(relative_bias=relative_bias)
    tokens = jnp.ones((1, 4), jnp.int32)
    stacked = trees.flatten(stack_layers(cases.random_params(config), config))
    init = jax.jit(T5(config.replace(scan_layers=True)).init)(jax.random.key(0), tokens, tokens)["params"]
    assert {path: x.shape for path, x in trees.flatten(init).items()} == {p: x.shape for p, x in stacked.items()}
    assert ("encoder/relpos_bias/rel_embedding" in stacked) == (relative_bias == "shared")
    kernel = init["encoder"]["layers"]["mlp"]["wo"]["kernel"]
    assert not np.array_equal(kernel[:, 0], kernel[:, 1])


def test_unstacking_is_the_inverse(goldens: pathlib.Path) -> None:
    params = cases.subtree(cases.load(goldens, "tiny_params_init"), "params")
    back = trees.flatten(unstack_layers(stack_layers(params, cases.TINY), cases.TINY))
    assert back.keys() == trees.flatten(params).keys()
    for path, x in trees.flatten(params).items():
        np.testing.assert_array_equal(back[path], x)


def test_a_wrong_number_of_layers_is_named() -> None:
    params = cases.random_params(cases.MICRO)
    with pytest.raises(CheckpointError, match=r"encoder/layers/.*expected layers 0 to 2, got \[0, 1\]"):
        stack_layers(params, SHALLOW_DECODER)
    with pytest.raises(CheckpointError, match=r"encoder/layers/.*expected 3 layers on axis 1"):
        unstack_layers(stack_layers(params, cases.MICRO), SHALLOW_DECODER)
