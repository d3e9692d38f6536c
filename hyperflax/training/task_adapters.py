"""Batches of episodes with the adapter that each of their tasks was trained to, for `objectives.reconstruction`.

>>> batches = WithTaskAdapters(Episodes(source, config), "runs/tasks/model")
>>> sorted(name for name in batches.batch(0) if name.startswith("task_adapters"))[:2]
['task_adapters/decoder/layers_0/encoder_decoder_attention/key/lora/a', ...]
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from hyperflax.checkpoints.task_adapters import StoredTaskAdapters, load_task_adapters
from hyperflax.data.batches import Batches
from hyperflax.data.examples import sources_of
from hyperflax.errors import DataError
from hyperflax.objectives.episode import TASK_ADAPTERS, TASK_ADAPTERS_KNOWN


@dataclasses.dataclass(frozen=True)
class WithTaskAdapters:
    """The same episodes, each with its task's adapter.

    Attributes:
      batches: of episodes of one list of tasks, as `Episodes` and a `Curriculum` of them have it.
      directory: of task adapters; they are read into the host's memory at the first batch. A task that has none there
        gets zeros and `task_adapters_known` 0, and counts nothing.
    """

    batches: Batches
    directory: str

    @functools.cached_property
    def stored(self) -> StoredTaskAdapters:
        """The task adapters. Raises CheckpointError where there are none."""
        return load_task_adapters(self.directory)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The episodes of a step, and `task_adapters/PATH` [task, ...] and `task_adapters_known` [task].

        Raises:
          DataError: none of the tasks has an adapter, or the batches' sources do not have one list of tasks.
        """
        batch = dict(self.batches.batch(step))
        rows = self._rows[batch["task_index"]]
        known = rows >= 0
        flat = self.stored.spec.flatten(self.stored.tree)
        for path, values in flat.items():
            taken = np.zeros((len(rows), *values.shape[1:]), np.float32)
            taken[known] = values[rows[known]]
            batch[TASK_ADAPTERS + path] = taken
        return {**batch, TASK_ADAPTERS_KNOWN: known.astype(np.float32)}

    @functools.cached_property
    def _rows(self) -> np.ndarray:
        """int64 [tasks of the source]: the row of each in the stored ones, -1 where it has none."""
        at = {name: row for row, name in enumerate(self.stored.metadata.tasks)}
        sources = sources_of(self.batches)
        if (lists := len({source.task_names for source in sources})) != 1:
            raise DataError(f"WithTaskAdapters.batches: expected episodes of one list of tasks, got {lists} lists")
        names = sources[0].task_names
        rows = np.asarray([at.get(name, -1) for name in names])
        if (rows < 0).all():
            raise DataError(
                f"{self.directory}: expected adapters of the tasks that are trained on, of '{names[0]}' and "
                f"{len(names) - 1} others; got none of them, but '{self.stored.metadata.tasks[0]}'"
            )
        return rows
