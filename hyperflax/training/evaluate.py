"""Validation loss during training.

>>> train(..., evaluator=loss_evaluator(objective, validation_batches, num_batches=8), eval_period=500)
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from hyperflax.data.batches import Batches
from hyperflax.objectives.normalisation import REAL_TOKENS, LossNormalizingFactor, check_factor, weighted
from hyperflax.objectives.protocol import Metrics, Objective
from hyperflax.training.partitioning import Partitioner
from hyperflax.training.run import Evaluator
from hyperflax.training.run_log import Sums
from hyperflax.types import Batch, PyTree


def loss_evaluator(
    objective: Objective,
    batches: Batches,
    num_batches: int = 8,
    first_batch: int = 0,
    loss_normalizing_factor: LossNormalizingFactor = REAL_TOKENS,
) -> Evaluator:
    """Returns an evaluator of the objective's loss and validation metrics, over the same batches every time.

    There is no dropout. Sums and weights are added up over the batches before anything is divided. It runs on the mesh
    on which the parameters lie, with batches split over it where they divide.

    Args:
      objective: what is learned.
      batches: `.batch(number)` -> numpy dict.
      num_batches, first_batch: which of them, `first_batch` and those after it.
      loss_normalizing_factor: of the run; under "AVERAGE_PER_SEQUENCE" the means are over sequences, as its own are.

    Raises:
      ConfigError: a factor that is none.
    """
    factor = check_factor(loss_normalizing_factor)

    def metrics(params: PyTree, frozen: PyTree, batch: Batch) -> Metrics:
        batch = weighted(factor, batch)
        return {
            **objective.loss(params, frozen, batch, None)[2],
            **objective.validation_metrics(params, frozen, batch),
        }

    @functools.cache
    def compiled(mesh: Mesh | None) -> Callable[..., Metrics]:
        return jax.jit(metrics) if mesh is None else Partitioner(mesh).compile_metrics(metrics)

    def evaluate(params: PyTree, frozen: PyTree, step: int) -> dict[str, float]:
        del step
        measure, sums = compiled(_mesh_of(params)), Sums()
        for index in range(first_batch, first_batch + num_batches):
            sums.add(jax.device_get(measure(params, frozen, dict(batches.batch(index)))))
        return sums.means()

    return evaluate


def _mesh_of(params: PyTree) -> Mesh | None:
    """Returns the mesh on which parameters were placed, None for arrays of a single device or of the host."""
    mesh = getattr(getattr(jax.tree.leaves(params)[0], "sharding", None), "mesh", None)
    return mesh if isinstance(mesh, Mesh) else None
