"""Hypernetworks that read a support: shapes, invariances, starting point, and initialisation from a T5."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from hyperflax import trees
from hyperflax.adapters.kinds import build_spec
from hyperflax.adapters.lora import LoRA
from hyperflax.adapters.prefix import Prefix
from hyperflax.errors import CheckpointError, ConfigError
from hyperflax.hypernets.hart import HART, HARTConfig
from hyperflax.hypernets.heads import HeadsConfig
from hyperflax.hypernets.hyper_t5 import HyperT5, HyperT5Config, initialise_from_t5
from hyperflax.models.t5 import T5
from hyperflax.types import T5Config

BASE = T5Config(
    vocab_size=64, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=2, num_decoder_layers=2
)
SUPPORT = np.array([[5, 6, 7, 1, 0, 0], [8, 9, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]], np.int32)


KINDS = {"lora": LoRA(rank=2, alpha=2.0), "prefix": Prefix(length=3)}
HEADS = HeadsConfig(hidden=16)
# A new hypernetwork that reads a support adds a row.
NETWORKS = {
    "hyper_t5": lambda spec: HyperT5(HyperT5Config(t5=BASE, heads=HEADS), spec),
    "hart": lambda spec: HART(HARTConfig(t5=BASE, heads=HEADS), spec),
    "hart_direct": lambda spec: HART(HARTConfig(t5=BASE, heads=HEADS, feedback="direct"), spec),
    "hart_options": lambda spec: HART(
        HARTConfig(t5=BASE, heads=HeadsConfig(16, "shared"), order="backward", steps_per_layer=2, extra_slots=1),
        spec,
    ),
}


@pytest.fixture(scope="module", params=[(kind, name) for kind in KINDS for name in NETWORKS], ids="-".join)
def case(request):
    kind, name = request.param
    spec = build_spec(KINDS[kind], BASE)
    hypernet = NETWORKS[name](spec)
    params = nn.unbox(jax.jit(hypernet.init)(jax.random.key(0), {"support_tokens": SUPPORT})["params"])
    generate = jax.jit(lambda params, support: hypernet.apply({"params": params}, {"support_tokens": support}))
    return spec, hypernet, params, generate


def flat(tree) -> np.ndarray:
    return np.concatenate([np.asarray(x).ravel() for x in trees.flatten(tree).values()])


def test_generates_what_the_spec_asks_for(case) -> None:
    spec, _, params, generate = case
    spec.validate(generate(params, SUPPORT))


def test_padding_rows_and_padding_tokens_change_nothing(case) -> None:
    _, _, params, generate = case
    full = flat(generate(params, SUPPORT))
    tight = flat(generate(params, SUPPORT[:2, :4]))
    np.testing.assert_allclose(full, tight, atol=1e-6)


def test_rows_are_encoded_alone_so_their_order_does_not_matter(case) -> None:
    _, _, params, generate = case
    np.testing.assert_allclose(flat(generate(params, SUPPORT)), flat(generate(params, SUPPORT[[1, 0, 2]])), atol=1e-6)


def test_the_support_matters(case) -> None:
    _, _, params, generate = case
    other = SUPPORT.copy()
    other[0, 0] = 30
    assert np.abs(flat(generate(params, SUPPORT)) - flat(generate(params, other))).max() > 1e-5


def test_vmap_over_tasks_is_each_task_alone(case) -> None:
    _, hypernet, params, generate = case
    supports = np.stack([SUPPORT, SUPPORT[::-1] + (SUPPORT[::-1] > 1)])
    many = jax.vmap(lambda s: hypernet.apply({"params": params}, {"support_tokens": s}))(supports)
    for index in range(2):
        one = generate(params, supports[index])
        np.testing.assert_allclose(flat(jax.tree.map(lambda x, i=index: x[i], many)), flat(one), atol=1e-5)


def test_starts_close_to_the_bare_model(case) -> None:
    spec, _, params, generate = case
    adapters = generate(params, SUPPORT)
    if "prefix" in spec.leaves[0].path:
        # A prefix takes its share of the attention however small it is; what can be small are its values.
        assert max(float(jnp.abs(x).max()) for x in trees.flatten(adapters).values()) < 1.0
        return
    model = T5(BASE)
    tokens = np.array([[4, 5, 6, 1]], np.int32)
    frozen = jax.jit(model.init)(jax.random.key(3), tokens, tokens)["params"]
    bare = model.apply({"params": frozen}, tokens, tokens)
    adapted = model.apply({"params": frozen, "adapters": adapters}, tokens, tokens)
    # Root mean square over all logits; b starts at a fiftieth of what would make each projection a new one.
    assert float(jnp.linalg.norm(adapted - bare)) < 0.1 * float(jnp.linalg.norm(bare))


def test_gradient_reaches_every_parameter(case) -> None:
    _, _, params, generate = case
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params)

    @jax.jit
    @jax.grad
    def gradient(params):
        out = trees.flatten(generate(params, SUPPORT))
        return sum(jnp.sum(jnp.sin(3.0 * x + i)) for i, x in enumerate(out.values()))

    dead = {path for path, g in trees.flatten(gradient(params)).items() if float(jnp.abs(g).max()) == 0}
    # The slots have no order: the decoder's own position bias is the one table that this setting leaves out.
    assert dead == {"t5/decoder/relpos_bias/rel_embedding"} & set(trees.flatten(params))


def test_starts_from_a_t5(case) -> None:
    _, _, params, _ = case
    tokens = np.array([[4, 5]], np.int32)
    t5 = jax.jit(T5(BASE).init)(jax.random.key(7), tokens, tokens)["params"]
    started = initialise_from_t5(params, t5)
    for path, leaf in trees.flatten(started["t5"]).items():
        np.testing.assert_array_equal(leaf, trees.flatten(t5)[path])
    assert set(trees.flatten(t5)) - set(trees.flatten(started["t5"])) <= {
        "decoder/logits_dense/kernel",
        "decoder/relpos_bias/rel_embedding",
    }
    np.testing.assert_array_equal(started["slots"], params["slots"])
    wrong = jax.jit(T5(BASE.replace(mlp_dim=48)).init)(jax.random.key(7), tokens, tokens)["params"]
    with pytest.raises(CheckpointError, match=r"mlp/wi_0/kernel: the hypernetwork expects \(16, 32\)"):
        initialise_from_t5(params, wrong)
    deeper = jax.eval_shape(T5(BASE.replace(num_decoder_layers=3)).init, jax.random.key(7), tokens, tokens)["params"]
    with pytest.raises(CheckpointError, match=r"t5/decoder/layers_2/.*: the hypernetwork has no such parameter"):
        initialise_from_t5(params, deeper)


def test_what_is_not_one_support_is_refused(case) -> None:
    _, hypernet, params, _ = case
    with pytest.raises(ConfigError, match=r"support_tokens: expected .* of one task, got \['task_index'\] alone"):
        hypernet.apply({"params": params}, {"task_index": 0})
    with pytest.raises(ConfigError, match=r"expected \[rows, length\] of one task, got \(2, 3, 6\)"):
        hypernet.apply({"params": params}, {"support_tokens": np.stack([SUPPORT, SUPPORT])})
    with pytest.raises(ConfigError, match="slot_bias"):
        HyperT5Config(t5=BASE, slot_bias="causal")
