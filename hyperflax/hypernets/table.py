"""Table: one learned adapter per task, chosen by index. Plain LoRA or prefix tuning through the hypernetwork's path.

A table with one row is a shared adapter (the multi-task baseline); a table with a row per task is ordinary
parameter-efficient fine-tuning of many tasks at once. Both go through the same training step as a HyperT5, and the
result is the same kind of adapter tree.

>>> table = Table(spec, num_tasks=1)
>>> params = table.init(rng, {"task_index": 0})["params"]
>>> adapters = table.apply({"params": params}, {"task_index": 0})
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from hyperflax import trees
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.errors import ConfigError
from hyperflax.models.flops import Forward
from hyperflax.models.parameters import param
from hyperflax.types import Array, PyTree


def table_params(rows: PyTree) -> dict[str, Array]:
    """Returns the parameters of a `Table` that holds raw adapters, arrays [task, ...]; names have '.' for '/'.

    >>> table_params({"encoder": {"layers_0": {"prefix": np.zeros((1, 4, 8))}}})["encoder.layers_0.prefix"].shape
    (1, 4, 8)
    """
    return {_name(path): leaf for path, leaf in trees.flatten(rows).items()}


def table_rows(params: Mapping[str, Array]) -> dict[str, Any]:
    """Returns the raw adapters [task, ...] that a `Table` of these parameters holds; the inverse of `table_params`."""
    return trees.unflatten({name.replace(".", "/"): leaf for name, leaf in params.items()})


def _name(path: str) -> str:
    return path.replace("/", ".")


class Table(nn.Module):
    """Adapters of `num_tasks` tasks as parameters, as `table_params` lays them out.

    Attributes:
      spec: what a row holds.
      num_tasks: rows.
      shared: every task reads row 0, whatever its index.
    """

    spec: AdapterSpec
    num_tasks: int = 1
    shared: bool = False

    def flops(self, rows: int, length: int) -> Forward:
        """Returns no operations: a row is looked up."""
        del rows, length
        return Forward(0, 0)

    @nn.compact
    def __call__(self, episode: Mapping[str, Array], *, enable_dropout: bool = False) -> PyTree:
        """Returns the adapters of row `episode["task_index"]`, an int32 scalar; NaN where the table has no such row.

        Raises:
          ConfigError: no index, and the table is not shared.
        """
        del enable_dropout
        if not self.shared and "task_index" not in episode:
            raise ConfigError(f"task_index: expected the number of a task, got {sorted(episode)} alone")
        rows = {
            leaf.path: param(
                self,
                _name(leaf.path),
                nn.with_logical_partitioning(nn.initializers.normal(leaf.init_std), ("task", *leaf.axes)),
                (self.num_tasks, *leaf.shape),
            )
            for leaf in self.spec.leaves
        }
        index = jnp.zeros((), jnp.int32) if self.shared else jnp.asarray(episode["task_index"], jnp.int32)
        # JAX would clamp the index and train the last task's adapters on another task's examples.
        known = (index >= 0) & (index < self.num_tasks)
        raw = {path: jnp.where(known, jnp.asarray(row)[index], jnp.nan) for path, row in rows.items()}
        return self.spec.materialise(self.spec.unflatten(raw))
