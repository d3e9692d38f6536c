"""What an objective is: how to make parameters, and what a batch costs with them.

The training step knows nothing of models: it differentiates `objective.loss` in its first argument and leaves the
frozen tree alone. Everything that a step reports is a pair (sum, weight), so that microbatches, devices and log periods
add up exactly.

>>> loss_sum, weight_sum, metrics = objective.loss(params, frozen, batch, rng)
>>> {name: total / weight for name, (total, weight) in metrics.items()}
{'loss': 2.31, 'accuracy': 0.44, ...}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from hyperflax.errors import DataError
from hyperflax.objectives.token_loss import correct_tokens, token_loss
from hyperflax.types import Array, Batch, PyTree

Metrics: TypeAlias = dict[str, tuple[Array, Array]]
LossOutput: TypeAlias = tuple[Array, Array, Metrics]

# Mesh axes that the leading axis of a batch is split over, where a mesh is in use.
BATCH_AXES = ("data", "fsdp")
SCORED = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
PACKING = ("encoder_segment_ids", "encoder_positions", "decoder_segment_ids", "decoder_positions")


@runtime_checkable
class Objective(Protocol):
    """Implemented as a frozen dataclass, so that it is hashable and can be closed over by a jitted step."""

    def init(self, rng: Array, batch: Batch) -> PyTree:
        """Returns the trainable parameters, a nested dict of plain arrays, for batches of this shape."""
        ...

    def loss(self, params: PyTree, frozen: PyTree, batch: Batch, rng: Array | None) -> LossOutput:
        """Returns (loss sum, weight sum, metrics). Dropout is off where `rng` is None."""
        ...

    def initial_metrics(self, params: PyTree, frozen: PyTree, batch: Batch) -> Metrics:
        """Returns what is worth reporting once, before the first step; may be empty."""
        ...

    def validation_metrics(self, params: PyTree, frozen: PyTree, batch: Batch) -> Metrics:
        """Returns what is worth reporting at validation beside the loss's own metrics; may be empty."""
        ...

    def flops(self, batch: Batch) -> int:
        """Returns the operations of a training step on a batch of this shape, see `models.flops`; 0 where unknown."""
        ...

    def logical_axes(self, batch: Batch) -> PyTree:
        """Returns the tree of the parameters' logical axis names, a tuple (or None where unknown) per leaf."""
        ...


def scored_metrics(
    logits: Array,
    batch: Mapping[str, Array],
    weights: Array,
    *,
    z_loss: float,
    label_smoothing: float,
) -> LossOutput:
    """Returns an objective's output from teacher-forced logits.

    `sequence_accuracy` is the share of target sequences of which every weighted token is the most likely one given
    the true tokens before it; that is exactly the share that greedy decoding gets right. Packed rows hold several
    sequences and do not report it.

    Args:
      logits: [..., length, vocab].
      batch: `decoder_target_tokens` [..., length] and, when packed, `decoder_segment_ids`.
      weights: [..., length].
    """
    targets = batch["decoder_target_tokens"]
    out = token_loss(logits, targets, weights, z_loss=z_loss, label_smoothing=label_smoothing)
    correct = correct_tokens(logits, targets)
    metrics: Metrics = {
        "loss": (out.loss_sum, out.weight_sum),
        "z_loss": (out.z_loss_sum, out.weight_sum),
        "accuracy": (jnp.sum(correct * weights), out.weight_sum),
    }
    if "decoder_segment_ids" not in batch:
        scored = jnp.any(weights > 0, axis=-1)
        whole = jnp.all(correct | (weights <= 0), axis=-1) & scored
        metrics["sequence_accuracy"] = (jnp.sum(whole, dtype=jnp.float32), jnp.sum(scored, dtype=jnp.float32))
    return out.loss_sum, out.weight_sum, metrics


def check_batch(batch: Mapping[str, Any], names: tuple[str, ...], dims: int) -> None:
    """Raises DataError unless every named feature is there, of `dims` dimensions and with the same leading axis."""
    for name in names:
        if name not in batch:
            raise DataError(f"batch: feature '{name}' is missing; got {sorted(batch)}")
        if np.ndim(batch[name]) != dims:
            raise DataError(f"batch feature '{name}': expected {dims} dimensions, got shape {np.shape(batch[name])}")
    sizes = {name: np.shape(batch[name])[0] for name in names}
    if len(set(sizes.values())) > 1:
        raise DataError(f"batch: the leading axis differs between features: {sizes}")


def is_episodes(batch: Mapping[str, Any]) -> bool:
    """Whether the leading axis of a batch counts tasks, each with a support or an index."""
    return "support_tokens" in batch or "task_index" in batch


def mesh_batch_axes() -> tuple[str, ...]:
    """Returns the axes of `BATCH_AXES` that the mesh in use has, or () where none is (see `jax.set_mesh`)."""
    return tuple(axis for axis in BATCH_AXES if axis in jax.sharding.get_abstract_mesh().axis_names)


def mesh_batch_shards() -> int:
    """Returns over how many shards the mesh in use splits a batch; 1 where none is."""
    return math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in mesh_batch_axes())
