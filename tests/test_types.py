"""What a T5Config refuses, and that the position buckets of whatever it takes are in range and rise with distance."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from hyperflax import configs
from hyperflax.errors import ConfigError
from hyperflax.models.layers import activation
from hyperflax.models.relative_bias import bucket
from hyperflax.types import ACTIVATIONS, T5Config


@pytest.mark.parametrize("value", ["relu", (), ("gleu", "linear"), ("Dense",), ("gelu", 3), None])
def test_activations_are_a_tuple_of_known_names(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"mlp_activations: expected one or more of gelu, .* in a tuple, got"):
        T5Config(vocab_size=16, mlp_activations=value)


def test_a_file_cannot_name_anything_else_of_flax() -> None:
    with pytest.raises(ConfigError, match=r"hypermodel\.json: .*mlp_activations.*'Dense'"):
        configs.from_json(T5Config, {"vocab_size": 16, "mlp_activations": ["Dense"]}, "hypermodel.json")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_there(name: str) -> None:
    x = jnp.asarray([-1.0, 0.0, 2.0])
    assert activation(name)(x).shape == x.shape
    assert T5Config(vocab_size=16, mlp_activations=[name]).mlp_activations == (name,)


@pytest.mark.parametrize(
    ("num_buckets", "max_distance", "message"),
    [
        (1, 128, "num_buckets: expected at least 4, got 1"),
        (3, 128, "num_buckets: expected at least 4, got 3"),
        (32, 4, "max_distance: expected more than 16, half of num_buckets, got 4"),
        (32, 8, "max_distance: expected more than 16"),  # the encoder's exact range
        (32, 16, "max_distance: expected more than 16"),  # the decoder's
    ],
)
def test_sizes_without_position_buckets_are_refused(num_buckets: int, max_distance: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        T5Config(vocab_size=16, num_buckets=num_buckets, max_distance=max_distance)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(4, 3), (5, 3), (7, 4), (8, 5), (32, 17), (32, 128)])
def test_buckets_of_the_smallest_sizes_are_in_range_and_rise(
    num_buckets: int, max_distance: int, bidirectional: bool
) -> None:
    config = T5Config(vocab_size=16, num_buckets=num_buckets, max_distance=max_distance)
    sizes = {"num_buckets": config.num_buckets, "max_distance": config.max_distance}
    behind = bucket(-np.arange(200), bidirectional=bidirectional, **sizes)
    ahead = bucket(np.arange(1, 200), bidirectional=bidirectional, **sizes)
    for found in (behind, ahead):
        assert (np.diff(found) >= 0).all()
        assert found.min() >= 0
        assert found.max() < num_buckets
