"""Every parameter has logical axes, one per dimension, with T5X's names."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from hyperflax import trees
from hyperflax.models.axes import logical_axes
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
    axes = trees.flatten(logical_axes(config))
    assert axes.keys() == params.keys()
    for path, names in axes.items():
        assert params[path].shape == tuple(SIZES[name] for name in names), path


def test_a_literal_part_of_the_tree() -> None:
    assert logical_axes(cases.MICRO)["decoder"]["layers_1"]["encoder_decoder_attention"] == {
        "query": {"kernel": ("embed", "joined_kv")},
        "key": {"kernel": ("embed", "joined_kv")},
        "value": {"kernel": ("embed", "joined_kv")},
        "out": {"kernel": ("joined_kv", "embed")},
    }
    assert logical_axes(cases.MICRO.replace(scan_layers=True))["encoder"]["layers"]["mlp"] == {
        "wi_0": {"kernel": ("embed", "layers", "mlp")},
        "wi_1": {"kernel": ("embed", "layers", "mlp")},
        "wo": {"kernel": ("mlp", "layers", "embed")},
    }
