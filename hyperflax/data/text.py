"""Plain T5 batches for pretraining and fine-tuning a base model: streams of (inputs, targets) pairs, packed or padded.

A stream has `batch(step)`, pure in (seed, step): resuming a run needs the step number and nothing else.

>>> def pairs(rng):
...     n = int(rng.integers(1, 5))
...     return [([3] * n, [4] * n)]
>>> PackedBatches(pairs, batch_size=2, inputs_length=16, targets_length=16, seed=0).batch(0)["encoder_positions"].shape
(2, 16)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from hyperflax.configs import check_sizes
from hyperflax.data.batches import Packer, Pair, text_batch
from hyperflax.data.draws import stream
from hyperflax.errors import DataError

_PURPOSE = 0x7465787430  # keeps these draws apart from those of the episodes
_MOST_CALLS = 100_000

PairSource = Callable[[np.random.Generator], Sequence[Pair]]


@dataclasses.dataclass(frozen=True)
class PackedBatches:
    """Packed batches of whatever a function of a random generator yields.

    Attributes:
      pairs: `(rng) -> [(inputs, targets), ...]`, token ids without end of sequence; called again and again, with one
        generator, until the batch is full. It must depend on the generator alone.
      batch_size: rows of a batch. inputs_length, targets_length: tokens of a row.
      seed: of the generator, with the step.
      misses: the batch is full when so many pairs in all found no room. Those are not used, and they are the longer
        ones: batches hold fewer long pairs than were drawn. With 8 rows of 768 tokens and pairs of 300 on average, of
        which 15% have more than 500, 13% of a batch's pairs do, and 14% with `misses` of 1, which fills 90% of the
        rows and not 95%.

    Raises:
      ConfigError: a size that is no whole number of 1 or more.
    """

    pairs: PairSource
    batch_size: int
    inputs_length: int
    targets_length: int
    seed: int = 0
    misses: int = 8

    def __post_init__(self) -> None:
        check_sizes(self, batch_size=1, inputs_length=1, targets_length=1, misses=1)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The features of `hyperflax.data.batches.Packer`, `[batch_size, length]` each."""
        rng = stream(self.seed, _PURPOSE, step).generator()
        packer = Packer(
            batch_size=self.batch_size, inputs_length=self.inputs_length, targets_length=self.targets_length
        )
        missed = 0
        for call in range(_MOST_CALLS):
            for number, (inputs, targets) in enumerate(self.pairs(rng)):
                missed += not packer.add(inputs, targets, f"step {step}, call {call}, pair {number}")
                if missed >= self.misses:
                    return packer.batch()
        raise DataError(f"{self.pairs}: expected pairs that fill a batch, {_MOST_CALLS} calls did not")


@dataclasses.dataclass(frozen=True)
class PaddedBatches:
    """One pair a row, padded; otherwise as `PackedBatches`."""

    pairs: PairSource
    batch_size: int
    inputs_length: int
    targets_length: int
    seed: int = 0

    def __post_init__(self) -> None:
        check_sizes(self, batch_size=1, inputs_length=1, targets_length=1)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The features of `hyperflax.data.batches.text_batch`, `[batch_size, length]` each."""
        rng = stream(self.seed, _PURPOSE, step).generator()
        rows: list[Pair] = []
        for _ in range(_MOST_CALLS):
            rows.extend(self.pairs(rng))
            if len(rows) >= self.batch_size:
                return text_batch(
                    rows[: self.batch_size], inputs_length=self.inputs_length, targets_length=self.targets_length
                )
        raise DataError(f"{self.pairs}: expected pairs that fill a batch, {_MOST_CALLS} calls did not")
