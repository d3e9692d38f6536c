"""Adafactor against T5X's ten steps, AdamW against its formula, the factory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperflax import trees
from hyperflax.errors import ConfigError
from hyperflax.models.t5 import T5
from hyperflax.objectives import T5Objective
from hyperflax.training.optimizers import adafactor, adamw, make_optimizer
from hyperflax.training.schedules import learning_rate_schedule
from hyperflax.training.state import create_state
from hyperflax.training.step import make_train_step
from hyperflax.types import T5Config

MICRO = T5Config(
    vocab_size=64, emb_dim=16, num_heads=2, num_encoder_layers=2, num_decoder_layers=2, head_dim=8, mlp_dim=32
)


def under(arrays, prefix):
    return {name.removeprefix(prefix): arrays[name] for name in arrays.files if name.startswith(prefix)}


@pytest.mark.parametrize(("name", "min_dim"), [("adafactor", 16), ("adafactor_nofactor", 128)])
def test_ten_steps_of_t5x_adafactor(goldens, name, min_dim):
    golden = np.load(goldens / f"micro_train_{name}.npz")
    forward = np.load(goldens / "micro_forward.npz")
    batches = [under(forward, f"batch{i}/") for i in range(2)]
    params = trees.unflatten(
        {k.removeprefix("params/"): v for k, v in np.load(goldens / "micro_params_init.npz").items()}
    )
    schedule = learning_rate_schedule("constant * rsqrt_decay", base_learning_rate=1.0, warmup_steps=10_000)
    optimizer = adafactor(schedule, min_dim_size_to_factor=min_dim)
    step = jax.jit(make_train_step(T5Objective(T5(MICRO), z_loss=1e-4), optimizer, loss_normalizing_factor=None))
    state = create_state(jax.tree.map(jnp.asarray, params), optimizer)
    losses, rates = [], []
    for i in range(10):
        state, metrics = step(state, None, batches[i % 2], jax.random.key(0))
        losses.append(float(metrics["loss"][0]))
        rates.append(float(metrics["learning_rate"][0]))
        if i == 0:
            compare(trees.flatten(state.params), under(golden, "params_after_1/"), rtol=7e-5)
    np.testing.assert_allclose(losses, golden["losses"], rtol=2e-5)
    np.testing.assert_allclose(rates, golden["learning_rates"], rtol=1e-6)
    assert int(state.step) == golden["step"] == 10
    compare(trees.flatten(state.params), under(golden, "params_after_10/"), rtol=7e-5)
    slots = state.opt_state[0]
    for slot in ("v", "v_row", "v_col"):
        wanted = {k.removesuffix(f"/{slot}"): v for k, v in under(golden, "param_states_after_10/").items()
                  if k.endswith(f"/{slot}") and v.size > 1}  # fmt: skip
        found = trees.flatten(getattr(slots, slot))
        assert {path for path, leaf in found.items() if leaf.size > 1} == set(wanted)
        compare(found, wanted, rtol=3e-4)


def compare(found, wanted, rtol):
    """Relative to the leaf's largest number: a parameter near zero has no relative precision of its own."""
    for path, leaf in wanted.items():
        np.testing.assert_allclose(found[path], leaf, rtol=rtol, atol=rtol * np.abs(leaf).max(), err_msg=path)


def test_adafactor_momentum_is_over_finished_updates():
    plain, heavy = adafactor(0.1), adafactor(0.1, beta1=0.9)
    params = {"w": jnp.ones((3,))}
    grads = [{"w": jnp.asarray([1.0, -2.0, 0.5]) * scale} for scale in (1.0, 3.0)]
    states = [plain.init(params), heavy.init(params)]
    momentum = np.zeros(3)
    for grad in grads:
        update, states[0] = plain.update(grad, states[0], params)
        found, states[1] = heavy.update(grad, states[1], params)
        momentum = 0.9 * momentum + 0.1 * np.asarray(update["w"])
        np.testing.assert_allclose(found["w"], momentum, rtol=1e-6)


