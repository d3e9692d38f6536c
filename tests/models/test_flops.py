"""Operations in closed form: against XLA's count of the same forward passes, and the factors by hand.

XLA counts element-wise work as well (softmax, norms, activations), so its figure lies above ours; shapes are chosen so
that matrix products make up most of it, and the difference between two shapes cancels part of the rest.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from benchmarks.claims.flops import adapted, step_flops
from hyperflax.adapters.kinds import build_spec
from hyperflax.adapters.lora import LoRA
from hyperflax.adapters.prefix import Prefix
from hyperflax.data.episode_config import EpisodeConfig
from hyperflax.hypernets.hart import HART, HARTConfig
from hyperflax.hypernets.heads import HeadsConfig
from hyperflax.hypernets.hyper_t5 import HyperT5, HyperT5Config
from hyperflax.hypernets.table import Table
from hyperflax.models import flops
from hyperflax.models.t5 import T5
from hyperflax.objectives import HypermodelObjective, T5Objective
from hyperflax.types import T5Config

SHAPE = T5Config(
    vocab_size=384, emb_dim=128, num_heads=2, head_dim=64, mlp_dim=256, num_encoder_layers=1, num_decoder_layers=2
)
ABOVE = 1.10  # XLA's count over ours, at most: element-wise work


def counted(fn, *args) -> float:
    """XLA's count before it optimises anything: nothing is compiled."""
    return jax.jit(fn).lower(*args).cost_analysis()["flops"]


def tokens(*shape: int) -> jax.Array:
    return jnp.ones(shape, jnp.int32)


def parameters(module: nn.Module, *args) -> dict:
    return nn.unbox(jax.eval_shape(module.init, jax.random.key(0), *args)["params"])


def test_the_base_model():
    model = T5(SHAPE)
    params = parameters(model, tokens(1, 4), tokens(1, 4))
    ours = flops.t5(SHAPE, 3, 48, 24).total
    xla = counted(lambda p, x, y: model.apply({"params": p}, x, y), params, tokens(3, 48), tokens(3, 24))
    assert ours <= xla <= ABOVE * ours


@pytest.mark.parametrize("kind", [LoRA(rank=16, sites=("*",)), Prefix(length=16)], ids=["lora", "prefix"])
def test_what_adapters_add(kind):
    model, spec = T5(SHAPE), build_spec(kind, SHAPE)
    params, adapters = parameters(model, tokens(1, 4), tokens(1, 4)), jax.eval_shape(spec.identity)

    def apply(params, adapters, x, y):
        return model.apply({"params": params, "adapters": adapters}, x, y)

    bare = counted(apply, params, {}, tokens(3, 48), tokens(3, 24))
    xla = counted(apply, params, adapters, tokens(3, 48), tokens(3, 24)) - bare
    ours = adapted(spec, SHAPE, 3, 48, 24).total
    assert ours <= xla <= 1.35 * ours  # thin products, so that element-wise work weighs more


@pytest.mark.parametrize("hart", [False, True], ids=["hyper_t5", "hart"])
def test_a_hypernetwork(hart: bool):
    # One layer has adapters: HART's scan then has one step, and XLA counts a loop's body once.
    spec = build_spec(LoRA(rank=32, sites=("encoder/*",)), SHAPE)
    config = (HARTConfig if hart else HyperT5Config)(t5=SHAPE, heads=HeadsConfig(hidden=64))
    network = (HART if hart else HyperT5)(config, spec)
    params = parameters(network, {"support_tokens": tokens(1, 4)})
    ours = network.flops(4, 40).total
    xla = counted(lambda p, x: network.apply({"params": p}, {"support_tokens": x}), params, tokens(4, 40))
    assert ours <= xla <= ABOVE * ours


def test_a_hart_s_steps_share_the_support_s_keys_and_values():
    one, three = (flops.decoder(SHAPE, 1, 8, 100, passes=n) for n in (1, 3))
    keys_and_values = 2 * 100 * 2 * SHAPE.emb_dim * SHAPE.joined_kv * SHAPE.num_decoder_layers
    assert three.projections - one.projections == 2 * (one.projections - keys_and_values)
    assert three.mixing == 3 * one.mixing


def test_six_for_the_hypernetwork_and_four_for_the_frozen_base():
    """With one token and weights alone: N parameters of products, 6 N and 4 N (ARCHITECTURE's MFU)."""
    matrices = 4 * SHAPE.emb_dim * SHAPE.joined_kv + 3 * SHAPE.emb_dim * SHAPE.mlp_dim
    one = flops.encoder(SHAPE, 1, 1)._replace(mixing=0)
    assert (one.trained, one.frozen) == (6 * matrices, 4 * matrices)


def test_a_step_reads_every_support_and_its_teacher_only_forward():
    spec, network = build_spec(LoRA(rank=4), SHAPE), HyperT5Config(t5=SHAPE, heads=HeadsConfig(hidden=8))
    episodes = EpisodeConfig(
        tasks_per_batch=3, shots=2, examples=5, support_length=12, inputs_length=8, targets_length=6
    )
    plain = step_flops(SHAPE, spec, network, episodes)
    twice = step_flops(SHAPE, spec, network, episodes.replace(supports=2))
    assert twice - plain == 3 * 3 * network.flops(spec, 2, 12).total
    taught = step_flops(SHAPE, spec, network, episodes.replace(teacher_length=16), distilled=True)
    assert taught - plain == 3 * flops.t5(SHAPE, 5, 16, 6).total


def shapes(tasks: int, **features: tuple[int, ...]) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct((tasks, *shape), jnp.int32) for name, shape in features.items()}


def test_objectives_count_what_their_batches_cost():
    spec = build_spec(LoRA(rank=4), SHAPE)
    network = HyperT5Config(t5=SHAPE, heads=HeadsConfig(hidden=8))
    episodes = EpisodeConfig(
        tasks_per_batch=3, shots=2, examples=5, support_length=12, inputs_length=8, targets_length=6, supports=2
    )
    batch = shapes(
        3,
        support_tokens=(2, 12),
        encoder_input_tokens=(5, 8),
        decoder_input_tokens=(5, 6),
        decoder_target_tokens=(5, 6),
        other_support_tokens=(1, 2, 12),
        teacher_input_tokens=(5, 16),
    )
    products = 3 * adapted(spec, SHAPE, 5, 8, 6).frozen
    plain = HypermodelObjective(T5(SHAPE), HyperT5(network, spec))
    assert plain.flops(batch) == step_flops(SHAPE, spec, network, episodes.replace(supports=1)) - products
    consistent = dataclasses.replace(plain, consistency=1.0)
    assert consistent.flops(batch) == step_flops(SHAPE, spec, network, episodes) - products
    taught = dataclasses.replace(plain, distillation=1.0)
    extra = step_flops(SHAPE, spec, network, episodes.replace(supports=1, teacher_length=16), distilled=True)
    assert taught.flops(batch) == extra - products
    frozen_alone = HypermodelObjective(T5(SHAPE), Table(spec))
    assert frozen_alone.flops({n: x for n, x in batch.items() if n != "support_tokens"}) == (
        3 * flops.t5(SHAPE, 5, 8, 6).frozen
    )
    rows = shapes(7, encoder_input_tokens=(8,), decoder_input_tokens=(6,), decoder_target_tokens=(6,))
    assert T5Objective(T5(SHAPE)).flops(rows) == flops.t5(SHAPE, 7, 8, 6).trained
