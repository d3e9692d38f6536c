"""Heads that start out looking next door: which numbers change, and what attention makes of them."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from hyperflax import trees
from hyperflax.data.vocabularies import Bytes
from hyperflax.errors import ConfigError
from hyperflax.models.neighbour_heads import start_neighbour_heads
from hyperflax.models.relative_bias import PositionBias
from hyperflax.models.t5 import T5
from hyperflax.train import PlainT5
from hyperflax.training.partitioning import Partitioner
from hyperflax.types import T5Config

CONFIG = T5Config(
    vocab_size=384, emb_dim=16, num_heads=3, head_dim=4, mlp_dim=16, num_encoder_layers=2, num_decoder_layers=2
)
TOKENS = np.full((1, 6), 7, np.int32)


def fresh(config: T5Config) -> dict:
    return jax.tree.map(np.asarray, jax.jit(T5(config).init)(jax.random.key(0), TOKENS, TOKENS)["params"])


def attention(table: np.ndarray, bidirectional: bool, length: int = 9) -> np.ndarray:
    """[heads, queries, keys] of a head that sees positions alone."""
    bias = PositionBias.create(table, length=length, bidirectional=bidirectional, max_distance=CONFIG.max_distance).own
    if not bidirectional:
        bias = np.where(np.tril(np.ones((length, length), bool)), bias, -1e10)
    return np.asarray(jax.nn.softmax(bias))


@pytest.mark.parametrize("relative_bias", ["shared", "per_layer"])
def test_only_the_tables_change_and_heads_look_next_door(relative_bias: str) -> None:
    config = CONFIG.replace(relative_bias=relative_bias)
    params = fresh(config)
    started = start_neighbour_heads(params, config, strength=30.0)
    before, after = trees.flatten(params), trees.flatten(started)
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    tables = {path for path in before if path.endswith("rel_embedding")}
    assert changed == tables
    assert len(tables) == (2 if relative_bias == "shared" else 4)
    for path in tables:
        in_encoder = path.startswith("encoder")
        weights = attention(after[path], bidirectional=in_encoder)
        first, second = (-1, 1) if in_encoder else (-1, -2)
        for query in range(2, 8):
            assert weights[0, query, query + first] > 0.999
            assert weights[1, query, query + second] > 0.999
        np.testing.assert_array_equal(after[path][2], before[path][2])


def test_one_head_is_too_few() -> None:
    config = CONFIG.replace(num_heads=1)
    with pytest.raises(ConfigError, match="at least 2 heads, got 1"):
        start_neighbour_heads(fresh(config), config, 3.0)


def test_a_checkpoint_has_its_own_tables() -> None:
    with pytest.raises(ConfigError, match="neighbour_heads"):
        PlainT5(CONFIG, Bytes(), initial_checkpoint="x", neighbour_heads=3.0)


def test_training_from_scratch_starts_with_them() -> None:
    params = fresh(CONFIG)
    model = PlainT5(CONFIG, Bytes(), neighbour_heads=3.0)
    started = trees.flatten(model.initial_params(params, Partitioner()))
    expected = trees.flatten(start_neighbour_heads(params, CONFIG, 3.0))
    assert all(np.array_equal(started[path], leaf) for path, leaf in expected.items())
    assert PlainT5(CONFIG, Bytes()).initial_params(params, Partitioner()) is params
