"""Reconstruction: the quotient by hand, its place in the loss, and what it asks of a batch."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperflax.errors import DataError
from hyperflax.hypernets.heads import HeadsConfig
from hyperflax.hypernets.hyper_t5 import HyperT5, HyperT5Config
from hyperflax.models.t5 import T5
from hyperflax.objectives import HypermodelObjective
from hyperflax.objectives.reconstruction import reconstruction
from tests.adapters.micro import random_tree
from tests.objectives.test_episode import BASE, BATCH, MODEL, SPEC
from tests.training.test_step import gradient_of

KNOWN = np.array([1.0, 0.0, 1.0], np.float32)
TRAINED = SPEC.flatten(random_tree(SPEC, 5, (3,)))
FULL = {**BATCH, **{f"task_adapters/{path}": leaf for path, leaf in TRAINED.items()}, "task_adapters_known": KNOWN}


def test_it_is_zero_where_both_agree_and_one_for_an_adapter_that_does_nothing() -> None:
    trained = random_tree(SPEC, 0)
    nothing = jax.tree.map(jnp.zeros_like, trained)
    twice = SPEC.unflatten(
        {path: leaf if path.endswith("/a") else 2 * leaf for path, leaf in SPEC.flatten(trained).items()}
    )
    values = [float(reconstruction(tree, trained, SPEC)) for tree in (trained, nothing, twice)]
    np.testing.assert_allclose(values, [0, 1, 1], atol=1e-5)
    assert float(reconstruction(trained, nothing, SPEC)) == 0.0
    generated, given = jax.grad(reconstruction, argnums=(0, 1))(nothing, trained, SPEC)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(generated))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(given))


@pytest.fixture(scope="module")
def setting():
    hypernet = HyperT5(HyperT5Config(t5=BASE, heads=HeadsConfig(hidden=8)), SPEC)
    objective = HypermodelObjective(MODEL, hypernet)
    fresh = jax.jit(objective.init)(jax.random.key(2), BATCH)
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), fresh)
    tokens = BATCH["encoder_input_tokens"][0]
    return objective, params, jax.jit(T5(BASE).init)(jax.random.key(1), tokens, tokens)["params"]


def test_is_added_to_the_token_loss_by_the_tokens_of_each_task_that_has_an_adapter(setting) -> None:
    objective, params, frozen = setting
    near = dataclasses.replace(objective, reconstruction=0.2)
    total, weight, metrics = jax.jit(near.loss, static_argnums=3)(params, frozen, FULL, None)
    plain, same_weight, others = jax.jit(objective.loss, static_argnums=3)(params, frozen, BATCH, None)
    generated = jax.jit(objective.generate)(params, BATCH)
    away = [
        float(reconstruction(*(jax.tree.map(lambda leaf, i=i: leaf[i], tree) for tree in
                               (generated, SPEC.unflatten(TRAINED))), SPEC))
        for i in range(3)
    ]  # fmt: skip
    tokens = BATCH["decoder_loss_weights"].sum((1, 2))
    assert float(weight) == float(same_weight)
    assert float(total - plain) == pytest.approx(0.2 * (away[0] * tokens[0] + away[2] * tokens[2]), rel=1e-4)
    np.testing.assert_allclose(metrics.pop("reconstruction"), (away[0] + away[2], 2), rtol=1e-4)
    assert metrics.keys() == others.keys()


def test_a_split_step_is_the_unsplit_one(setting) -> None:
    objective, params, frozen = setting
    near = dataclasses.replace(objective, reconstruction=0.2)
    four = {name: np.concatenate([leaf, leaf[:1]]) for name, leaf in FULL.items()}
    whole, found = (gradient_of(near, params, four, frozen, microbatches=n)[0] for n in (1, 2))
    largest = max(np.abs(leaf).max() for leaf in whole.values())
    for path, leaf in whole.items():
        np.testing.assert_allclose(found[path], leaf, rtol=1e-4, atol=1e-5 * largest, err_msg=path)


def test_a_batch_without_these_leaves_is_refused(setting) -> None:
    objective, params, frozen = setting
    near = dataclasses.replace(objective, reconstruction=0.2)
    path = next(iter(TRAINED))
    with pytest.raises(DataError, match=rf"'task_adapters/' of {len(TRAINED)} leaves, .* got 0: .* is missing"):
        near.loss(params, frozen, BATCH, None)
    other = {name.replace(path, f"{path}x"): leaf for name, leaf in FULL.items()}
    with pytest.raises(DataError, match=f"got {len(TRAINED)}: '{path}' is missing"):
        near.loss(params, frozen, other, None)
    more = {**FULL, "task_adapters/zzz": np.zeros(3, np.float32)}
    with pytest.raises(DataError, match="'zzz' is none of them"):
        near.loss(params, frozen, more, None)
