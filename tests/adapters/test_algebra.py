"""Stacking, padding, interpolating, merging, scanning: equal effects, shown on the dense matrices themselves."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperflax import trees
from hyperflax.adapters import (
    LoRA,
    Prefix,
    arrange,
    build_spec,
    check_spec,
    interpolate,
    lora_delta,
    merge,
    pad,
    stack,
    stack_layers,
    stack_padded,
    unstack,
    unstack_layers,
)
from hyperflax.errors import AdapterError
from tests.adapters.micro import CONFIG, KINDS, random_tree

LORA = build_spec(LoRA(rank=2, alpha=6.0), CONFIG)
PREFIX = build_spec(Prefix(length=3, position_bias="preceding"), CONFIG)


def dense(tree, spec) -> dict[str, np.ndarray]:
    """`{module: a b}` in float64."""
    flat = {path: np.asarray(x, np.float64) for path, x in spec.flatten(tree).items()}
    modules = {leaf.module for leaf in spec.leaves}
    return {module: flat[f"{module}/lora/a"] @ flat[f"{module}/lora/b"] for module in modules}


def equal(first, second) -> None:
    first, second = trees.flatten(first), trees.flatten(second)
    assert first.keys() == second.keys()
    for path in first:
        np.testing.assert_array_equal(first[path], second[path], err_msg=path)


def test_lora_delta_is_the_dense_product_in_the_dtype_of_x():
    rng = np.random.default_rng(0)
    x, a, b = rng.normal(size=(2, 5, 12)), rng.normal(size=(12, 3)), rng.normal(size=(3, 8))
    slot = {"a": a.astype(np.float32), "b": b.astype(np.float32)}
    np.testing.assert_allclose(lora_delta(jnp.asarray(x, jnp.float32), slot), x @ (a @ b), rtol=1e-4, atol=1e-5)
    half = lora_delta(jnp.asarray(x, jnp.bfloat16), slot)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(half, np.float64), x @ (a @ b), rtol=0.1, atol=0.3)


def test_lora_delta_is_exactly_zero_where_b_is():
    x = jnp.full((2, 4), 1e30, jnp.float32)
    assert not jnp.any(lora_delta(x, {"a": jnp.full((4, 2), -3.0), "b": jnp.zeros((2, 5))}))


@pytest.mark.parametrize("row", KINDS)
def test_stack_and_unstack_are_inverse(row):
    spec = build_spec(KINDS[row], CONFIG)
    adapters = [random_tree(spec, seed) for seed in range(3)]
    stacked = stack(adapters, spec)
    spec.validate(stacked, batch_dims=1)
    for mine, again in zip(adapters, unstack(stacked, spec), strict=True):
        equal(mine, again)


def test_stacking_gives_a_mask_to_those_without():
    masked = random_tree(PREFIX, 0)
    masked["encoder"]["layers_1"]["attention"]["preceding_prefix"]["mask"] = np.array([1, 0, 1], np.float32)
    stacked = stack([random_tree(PREFIX, 1), masked], PREFIX)
    mask = stacked["encoder"]["layers_1"]["attention"]["preceding_prefix"]["mask"]
    np.testing.assert_array_equal(mask, [[1, 1, 1], [1, 0, 1]])
    assert [path for path in trees.flatten(stacked) if path.endswith("mask")] == [
        "encoder/layers_1/attention/preceding_prefix/mask"
    ]


def test_stack_refuses_nothing_and_misfits():
    with pytest.raises(AdapterError, match="at least one adapter"):
        stack([], LORA)
    with pytest.raises(AdapterError, match="lora/a': expected shape"):
        stack([random_tree(LORA, 0), random_tree(build_spec(LoRA(rank=3), CONFIG), 0)], LORA)
    with pytest.raises(AdapterError, match=r"expected shape \(12, 2\) after 1 leading dimensions, got \(12, 2\)"):
        unstack(random_tree(LORA, 0), LORA)


def test_pad_adds_zero_rows_and_masked_positions_in_front():
    both = LORA + PREFIX
    tree, spec = pad(random_tree(both, 0, batch=(2,)), both, rank=5, length=4, batch_dims=1)
    spec.validate(tree, batch_dims=1)
    check_spec(spec, CONFIG)
    assert spec == build_spec((LoRA(rank=5, alpha=15.0), Prefix(length=4, position_bias="preceding")), CONFIG)
    mask = trees.flatten(tree)["decoder/layers_0/self_attention/preceding_prefix/mask"]
    np.testing.assert_array_equal(mask, [[0, 1, 1, 1]] * 2)


def test_padded_lora_has_the_same_dense_matrices():
    tree, spec = pad(random_tree(LORA, 0), LORA, rank=5)
    for module, matrix in dense(random_tree(LORA, 0), LORA).items():
        np.testing.assert_array_equal(dense(tree, spec)[module], matrix)


def test_pad_leaves_other_kinds_alone_and_cannot_shrink():
    tree, spec = pad(random_tree(PREFIX, 0), PREFIX, rank=5)
    assert spec == PREFIX
    equal(tree, random_tree(PREFIX, 0))
    with pytest.raises(AdapterError, match=r"lora/a': 2 slots cannot be narrowed to 1"):
        pad(random_tree(LORA, 0), LORA, rank=1)


def test_stack_padded_of_two_ranks_keeps_their_kinds():
    small, large = build_spec(LoRA(rank=1, alpha=1.0), CONFIG), build_spec(LoRA(rank=4, alpha=4.0), CONFIG)
    trees_ = [random_tree(small, 0), random_tree(large, 1)]
    stacked, spec = stack_padded(trees_, [small, large])
    assert spec == large
    for tree, own, again in zip(trees_, [small, large], unstack(stacked, spec), strict=True):
        for module, matrix in dense(tree, own).items():
            np.testing.assert_array_equal(dense(again, spec)[module], matrix)


def test_stack_padded_of_unlike_sites_and_kinds_is_the_union():
    queries = build_spec(LoRA(rank=1, sites=("encoder/*/query",)), CONFIG)
    others = build_spec((LoRA(rank=3, sites=("*/wo",)), Prefix(length=2, sites=("encoder/*",), layers=(1,))), CONFIG)
    stacked, spec = stack_padded([random_tree(queries, 0), random_tree(others, 1)], [queries, others])
    check_spec(spec, CONFIG)
    assert spec.kinds == ()
    assert len(spec.leaves) == len(queries.leaves) + len(others.leaves)
    first, second = unstack(stacked, spec)
    np.testing.assert_array_equal(first["encoder"]["layers_1"]["attention"]["prefix"]["mask"], [0, 0])
    np.testing.assert_array_equal(second["encoder"]["layers_1"]["attention"]["prefix"]["mask"], [1, 1])
    assert not first["decoder"]["layers_0"]["mlp"]["wo"]["lora"]["b"].any()
    assert not second["encoder"]["layers_0"]["attention"]["query"]["lora"]["b"].any()


def test_stack_padded_refuses_adapters_of_different_models():
    foreign = build_spec(LoRA(rank=2), CONFIG.replace(emb_dim=16))
    with pytest.raises(AdapterError, match=r"query/lora/a': shapes \(12, 2\) and \(16, 2\) are of different models"):
        stack_padded([random_tree(LORA, 0), random_tree(foreign, 0)], [LORA, foreign])
    with pytest.raises(AdapterError, match="one spec per adapter"):
        stack_padded([random_tree(LORA, 0)], [])


@given(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=4))
@settings(max_examples=20, deadline=None)
def test_interpolation_is_the_weighted_sum_of_dense_matrices(weights):
    adapters = [random_tree(LORA, seed) for seed in range(len(weights))]
    tree, spec = interpolate(adapters, weights, LORA)
    spec.validate(tree)
    check_spec(spec, CONFIG)
    assert spec.kinds == (LoRA(rank=2 * len(weights), alpha=6.0 * len(weights)),)
    parts = [dense(adapter, LORA) for adapter in adapters]
    for module, matrix in dense(tree, spec).items():
        expected = sum(weight * part[module] for weight, part in zip(weights, parts, strict=True))
        np.testing.assert_allclose(matrix, expected, rtol=1e-5, atol=1e-5)


def test_interpolation_takes_arrays_gradients_and_batches():
    adapters = [random_tree(LORA, seed, batch=(2,)) for seed in range(2)]

    def total(weights):
        tree, spec = interpolate(adapters, weights, LORA, batch_dims=1)
        spec.validate(tree, batch_dims=1)
        return sum(jnp.sum(x) for path, x in spec.flatten(tree).items() if path.endswith("/b"))

    gradient = jax.jit(jax.grad(total))(jnp.array([0.25, 0.75]))
    expected = [
        sum(np.sum(x) for path, x in LORA.flatten(adapter).items() if path.endswith("/b")) for adapter in adapters
    ]
    np.testing.assert_allclose(gradient, expected, rtol=1e-4)


def test_interpolation_keeps_bfloat16():
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), random_tree(LORA, 0))
    tree, _ = interpolate([half, half], np.array([0.5, 0.5]), LORA)
    assert {x.dtype for x in jax.tree.leaves(tree)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    ("adapters", "weights"), [([], []), ([random_tree(LORA, 0)], [0.5, 0.5]), ([random_tree(LORA, 0)], [float("nan")])]
)
def test_interpolation_checks_its_weights(adapters, weights):
    with pytest.raises(AdapterError, match="interpolate: expected"):
        interpolate(adapters, weights, LORA)


@pytest.mark.parametrize("row", [row for row, kinds in KINDS.items() if any(kind.kind == "prefix" for kind in kinds)])
def test_prefixes_refuse_by_name_and_say_why(row):
    spec = build_spec(KINDS[row], CONFIG)
    tree = random_tree(spec, 0)
    with pytest.raises(
        AdapterError, match=r"prefix at '.*/(preceding_)?prefix' refuses to merge: no change of the weights"
    ):
        merge({}, tree, spec)
    with pytest.raises(AdapterError, match=r"prefix at '.*' refuses to interpolate: .* softmax"):
        interpolate([tree, tree], [0.5, 0.5], spec)


def test_merge_adds_to_the_named_kernels_alone_and_mutates_nothing():
    kernels = {f"{leaf.module}/kernel": np.ones((12, 8), np.float32) for leaf in LORA.leaves}
    params = trees.unflatten({**kernels, "decoder/decoder_norm/scale": np.ones(12, np.float32)})
    tree = random_tree(LORA, 0)
    merged = trees.flatten(merge(params, tree, LORA))
    for module, matrix in dense(tree, LORA).items():
        np.testing.assert_allclose(merged[f"{module}/kernel"], 1 + matrix, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(merged["decoder/decoder_norm/scale"], 1)
    assert all((x == 1).all() for x in trees.flatten(params).values())


def test_merge_keeps_the_kernel_dtype():
    params = trees.unflatten({f"{leaf.module}/kernel": jnp.ones((12, 8), jnp.bfloat16) for leaf in LORA.leaves})
    assert {x.dtype for x in jax.tree.leaves(merge(params, random_tree(LORA, 0), LORA))} == {jnp.dtype(jnp.bfloat16)}


def test_merge_asks_for_float32_where_a_chip_would_multiply_in_less():
    slot = {"a": np.ones((12, 2), np.float32), "b": np.ones((2, 8), np.float32)}
    assert "HIGHEST" in str(jax.make_jaxpr(LoRA.merge_slot)(np.ones((12, 8), np.float32), slot))


def test_merge_names_the_leaf_that_a_base_lacks_or_has_otherwise():
    kernels = {f"{leaf.module}/kernel": np.ones((12, 8), np.float32) for leaf in LORA.leaves}
    lacking = {path: x for path, x in kernels.items() if not path.startswith("decoder/layers_2")}
    with pytest.raises(
        AdapterError, match=r"leaf 'decoder/layers_2/.*/query/lora/a': the base model has no 'decoder/la"
    ):
        merge(trees.unflatten(lacking), random_tree(LORA, 0), LORA)
    other = {path: np.ones((16, 8), np.float32) for path in kernels}
    with pytest.raises(
        AdapterError, match=r"leaf 'encoder/layers_0/.*/lora/a': shape \(12, 2\) does not fit '.*\(16, 8\)"
    ):
        merge(trees.unflatten(other), random_tree(LORA, 0), LORA)


@pytest.mark.parametrize("row", KINDS)
@pytest.mark.parametrize("batch", [(), (2,)])
def test_stack_layers_has_every_layer_and_comes_back(row, batch):
    spec = build_spec(KINDS[row], CONFIG)
    tree = random_tree(spec, 0, batch)
    scanned = stack_layers(tree, spec, CONFIG, batch_dims=len(batch))
    outside = {leaf.path for leaf in spec.leaves if not leaf.in_layer}
    for path, x in trees.flatten(scanned).items():
        if path in outside:
            continue
        stack_name, scan, *_ = path.split("/")
        assert scan == "layers"
        assert x.shape[: len(batch) + 1] == (*batch, 2 if stack_name == "encoder" else 3)
    again = trees.flatten(unstack_layers(scanned, spec, CONFIG, batch_dims=len(batch)))
    for path, x in trees.flatten(tree).items():
        np.testing.assert_array_equal(again.pop(path), x, err_msg=path)
    assert all(path.endswith("/mask") and (x == 1).all() for path, x in again.items())


def test_a_layer_left_out_holds_the_identity():
    lora = build_spec(LoRA(rank=2, sites=("decoder/mlp/wo",), layers=(1,)), CONFIG)
    b = stack_layers(random_tree(lora, 0), lora, CONFIG)["decoder"]["layers"]["mlp"]["wo"]["lora"]["b"]
    np.testing.assert_array_equal(jnp.any(b != 0, axis=(1, 2)), [False, True, False])
    prefix = build_spec(Prefix(length=2, sites=("decoder/self_attention",), layers=(0, 2)), CONFIG)
    slot = stack_layers(random_tree(prefix, 0), prefix, CONFIG)["decoder"]["layers"]["self_attention"]["prefix"]
    np.testing.assert_array_equal(slot["mask"], [[1, 1], [0, 0], [1, 1]])


def test_stacked_layers_carry_no_mask_without_need():
    assert not [path for path in trees.flatten(stack_layers(random_tree(PREFIX, 0), PREFIX, CONFIG)) if "mask" in path]


def test_stack_layers_checks_the_base_and_its_own_form():
    tree = random_tree(LORA, 0)
    with pytest.raises(AdapterError, match=r"leaf 'decoder/layers_2/.*': the base model's decoder has 2 layers"):
        stack_layers(tree, LORA, CONFIG.replace(num_decoder_layers=2))
    scanned = stack_layers(tree, LORA, CONFIG)
    with pytest.raises(AdapterError, match=r"leaf 'encoder/layers/.*': expected 3 layers at axis 0, got shape \(2, "):
        unstack_layers(scanned, LORA, CONFIG.replace(num_encoder_layers=3))
    with pytest.raises(AdapterError, match=r"unknown leaf 'decoder/layers_0/.* \(did you mean 'decoder/layers/"):
        unstack_layers(tree, LORA, CONFIG)


def test_arrange_follows_the_base():
    tree = random_tree(LORA, 0)
    assert arrange(tree, LORA, CONFIG) is tree
    equal(arrange(tree, LORA, CONFIG.replace(scan_layers=True)), stack_layers(tree, LORA, CONFIG))
