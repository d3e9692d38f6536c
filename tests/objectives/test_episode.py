"""Hypertuning and plain T5 losses: what is counted, what is trained, and what a task can see."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperflax import trees
from hyperflax.adapters.kinds import build_spec
from hyperflax.adapters.lora import LoRA
from hyperflax.adapters.prefix import Prefix
from hyperflax.errors import AdapterError, DataError
from hyperflax.hypernets.heads import HeadsConfig
from hyperflax.hypernets.hyper_t5 import HyperT5, HyperT5Config
from hyperflax.hypernets.table import Table
from hyperflax.models.stacking import stack_layers
from hyperflax.models.t5 import T5
from hyperflax.objectives import HypermodelObjective, T5Objective, token_loss
from hyperflax.objectives.protocol import Objective
from hyperflax.training.optimizers import adamw
from hyperflax.training.partitioning import make_mesh
from hyperflax.training.state import create_state
from hyperflax.training.step import make_train_step
from hyperflax.types import T5Config

BASE = T5Config(
    vocab_size=32, emb_dim=8, num_heads=1, head_dim=8, mlp_dim=16, num_encoder_layers=1, num_decoder_layers=1
)
SPEC = build_spec([LoRA(rank=2), Prefix(length=2, sites=("decoder/self_attention",))], BASE)
MODEL = T5(BASE)


def make_batch(tasks: int = 3, examples: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    targets = rng.integers(2, 32, (tasks, examples, 5)).astype(np.int32)
    targets[:, 0, 3:] = 0
    return {
        "support_tokens": rng.integers(2, 32, (tasks, 2, 6)).astype(np.int32),
        "task_index": np.arange(tasks, dtype=np.int32),
        "encoder_input_tokens": rng.integers(2, 32, (tasks, examples, 6)).astype(np.int32),
        "decoder_input_tokens": np.pad(targets[..., :-1], ((0, 0), (0, 0), (1, 0))),
        "decoder_target_tokens": targets,
        "decoder_loss_weights": (targets > 0).astype(np.float32),
    }


BATCH = make_batch()


@pytest.fixture(scope="module")
def frozen():
    plain = {name: BATCH[name][0] for name in BATCH if name not in ("support_tokens", "task_index")}
    return jax.jit(T5Objective(MODEL).init)(jax.random.key(1), plain)


@pytest.fixture(scope="module")
def hyper() -> HypermodelObjective:
    return HypermodelObjective(MODEL, HyperT5(HyperT5Config(t5=BASE, heads=HeadsConfig(hidden=8)), SPEC), z_loss=1e-3)


@pytest.fixture(scope="module")
def params(hyper):
    """A random point: at the start LoRA's b is almost zero."""
    fresh = jax.jit(hyper.init)(jax.random.key(2), BATCH)
    leaves, treedef = jax.tree.flatten(fresh)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    noise = (leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True))
    return jax.tree.unflatten(treedef, noise)


def test_objectives_are_objectives(hyper):
    assert isinstance(hyper, Objective)
    assert isinstance(T5Objective(MODEL), Objective)
    assert hash(hyper) == hash(dataclasses.replace(hyper))


def test_loss_is_the_sum_over_tasks_one_by_one(hyper, params, frozen):
    loss, weight, metrics = jax.jit(hyper.loss, static_argnums=3)(params, frozen, BATCH, None)

    @jax.jit
    def one(params, frozen, support, *scored):
        adapters = hyper.hypernetwork.apply({"params": params}, {"support_tokens": support})
        return MODEL.apply({"params": frozen, "adapters": adapters}, *scored)

    names = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
    logits = np.stack(
        [one(params, frozen, BATCH["support_tokens"][i], *(BATCH[name][i] for name in names)) for i in range(3)]
    )
    targets, weights = BATCH["decoder_target_tokens"], BATCH["decoder_loss_weights"]
    wanted = token_loss(jnp.asarray(logits), targets, weights, z_loss=1e-3)
    np.testing.assert_allclose([loss, weight], [wanted.loss_sum, wanted.weight_sum], rtol=1e-5)
    right = logits.argmax(-1) == targets
    np.testing.assert_allclose(metrics["accuracy"], [(right * weights).sum(), weights.sum()])
    np.testing.assert_allclose(metrics["sequence_accuracy"], [(right | (weights == 0)).all(-1).sum(), 6])
    np.testing.assert_allclose(metrics["z_loss"][0], wanted.z_loss_sum, rtol=1e-5)


