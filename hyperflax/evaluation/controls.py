"""Controls and baselines that need other tasks: the shuffled support and the nearest train task.

A generated adapter may help because it fits its task or merely because it makes the model answer at all: random strings
gave good adapters in Text-to-LoRA (Charakorn et al. 2025). The control tells the two apart: each evaluated task gets
the adapter generated from another evaluated task's support. What that gains over the bare model is no adaptation.

>>> shuffled_support(["a", "b"])
{'a': 'b', 'b': 'a'}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from hyperflax.errors import ConfigError, DataError

Adapter = TypeVar("Adapter")


def derangement(n: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """A permutation of 0..n-1 without a fixed point, drawn uniformly from all of them.

    Permutations are drawn until one has no fixed point: about one in e does, whatever n is.

    Raises:
      DataError: fewer than two tasks, of which there is no derangement.
    """
    if n < 2:
        raise DataError(f"shuffled_support: expected at least 2 evaluated tasks to swap supports between, got {n}")
    rng = np.random.default_rng(seed)
    positions = np.arange(n)
    while True:
        permutation = rng.permutation(n)
        if not np.any(permutation == positions):
            return permutation


def shuffled_support(tasks: Sequence[str], seed: int = 0) -> dict[str, str]:
    """Whose support each evaluated task gets in the control: `{task: another task}`, every task once on either side.

    Raises:
      DataError: fewer than two tasks, or a name given twice (it could receive its own support).
    """
    names = list(tasks)
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"shuffled_support: task '{twice}' is listed more than once")
    return {name: names[donor] for name, donor in zip(names, derangement(len(names), seed), strict=True)}


@dataclasses.dataclass(frozen=True)
class NearestTask:
    """The train task whose adapter fits the support best, its loss, and the losses of all candidates."""

    name: str
    loss: float
    losses: dict[str, float]


def nearest_task(
    candidates: Mapping[str, Adapter],
    support: Any,
    loss: Callable[[list[Adapter], Any], npt.ArrayLike],
    *,
    batch_size: int = 16,
    exclude: Collection[str] = (),
) -> NearestTask:
    """The baseline that retrieves instead of generating: of the stored adapters, the one with the lowest support loss.

    Args:
      candidates: the stored adapter (or whatever `loss` takes) of each train task.
      support: the evaluated task's support, handed through to `loss`.
      loss: `(adapters, support) -> [len(adapters)]`, the mean loss of the support's targets under each adapter.
      batch_size: how many adapters `loss` gets at once; the last batch may be smaller.
      exclude: tasks that must not be chosen, such as the evaluated ones.

    Returns:
      The best candidate; of equally good ones the first by name.

    Raises:
      DataError: no candidate is left, or `loss` gave a wrong number of values or a NaN.

    >>> nearest_task({"upper": 1.0, "lower": 4.0}, 3.0, lambda adapters, x: [abs(a - x) for a in adapters]).name
    'lower'
    """
    if batch_size < 1:
        raise ConfigError(f"nearest_task: batch_size: expected at least 1, got {batch_size}")
    names = sorted(set(candidates) - set(exclude))
    if not names:
        raise DataError(f"nearest_task: none of {len(candidates)} candidates is left after excluding {len(exclude)}")
    losses: dict[str, float] = {}
    for start in range(0, len(names), batch_size):
        batch = names[start : start + batch_size]
        values = np.asarray(loss([candidates[name] for name in batch], support), dtype=np.float64)
        if values.shape != (len(batch),):
            raise DataError(f"nearest_task: loss: expected shape ({len(batch)},), got {values.shape}")
        losses.update(zip(batch, values.tolist(), strict=True))
    for name, value in losses.items():
        if np.isnan(value):
            raise DataError(f"nearest_task: the loss of candidate '{name}' is NaN")
    best = min(names, key=losses.__getitem__)
    return NearestTask(best, losses[best], losses)
