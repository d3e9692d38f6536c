"""What a generator writes: how large its adapters are, of how many directions, and how far apart.

No score shows why a hypernetwork fails. Norms that grow without bound, ranks that fall to 1, adapters that are the same
for every task or that change with every support of one task are seen here first. All figures are pairs (sum, weight)
over tasks.

>>> metrics = adapter_metrics(adapters, spec)    # leaves [task, ...]
>>> {name: float(total / weight) for name, (total, weight) in metrics.items()}
{'norm/encoder_0': 1.7, ..., 'effective_rank/encoder_0': 5.2, ..., 'between_task_distance': 0.003}
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from hyperflax.adapters.diagnostics import diagnostics
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.objectives.consistency import between_tasks, distance
from hyperflax.objectives.protocol import Metrics
from hyperflax.types import PyTree


def adapter_metrics(adapters: PyTree, spec: AdapterSpec, others: PyTree | None = None) -> Metrics:
    """Returns the figures of several tasks' adapters.

    Args:
      adapters: leaves [task, ...].
      spec: which they fit.
      others: adapters from other supports of the same tasks, leaves [task, support, ...].

    Returns:
      `norm/LAYER` and `effective_rank/LAYER` of every layer, `encoder_0` ... (see `adapters.diagnostics`);
      `between_task_distance`, of each task and the next, if there are two or more; `within_task_distance` with
      `others` (see `objectives.consistency`).

    Raises:
      AdapterError: the trees do not fit the spec.
    """
    tasks = jax.tree.leaves(adapters)[0].shape[0]
    weight = jnp.float32(tasks)
    layers = jax.vmap(lambda adapter: diagnostics(adapter, spec))(adapters)
    metrics: Metrics = {}
    for name in ("norm", "effective_rank"):
        metrics |= {f"{name}/{layer}": (jnp.sum(getattr(found, name)), weight) for layer, found in layers.items()}
    if tasks > 1:
        metrics["between_task_distance"] = (between_tasks(adapters) * weight, weight)
    if others is not None:
        metrics["within_task_distance"] = (jnp.sum(jax.vmap(distance)(adapters, others)), weight)
    return metrics
