"""Parameters are read as `flax.linen.Module.param` reads them, without its initialiser."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors
from flax import linen as nn

from hyperflax import trees
from hyperflax.adapters import LoRA, build_spec
from hyperflax.hypernets.heads import HeadsConfig
from hyperflax.hypernets.hyper_t5 import HyperT5, HyperT5Config
from hyperflax.models.parameters import param, traced_shapes
from hyperflax.types import T5Config

INIT = nn.with_logical_partitioning(nn.initializers.normal(1.0), ("embed",))


class Flax(nn.Module):
    size: int = 3

    @nn.compact
    def __call__(self):
        return 2 * self.param("scale", INIT, (self.size,), jnp.float32)


class Ours(Flax):
    calls = 0

    @nn.compact
    def __call__(self):
        def init(*arguments):
            Ours.calls += 1
            return INIT(*arguments)

        return 2 * param(self, "scale", init, (self.size,))


def test_it_makes_and_reads_what_flax_does():
    made, expected = Ours().init(jax.random.key(0)), Flax().init(jax.random.key(0))
    assert isinstance(made["params"]["scale"], nn.LogicallyPartitioned)  # names of axes are kept
    assert made["params"]["scale"].names == ("embed",)
    np.testing.assert_array_equal(made["params"]["scale"].value, expected["params"]["scale"].value)
    calls = Ours.calls
    for params in (made, nn.unbox(made)):
        np.testing.assert_array_equal(Ours().apply(params), Flax().apply(expected))
    assert Ours.calls == calls  # which is what it is for


@pytest.mark.parametrize("module", [Flax, Ours])
def test_a_missing_parameter_and_one_of_another_shape_are_refused(module):
    with pytest.raises(errors.ScopeParamShapeError, match=r"scale.*\(3,\).*\(2,\)"):
        module().apply({"params": {"scale": np.ones(2, np.float32)}})
    with pytest.raises(errors.ScopeParamNotFoundError, match="scale"):
        module().apply({"params": {"other": np.ones(3, np.float32)}})


@pytest.mark.parametrize("scan_layers", [False, True])
def test_traced_shapes_are_those_that_initialising_gives(scan_layers):
    config = T5Config(
        vocab_size=32,
        emb_dim=16,
        num_heads=2,
        head_dim=8,
        mlp_dim=32,
        num_encoder_layers=2,
        num_decoder_layers=2,
        scan_layers=scan_layers,
    )
    network = HyperT5(HyperT5Config(config, HeadsConfig(hidden=8)), build_spec(LoRA(rank=2), config))
    episode = {"support_tokens": np.ones((2, 4), np.int32)}
    made = nn.unbox(network.init(jax.random.key(0), episode)["params"])
    assert traced_shapes(network, episode) == {path: leaf.shape for path, leaf in trees.flatten(made).items()}
