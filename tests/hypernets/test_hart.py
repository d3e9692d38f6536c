"""HART: the recurrence written out, its order, and a compile size that does not grow with depth."""

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
from hyperflax.errors import ConfigError
from hyperflax.hypernets.hart import HART, HARTConfig
from hyperflax.hypernets.heads import Heads, HeadsConfig
from hyperflax.models.t5 import T5
from hyperflax.types import T5Config

BASE = T5Config(
    vocab_size=64, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=2, num_decoder_layers=3
)
HEADS = HeadsConfig(hidden=8)
SUPPORT = np.array([[5, 6, 7, 1, 0, 0], [8, 9, 1, 0, 0, 0]], np.int32)
# Layers of different slot numbers: rank 3 in the encoder's, a prefix of 2 in the decoder's.
SPEC = build_spec([LoRA(rank=3, sites=("encoder/*/query",)), Prefix(length=2, sites=("decoder/self_attention",))], BASE)


def build(config: HARTConfig):
    network = HART(config, SPEC)
    params = nn.unbox(jax.jit(network.init)(jax.random.key(0), {"support_tokens": SUPPORT})["params"])
    return network, jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params)


@pytest.mark.parametrize(("order", "steps", "extra"), [("forward", 1, 0), ("backward", 1, 0), ("forward", 2, 2)])
@pytest.mark.parametrize("feedback", ["projected", "direct"])
def test_is_one_decoder_applied_again_and_again(feedback: str, order: str, steps: int, extra: int) -> None:
    config = HARTConfig(BASE, HEADS, feedback=feedback, order=order, steps_per_layer=steps, extra_slots=extra)
    network, params = build(config)
    t5 = T5(BASE)

    def apply(method, *args, **kwargs):
        return t5.apply({"params": params["t5"]}, *args, method=method, **kwargs)

    encoded = apply(T5.encode, SUPPORT).reshape(1, 12, 16)
    layers, states = SPEC.layers(), {}
    if feedback == "projected":
        own, hidden = params["slots"].reshape(len(layers), 1, 3 + extra, 16), jnp.zeros((1, 3 + extra, 16))
    else:
        hidden = params["slots"].reshape(1, 3 + extra, 16)
    for layer in layers if order == "forward" else reversed(layers):
        for _ in range(steps):
            if feedback == "projected":
                hidden = own[layers.index(layer)] + hidden @ params["feedback"]
            hidden = apply(T5.decode_embeddings, hidden, encoded, SUPPORT.reshape(1, 12), bidirectional=False)
        states[layer] = hidden[0, : SPEC.num_slots(*layer)]
    wanted = Heads(HEADS, SPEC).apply({"params": params["heads"]}, jnp.concatenate([states[x] for x in layers]))
    found = jax.jit(network.apply)({"params": params}, {"support_tokens": SUPPORT})
    for path, leaf in trees.flatten(wanted).items():
        np.testing.assert_allclose(trees.flatten(found)[path], leaf, atol=1e-5, err_msg=path)


def test_a_layer_sees_of_earlier_layers_only_the_states_of_the_last() -> None:
    network, params = build(HARTConfig(BASE, HEADS, feedback="direct"))

    def states(slots):
        episode = {"support_tokens": SUPPORT}
        return network.apply({"params": {**params, "slots": slots}}, episode, method=HART.slot_states)

    first, rest = jnp.split(states(params["slots"]), [3])
    again = states(first)  # starting where the second layer starts shifts every layer by one
    np.testing.assert_allclose(again[:3], rest[:3], atol=1e-5)


def test_a_new_one_writes_its_layers_apart_and_learns_what_they_pass_on() -> None:
    """The map between layers starts at zero, with a gradient; no layer's slots reach another one before."""
    network, params = build(HARTConfig(BASE, HEADS))
    start = {**params, "feedback": jnp.zeros_like(params["feedback"])}

    def states(params):
        return network.apply({"params": params}, {"support_tokens": SUPPORT}, method=HART.slot_states)

    def reached(params) -> list[bool]:
        changed = states({**params, "slots": params["slots"].at[:3].add(1.0)})  # the first layer's
        return [bool(x) for x in jnp.max(jnp.abs(changed - states(params)), axis=1) > 1e-6]

    slots = sum(SPEC.num_slots(*layer) for layer in SPEC.layers())
    assert reached(start) == [True] * 3 + [False] * (slots - 3)
    assert reached(params) == [True] * slots
    fresh = nn.unbox(jax.jit(network.init)(jax.random.key(0), {"support_tokens": SUPPORT})["params"])
    assert not fresh["feedback"].any()
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(jnp.sin(states(params)))))(start)["feedback"]
    assert jnp.linalg.norm(gradient) > 1e-3


def test_shared_heads_write_another_adapter_for_every_layer() -> None:
    """Only states tell such heads which layer they write for; those of `direct` soon are the same in all layers."""
    spec = build_spec(LoRA(rank=3), BASE.replace(num_encoder_layers=6))

    def likeness(feedback: str, sharing: str) -> float:
        """Cosine of what the heads write for the encoder's last two layers."""
        network = HART(HARTConfig(BASE, HeadsConfig(8, sharing), feedback=feedback), spec)
        params = nn.unbox(jax.jit(network.init)(jax.random.key(0), {"support_tokens": SUPPORT})["params"])
        # What all tasks have alike stands apart in every layer, whatever the heads write.
        heads = {name: 0 * leaf if name.startswith("static_") else leaf for name, leaf in params["heads"].items()}
        written = trees.flatten(network.apply({"params": {**params, "heads": heads}}, {"support_tokens": SUPPORT}))
        before, last = (
            jnp.concatenate([written[leaf.path].ravel() for leaf in spec.leaves_of("encoder", layer)])
            for layer in (4, 5)
        )
        return float(before @ last / jnp.linalg.norm(before) / jnp.linalg.norm(last))

    assert likeness("direct", "shared") > 0.95
    assert likeness("projected", "shared") < 0.8
    assert likeness("direct", "per_layer") < 0.8


def test_the_program_does_not_grow_with_depth() -> None:
    def operations(depth: int) -> int:
        base = BASE.replace(num_encoder_layers=depth, num_decoder_layers=depth)
        network = HART(HARTConfig(BASE, HEADS), build_spec(LoRA(rank=2), base))
        episode = {"support_tokens": SUPPORT}
        params = jax.eval_shape(network.init, jax.random.key(0), episode)

        def states(params):
            return network.apply(params, episode, method=HART.slot_states)

        jaxpr = jax.make_jaxpr(states)(nn.unbox(params))
        scans = [equation for equation in jaxpr.eqns if equation.primitive.name == "scan"]
        assert [scan.params["length"] for scan in scans] == [2 * depth]
        # Beside the scan only the slices that lay the layers' states end to end are one per layer.
        return sum(equation.primitive.name == "rows_matmul" for equation in jaxpr.eqns) + len(
            scans[0].params["jaxpr"].eqns
        )

    assert operations(2) == operations(8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feedback": "none"}, "HARTConfig.feedback: expected 'projected' or 'direct', got 'none'"),
        ({"order": "inward"}, "HARTConfig.order: expected 'forward' or 'backward'"),
        ({"slot_bias": "causal"}, "HARTConfig.slot_bias: expected 'none' or 'bidirectional'"),
        ({"steps_per_layer": 0}, "HARTConfig.steps_per_layer: expected a whole number of at least 1, got 0"),
        ({"extra_slots": -1}, "HARTConfig.extra_slots: expected a whole number of at least 0, got -1"),
    ],
)
def test_config_refuses(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HARTConfig(BASE, **changes)
