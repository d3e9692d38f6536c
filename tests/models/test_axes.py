"""Every parameter has logical axes, one per dimension, with T5X's names."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from hyperflax import trees
from hyperflax.models.axes import parameter_axes
from hyperflax.models.t5 import T5
from hyperflax.types import T5Config
from tests.models import t5_cases as cases

SIZES = {"vocab": 64, "embed": 16, "joined_kv": 24, "mlp": 40, "heads": 3, "relpos_buckets": 32, "layers": 5}
CONFIG = cases.MICRO.replace(head_dim=8, num_heads=3, mlp_dim=40, num_encoder_layers=5, num_decoder_layers=5)


@pytest.mark.parametrize(
    "config",
    [CONFIG, CONFIG.replace(mlp_activations=("relu",), logits_via_embedding=True)]
    + [CONFIG.replace(scan_layers=True, relative_bias=bias) for bias in ("shared", "per_layer")],
)
def test_sizes_agree_with_the_axes(config: T5Config) -> None:
    tokens = jnp.ones((1, 1), jnp.int32)
    params = trees.flatten(jax.eval_shape(T5(config).init, jax.random.key(0), tokens, tokens)["params"])
    for path, leaf in params.items():
        assert leaf.shape == tuple(SIZES[name] for name in parameter_axes(path)), path


def test_literal_axes() -> None:
    attention = "decoder/layers_1/encoder_decoder_attention"
    for name in ("query", "key", "value"):
        assert parameter_axes(f"{attention}/{name}/kernel") == ("embed", "joined_kv")
    assert parameter_axes(f"{attention}/out/kernel") == ("joined_kv", "embed")
    for name in ("wi", "wi_0", "wi_1"):
        assert parameter_axes(f"encoder/layers/mlp/{name}/kernel") == ("embed", "layers", "mlp")
    assert parameter_axes("encoder/layers/mlp/wo/kernel") == ("mlp", "layers", "embed")
    with pytest.raises(KeyError):
        parameter_axes("decoder/layers_1/encoder_decoder_attention/queries/kernel")
