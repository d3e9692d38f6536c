"""Validation loss during training.

>>> train(..., evaluator=loss_evaluator(objective, validation_batches, num_batches=8), eval_period=500)
"""

from __future__ import annotations

import jax

from hyperflax.objectives.protocol import Metrics, Objective
from hyperflax.training.prefetch import Batches
from hyperflax.training.run import Evaluator
from hyperflax.training.run_log import Sums
from hyperflax.types import Batch, PyTree


def loss_evaluator(objective: Objective, batches: Batches, num_batches: int = 8, first_batch: int = 0) -> Evaluator:
    """Returns an evaluator of the objective's loss and validation metrics, over the same batches every time.

    There is no dropout. Sums and weights are added up over the batches before anything is divided.
    """

    @jax.jit
    def metrics(params: PyTree, frozen: PyTree, batch: Batch) -> Metrics:
        return {
            **objective.loss(params, frozen, batch, None)[2],
            **objective.validation_metrics(params, frozen, batch),
        }

    def evaluate(params: PyTree, frozen: PyTree, step: int) -> dict[str, float]:
        del step
        sums = Sums()
        for index in range(first_batch, first_batch + num_batches):
            sums.add(jax.device_get(metrics(params, frozen, dict(batches.batch(index)))))
        return sums.means()

    return evaluate
