"""What is compiled: the training step of a gin run, and generation and decoding with its model.

All arguments are abstract: shapes, dtypes and shardings. The step and where it runs come from `loop.prepare`, which
training itself calls, so what is compiled here is what trains there.

>>> program = training_program(model, batches, optimizer, partitioner=Partitioner(mesh), microbatches=4)
>>> lowered = program.lower()
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hyperflax.adapters.layers import arrange
from hyperflax.errors import ConfigError
from hyperflax.models import flops
from hyperflax.models.decoding import decode
from hyperflax.objectives.episode import HypermodelObjective, episodes_of
from hyperflax.objectives.normalisation import REAL_TOKENS, LossNormalizingFactor
from hyperflax.objectives.protocol import BATCH_AXES
from hyperflax.trainables import Trainable
from hyperflax.training import loop
from hyperflax.training.optimizers import Transformation
from hyperflax.training.partitioning import Partitioner
from hyperflax.types import Batch, PyTree

PROGRAMS = ("train", "generate", "decode")


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function with abstract arguments.

    Attributes:
      name: one of `PROGRAMS`.
      function: jitted.
      arguments: shapes with their shardings.
      mesh: of all of them.
      rows: leading axis of the batch: tasks, or the rows of a plain T5.
      model_flops: operations that the model needs, the numerator of MFU.
    """

    name: str
    function: Any
    arguments: tuple[Any, ...]
    mesh: Mesh
    rows: int
    model_flops: int

    def lower(self) -> jax.stages.Lowered:
        with jax.set_mesh(self.mesh):
            return self.function.lower(*self.arguments)


def training_program(
    model: Trainable,
    batch: Batch,
    optimizer: Transformation,
    *,
    partitioner: Partitioner,
    microbatches: int = 1,
    loss_normalizing_factor: LossNormalizingFactor = REAL_TOKENS,
) -> Program:
    """Returns the training step for batches like `batch`, numpy arrays of which only the shapes matter."""
    objective = model.objective
    step, partitioner = loop.prepare(
        objective=objective,
        optimizer=optimizer,
        microbatches=microbatches,
        loss_normalizing_factor=loss_normalizing_factor,
        partitioner=partitioner,
    )
    state, _ = partitioner.abstract_state(objective, optimizer, jax.random.key(0), batch)
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = (
        state,
        partitioner.abstract_frozen(model.abstract_frozen),
        partitioner.abstract_batch(batch),
        jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=partitioner.replicated),
    )
    rows = len(batch["decoder_target_tokens"])
    return Program("train", partitioner.jit(step, state), arguments, partitioner.mesh, rows, objective.flops(batch))


def generation_program(
    model: Trainable, batch: Batch, optimizer: Transformation, *, partitioner: Partitioner
) -> Program:
    """Returns the hypernetwork's forward pass: the adapters of every task of a batch."""
    objective = _hypermodel(model)
    state, _ = partitioner.abstract_state(objective, optimizer, jax.random.key(0), batch)
    episodes = episodes_of(batch)
    tasks, rows, length = np.shape(episodes["support_tokens"])
    return Program(
        "generate",
        jax.jit(objective.generate),
        (state.params, partitioner.abstract_batch(episodes)),
        partitioner.mesh,
        tasks,
        tasks * objective.hypernetwork.flops(rows, length).total,
    )


def decoding_program(model: Trainable, batch: Batch, optimizer: Transformation, *, partitioner: Partitioner) -> Program:
    """Returns greedy decoding of every scored input of a batch with its task's adapters, to the targets' length."""
    objective = _hypermodel(model)
    config, spec = objective.model.config, objective.hypernetwork.spec
    state, _ = partitioner.abstract_state(objective, optimizer, jax.random.key(0), batch)

    def adapters(params: PyTree, episodes: Batch) -> PyTree:
        return arrange(objective.generate(params, episodes), spec, config, batch_dims=1)

    made = jax.eval_shape(adapters, state.params, episodes_of(batch))
    by_task = NamedSharding(partitioner.mesh, PartitionSpec(BATCH_AXES))
    made = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=by_task), made)
    tokens = partitioner.abstract_batch({"tokens": batch["encoder_input_tokens"]})["tokens"]
    (tasks, examples, inputs), length = tokens.shape, np.shape(batch["decoder_target_tokens"])[2]

    def run(frozen: PyTree, adapters: PyTree, tokens: jax.Array) -> jax.Array:
        return decode(objective.model, frozen, tokens, adapters=adapters, max_length=length).tokens

    return Program(
        "decode",
        jax.jit(run),
        (partitioner.abstract_frozen(model.abstract_frozen), made, tokens),
        partitioner.mesh,
        tasks,
        tasks * flops.t5(config, examples, inputs, length).total,
    )


def _hypermodel(model: Trainable) -> HypermodelObjective:
    objective = model.objective
    if not isinstance(objective, HypermodelObjective):
        raise ConfigError(f"program: expected a run that trains a hypernetwork, got one of {type(model).__name__}")
    return objective
