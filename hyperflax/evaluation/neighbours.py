"""Adapters of training tasks, of which the condition `nearest_task` takes the best one: what choosing is worth beside
generating.

>>> neighbours = Neighbours(model, tasks, generate)
>>> adapter = neighbours.nearest(model.own_examples([support]))
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from hyperflax.evaluation.held_out import HeldOut
from hyperflax.evaluation.runner import EvaluationTask
from hyperflax.objectives.language_model import task_loss
from hyperflax.types import PyTree

if TYPE_CHECKING:
    from hyperflax.hypermodel import Hypermodel

BLOCK = 32  # adapters that are generated, and whose losses are computed, at once


class Neighbours:
    """Adapters of tasks, generated when the first is asked for and kept on the device.

    Args:
      model: whose base model carries them.
      tasks: what they are generated for.
      generate: the adapters of a batch of those tasks, leaves [task, ...].
    """

    def __init__(self, model: Hypermodel, tasks: HeldOut, generate: Callable[[Sequence[EvaluationTask]], PyTree]):
        self._model, self._tasks, self._generate = model, tasks, generate

    @property
    def digest(self) -> str:
        """Of the tasks and their supports, see `HeldOut.digest`."""
        return self._tasks.digest

    def nearest(self, examples: dict[str, np.ndarray]) -> PyTree:
        """Returns the adapter with the lowest loss on the examples of one task, leaves [1, example, length].

        A loss that is NaN is never the lowest.
        """
        losses = np.concatenate([np.asarray(self._losses(adapters, examples)) for adapters in self._blocks])
        block, row = divmod(int(np.argmin(np.where(np.isnan(losses), np.inf, losses))), BLOCK)
        return jax.tree.map(lambda leaf: leaf[row], self._blocks[block])

    @functools.cached_property
    def _blocks(self) -> list[PyTree]:
        """`BLOCK` adapters each; the last may have fewer."""
        tasks = self._tasks.tasks
        return [self._generate(tasks[start : start + BLOCK]) for start in range(0, len(tasks), BLOCK)]

    @functools.cached_property
    def _losses(self) -> Callable[[PyTree, Any], jax.Array]:
        model = self._model.model

        @jax.jit
        def losses(params: PyTree, adapters: PyTree, examples: dict[str, jax.Array]) -> jax.Array:
            return jax.vmap(functools.partial(task_loss, model, params), (0, None))(adapters, examples)

        return lambda adapters, examples: losses(
            self._model.base_params, adapters, {name: leaf[0] for name, leaf in examples.items()}
        )
