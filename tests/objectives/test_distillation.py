"""The divergence from a teacher: against scipy, its gradient in closed form, and inside the hypermodel's objective."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from hyperflax.errors import ConfigError, DataError
from hyperflax.hypernets.table import Table
from hyperflax.models.t5 import T5
from hyperflax.objectives import HypermodelObjective
from hyperflax.objectives.distillation import token_divergence
from tests.objectives.test_episode import BASE, BATCH, MODEL, SPEC

RNG = np.random.default_rng(0)
TEACHER, STUDENT = RNG.normal(0, 3, (2, 4, 5, 7)).astype(np.float32)
WEIGHTS = RNG.integers(0, 2, (4, 5)).astype(np.float32)


def test_is_the_sum_of_relative_entropies() -> None:
    p, q = scipy.special.softmax(TEACHER.astype(np.float64), -1), scipy.special.softmax(STUDENT.astype(np.float64), -1)
    wanted = (scipy.special.rel_entr(p, q).sum(-1) * WEIGHTS).sum()
    np.testing.assert_allclose(token_divergence(TEACHER, STUDENT, WEIGHTS), wanted, rtol=1e-5)
    assert float(token_divergence(TEACHER, TEACHER, WEIGHTS)) == 0.0
    # Only differences between a token's logits matter.
    np.testing.assert_allclose(token_divergence(TEACHER + 5, STUDENT - 3, WEIGHTS), wanted, rtol=1e-5)


def test_gradient_is_the_difference_of_the_distributions_and_spares_the_teacher() -> None:
    of_teacher, of_student = jax.grad(token_divergence, argnums=(0, 1))(TEACHER, STUDENT, WEIGHTS)
    assert not np.any(of_teacher)
    wanted = (scipy.special.softmax(STUDENT, -1) - scipy.special.softmax(TEACHER, -1)) * WEIGHTS[..., None]
    np.testing.assert_allclose(of_student, wanted, atol=1e-6)


def test_stays_finite_where_probabilities_vanish() -> None:
    certain = np.zeros((1, 3), np.float32)
    certain[0, 0] = 1e4
    value, gradient = jax.value_and_grad(token_divergence, argnums=1)(certain, -certain, np.ones(1, np.float32))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_shapes_must_fit() -> None:
    with pytest.raises(ConfigError, match="token_divergence: expected logits of one shape"):
        token_divergence(TEACHER, STUDENT[:2], WEIGHTS)
    with pytest.raises(ConfigError, match="token_divergence"):
        token_divergence(TEACHER, STUDENT, WEIGHTS[:2])


@pytest.fixture(scope="module")
def setting():
    """An objective over a table of adapters away from zero, its parameters, the base's, and a batch with a teacher."""
    objective = HypermodelObjective(MODEL, Table(SPEC, num_tasks=3), distillation=0.7)
    rows = jax.tree.map(
        lambda x: 0.5 * jax.random.normal(jax.random.key(x.size), x.shape),
        jax.jit(objective.init)(jax.random.key(0), BATCH),
    )
    tokens = BATCH["encoder_input_tokens"][0]
    frozen = jax.jit(T5(BASE).init)(jax.random.key(1), tokens, tokens)["params"]
    told = np.concatenate([BATCH["encoder_input_tokens"][..., ::-1], BATCH["encoder_input_tokens"]], axis=-1)
    return objective, rows, frozen, {**BATCH, "teacher_input_tokens": told}


def test_is_added_to_the_token_loss(setting) -> None:
    objective, rows, frozen, batch = setting
    plain = dataclasses.replace(objective, distillation=0.0)
    total, weight, metrics = jax.jit(objective.loss, static_argnums=3)(rows, frozen, batch, None)
    alone, _, without = jax.jit(plain.loss, static_argnums=3)(rows, frozen, batch, None)
    adapters = objective.generate(rows, batch)
    divergence = 0.0
    for task in range(3):
        rest = [batch[name][task] for name in ("decoder_input_tokens", "decoder_target_tokens")]
        teacher = MODEL.apply({"params": frozen}, batch["teacher_input_tokens"][task], *rest)
        adapter = jax.tree.map(lambda leaf, task=task: leaf[task], adapters)
        student = MODEL.apply({"params": frozen, "adapters": adapter}, batch["encoder_input_tokens"][task], *rest)
        divergence += token_divergence(teacher, student, jnp.asarray(batch["decoder_loss_weights"][task]))
    assert float(divergence) > 0.1
    np.testing.assert_allclose(metrics["divergence"], (divergence, weight), rtol=1e-4)
    np.testing.assert_allclose(total, alone + 0.7 * divergence, rtol=1e-4)
    assert "divergence" not in without
    np.testing.assert_allclose(metrics["loss"], without["loss"], rtol=1e-6)


def test_a_batch_without_teacher_is_refused(setting) -> None:
    objective, rows, frozen, _ = setting
    with pytest.raises(DataError, match="feature 'teacher_input_tokens' is missing"):
        objective.loss(rows, frozen, BATCH, None)
