"""Adafactor against T5X's ten steps, AdamW and Muon against their formulas, the factory."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperflax import trees
from hyperflax.adapters import build_spec
from hyperflax.adapters.lora import LoRA
from hyperflax.errors import ConfigError
from hyperflax.hypernets.hart import HART, HARTConfig
from hyperflax.hypernets.heads import HeadsConfig
from hyperflax.hypernets.hyper_t5 import HyperT5, HyperT5Config
from hyperflax.models.t5 import T5
from hyperflax.objectives import T5Objective
from hyperflax.training.optimizers import adafactor, adamw, make_optimizer, muon
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


def orthogonalised(x):
    """Five steps of Jordan's quintic iteration, on singular values: it leaves the singular vectors as they are."""
    u, values, vt = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    values /= np.linalg.norm(values) + 1e-8
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return u @ np.diag(values) @ vt


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_muon_moves_matrices_by_their_orthogonalised_momentum(shape):
    rng = np.random.default_rng(1)
    optimizer = muon(0.1, beta=0.9, clip_norm=None)
    params = {"mlp": {"wo": {"kernel": jnp.zeros(shape)}}}
    state, momentum = optimizer.init(params), np.zeros(shape)
    for step in (1, 2, 3):
        grad = rng.normal(size=shape)
        update, state = optimizer.update({"mlp": {"wo": {"kernel": jnp.asarray(grad, jnp.float32)}}}, state, params)
        momentum = 0.9 * momentum + 0.1 * grad
        # Nesterov's, each part with its own correction for having begun at 0.
        ahead = 0.9 * momentum / (1 - 0.9 ** (step + 1)) + 0.1 * grad / (1 - 0.9**step)
        wanted = -0.1 * 0.2 * np.sqrt(10) * orthogonalised(ahead)
        np.testing.assert_allclose(update["mlp"]["wo"]["kernel"], wanted, rtol=2e-4, atol=2e-5)
        # As large as AdamW's, whose steps are of some 0.2 to 0.4 of the learning rate.
        assert 0.1 * 0.1 < np.sqrt(np.mean(wanted**2)) < 0.1 * 0.3


def test_muon_treats_scanned_layers_like_layers_alone():
    grad = np.random.default_rng(2).normal(size=(8, 3, 6)).astype(np.float32)
    optimizer = muon(0.1, clip_norm=None)

    def first(gradient):
        return optimizer.update(gradient, optimizer.init(gradient), gradient)[0]

    scanned = first({"encoder": {"layers": {"mlp": {"wo": {"kernel": grad}}}}})
    for layer in range(3):
        alone = first({"encoder": {f"layers_{layer}": {"mlp": {"wo": {"kernel": grad[:, layer]}}}}})
        found = scanned["encoder"]["layers"]["mlp"]["wo"]["kernel"][:, layer]
        wanted = alone["encoder"][f"layers_{layer}"]["mlp"]["wo"]["kernel"]
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("network", [HyperT5, HART])
@pytest.mark.parametrize("scan_layers", [False, True])
def test_muon_takes_the_maps_of_a_hypernetwork(network, scan_layers):
    """Those and no others: the first update of Adam's has entries of one size, 1 + b1 / (1 + b1) with Nesterov's."""
    config = {HyperT5: HyperT5Config, HART: HARTConfig}[network]
    t5 = MICRO.replace(scan_layers=scan_layers)
    model = network(config(t5=t5, heads=HeadsConfig(hidden=8)), build_spec(LoRA(rank=2, alpha=2.0), MICRO))
    params = nn.unbox(model.init(jax.random.key(0), {"support_tokens": jnp.ones((2, 8), jnp.int32)}))["params"]
    optimizer = muon(1.0, clip_norm=None)
    grads = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape), params)
    updates = trees.flatten(optimizer.update(grads, optimizer.init(params), params)[0])
    adams = {path for path, update in updates.items() if np.allclose(np.abs(update), 1 + 0.9 / 1.9, rtol=1e-3)}
    assert adams == {path for path in updates if path.endswith(("embedding", "scale", "bias", "slots", ".a", ".b"))}
    assert {path.split("/")[-1] for path in updates if path not in adams} >= {"kernel", "encoder_0_in", "decoder_0_out"}


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
