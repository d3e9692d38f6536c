"""The training step: accumulation, normalisation, dropout's key and steps that are not finite."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hyperflax import trees
from hyperflax.errors import ConfigError
from hyperflax.hypernets.heads import HeadsConfig
from hyperflax.hypernets.hyper_t5 import HyperT5, HyperT5Config
from hyperflax.objectives import HypermodelObjective
from hyperflax.objectives.protocol import SCORED
from hyperflax.training.optimizers import adamw
from hyperflax.training.schedules import warmup_cosine
from hyperflax.training.state import create_state
from hyperflax.training.step import make_train_step, split_batch
from tests.objectives.test_episode import BASE, MODEL, SPEC, make_batch

KEY = jax.random.key(7)


def gradient_of(objective, params, batch, frozen=None, **options):
    """The gradient that a step applies, through an optimizer that subtracts it as it is."""
    sgd = optax.sgd(1.0)
    state, metrics = jax.jit(make_train_step(objective, sgd, **options))(create_state(params, sgd), frozen, batch, KEY)
    return trees.flatten(jax.tree.map(lambda old, new: np.asarray(old - new), params, state.params)), metrics


def assert_trees_close(found, wanted, **tolerance):
    for path, leaf in wanted.items():
        np.testing.assert_allclose(found[path], leaf, err_msg=path, **tolerance)


@pytest.mark.parametrize(
    "factor", [None, 50.0, "NUM_REAL_TARGET_TOKENS", "NUM_TOTAL_TARGET_TOKENS", "AVERAGE_PER_SEQUENCE"]
)
def test_split_step_equals_whole_step(table, table_params, copy_batches, factor):
    batch = copy_batches.batch(0)
    whole, whole_metrics = gradient_of(table, table_params, batch, loss_normalizing_factor=factor)
    split, split_metrics = gradient_of(table, table_params, batch, loss_normalizing_factor=factor, microbatches=4)
    assert_trees_close(split, whole, rtol=1e-4, atol=1e-6)
    for name, pair in whole_metrics.items():
        np.testing.assert_allclose(split_metrics[name], pair, rtol=1e-5, err_msg=name)


def test_split_step_equals_whole_step_with_all_that_a_hypermodel_may_add():
    """Four tasks of 3, 8, 5 and 8 target tokens, consistency and a teacher; tasks t and t + 2 share a microbatch."""
    one = make_batch(tasks=4)
    shown = np.array([[1, 0], [1, 1], [0, 1], [1, 1]])[:, :, None]
    batch = {
        **one,
        "decoder_loss_weights": one["decoder_loss_weights"] * shown.astype(np.float32),
        "other_support_tokens": one["support_tokens"][:, None, :, ::-1],
        "teacher_input_tokens": one["encoder_input_tokens"][..., ::-1],
    }
    network = HyperT5(HyperT5Config(t5=BASE, heads=HeadsConfig(hidden=8)), SPEC)
    objective = HypermodelObjective(MODEL, network, distillation=0.5, consistency=2.0)
    params = jax.jit(objective.init)(jax.random.key(2), batch)
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    frozen = jax.jit(MODEL.init)(jax.random.key(1), *(batch[name][0] for name in SCORED))["params"]
    whole, whole_metrics = gradient_of(objective, params, batch, frozen)
    states = jax.jit(
        jax.vmap(lambda tokens: network.apply({"params": params}, {"support_tokens": tokens}, method="slot_states"))
    )
    generated = np.asarray(states(batch["support_tokens"]))
    generated = generated / np.sqrt(np.mean(generated**2, axis=-1, keepdims=True))
    for microbatches in (2, 4):
        split, metrics = gradient_of(objective, params, batch, frozen, microbatches=microbatches)
        largest = max(np.abs(leaf).max() for leaf in whole.values())
        assert_trees_close(split, whole, rtol=1e-4, atol=1e-5 * largest)
        compared = metrics.pop("between_task_distance", None)
        assert metrics.keys() == whole_metrics.keys() - {"between_task_distance"}
        for name, pair in metrics.items():
            np.testing.assert_allclose(pair, whole_metrics[name], rtol=1e-4, err_msg=name)
        if microbatches == 2:
            apart = np.mean((generated[:2] - generated[2:]) ** 2, axis=(1, 2))
            np.testing.assert_allclose(compared, (2 * apart.sum(), 4), rtol=1e-4)
        else:
            assert compared is None  # a task alone has no neighbour


def test_normalisation_is_what_it_says(table, table_params, copy_batches):
    batch = copy_batches.batch(0)
    total, _ = gradient_of(table, table_params, batch, loss_normalizing_factor=None)
    weights = batch["decoder_loss_weights"]
    for factor, divisor in ((None, 1), (3.0, 3.0), ("NUM_REAL_TARGET_TOKENS", weights.sum()),
                            ("NUM_TOTAL_TARGET_TOKENS", weights.size)):  # fmt: skip
        found, _ = gradient_of(table, table_params, batch, loss_normalizing_factor=factor)
        assert_trees_close(found, {path: leaf / divisor for path, leaf in total.items()}, rtol=1e-4, atol=1e-6)
    found, _ = gradient_of(table, table_params, batch, loss_normalizing_factor="average_per_sequence")

    def mean_of_means(params):
        rows = [{name: feature[i : i + 1] for name, feature in batch.items()} for i in range(len(weights))]
        losses = [table.loss(params, None, row, None) for row in rows]
        return sum(loss / weight for loss, weight, _ in losses) / len(rows)

    assert_trees_close(found, trees.flatten(jax.jit(jax.grad(mean_of_means))(table_params)), rtol=1e-4, atol=1e-6)


def test_dropout_depends_on_the_step_alone(table, table_params, copy_batches):
    wet = dataclasses.replace(table, dropout=0.3)
    optimizer = adamw(0.0)
    step = jax.jit(make_train_step(wet, optimizer))
    state = create_state(table_params, optimizer)
    batch = copy_batches.batch(0)
    losses = [step(state.replace(step=jnp.int32(i)), None, batch, KEY)[1]["loss"][0] for i in (3, 3, 4)]
    assert losses[0] == losses[1] != losses[2]


def test_a_step_without_finite_gradient_changes_nothing(table, table_params, copy_batches):
    optimizer = adamw(1e-3)
    step = jax.jit(make_train_step(table, optimizer))
    state, _ = step(create_state(table_params, optimizer), None, copy_batches.batch(0), KEY)
    bad = copy_batches.batch(1)
    bad["decoder_loss_weights"] = np.where(bad["decoder_loss_weights"] > 0, np.inf, 0)
    after, metrics = step(state, None, bad, KEY)
    assert int(after.step) == 2
    for old, new in zip(
        jax.tree.leaves((state.params, state.opt_state)), jax.tree.leaves((after.params, after.opt_state)), strict=True
    ):
        np.testing.assert_array_equal(old, new)
    assert metrics.pop("skipped_steps") == (1.0, 1.0)
    assert all(float(total) == 0 and float(weight) == 0 for total, weight in metrics.values())


def test_a_step_without_finite_loss_is_skipped_though_its_gradient_is_finite(table, table_params, copy_batches):
    """As that of a target that the logits do not have: the loss is NaN, and no part of it is derived."""

    class Broken:
        def loss(self, params, frozen, batch, rng):
            loss_sum, weight_sum, metrics = table.loss(params, frozen, batch, rng)
            return loss_sum + jnp.nan, weight_sum, metrics

    step = jax.jit(make_train_step(Broken(), adamw(1e-3)))
    after, metrics = step(create_state(table_params, adamw(1e-3)), None, copy_batches.batch(0), KEY)
    assert metrics["skipped_steps"] == (1.0, 1.0)
    assert_trees_close(trees.flatten(after.params), trees.flatten(table_params), rtol=0)


def test_a_step_without_finite_update_is_skipped_too(table, table_params, copy_batches):
    def update(grads, opt_state, params):
        return jax.tree.map(lambda grad: grad * jnp.nan, grads), opt_state

    broken = optax.GradientTransformation(lambda params: optax.EmptyState(), update)
    step = jax.jit(make_train_step(table, broken))
    after, metrics = step(create_state(table_params, broken), None, copy_batches.batch(0), KEY)
    assert metrics["skipped_steps"] == (1.0, 1.0)
    assert_trees_close(trees.flatten(after.params), trees.flatten(table_params), rtol=0)


def test_the_schedule_goes_on_over_skipped_steps(table, table_params, copy_batches):
    """Adam's first step is the rate times the gradient's sign; after five skips in a warm-up of ten it is the sixth."""
    optimizer = adamw(warmup_cosine(1.0, warmup_steps=10, total_steps=100), clip_norm=None)
    step = jax.jit(make_train_step(table, optimizer))
    good, state = copy_batches.batch(0), create_state(table_params, optimizer)
    bad = {**good, "decoder_loss_weights": np.where(good["decoder_loss_weights"] > 0, np.inf, 0)}
    for _ in range(5):
        state, _ = step(state, None, bad, KEY)
    after, metrics = step(state, None, good, KEY)
    assert float(metrics["learning_rate"][0]) == pytest.approx(0.6)
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), after.params, table_params)
    assert max(jax.tree.leaves(moved)) == pytest.approx(0.6, rel=1e-3)


def test_metrics_of_a_step(table, table_params, copy_batches):
    optimizer = adamw(1e-3, clip_norm=0.001)
    batch = copy_batches.batch(0)
    _, metrics = jax.jit(make_train_step(table, optimizer))(create_state(table_params, optimizer), None, batch, KEY)
    gradient, _ = gradient_of(table, table_params, batch)
    norm = np.sqrt(sum(float((leaf.astype(np.float64) ** 2).sum()) for leaf in gradient.values()))
    np.testing.assert_allclose(metrics["gradient_norm"][0], norm, rtol=1e-4)
    assert float(metrics["learning_rate"][0]) == np.float32(1e-3)
    assert metrics["skipped_steps"] == (0.0, 1.0)
    assert float(metrics["loss"][1]) == batch["decoder_loss_weights"].sum()


def test_a_batch_of_padding_is_no_accident(table, table_params, copy_batches):
    batch = {name: np.zeros_like(feature) for name, feature in copy_batches.batch(0).items()}
    gradient, metrics = gradient_of(table, table_params, batch)
    assert all((leaf == 0).all() for leaf in gradient.values())
    assert metrics["skipped_steps"] == (0.0, 1.0)


def test_microbatches_must_divide():
    with pytest.raises(ConfigError, match="3 does not divide the 8 rows of batch feature 'x'"):
        split_batch({"x": jnp.zeros((8, 2))}, 3)
    np.testing.assert_array_equal(split_batch({"x": jnp.arange(6)}, 2)["x"], [[0, 2, 4], [1, 3, 5]])
