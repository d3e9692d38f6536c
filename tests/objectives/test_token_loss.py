"""The token loss against T5X's arrays, a naive formula and its own promises about memory and speed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperflax.errors import ConfigError
from hyperflax.objectives.normalisation import normalise
from hyperflax.objectives.token_loss import correct_tokens, token_loss

GRID = [(z, ls) for z in (0.0, 0.0001, 0.1) for ls in (0.0, 0.1)]


def naive(logits, targets, weights, z_loss, label_smoothing):
    """The same definition written with a one-hot matrix and a log-softmax, in float64."""
    vocab = logits.shape[-1]
    one_hot = np.eye(vocab)[targets]
    q = (1 - label_smoothing) * one_hot + label_smoothing / (vocab - 1) * (1 - one_hot)
    largest = logits.max(-1, keepdims=True)
    log_z = np.log(np.exp(logits - largest).sum(-1)) + largest[..., 0]
    entropy = -(q * np.log(np.where(q > 0, q, 1))).sum(-1)
    loss = -(q * (logits - log_z[..., None])).sum(-1) - entropy + z_loss * log_z**2
    return (loss * weights).sum(), (z_loss * log_z**2 * weights).sum(), weights.sum()


@pytest.mark.parametrize(("z_loss", "label_smoothing"), GRID)
@pytest.mark.parametrize("factor", [None, 7.0])
def test_equals_t5x_with_gradient(goldens, z_loss, label_smoothing, factor):
    arrays = np.load(goldens / "loss_function.npz")
    name = f"z{z_loss}_ls{label_smoothing}_lnf{factor}"

    def scaled(logits):
        out = token_loss(logits, arrays["targets"], arrays["weights"], z_loss=z_loss, label_smoothing=label_smoothing)
        return out.loss_sum / (factor or 1.0), out

    (loss, out), gradient = jax.value_and_grad(scaled, has_aux=True)(jnp.asarray(arrays["logits"]))
    found = [loss, out.z_loss_sum / (factor or 1.0), out.weight_sum]
    np.testing.assert_allclose(found, arrays[name], rtol=2e-6)
    np.testing.assert_allclose(gradient, arrays[f"grad_{name}"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("z_loss", "label_smoothing"), GRID)
def test_equals_naive_formula(z_loss, label_smoothing):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 5, (2, 3, 7, 19)) + 30.0
    targets = rng.integers(0, 19, (2, 3, 7))
    weights = rng.uniform(0, 2, (2, 3, 7))
    out = token_loss(jnp.asarray(logits), jnp.asarray(targets), jnp.asarray(weights), z_loss=z_loss,
                     label_smoothing=label_smoothing)  # fmt: skip
    np.testing.assert_allclose(out, naive(logits, targets, weights, z_loss, label_smoothing), rtol=1e-5)


@pytest.mark.parametrize("weights", [[1.0, 1.0, 0.0], [0.25, 0.0, 0.5]])
def test_mean_is_the_weighted_one_over_tokens(weights):
    rng = np.random.default_rng(1)
    logits, targets = rng.normal(0, 2, (4, 3, 11)), rng.integers(0, 11, (4, 3))
    weights = np.array([weights, weights, weights, [0.0] * 3])
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = -np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    expected = [*np.average(losses[:3], axis=-1, weights=weights[:3]), 0.0]  # the last row has no token that counts
    found = jax.vmap(token_loss)(jnp.asarray(logits), jnp.asarray(targets), jnp.asarray(weights)).mean
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_perfect_prediction_costs_nothing_under_smoothing():
    q = np.full(10, 0.1 / 9)
    q[3] = 0.9
    out = token_loss(jnp.log(q)[None], jnp.asarray([3]), label_smoothing=0.1)
    assert abs(float(out.loss_sum)) < 1e-6
    gradient = jax.grad(lambda x: token_loss(x, jnp.asarray([3]), label_smoothing=0.1).loss_sum)(jnp.log(q)[None])
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_gradient_of_the_z_part_alone():
    logits = jax.random.normal(jax.random.key(0), (3, 5))
    targets = jnp.asarray([0, 1, 2])
    found = jax.grad(lambda x: token_loss(x, targets, z_loss=0.1).z_loss_sum)(logits)
    wanted = jax.grad(lambda x: 0.1 * jnp.sum(jax.nn.logsumexp(x, axis=-1) ** 2))(logits)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_survives_huge_logits_and_bfloat16():
    logits = jnp.asarray([[1e4, -1e4, 0.0]])
    value, gradient = jax.value_and_grad(lambda x: token_loss(x, jnp.asarray([1])).loss_sum)(logits)
    assert float(value) == 2e4
    np.testing.assert_array_equal(gradient, [[1.0, -1.0, 0.0]])
    half = logits.astype(jnp.bfloat16)
    assert jax.grad(lambda x: token_loss(x, jnp.asarray([0])).loss_sum)(half).dtype == jnp.bfloat16


def test_vmap_equals_one_by_one():
    logits = jax.random.normal(jax.random.key(1), (4, 3, 6))
    targets = jax.random.randint(jax.random.key(2), (4, 3), 0, 6)
    grad = jax.grad(lambda x, t: token_loss(x, t, z_loss=0.01, label_smoothing=0.2).loss_sum)
    np.testing.assert_allclose(
        jax.vmap(grad)(logits, targets),
        jnp.stack([grad(x, t) for x, t in zip(logits, targets, strict=True)]),
        rtol=1e-6,
    )


def test_only_the_logits_are_kept_for_the_backward_pass():
    logits = jnp.zeros((8, 1000))
    targets = jnp.zeros((8,), jnp.int32)
    _, backward = jax.vjp(lambda x: token_loss(x, targets, z_loss=1e-4).loss_sum, logits)
    kept = [leaf.shape for leaf in jax.tree.leaves(backward) if getattr(leaf, "size", 0) >= logits.size]
    assert kept == [(8, 1000)]


def test_wrong_shapes_are_named():
    with pytest.raises(ConfigError, match=r"targets should be \(2, 3\)"):
        token_loss(jnp.zeros((2, 3, 5)), jnp.zeros((2,), jnp.int32))
    with pytest.raises(ConfigError, match=r"weights should be \(2,\)"):
        token_loss(jnp.zeros((2, 5)), jnp.zeros((2,), jnp.int32), jnp.zeros((3,)))
    with pytest.raises(ConfigError, match="label_smoothing"):
        token_loss(jnp.zeros((2, 5)), jnp.zeros((2,), jnp.int32), label_smoothing=1.0)


def test_correct_tokens_is_argmax():
    logits = jax.random.normal(jax.random.key(3), (50, 7))
    targets = jax.random.randint(jax.random.key(4), (50,), 0, 7)
    np.testing.assert_array_equal(correct_tokens(logits, targets), jnp.argmax(logits, axis=-1) == targets)


@pytest.mark.parametrize("batch_name", ["unpacked", "packed", "random"])
def test_normalising_factors_equal_t5x_on_a_tiny_model(goldens, batch_name):
    """T5X's logits and its losses under every LOSS_NORMALIZING_FACTOR."""
    inputs = np.load(goldens / "tiny_inputs.npz")
    golden = np.load(goldens / "tiny_forward_init.npz")
    batch = {k.split("/", 1)[1]: inputs[k] for k in inputs.files if k.startswith(batch_name + "/")}
    logits = jnp.asarray(golden[f"{batch_name}/logits"])
    settings = {
        "plain": (0.0, 0.0, None),
        "z1e-4": (1e-4, 0.0, None),
        "ls0.1": (0.0, 0.1, None),
        "z1e-4_ls0.1": (1e-4, 0.1, None),
        "z1e-4_ls0.1_lnf233472": (1e-4, 0.1, 233472),
        "z1e-4_real": (1e-4, 0.0, "NUM_REAL_TARGET_TOKENS"),
        "z1e-4_total": (1e-4, 0.0, "NUM_TOTAL_TARGET_TOKENS"),
        "z1e-4_avgseq": (1e-4, 0.0, "AVERAGE_PER_SEQUENCE"),
    }
    names = {k.split("/")[2] for k in golden.files if k.startswith(f"{batch_name}/loss/")}
    assert names == set(settings)
    for name, (z_loss, label_smoothing, factor) in settings.items():
        weights, divisor = normalise(factor, batch)
        out = token_loss(
            logits, batch["decoder_target_tokens"], weights, z_loss=z_loss, label_smoothing=label_smoothing
        )
        np.testing.assert_allclose(out.loss_sum / divisor, golden[f"{batch_name}/loss/{name}"], rtol=2e-5, err_msg=name)


def test_unknown_factor_is_refused():
    with pytest.raises(ConfigError, match="NUM_REAL_TARGET_TOKENS"):
        normalise("MEAN", {"decoder_target_tokens": jnp.ones((1, 2), jnp.int32)})
    with pytest.raises(ConfigError, match="positive"):
        normalise(-1.0, {"decoder_target_tokens": jnp.ones((1, 2), jnp.int32)})
