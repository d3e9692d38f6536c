"""`AdapterSpec`: what it says of a base model, and what it refuses."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperflax import trees
from hyperflax.adapters import AdapterSpec, Leaf, LoRA, Prefix, build_spec, check_spec, kinds
from hyperflax.errors import AdapterError, ConfigError
from hyperflax.models.inputs import readable_leaves
from tests.adapters.micro import CONFIG, KINDS, random_tree

LORA = build_spec(LoRA(rank=2, alpha=6.0, sites=("encoder/attention/query", "decoder/mlp/wo")), CONFIG)
PREFIX = build_spec(Prefix(length=3, position_bias="preceding"), CONFIG)


def test_lora_leaves_are_the_projections_of_t5x():
    layers = [f"encoder/layers_{i}/attention/query" for i in range(2)] + [
        f"decoder/layers_{i}/mlp/wo" for i in range(3)
    ]
    assert [leaf.path for leaf in LORA.leaves] == [f"{layer}/lora/{name}" for layer in layers for name in "ab"]
    a, b = LORA.leaves[:2]
    assert (a.shape, a.axes, a.slot_axis, a.scale) == ((12, 2), ("embed", "rank"), 1, 1.0)
    assert (b.shape, b.axes, b.slot_axis, b.scale) == ((2, 8), ("rank", "joined_kv"), 0, 3.0)
    assert LORA.leaves[-2].shape == (16, 2)
    assert LORA.leaves[-1].shape == (2, 12)
    assert a.init_std == 1 / math.sqrt(12)
    assert b.init_std == 0.0
    assert (a.module, a.reader, a.name, a.local) == (layers[0], "lora", "a", "attention/query/lora/a")


def test_all_sites_of_lora_by_count():
    spec = build_spec(LoRA(rank=1, sites=("*",)), CONFIG)
    per_attention = 3 * (12 + 8) + (8 + 12)
    per_mlp = 2 * (12 + 16) + (16 + 12)
    assert spec.num_parameters == 2 * (per_attention + per_mlp) + 3 * (2 * per_attention + per_mlp)


def test_t5_1_0_has_one_input_projection():
    spec = build_spec(LoRA(sites=("encoder/mlp/*",)), CONFIG.replace(mlp_activations=("relu",)))
    assert {leaf.module for leaf in spec.leaves_of("encoder", 0)} == {
        "encoder/layers_0/mlp/wi",
        "encoder/layers_0/mlp/wo",
    }


def test_prefix_leaves_and_the_one_name_of_cross_attention():
    assert [leaf.path for leaf in PREFIX.leaves_of("decoder", 2)] == [
        "decoder/layers_2/encoder_decoder_attention/prefix/key",
        "decoder/layers_2/encoder_decoder_attention/prefix/value",
        "decoder/layers_2/self_attention/preceding_prefix/key",
        "decoder/layers_2/self_attention/preceding_prefix/value",
    ]
    assert {leaf.shape for leaf in PREFIX.leaves} == {(3, 2, 4)}
    assert {leaf.shape for leaf in PREFIX.optional} == {(3,)}
    assert PREFIX.num_parameters == (2 + 3 * 2) * 2 * 3 * 2 * 4


def test_order_is_encoder_then_decoder_and_layers_count_as_numbers():
    deep = CONFIG.replace(num_encoder_layers=11, num_decoder_layers=12)
    order = [("encoder", i) for i in range(11)] + [("decoder", i) for i in range(12)]
    assert build_spec(LoRA(), deep).layers() == order


def test_slots_of_a_layer_are_its_longest_axis():
    spec = build_spec((LoRA(rank=2), Prefix(length=5, layers=(1,))), CONFIG)
    assert spec.num_slots("encoder", 0) == 2
    assert spec.num_slots("encoder", 1) == 5
    assert build_spec(LoRA(rank=2, layers=(1,)), CONFIG).num_slots("decoder", 0) == 0


def test_combining_is_symmetric_and_refuses_the_same_place_twice():
    first, second = build_spec(LoRA(rank=2), CONFIG), build_spec(Prefix(length=2), CONFIG)
    assert first + second == second + first
    assert hash(first + second) == hash(second + first)
    with pytest.raises(AdapterError, match=r"'encoder/layers_0/attention/query/lora/a' is given twice"):
        first + build_spec(LoRA(rank=3, sites=("*/query",)), CONFIG)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LoRA(sites=("*/querry",)), r"'\*/querry' matches no site; the sites are: decoder/enc.*encoder/mlp/wo"),
        (LoRA(sites=("*/query", "*/wi")), r"'\*/wi' matches no site"),
        (Prefix(sites=("encoder/self_attention",)), r"matches no site; .*decoder/self_attention, encoder/attention$"),
        (LoRA(layers=(0, 3)), r"layer 3 .* \[0, 1, 2\]"),
        (Prefix(sites=("encoder/*",), layers=(2,)), r"layer 2 .* \[0, 1\]"),
    ],
)
def test_a_pattern_that_matches_nothing_lists_what_there_is(config, message):
    with pytest.raises(ConfigError, match=message):
        build_spec(config, CONFIG)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (LoRA, {"rank": 0}),
        (LoRA, {"rank": True}),
        (LoRA, {"alpha": math.nan}),
        (LoRA, {"alpha": 10**400}),
        (LoRA, {"sites": "*"}),
        (LoRA, {"sites": ()}),
        (LoRA, {"sites": (3,)}),
        (LoRA, {"layers": (-1,)}),
        (LoRA, {"b_head_std": -1.0}),
        (Prefix, {"length": 2.0}),
        (Prefix, {"position_bias": "relative"}),
        (Prefix, {"position_bias": ["zero"]}),
        (Prefix, {"layers": ()}),
        (Prefix, {"init_std": "0.1"}),
    ],
)
def test_settings_are_checked_where_they_are_made(kind, fields):
    with pytest.raises(ConfigError, match=rf"{kind.__name__}\.{next(iter(fields))}: expected"):
        kind(**fields)


@pytest.mark.parametrize("kinds", [(), "lora", (LoRA(), "prefix")])
def test_build_spec_takes_settings_only(kinds):
    with pytest.raises(ConfigError, match="build_spec: expected"):
        build_spec(kinds, CONFIG)


def test_static_start_is_the_bare_model_for_lora_and_depends_on_the_path_alone():
    raw = trees.flatten(LORA.init(jax.random.key(3)))
    assert all((x == 0).all() for path, x in raw.items() if path.endswith("/b"))
    wider = build_spec(LoRA(rank=2, alpha=6.0, sites=("*",)), CONFIG)
    for path, x in trees.flatten(wider.init(jax.random.key(3))).items():
        if path in raw:
            np.testing.assert_array_equal(x, raw[path])
    large = build_spec(LoRA(rank=512, sites=("*/query",)), CONFIG.replace(emb_dim=256))
    a = large.init(jax.random.key(0))["encoder"]["layers_0"]["attention"]["query"]["lora"]["a"]
    # 131072 draws: the sample's deviation is within 1% of the population's with overwhelming probability.
    assert float(a.std()) == pytest.approx(1 / 16, rel=0.01)
    assert float(jnp.abs(a).max()) > 3 / 16


def test_materialise_multiplies_by_alpha_over_rank_and_keeps_the_rest():
    raw = random_tree(LORA, 0, batch=(4,))
    flat, out = trees.flatten(raw), trees.flatten(LORA.materialise(raw))
    for path, x in out.items():
        np.testing.assert_allclose(x, flat[path] * (3.0 if path.endswith("/b") else 1.0), rtol=1e-6)
        assert x.dtype == np.float32
    masked = random_tree(PREFIX, 0)
    masked["encoder"]["layers_0"]["attention"]["preceding_prefix"]["mask"] = np.ones(3, np.float32)
    assert trees.flatten(PREFIX.materialise(masked)).keys() == trees.flatten(masked).keys()


@pytest.mark.parametrize("row", KINDS)
def test_flatten_and_unflatten_are_inverse_and_in_order(row):
    spec = build_spec(KINDS[row], CONFIG)
    tree = random_tree(spec, 1)
    flat = spec.flatten(tree)
    assert list(flat) == [leaf.path for leaf in spec.leaves]
    jax.tree.map(np.testing.assert_array_equal, spec.unflatten(flat), tree)
    with pytest.raises(AdapterError, match="unknown leaf 'encoder/layers_0/x/y/z'"):
        spec.unflatten({**flat, "encoder/layers_0/x/y/z": 0})


def test_validate_accepts_batches_abstract_arrays_and_bfloat16():
    LORA.validate(random_tree(LORA, 0))
    LORA.validate(random_tree(LORA, 0, batch=(2, 5)), batch_dims=2)
    LORA.validate(jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), random_tree(LORA, 0)))
    LORA.validate(jax.eval_shape(LORA.init, jax.random.key(0)))
    PREFIX.validate(PREFIX.identity())


def _edited(spec: AdapterSpec, edit) -> dict:
    flat = dict(trees.flatten(random_tree(spec, 0)))
    edit(flat)
    return trees.unflatten(flat)


A = "encoder/layers_1/attention/query/lora/a"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda flat: flat.update({A.replace("query", "qeury"): flat.pop(A)}),
            r"unknown leaf 'encoder/layers_1/attention/qeury/lora/a' \(did you mean '" + A + r"'\?\)",
        ),
        (lambda flat: flat.update({A[:-1] + "c": flat[A]}), rf"unknown leaf '{A[:-1]}c'"),
        (lambda flat: flat.pop(A), rf"missing leaf '{A}'"),
        (lambda flat: flat.update({A: flat[A][:, :1]}), rf"'{A}': expected shape \(12, 2\), got \(12, 1\)"),
        (lambda flat: flat.update({A: flat[A][None]}), rf"'{A}': expected shape \(12, 2\), got \(1, 12, 2\)"),
        (lambda flat: flat.update({A: flat[A].astype(np.int32)}), rf"'{A}': expected a floating dtype, got int32"),
        (lambda flat: flat.update({A: 1.0}), rf"'{A}': expected an array, got float"),
    ],
)
def test_validate_names_the_leaf(edit, message):
    with pytest.raises(AdapterError, match=message):
        LORA.validate(_edited(LORA, edit))


def test_validate_wants_one_batch_shape():
    def edit(flat):
        for path, x in flat.items():
            flat[path] = np.stack([x] * (3 if path == A else 2))

    with pytest.raises(
        AdapterError, match=rf"'{A}': expected leading dimensions \(2,\) as in other leaves, got \(3,\)"
    ):
        LORA.validate(_edited(LORA, edit), batch_dims=1)
    with pytest.raises(AdapterError, match="expected a nested dict of arrays, got list"):
        LORA.validate([])


@pytest.mark.parametrize("row", KINDS)
def test_a_spec_fits_its_own_base(row):
    check_spec(build_spec(KINDS[row], CONFIG), CONFIG)


@pytest.mark.parametrize(
    ("spec", "base", "message"),
    [
        (LORA, CONFIG.replace(emb_dim=16), r"'encoder/layers_0/attention/query/lora/a': .*\(16, rank\), got \(12, 2\)"),
        (LORA, CONFIG.replace(head_dim=8), r"'encoder/layers_0/attention/query/lora/b': .*\(rank, 16\), got \(2, 8\)"),
        (
            LORA,
            CONFIG.replace(num_encoder_layers=1),
            r"'encoder/layers_1/attention/query/lora/a': nothing in this base",
        ),
        (PREFIX, CONFIG.replace(num_heads=3), r"preceding_prefix/key': .*\(length, 3, 4\), got \(3, 2, 4\)"),
        (PREFIX, CONFIG.replace(num_decoder_layers=2), r"'decoder/layers_2/encoder_decoder_attention/prefix/key'"),
    ],
)
def test_another_base_is_refused_with_the_leaf_named(spec, base, message):
    with pytest.raises(AdapterError, match=message):
        check_spec(spec, base)


def test_what_a_base_reads_is_found_out_once(monkeypatch):
    """With many layers it takes longer than a short answer."""
    check_spec(LORA, CONFIG)
    for kind in kinds.KINDS.values():
        monkeypatch.setattr(kind, "spec", lambda *given: pytest.fail("built anew"))
    check_spec(LORA, CONFIG)
    assert readable_leaves(CONFIG)["encoder/layers_0/attention/query/lora/a"] == (12, "rank")


def test_a_spec_with_half_a_slot_or_two_ranks_in_one_is_refused():
    with pytest.raises(AdapterError, match=r"query/lora/a': the spec has its siblings and lacks it"):
        check_spec(AdapterSpec(LORA.leaves[1:]), CONFIG)
    with pytest.raises(AdapterError, match=r"query/lora/b': expected rank 2 as '.*query/lora/a' has, got 5"):
        check_spec(AdapterSpec((LORA.leaves[0], LORA.leaves[1].resized(5))), CONFIG)
    short = dataclasses.replace(PREFIX, optional=(PREFIX.optional[0].resized(2), *PREFIX.optional[1:]))
    with pytest.raises(AdapterError, match=r"mask': expected length 3 .*, got 2"):
        check_spec(short, CONFIG)
    with pytest.raises(AdapterError, match=r"mask': the spec has it and none of the leaves that it goes with"):
        check_spec(AdapterSpec(LORA.leaves, optional=PREFIX.optional[:1]), CONFIG)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("path", "encoder/layers_0/a"),
        ("path", "encoder/layers_0/attention/../lora/a"),
        ("path", "encoder/layers_00/attention/query/lora/a"),
        ("path", 3),
        ("stack", "decoder"),
        ("layer", 1),
        ("shape", (12, 0)),
        ("shape", (12, 2.0)),
        ("shape", ()),
        ("axes", ("embed",)),
        ("axes", ("embed", "")),
        ("slot_axis", 2),
        ("slot_axis", -1),
        ("scale", math.inf),
        ("init_std", -1.0),
        ("head_std", None),
    ],
)
def test_a_leaf_checks_its_fields(field, value):
    with pytest.raises(AdapterError, match=rf"{field}: expected"):
        dataclasses.replace(LORA.leaves[0], **{field: value})


def test_a_leaf_can_move_and_grow():
    leaf = LORA.leaves[0]
    assert leaf.resized(7).shape == (12, 7)
    moved = leaf.moved(3)
    assert (moved.path, moved.layer) == ("encoder/layers_3/attention/query/lora/a", 3)
    assert isinstance(moved, Leaf)
