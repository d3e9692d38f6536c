"""A curriculum: batches of one source after another.

>>> batches = Curriculum([easy, hard], boundaries=[3000])    # steps 0 .. 2999 are easy's, the rest hard's
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from hyperflax.data.batches import Batches
from hyperflax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """Batches of several stages; pure in the step as theirs are. Stages may differ in the shapes of their batches.

    Attributes:
      stages: what has `.batch(step)`, in order; each is asked for the run's step, not counted from its own start.
      boundaries: first step of every stage but the first, ascending.
    """

    stages: Sequence[Batches]
    boundaries: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        object.__setattr__(self, "boundaries", tuple(self.boundaries))
        ascending = all(a < b for a, b in pairwise((0, *self.boundaries)))
        if len(self.stages) != len(self.boundaries) + 1 or not ascending:
            raise ConfigError(
                f"Curriculum: expected {len(self.stages) - 1} ascending boundaries above 0 for {len(self.stages)} "
                f"stages, got {self.boundaries}"
            )

    def batch(self, step: int) -> Mapping[str, np.ndarray]:
        """Returns the batch of the stage that `step` is in."""
        return self.stages[bisect_right(self.boundaries, step)].batch(step)
