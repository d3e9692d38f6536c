"""Runs one training step on eight CPU devices under several meshes and prints what differs from one device.

A script of its own: the number of devices is fixed once jax has started.
"""

from __future__ import annotations

import dataclasses
import json
import os
import types

# A collective blocks a thread of each of its devices, and a program has several under way: with as many threads as a
# small machine has cores, they wait for each other.
os.environ["NPROC"] = "64"

import jax

jax.config.update("jax_num_cpu_devices", 8)

import numpy as np  # noqa: E402
from jax.sharding import PartitionSpec  # noqa: E402

from hyperflax import trees  # noqa: E402
from hyperflax.adapters.kinds import build_spec  # noqa: E402
from hyperflax.adapters.lora import LoRA  # noqa: E402
from hyperflax.hypernets.heads import HeadsConfig  # noqa: E402
from hyperflax.hypernets.hyper_t5 import HyperT5, HyperT5Config  # noqa: E402
from hyperflax.models.t5 import T5  # noqa: E402
from hyperflax.objectives import HypermodelObjective, T5Objective  # noqa: E402
from hyperflax.objectives.protocol import mesh_batch_axes  # noqa: E402
from hyperflax.training.evaluate import loss_evaluator  # noqa: E402
from hyperflax.training.optimizers import adafactor, adamw, muon  # noqa: E402
from hyperflax.training.partitioning import Partitioner, make_mesh  # noqa: E402
from hyperflax.training.state import start_from  # noqa: E402
from hyperflax.training.step import make_train_step  # noqa: E402
from hyperflax.types import T5Config  # noqa: E402

CONFIG = T5Config(
    vocab_size=32, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1, num_decoder_layers=1
)
# data x fsdp x model
MESHES = {
    "t5": {"fsdp": (1, 8, 1), "all": (2, 2, 2)},
    "hypermodel": {"data": (8, 1, 1), "all": (2, 2, 2)},
    "muon": {"all": (2, 2, 2)},
}


def make_batch(tasks: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    targets = rng.integers(2, 32, (tasks, 2, 4)).astype(np.int32)
    return {
        "support_tokens": rng.integers(2, 32, (tasks, 2, 5)).astype(np.int32),
        "encoder_input_tokens": rng.integers(2, 32, (tasks, 2, 5)).astype(np.int32),
        "decoder_input_tokens": np.pad(targets[..., :-1], ((0, 0), (0, 0), (1, 0))),
        "decoder_target_tokens": targets,
        "decoder_loss_weights": rng.integers(0, 2, targets.shape).astype(np.float32),
    }


# Parameters of 16 x 16 and more are factored, so that every kind of Adafactor's slots is placed. A hypernetwork starts
# with gradients that are nothing but rounding (b is almost zero), which a small epsilon would blow up to whole steps.
OPTIMIZERS = {
    "t5": adafactor(0.05, min_dim_size_to_factor=16, beta1=0.9),
    "hypermodel": adamw(0.05, eps=1.0),
    "muon": muon(0.05),
}


def one_step(objective, optimizer, frozen, batch, mesh, microbatches, given=None):
    """Returns (state, metrics) after a step, whether old buffers were donated, whether `given` came to its places."""
    partitioner = Partitioner(mesh)
    state = partitioner.create_state(objective, optimizer, jax.random.key(0), batch, given)
    in_place = given is None or starts_in_place(state.params, given)
    placed = partitioner.place_frozen(frozen)
    compiled = partitioner.compile(make_train_step(objective, optimizer, microbatches=microbatches), state)
    old = state
    state, metrics = compiled(state, placed, partitioner.place_batch(batch), jax.random.key(1))
    donated = all(leaf.is_deleted() for leaf in jax.tree.leaves(old.params))
    return state, jax.device_get(metrics), donated, in_place


def starts_in_place(params, given) -> bool:
    """Whether `start_from` puts a tree of the host where the parameters lie, leaf by leaf."""
    started = start_from(params, given)
    leaves = zip(jax.tree.leaves(started), jax.tree.leaves(params), jax.tree.leaves(given), strict=True)
    return all(
        new.sharding == old.sharding and new.dtype == old.dtype and np.array_equal(new, host)
        for new, old, host in leaves
    )


def evaluation(objective, frozen, params, batch, mesh) -> dict:
    """The validation loss on a mesh beside that on one device, and the mesh axes that the objective knew of there."""
    axes = []

    class Seeing(type(objective)):
        def loss(self, params, frozen, batch, rng):
            axes.append(list(mesh_batch_axes()))
            return super().loss(params, frozen, batch, rng)

    fields = {field.name: getattr(objective, field.name) for field in dataclasses.fields(objective)}
    evaluator = loss_evaluator(Seeing(**fields), types.SimpleNamespace(batch=lambda step: batch), 1)
    on_mesh = evaluator(params, Partitioner(mesh).place_frozen(frozen), 0)
    alone = evaluator(jax.tree.map(np.asarray, params), frozen, 0)
    return {"loss": [on_mesh["loss"], alone["loss"]], "axes": axes[0]}


def without_support(batch) -> dict[str, np.ndarray]:
    return {name: feature[:, 0] for name, feature in batch.items() if name != "support_tokens"}


def main() -> None:
    batch = make_batch()
    plain = without_support(batch)
    spec = build_spec(LoRA(rank=2), CONFIG)
    hyper = HypermodelObjective(T5(CONFIG), HyperT5(HyperT5Config(t5=CONFIG, heads=HeadsConfig(hidden=16)), spec))
    base = T5Objective(T5(CONFIG))
    frozen = jax.tree.map(np.asarray, jax.jit(base.init)(jax.random.key(3), plain))
    given = jax.tree.map(np.float64, jax.device_get(jax.jit(base.init)(jax.random.key(5), plain)))
    # Objective, frozen parameters, where to start, a batch to train on, one to evaluate.
    cases = {
        "t5": (base, None, given, plain, without_support(make_batch(6))),
        "hypermodel": (hyper, frozen, None, batch, batch),
    }
    cases["muon"] = cases["t5"]
    report = {}
    for name, (objective, base_params, start, data, held_out) in cases.items():
        alone, alone_metrics, *_ = one_step(
            objective, OPTIMIZERS[name], base_params, data, make_mesh(1, 1, 1, jax.devices()[:1]), 1, start
        )
        for mesh_name, sizes in MESHES[name].items():
            # Two microbatches of one task per shard, where a mesh has room for them.
            microbatches = 2 if sizes[0] * sizes[1] == 4 else 1
            state, metrics, donated, in_place = one_step(
                objective, OPTIMIZERS[name], base_params, data, make_mesh(*sizes), microbatches, start
            )
            differences = {
                path: float(np.max(np.abs(np.asarray(leaf) - np.asarray(trees.flatten(alone.params)[path]))))
                for path, leaf in trees.flatten(state.params).items()
            }
            report[f"{name}/{mesh_name}"] = {
                "worst": max(differences.values()),
                "loss": [float(metrics["loss"][0]), float(alone_metrics["loss"][0])],
                "split": sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.params)),
                "leaves": len(jax.tree.leaves(state.params)),
                "slots_split": sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.opt_state)),
                "donated": donated,
                "in_place": in_place,
            }
        report[name] = evaluation(objective, base_params, state.params, held_out, make_mesh(*sizes))
    placed = Partitioner(make_mesh(2, 4, 1)).place_batch(plain)
    report["batch"] = placed["encoder_input_tokens"].sharding.spec == PartitionSpec(("data", "fsdp"))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
