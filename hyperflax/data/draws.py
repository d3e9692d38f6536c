"""Counter-based random draws: what is drawn depends on (seed, step, row) alone, never on who draws it or in what order.

The bits come from Philox (Salmon et al. 2011) through `random_raw`, whose stream numpy promises to keep, so a run
resumed under another numpy version, or spread over another number of hosts, sees the same data.

>>> first, again = stream(seed=0, purpose=1, step=5, row=2), stream(seed=0, purpose=1, step=5, row=2)
>>> first.distinct(100, 3) == again.distinct(100, 3)
True
"""

from __future__ import annotations

import numpy as np

_MASK = (1 << 64) - 1


class Draws:
    """A stream of draws over one Philox counter range."""

    def __init__(self, bits: np.random.Philox):
        self._bits = bits

    def integer(self, low: int, high: int) -> int:
        """A uniform integer in [low, high]. The bias of the modulo is below (high - low) / 2**64."""
        return low + int(self._bits.random_raw()) % (high - low + 1)

    def uniform(self) -> float:
        """A uniform float64 in [0, 1)."""
        return (int(self._bits.random_raw()) >> 11) * 2.0**-53

    def distinct(self, n: int, count: int) -> list[int]:
        """`count` distinct integers of range(n) in random order: the head of a Fisher-Yates shuffle."""
        if count > n:
            raise ValueError(f"cannot draw {count} distinct integers out of {n}")
        if count == 0:
            return []
        words = self._bits.random_raw(count).tolist()
        moved: dict[int, int] = {}
        drawn = []
        for i, word in enumerate(words):
            j = i + word % (n - i)
            drawn.append(moved.get(j, j))
            moved[j] = moved.get(i, i)
        return drawn

    def generator(self) -> np.random.Generator:
        """A numpy generator that goes on from here, for callers who want its distributions."""
        return np.random.Generator(self._bits)


def stream(seed: int, purpose: int, step: int, row: int = 0) -> Draws:
    """The draws of one row of one step.

    Args:
      seed: any integer; taken modulo 2**64.
      purpose: keeps streams of one seed apart (training episodes, evaluation episodes, plain batches ...).
      step, row: non-negative; each pair has 2**64 blocks of its own.
    """
    key = np.array([seed & _MASK, purpose & _MASK], dtype=np.uint64)
    counter = np.array([0, 0, row & _MASK, step & _MASK], dtype=np.uint64)
    return Draws(np.random.Philox(key=key, counter=counter))
