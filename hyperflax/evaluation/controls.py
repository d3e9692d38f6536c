"""The shuffled-support control.

A generated adapter may help because it fits its task or merely because it makes the model answer at all: random strings
gave good adapters in Text-to-LoRA (Charakorn et al. 2025). The control tells the two apart: each evaluated task gets
the adapter generated from another evaluated task's support. What that gains over the bare model is no adaptation.

>>> shuffled_support(["a", "b"])
{'a': 'b', 'b': 'a'}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from hyperflax.errors import DataError


def derangement(n: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """A permutation of 0..n-1 without a fixed point, drawn uniformly from all of them.

    Permutations are drawn until one has no fixed point: about one in e does, whatever n is. The seed is any integer,
    taken modulo 2**64 as that of every draw of examples is.

    Raises:
      DataError: fewer than two tasks, of which there is no derangement.
    """
    if n < 2:
        raise DataError(f"shuffled_support: expected at least 2 evaluated tasks to swap supports between, got {n}")
    rng = np.random.default_rng(seed % 2**64)
    positions = np.arange(n)
    while True:
        permutation = rng.permutation(n)
        if not np.any(permutation == positions):
            return permutation


def shuffled_support(tasks: Sequence[str], seed: int = 0, groups: Mapping[str, str] | None = None) -> dict[str, str]:
    """Whose support each evaluated task gets in the control: `{task: another task}`.

    Args:
      tasks: unique names.
      seed: of the derangement.
      groups: each task's group; the donor is then a task of another group, the same one for all of a group, whose tasks
        give in turn. Without groups every task gives once.

    Raises:
      DataError: fewer than two tasks (or groups), or a name given twice (it could receive its own support).
    """
    names = list(tasks)
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"shuffled_support: task '{twice}' is listed more than once")
    members: dict[str, list[str]] = {}
    for name in names:
        members.setdefault(groups[name] if groups else name, []).append(name)
    lists = list(members.values())
    donors = {}
    for receivers, donor in zip(lists, derangement(len(lists), seed), strict=True):
        givers = lists[donor]
        donors.update({name: givers[i % len(givers)] for i, name in enumerate(receivers)})
    return {name: donors[name] for name in names}
