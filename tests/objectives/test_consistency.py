"""Consistency between supports: the distance by hand, its place in the loss, and what cannot have it."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from hyperflax import trees
from hyperflax.errors import ConfigError, DataError
from hyperflax.hypernets.heads import HeadsConfig
from hyperflax.hypernets.hyper_t5 import HyperT5, HyperT5Config
from hyperflax.hypernets.table import Table
from hyperflax.models.t5 import T5
from hyperflax.objectives import HypermodelObjective
from hyperflax.objectives.consistency import between_tasks, distance
from tests.objectives.test_episode import BASE, BATCH, MODEL, SPEC

RNG = np.random.default_rng(0)
TWO = {**BATCH, "other_support_tokens": RNG.integers(2, 32, (3, 2, 2, 6)).astype(np.int32)}
# Of 3, 5 and 8 target tokens.
UNEVEN = {**TWO, "decoder_loss_weights": TWO["decoder_loss_weights"] * [[[1], [0]], [[0], [1]], [[1], [1]]]}


def test_distance_is_the_mean_square_over_all_values() -> None:
    first = {"a": np.array([1.0, 2.0]), "b": np.array([[3.0]])}
    others = {"a": np.array([[1.0, 0.0], [2.0, 2.0]]), "b": np.array([[[5.0]], [[3.0]]])}
    assert float(distance(first, others)) == pytest.approx((0 + 4 + 1 + 0 + 4 + 0) / 6)
    assert float(distance(first, first)) == 0.0


def test_adapters_of_a_large_model_have_more_values_than_an_int32_counts() -> None:
    """2,048 tasks of XXL: 6,442,450,944 slot values."""
    many = jax.ShapeDtypeStruct((2048, 3, 2**20), np.float32)
    assert jax.eval_shape(between_tasks, {"a": many}).shape == ()


def test_between_tasks_compares_neighbours() -> None:
    values = np.array([[1.0], [2.0], [4.0]])
    assert float(between_tasks({"a": values})) == pytest.approx((9 + 1 + 4) / 3)
    assert float(between_tasks({"a": np.ones((3, 5))})) == 0.0


@pytest.fixture(scope="module")
def setting():
    hypernet = HyperT5(HyperT5Config(t5=BASE, heads=HeadsConfig(hidden=8)), SPEC)
    objective = HypermodelObjective(MODEL, hypernet)
    fresh = jax.jit(objective.init)(jax.random.key(2), BATCH)
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), fresh)
    tokens = BATCH["encoder_input_tokens"][0]
    return objective, params, jax.jit(T5(BASE).init)(jax.random.key(1), tokens, tokens)["params"]


@pytest.mark.parametrize("of", ["states", "adapters"])
def test_is_added_to_the_token_loss_by_the_tokens_of_each_task(setting, of: str) -> None:
    objective, params, frozen = setting
    consistent = dataclasses.replace(objective, consistency=0.3, consistency_of=of)
    total, weight, metrics = jax.jit(consistent.loss, static_argnums=3)(params, frozen, UNEVEN, None)
    alone, _, _ = jax.jit(objective.loss, static_argnums=3)(params, frozen, UNEVEN, None)

    @jax.jit
    def values(tokens):
        method = "slot_states" if of == "states" else None
        out = objective.hypernetwork.apply({"params": params}, {"support_tokens": tokens}, method=method)
        if of == "states":
            out = out / jax.numpy.sqrt(jax.numpy.mean(out**2, axis=-1, keepdims=True))
        return jax.numpy.concatenate([leaf.ravel() for leaf in jax.tree.leaves(out)])

    first = np.stack([values(TWO["support_tokens"][task]) for task in range(3)])
    others = np.stack([[values(TWO["other_support_tokens"][task, i]) for i in range(2)] for task in range(3)])
    within = np.mean((first[:, None] - others) ** 2, axis=(1, 2))
    assert within.min() > 0
    np.testing.assert_allclose(total - alone, 0.3 * within @ [3, 5, 8], rtol=1e-3)
    assert weight == 16
    np.testing.assert_allclose(metrics["within_task_distance"], (within.sum(), 3), rtol=1e-4)
    between = np.mean((first - np.roll(first, 1, axis=0)) ** 2)
    np.testing.assert_allclose(metrics["between_task_distance"], (3 * between, 3), rtol=1e-4)


def test_equal_supports_cost_nothing(setting) -> None:
    objective, params, frozen = setting
    consistent = dataclasses.replace(objective, consistency=5.0)
    batch = {**BATCH, "other_support_tokens": BATCH["support_tokens"][:, None]}
    _, _, metrics = jax.jit(consistent.loss, static_argnums=3)(params, frozen, batch, None)
    np.testing.assert_allclose(metrics["within_task_distance"][0], 0.0, atol=1e-9)


def test_states_do_not_come_closer_by_growing_smaller(setting) -> None:
    objective, params, frozen = setting
    consistent = dataclasses.replace(objective, consistency=1.0)
    small = trees.map_with_path(lambda path, x: x / 8 if path == "t5/decoder/decoder_norm/scale" else x, params)
    loss = jax.jit(consistent.loss, static_argnums=3)
    found, shrunk = (loss(p, frozen, TWO, None)[2]["within_task_distance"][0] for p in (params, small))
    np.testing.assert_allclose(shrunk, found, rtol=1e-3)
    assert found > 0.01


def test_a_table_is_consistent_and_has_no_states(setting) -> None:
    _, _, frozen = setting
    table = HypermodelObjective(MODEL, Table(SPEC, num_tasks=3), consistency=1.0, consistency_of="adapters")
    rows = jax.jit(table.init)(jax.random.key(0), BATCH)
    _, _, metrics = jax.jit(table.loss, static_argnums=3)(rows, frozen, TWO, None)
    assert float(metrics["within_task_distance"][0]) == 0.0
    assert float(metrics["between_task_distance"][0]) > 0.0
    with pytest.raises(ConfigError, match="Table has no slot states"):
        dataclasses.replace(table, consistency_of="states")


def test_gradient_reaches_what_reads_the_other_supports(setting) -> None:
    """Away from a shared constant: the gradient of the distance alone touches the encoder and the slots."""
    objective, params, frozen = setting
    consistent = dataclasses.replace(objective, consistency=1.0)

    def loss(params, objective):
        return objective.loss(params, frozen, TWO, None)[0]

    with_it, without = (jax.jit(jax.grad(loss), static_argnums=1)(params, x) for x in (consistent, objective))
    moved = {
        path for path, leaf in trees.flatten(with_it).items() if not np.allclose(leaf, trees.flatten(without)[path])
    }
    assert {"slots", "t5/encoder/layers_0/attention/query/kernel"} <= moved
    assert not any(path.startswith("heads/") for path in moved)


def test_batches_and_settings_are_checked(setting) -> None:
    objective, params, frozen = setting
    with pytest.raises(DataError, match="feature 'other_support_tokens' is missing"):
        dataclasses.replace(objective, consistency=1.0).loss(params, frozen, BATCH, None)
    with pytest.raises(ConfigError, match="consistency_of: expected 'states' or 'adapters', got 'logits'"):
        dataclasses.replace(objective, consistency_of="logits")
