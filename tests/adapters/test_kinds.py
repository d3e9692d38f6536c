"""What is particular to a soft prompt, a parallel adapter and full fine-tuning, beside the conformance of all kinds."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperflax import trees
from hyperflax.adapters import Full, ParallelMLP, SoftPrompt, build_spec, check_spec, interpolate, merge, pad
from hyperflax.adapters.parallel_mlp import parallel_delta
from hyperflax.adapters.sites import parameters
from hyperflax.errors import AdapterError, ConfigError, HyperflaxError
from hyperflax.models.axes import parameter_axes
from hyperflax.models.t5 import T5
from tests.adapters.micro import CONFIG, random_tree, tokens

MODELS = {
    "t5_1_1": CONFIG,
    "t5_1_0": CONFIG.replace(mlp_activations=("relu",), logits_via_embedding=True),
    "bias_per_layer": CONFIG.replace(relative_bias="per_layer"),
}


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_full_has_a_leaf_for_every_parameter_of_the_model(config):
    row = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    params = trees.flatten(jax.eval_shape(T5(config).init, jax.random.key(0), row, row)["params"])
    found = {parameter.path: parameter for parameter in parameters(config)}
    assert {path: parameter.shape for path, parameter in found.items()} == {p: x.shape for p, x in params.items()}
    assert all(parameter.axes == parameter_axes(path) for path, parameter in found.items())
    spec = build_spec(Full(), config)
    assert spec.num_parameters == sum(math.prod(x.shape) for x in params.values())
    assert {leaf.path.replace("/full/", "/") for leaf in spec.leaves} == params.keys()


def test_full_merged_is_the_sum_and_mixes_exactly():
    spec = build_spec(Full(), CONFIG)
    params = trees.unflatten({p.path: np.full(p.shape, 2.0, np.float32) for p in parameters(CONFIG)})
    first, second = random_tree(spec, 0), random_tree(spec, 1)
    mixed, wide = interpolate([first, second], [0.5, -2.0], spec)
    assert wide == build_spec(Full(terms=2), CONFIG)
    merged = trees.flatten(merge(params, mixed, wide))
    one, two = (trees.flatten(tree) for tree in (first, second))
    for path, x in merged.items():
        leaf = "/full/".join(path.rsplit("/", 1))
        np.testing.assert_allclose(x, 2.0 + 0.5 * one[leaf][0] - 2.0 * two[leaf][0], rtol=1e-5, atol=1e-6)
    batched = [jax.tree.map(lambda x: np.stack([x, x]), tree) for tree in (first, second)]
    wide.validate(interpolate(batched, [0.5, 0.5], spec, batch_dims=1)[0], batch_dims=1)


def test_full_of_another_model_is_refused_by_its_leaf():
    spec = build_spec(Full(), CONFIG)
    with pytest.raises(AdapterError, match=r"'decoder/logits_dense/full/kernel': nothing in this base"):
        check_spec(spec, CONFIG.replace(logits_via_embedding=True))
    with pytest.raises(AdapterError, match=r"'token_embedder/full/embedding': .*\(terms, 32, 12\), got \(1, 24, 12\)"):
        check_spec(spec, CONFIG.replace(vocab_size=32))
    short = trees.unflatten({p.path: np.zeros(p.shape[::-1], np.float32) for p in parameters(CONFIG)})
    with pytest.raises(AdapterError, match=r"full/.*: shape .* does not fit"):
        merge(short, random_tree(spec, 0), spec)


@given(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=4))
@settings(max_examples=20, deadline=None)
def test_a_mixed_parallel_adapter_adds_the_weighted_sum_of_what_each_adds(weights):
    rng = np.random.default_rng(len(weights))
    x = rng.normal(size=(5, 12))
    slots = [{"down": rng.normal(size=(12, 3)), "up": rng.normal(size=(3, 12))} for _ in weights]
    expected = sum(w * np.maximum(x @ s["down"], 0) @ s["up"] for w, s in zip(weights, slots, strict=True))
    mixed = ParallelMLP.mix_slots([jax.tree.map(jnp.asarray, slot) for slot in slots], weights)
    found = parallel_delta(jnp.asarray(x, jnp.float32), mixed)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * (1 + np.abs(expected).max()))


def test_the_factor_of_a_parallel_adapter_is_the_scale_of_up():
    spec = build_spec(ParallelMLP(bottleneck=2, scale=4.0), CONFIG)
    assert {(leaf.name, leaf.scale) for leaf in spec.leaves} == {("down", 1.0), ("up", 4.0)}
    assert spec.num_parameters == 5 * 2 * 12 * 2


def test_a_longer_prompt_has_masked_positions_in_front():
    spec = build_spec(SoftPrompt(length=2), CONFIG)
    tree, wide = pad(random_tree(spec, 0), spec, length=5)
    assert wide == build_spec(SoftPrompt(length=5), CONFIG)
    np.testing.assert_array_equal(tree["encoder"]["soft_prompt"]["mask"], [0, 0, 0, 1, 1])


def test_a_prompt_does_not_stand_before_packed_inputs():
    spec = build_spec(SoftPrompt(length=2), CONFIG)
    encoder, decoder = tokens()
    variables = {"params": T5(CONFIG).init(jax.random.key(0), encoder, decoder)["params"]}
    variables["adapters"] = random_tree(spec, 0)
    ids = {"encoder_segment_ids": np.ones_like(encoder), "decoder_segment_ids": np.ones_like(decoder)}
    with pytest.raises(HyperflaxError, match="encoder_segment_ids: a soft prompt stands before one input"):
        T5(CONFIG).apply(variables, encoder, decoder, **ids)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (SoftPrompt, {"length": 0}),
        (SoftPrompt, {"init_std": -1.0}),
        (ParallelMLP, {"bottleneck": True}),
        (ParallelMLP, {"scale": math.inf}),
        (ParallelMLP, {"sites": ()}),
        (Full, {"terms": 0}),
        (Full, {"head_std": "0"}),
    ],
)
def test_settings_are_checked_where_they_are_made(kind, fields):
    with pytest.raises(ConfigError, match=rf"{kind.__name__}\.{next(iter(fields))}: expected"):
        kind(**fields)
