"""Plain T5: predict the targets from the inputs. Pretraining and fine-tuning of a base model.

>>> objective = T5Objective(T5(config), z_loss=1e-4)
>>> params = objective.init(rng, batch)
>>> loss_sum, weight_sum, metrics = objective.loss(params, None, batch, rng)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import numpy as np

from hyperflax.models import flops
from hyperflax.models.t5 import T5
from hyperflax.objectives.normalisation import target_weights
from hyperflax.objectives.protocol import PACKING, SCORED, LossOutput, Metrics, check_batch, scored_metrics
from hyperflax.objectives.token_loss import token_loss
from hyperflax.types import Array, Batch, PyTree


@dataclasses.dataclass(frozen=True)
class T5Objective:
    """Token loss of a T5 whose own parameters are trained; the frozen tree is unused.

    Attributes:
      model: a `hyperflax.models.t5.T5`.
      z_loss: coefficient of log(Z)^2.
      label_smoothing: mass taken from the target token.
    """

    model: nn.Module
    z_loss: float = 0.0
    label_smoothing: float = 0.0

    def init(self, rng: Array, batch: Batch) -> PyTree:
        """Returns a T5's parameters from scratch."""
        return nn.unbox(self._init(rng, batch))

    def logical_axes(self, batch: Batch) -> PyTree:
        """Returns the tree of logical axis names."""
        return axes_of(jax.eval_shape(self._init, jax.random.key(0), batch))

    def loss(self, params: PyTree, frozen: PyTree, batch: Batch, rng: Array | None) -> LossOutput:
        """Returns (loss sum, weight sum, metrics) of a batch [batch, length], packed or not."""
        del frozen
        check_batch(batch, SCORED, 2)
        logits = apply_t5(self.model, {"params": params}, batch, rng)
        return scored_metrics(
            logits, batch, target_weights(batch), z_loss=self.z_loss, label_smoothing=self.label_smoothing
        )

    def flops(self, batch: Batch) -> int:
        """Returns the operations of a training step on a batch of this shape."""
        (rows, inputs), targets = np.shape(batch[SCORED[0]]), np.shape(batch[SCORED[2]])[1]
        return flops.t5(self.model.config, rows, inputs, targets).trained

    def initial_metrics(self, params: PyTree, frozen: PyTree, batch: Batch) -> Metrics:
        """Nothing to compare with: returns {}."""
        return {}

    def validation_metrics(self, params: PyTree, frozen: PyTree, batch: Batch) -> Metrics:
        """Nothing beside the loss: returns {}."""
        return {}

    def _init(self, rng: Array, batch: Batch) -> PyTree:
        check_batch(batch, SCORED, 2)
        # One row shows every shape that the parameters depend on.
        row = {name: batch[name][:1] for name in SCORED}
        return self.model.init(rng, *(row[name] for name in SCORED))["params"]


def apply_t5(model: nn.Module, variables: Mapping[str, PyTree], batch: Mapping[str, Array], rng: Array | None) -> Array:
    """Returns the logits [batch, length, vocab] of a batch; dropout is on where `rng` is given."""
    return model.apply(
        variables,
        *(batch[name] for name in SCORED),
        **{name: batch[name] for name in PACKING if name in batch},
        enable_dropout=rng is not None,
        rngs=None if rng is None else {"dropout": rng},
    )


def task_loss(model: T5, params: PyTree, adapter: PyTree, examples: Mapping[str, Array]) -> Array:
    """Returns the mean token loss, a scalar, of one task's examples [example, length] with its adapter."""
    logits = apply_t5(model, {"params": params, "adapters": adapter}, examples, None)
    return token_loss(logits, examples["decoder_target_tokens"], target_weights(examples)).mean


def axes_of(boxed: PyTree) -> PyTree:
    """Returns, for parameters boxed by `nn.with_logical_partitioning`, the tree of axis names; None where unboxed."""

    def is_box(node: object) -> bool:
        return isinstance(node, nn.meta.AxisMetadata)

    return jax.tree.map(lambda node: tuple(node.names) if is_box(node) else None, boxed, is_leaf=is_box)