def test_a_task_alone_has_no_axis_of_tasks_on_a_mesh_of_one_device_either(hyper, params, frozen):
    """As in fine-tuning, which runs on such a mesh: XLA is slower over products with an axis of one in front."""

    def most_axes(tasks: int) -> int:
        text = jax.jit(hyper.loss).lower(params, frozen, make_batch(tasks), None).as_text()
        products = [line for line in text.splitlines() if "dot_general" in line]
        return max(shape.count("x") for line in products for shape in re.findall(r"tensor<([0-9x]*)xf32>", line))

    alone = most_axes(1)
    assert most_axes(2) == alone + 1
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        assert most_axes(1) == alone


def test_a_step_moves_every_trained_leaf_and_no_frozen_bit(hyper, params, frozen):
    before = jax.tree.map(np.array, frozen)
    optimizer = adamw(1e-2)
    state = create_state(params, optimizer)
    after, metrics = jax.jit(make_train_step(hyper, optimizer))(state, frozen, BATCH, jax.random.key(0))
    assert float(metrics["skipped_steps"][0]) == 0
    for path, leaf in trees.flatten(before).items():
        np.testing.assert_array_equal(trees.flatten(frozen)[path], leaf, err_msg=path)
    # Nothing the size of the base is in the state: the hypernetwork's parameters and Adam's two moments of them.
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert sum(leaf.size for leaf in jax.tree.leaves(after.opt_state)) <= 2 * count + 2
    old = trees.flatten(state.params)
    still = [path for path, leaf in trees.flatten(after.params).items() if np.array_equal(leaf, old[path])]
    assert not still


def test_bare_is_the_base_model(hyper, params, frozen):
    """Reported before training; the same as a table whose b is zero and that has no prefix."""
    bare = jax.jit(hyper.initial_metrics)(params, frozen, BATCH)
    table = HypermodelObjective(MODEL, Table(build_spec(LoRA(rank=2), BASE), num_tasks=3), z_loss=1e-3)
    rows = table.init(jax.random.key(0), BATCH)
    _, _, metrics = jax.jit(table.loss, static_argnums=3)(rows, frozen, BATCH, None)
    for name, pair in metrics.items():
        np.testing.assert_allclose(bare[f"bare/{name}"], pair, rtol=1e-6, err_msg=name)


def test_generated_adapters_have_a_task_axis_and_depend_on_the_own_support_only(hyper, params):
    adapters = jax.jit(hyper.generate)(params, BATCH)
    SPEC.validate(adapters, batch_dims=1)
    other = {**BATCH, "support_tokens": BATCH["support_tokens"].copy()}
    other["support_tokens"][1] = other["support_tokens"][1][:, ::-1]
    changed = trees.flatten(jax.jit(hyper.generate)(params, other))
    for path, leaf in trees.flatten(adapters).items():
        np.testing.assert_array_equal(changed[path][0], leaf[0])
        np.testing.assert_array_equal(changed[path][2], leaf[2])
    assert any(not np.array_equal(changed[path][1], leaf[1]) for path, leaf in trees.flatten(adapters).items())