def test_adafactor_weight_decay_ignores_the_learning_rate():
    params = {"w": jnp.asarray([2.0, -4.0])}
    optimizer = adafactor(0.0, weight_decay_rate=0.25)
    update, _ = optimizer.update({"w": jnp.ones(2)}, optimizer.init(params), params)
    np.testing.assert_allclose(update["w"], [-0.5, 1.0])


def test_adafactor_first_step_is_the_sign_times_the_parameter_scale():
    """At the first step the decay is 0, so a vector's update is lr * rms(parameter) * sign(gradient)."""
    params = {"w": jnp.asarray([3.0, -4.0, 0.0])}
    optimizer = adafactor(0.01)
    update, _ = optimizer.update({"w": jnp.asarray([5.0, -0.1, 1e-3])}, optimizer.init(params), params)
    rms = np.sqrt(25 / 3)
    np.testing.assert_allclose(update["w"], [-0.01 * rms, 0.01 * rms, -0.01 * rms], rtol=1e-5)


def test_adafactor_treats_scanned_layers_like_layers_alone():
    rng = np.random.default_rng(0)
    param, grad = rng.normal(size=(2, 8, 3, 6)).astype(np.float32) * np.asarray([1, 5, 0.1])[:, None]
    optimizer = adafactor(0.1, min_dim_size_to_factor=4)
    scanned = {"encoder": {"layers": {"kernel": param}}}
    found, state = optimizer.update({"encoder": {"layers": {"kernel": grad}}}, optimizer.init(scanned), scanned)
    assert state[0].v_row["encoder"]["layers"]["kernel"].shape == (3, 6)
    assert state[0].v_col["encoder"]["layers"]["kernel"].shape == (8, 3)
    for layer in range(3):
        one = {"encoder": {f"layers_{layer}": {"kernel": param[:, layer]}}}
        gradient = {"encoder": {f"layers_{layer}": {"kernel": grad[:, layer]}}}
        wanted, _ = optimizer.update(gradient, optimizer.init(one), one)
        wanted = wanted["encoder"][f"layers_{layer}"]["kernel"]
        np.testing.assert_allclose(found["encoder"]["layers"]["kernel"][:, layer], wanted, rtol=1e-5)


def test_adamw_first_step_by_hand():
    optimizer = adamw(0.1, weight_decay=0.5, clip_norm=1.0, eps=1e-8)
    params = {"w": jnp.asarray([2.0, 0.0])}
    update, _ = optimizer.update({"w": jnp.asarray([30.0, -40.0])}, optimizer.init(params), params)
    # The bias-corrected first step of Adam is the gradient's sign; decay adds 0.1 * 0.5 * parameter.
    np.testing.assert_allclose(update["w"], [-0.1 - 0.1, 0.1], rtol=1e-5)


def test_clipping_is_by_global_norm():
    optimizer = make_optimizer("adamw", 1.0, clip_norm=1.0, b1=0.0, b2=0.0, eps=1.0)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    update, _ = optimizer.update({"a": jnp.asarray([30.0]), "b": jnp.asarray([40.0])}, optimizer.init(params), params)
    # b1 = b2 = 0 and eps = 1: the update is -g / (|g| + 1), which shows the clipped gradient 0.6, 0.8.
    np.testing.assert_allclose([update["a"][0], update["b"][0]], [-0.6 / 1.6, -0.8 / 1.8], rtol=1e-5)


def test_factory_refuses_by_name():
    with pytest.raises(ConfigError, match="adafactor"):
        make_optimizer("sgd")
    with pytest.raises(ConfigError, match="weight_decy"):
        make_optimizer("adamw", weight_decy=0.1)
    with pytest.raises(ConfigError, match="step_offset"):
        make_optimizer("adafactor", step_offset=1_000_000)
    with pytest.raises(ConfigError, match="clip_norm"):
        make_optimizer("adamw", clip_norm=0.0)
    with pytest.raises(ConfigError, match="learning_rate"):
        make_optimizer("adamw", learning_rate="fast")
