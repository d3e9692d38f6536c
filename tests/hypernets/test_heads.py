"""Heads emit what a spec asks for: shapes, starting scales, independence of slots, layers and leaves."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from hyperflax import trees
from hyperflax.adapters.kinds import build_spec
from hyperflax.adapters.lora import LoRA
from hyperflax.adapters.prefix import Prefix
from hyperflax.errors import AdapterError, ConfigError
from hyperflax.hypernets.heads import Heads, HeadsConfig, group_layers, slot_offsets, slot_size, total_slots
from hyperflax.hypernets.table import Table, table_params, table_rows
from hyperflax.types import T5Config

T5_CONFIG = T5Config(
    vocab_size=64, emb_dim=32, num_heads=2, head_dim=8, mlp_dim=48, num_encoder_layers=2, num_decoder_layers=3
)
KINDS = {
    "lora_qv": LoRA(rank=4),
    "lora_all": LoRA(rank=3, sites=("*",)),
    "prefix": Prefix(length=5),
    "preceding": Prefix(length=5, position_bias="preceding", sites=("encoder/attention", "decoder/self_attention")),
    "both": (LoRA(rank=2, sites=("*/wo", "*/query")), Prefix(length=6)),
}
EMB = 16


@pytest.fixture(params=sorted(KINDS))
def spec(request):
    return build_spec(KINDS[request.param], T5_CONFIG)


def start(spec, sharing="per_layer", hidden=64):
    heads = Heads(HeadsConfig(hidden=hidden, sharing=sharing), spec)
    states = jax.random.normal(jax.random.key(1), (total_slots(spec), EMB))
    params = nn.unbox(heads.init(jax.random.key(0), states)["params"])
    return heads, params, states


@pytest.mark.parametrize("sharing", ["per_layer", "shared"])
def test_the_tree_is_what_the_spec_asks_for(spec, sharing) -> None:
    heads, params, states = start(spec, sharing)
    spec.validate(heads.apply({"params": params}, states))


@pytest.mark.parametrize("sharing", ["per_layer", "shared"])
def test_a_slot_moves_its_own_index_of_its_own_layer_and_nothing_else(spec, sharing) -> None:
    heads, params, states = start(spec, sharing)
    before = trees.flatten(heads.apply({"params": params}, states))
    for (stack, layer), offset in slot_offsets(spec).items():
        slot = spec.num_slots(stack, layer) - 1
        moved = trees.flatten(heads.apply({"params": params}, states.at[offset + slot].multiply(-1.0)))
        for leaf in spec.leaves:
            changed = np.asarray(moved[leaf.path] != before[leaf.path]).any(
                axis=tuple(axis for axis in range(len(leaf.shape)) if axis != leaf.slot_axis)
            )
            mine = (leaf.stack, leaf.layer) == (stack, layer)
            expected = [mine and index == slot for index in range(leaf.slots)]
            assert changed.tolist() == expected, leaf.path


def test_outputs_start_at_the_scale_that_the_leaf_names() -> None:
    spec = build_spec(LoRA(rank=64), T5_CONFIG.replace(emb_dim=256))
    heads, params, states = start(spec, hidden=512)
    out = trees.flatten(heads.apply({"params": params}, states))
    for leaf in spec.leaves:
        expected = leaf.scale * math.hypot(leaf.init_std, leaf.head_std)
        assert float(jnp.std(out[leaf.path])) == pytest.approx(expected, rel=0.15), leaf.path


def test_layers_with_equal_leaves_form_one_group_per_stack() -> None:
    groups = group_layers(build_spec(LoRA(rank=4), T5_CONFIG))
    assert [group.layers for group in groups] == [
        (("encoder", 0), ("encoder", 1)),
        (("decoder", 0), ("decoder", 1), ("decoder", 2)),
    ]
    # query and value of one encoder attention: a [32, 4] and b [4, 16] each, one rank index is 32 + 16 values
    assert sum(slot_size(leaf) for leaf in groups[0].leaves[0]) == 2 * (32 + 16)


def test_shared_heads_do_not_grow_with_depth() -> None:
    sizes = []
    for layers in (2, 4):
        spec = build_spec(LoRA(rank=4), T5_CONFIG.replace(num_encoder_layers=layers, num_decoder_layers=layers))
        _, params, _ = start(spec, "shared")
        sizes.append(sum(x.size for name, x in params.items() if not name.startswith("static_")))
    assert sizes[0] == sizes[1]


def test_wrong_number_of_states_is_refused(spec) -> None:
    heads, params, states = start(spec)
    with pytest.raises(AdapterError, match=rf"expected \[{total_slots(spec)}, emb\]"):
        heads.apply({"params": params}, states[:-1])
    with pytest.raises(ConfigError, match="sharing"):
        HeadsConfig(sharing="none")


def test_gradient_reaches_every_parameter_at_a_random_point(spec) -> None:
    heads, params, states = start(spec)
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    target = jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(x.size), x.shape), heads.apply({"params": params}, states)
    )

    def loss(params):
        out = heads.apply({"params": params}, states)
        return sum(jnp.sum((a - b) ** 2) for a, b in zip(jax.tree.leaves(out), jax.tree.leaves(target), strict=True))

    for path, gradient in trees.flatten(jax.grad(loss)(params)).items():
        assert float(jnp.abs(gradient).max()) > 0, path


def test_a_table_row_is_a_task_of_its_own(spec) -> None:
    table = Table(spec, num_tasks=3)
    params = nn.unbox(table.init(jax.random.key(0), {"task_index": 0})["params"])
    rows = [trees.flatten(table.apply({"params": params}, {"task_index": index})) for index in range(3)]
    raw = trees.flatten(table_rows(params))
    assert table_params(table_rows(params)).keys() == params.keys()
    exported = trees.flatten(spec.materialise(table_rows(jax.tree.map(np.asarray, params))))
    for leaf in spec.leaves:
        stored = raw[leaf.path]
        for index in range(3):
            np.testing.assert_array_equal(rows[index][leaf.path], leaf.scale * stored[index])
            np.testing.assert_array_equal(rows[index][leaf.path], exported[leaf.path][index], strict=True)
        std = float(jnp.std(stored))
        assert std == pytest.approx(leaf.init_std, rel=0.3, abs=1e-12)
    for index in (-1, 3):
        missing = table.apply({"params": params}, {"task_index": index})
        assert all(bool(jnp.isnan(leaf).all()) for leaf in trees.flatten(missing).values())
    with pytest.raises(ConfigError, match=r"task_index: expected the number of a task, got \['support_tokens'\] alone"):
        table.apply({"params": params}, {"support_tokens": jnp.ones((1, 3), jnp.int32)})
    shared = Table(spec, num_tasks=1, shared=True)
    params = nn.unbox(shared.init(jax.random.key(0), {"task_index": 5})["params"])
    first, other = (shared.apply({"params": params}, {"task_index": index}) for index in (0, 7))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), first, other))
