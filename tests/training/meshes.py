"""Runs a hypernetwork on eight CPU devices under every shape of mesh and prints what differs from one device.

    python -m tests.training.meshes NETWORK KIND [data,fsdp,model ...]
    python -m tests.training.meshes weak

The second counts what a chip receives in a training step while devices and tasks grow together. A script of its own:
the number of devices is fixed once jax has started.
"""

from __future__ import annotations

import functools
import json
import sys
import types

import jax
import numpy as np
import optax

from hyperflax import trees
from hyperflax.adapters.kinds import build_spec
from hyperflax.adapters.layers import arrange
from hyperflax.adapters.lora import LoRA
from hyperflax.adapters.prefix import Prefix
from hyperflax.compile.hlo import parse
from hyperflax.compile.programs import training_program
from hyperflax.compile.walk import walk
from hyperflax.hypernets.hart import HART, HARTConfig
from hyperflax.hypernets.heads import HeadsConfig
from hyperflax.hypernets.hyper_t5 import HyperT5, HyperT5Config
from hyperflax.models.decoding import decode
from hyperflax.models.t5 import T5
from hyperflax.objectives import HypermodelObjective
from hyperflax.objectives.episode import episodes_of
from hyperflax.training.evaluate import loss_evaluator
from hyperflax.training.partitioning import Partitioner, make_mesh
from hyperflax.training.state import create_state
from hyperflax.training.step import make_train_step
from tests.training import sharded_steps  # which makes the devices
from tests.training.sharded_steps import make_batch

# As large runs have it: layers in a loop.
CONFIG = sharded_steps.CONFIG.replace(num_encoder_layers=2, num_decoder_layers=2, scan_layers=True)
NETWORKS = {"hyper_t5": (HyperT5Config, HyperT5), "hart": (HARTConfig, HART)}
KINDS = {"lora": LoRA(rank=2), "prefix": Prefix(length=2)}
TASKS = 8


def objective_of(network: str, kind: str) -> HypermodelObjective:
    config, module = NETWORKS[network]
    spec = build_spec(KINDS[kind], CONFIG.replace(scan_layers=False))
    return HypermodelObjective(T5(CONFIG), module(config(t5=CONFIG, heads=HeadsConfig(hidden=16)), spec))


def abstract_t5(model: T5):
    tokens = np.ones((1, 2), np.int32)
    return jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)["params"]


def noise(shapes, seed: int):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)


def answered(objective: HypermodelObjective, params, frozen, episodes, inputs):
    """Every task's adapters, and what they decode."""
    adapters = objective.generate(params, episodes)
    arranged = arrange(adapters, objective.hypernetwork.spec, CONFIG, batch_dims=1)
    return adapters, decode(objective.model, frozen, inputs, adapters=arranged, max_length=4).tokens


def numbers(objective: HypermodelObjective, params, frozen, batch, mesh) -> dict:
    """Loss and gradient of a training step, validation loss, adapters and decoded tokens, on the host."""
    partitioner = Partitioner(mesh)
    gradient = optax.trace(decay=0.0)  # whose state is the gradient
    _, shardings = partitioner.abstract_state(objective, gradient, jax.random.key(0), batch)
    state = jax.device_put(create_state(params, optimizer=gradient), shardings)
    placed, fed = partitioner.place_frozen(frozen), partitioner.place_batch(batch)
    evaluated = loss_evaluator(objective, types.SimpleNamespace(batch=lambda step: batch), 1)(state.params, placed, 0)
    inputs = fed["encoder_input_tokens"]
    with jax.set_mesh(mesh):
        adapters, tokens = jax.device_get(
            jax.jit(functools.partial(answered, objective))(state.params, placed, episodes_of(fed), inputs)
        )
    compiled = partitioner.compile(make_train_step(objective, gradient), state)
    state, metrics = compiled(state, placed, fed, jax.random.key(1))
    return {
        "loss": float(metrics["loss"][0]),
        "gradient": trees.flatten(jax.device_get(state.opt_state.trace)),
        "evaluated": evaluated["loss"],
        "adapters": trees.flatten(adapters),
        "tokens": tokens,
    }


def furthest(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """The largest difference of all leaves, over the largest number of all leaves."""
    difference = max(float(np.max(np.abs(found[path] - leaf))) for path, leaf in expected.items())
    return difference / max(float(np.max(np.abs(leaf))) for leaf in expected.values())


def compare(network: str, kind: str, meshes: list[str]) -> dict:
    objective, batch = objective_of(network, kind), make_batch(TASKS)
    frozen = noise(abstract_t5(objective.model), 1)
    params = noise(jax.eval_shape(lambda: objective.init(jax.random.key(0), batch)), 2)
    alone = numbers(objective, params, frozen, batch, make_mesh(1, 1, 1, jax.devices()[:1]))
    report = {}
    for sizes in meshes:
        found = numbers(objective, params, frozen, batch, make_mesh(*map(int, sizes.split(","))))
        report[sizes] = {
            "loss": [found["loss"], alone["loss"]],
            "gradient": furthest(found["gradient"], alone["gradient"]),
            "evaluated": [found["evaluated"], alone["evaluated"]],
            "adapters": furthest(found["adapters"], alone["adapters"]),
            "tokens": bool(np.array_equal(found["tokens"], alone["tokens"])),
        }
    return report


def weak() -> dict:
    """By axis and number of devices: how often a chip takes part in each kind of collective, and what it receives."""
    objective, report = objective_of("hyper_t5", "lora"), {}
    for axis in ("data", "fsdp"):
        for devices in (2, 4, 8):
            sizes = {"data": 1, "fsdp": 1, "model": 1, axis: devices}
            partitioner = Partitioner(make_mesh(**sizes, devices=jax.devices()[:devices]))
            model = types.SimpleNamespace(objective=objective, abstract_frozen=abstract_t5(objective.model))
            program = training_program(model, make_batch(2 * devices), optax.trace(decay=0.0), partitioner=partitioner)
            kinds: dict[str, list[int]] = {}
            for one in walk(parse(program.lower().compile().as_text()), devices).collectives:
                times, received = kinds.setdefault(one.kind, [0, 0])
                kinds[one.kind] = [times + one.times, received + one.times * one.received]
            report[f"{axis} {devices}"] = kinds
    return report


if __name__ == "__main__":
    print(json.dumps(weak() if sys.argv[1] == "weak" else compare(sys.argv[1], sys.argv[2], sys.argv[3:])))
