"""The shuffled-support control.

A generated adapter may help because it fits its task or merely because it makes the model answer at all: random strings
gave good adapters in Text-to-LoRA (Charakorn et al. 2025). The control tells the two apart: each evaluated task gets
the adapter generated from another evaluated task's support. What that gains over the bare model is no adaptation.

>>> shuffled_support(["a", "b"])
{'a': 'b', 'b': 'a'}
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hyperflax.errors import DataError


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