def test_dropout_has_a_key_per_task_and_spares_the_base_model(params, frozen):
    wet = BASE.replace(dropout_rate=0.5)
    batch = {name: np.repeat(feature[:1], 2, axis=0) for name, feature in BATCH.items()}
    hyper = HypermodelObjective(T5(wet), HyperT5(HyperT5Config(t5=wet, heads=HeadsConfig(hidden=8)), SPEC))
    leaves = jax.tree.leaves(jax.jit(hyper.generate)(params, batch, jax.random.key(5)))
    assert any(not np.array_equal(leaf[0], leaf[1]) for leaf in leaves)

    table = HypermodelObjective(T5(wet), Table(SPEC, num_tasks=3))
    rows = table.init(jax.random.key(2), batch)
    dropping = dataclasses.replace(table, base_dropout=True)
    dry, spared, dropped = jax.jit(
        lambda: [
            objective.loss(rows, frozen, batch, key)[0]
            for objective, key in ((table, None), (table, jax.random.key(5)), (dropping, jax.random.key(5)))
        ]
    )()
    assert dry == spared != dropped


def test_logical_axes_cover_what_the_hypernetwork_declares(hyper, params):
    axes = hyper.logical_axes(BATCH)
    assert axes["slots"] == ("slot", "embed")
    assert trees.flatten(axes).keys() == trees.flatten(params).keys()


def test_packed_rows_report_no_sequence_accuracy(frozen):
    batch = {name: BATCH[name][0] for name in BATCH if name not in ("support_tokens", "task_index")}
    ones = {f"{side}_segment_ids": np.ones_like(batch[f"{side}_input_tokens"]) for side in ("encoder", "decoder")}
    objective = T5Objective(MODEL)
    plain = jax.jit(objective.loss, static_argnums=3)(frozen, None, batch, None)[2]
    packed = jax.jit(objective.loss, static_argnums=3)(frozen, None, {**batch, **ones}, None)[2]
    assert "sequence_accuracy" in plain
    assert "sequence_accuracy" not in packed


def test_bad_batches_and_adapters_are_named(hyper, params, frozen):
    with pytest.raises(DataError, match="'decoder_target_tokens' is missing"):
        hyper.loss(params, frozen, {k: v for k, v in BATCH.items() if k != "decoder_target_tokens"}, None)
    with pytest.raises(DataError, match="expected 3 dimensions, got shape"):
        hyper.loss(params, frozen, {**BATCH, "encoder_input_tokens": BATCH["encoder_input_tokens"][0]}, None)
    with pytest.raises(DataError, match="leading axis differs"):
        hyper.loss(params, frozen, {**BATCH, "encoder_input_tokens": BATCH["encoder_input_tokens"][:2]}, None)
    with pytest.raises(DataError, match="'support_tokens' or 'task_index'"):
        hyper.generate(params, {"encoder_input_tokens": BATCH["encoder_input_tokens"]})

    class Misspelt(Table):
        def __call__(self, episode, *, enable_dropout=False):
            return {"encodr": super().__call__(episode)["encoder"]}

    with pytest.raises(AdapterError, match="encodr"):
        HypermodelObjective(MODEL, Misspelt(SPEC)).generate(
            Table(SPEC).init(jax.random.key(0), {"task_index": 0})["params"], BATCH
        )


def test_a_scanned_base_reads_the_adapters_too() -> None:
    deep = dataclasses.replace(BASE, num_encoder_layers=2, num_decoder_layers=2)
    spec = build_spec(LoRA(rank=2), deep)
    hypernetwork = HyperT5(HyperT5Config(t5=BASE, heads=HeadsConfig(hidden=8)), spec)
    plain = {name: BATCH[name][0] for name in BATCH if name not in ("support_tokens", "task_index")}
    frozen = jax.jit(T5Objective(T5(deep)).init)(jax.random.key(1), plain)
    unrolled = HypermodelObjective(T5(deep), hypernetwork)
    params = jax.jit(unrolled.init)(jax.random.key(2), BATCH)
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    scanned_config = dataclasses.replace(deep, scan_layers=True)
    scanned = HypermodelObjective(T5(scanned_config), hypernetwork)
    expected, bare = unrolled.loss(params, frozen, BATCH, None)[0], unrolled.bare(frozen, BATCH)["loss"][0]
    loss = scanned.loss(params, stack_layers(frozen, scanned_config), BATCH, None)[0]
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert abs(float(loss - bare)) > 1e-3 * float(bare)
