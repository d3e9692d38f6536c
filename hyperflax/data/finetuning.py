"""One task's own examples as batches for fine-tuning: held out by a draw, shuffled anew in every epoch.

Everything follows from (examples, seed): which are held out, and the batch of every step.

    encoder_input_tokens [parts, ceil(batch / parts), length], decoder_* alike, task_index [parts], all 0

The step takes the parts for tasks with one adapter, so that as microbatches they can be worked through one by one.

>>> train, held_out = hold_out(lines, share=0.2, seed=0)
>>> PairBatches.of(train, config, vocabulary, batch_size=16, seed=0).batch(3)["task_index"].tolist()
[0]
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from hyperflax.data.batches import text_batch
from hyperflax.data.draws import stream
from hyperflax.data.episode_config import EpisodeConfig
from hyperflax.data.examples import tokenise
from hyperflax.data.jsonl import Line
from hyperflax.data.vocabularies import Vocabulary
from hyperflax.errors import DataError
from hyperflax.padding import trim_examples

FEWEST = 8
_HELD_OUT, _EPOCHS = 0x686F6C64, 0x65706F63  # purposes of the random streams


def hold_out(lines: Sequence[Line], share: float, seed: int) -> tuple[list[Line], list[Line]]:
    """Returns (training examples, held-out ones), each in the order of the file; at least two are held out.

    Raises:
      DataError: fewer than `FEWEST` examples.
    """
    if len(lines) < FEWEST:
        raise DataError(
            f"examples: expected at least {FEWEST}, of which a part is held out, got {len(lines)}; give more, or "
            "held-out ones in a file of their own (--validation)"
        )
    count = min(max(2, round(share * len(lines))), len(lines) - 2)
    chosen = set(stream(seed, _HELD_OUT, 0).distinct(len(lines), count))
    parts: tuple[list[Line], list[Line]] = ([], [])
    for number, line in enumerate(lines):
        parts[number in chosen].append(line)
    return parts


@dataclasses.dataclass(frozen=True, eq=False)
class PairBatches:
    """Batches of one task, pure in their step.

    Attributes:
      arrays: every example's row, [n, length] each; one more row of padding with weight 0 at the end.
      batch_size: rows of a batch.
      seed: of the shuffles; None keeps the order, for evaluation.
      parts: into which a batch is cut, filled up with padding to a multiple of them.
    """

    arrays: Mapping[str, np.ndarray]
    batch_size: int
    seed: int | None
    parts: int = 1

    @classmethod
    def of(
        cls, lines: Sequence[Line], config: EpisodeConfig, vocabulary: Vocabulary, *, batch_size: int, seed: int | None
    ) -> PairBatches:
        """Tokenises the examples; columns in which all is padding are left out, down to one of few lengths.

        Raises:
          DataError: an input or target that is too long, with file and line.
        """
        arrays = text_batch(
            [(tokenise(line.input, vocabulary), tokenise(line.target, vocabulary)) for line in lines],
            inputs_length=config.inputs_length,
            targets_length=config.targets_length,
            batch_size=len(lines) + 1,
            names=[line.at for line in lines],
        )
        trimmed = {name: array.copy() for name, array in trim_examples(arrays).items()}  # views would keep what is cut
        return cls(trimmed, min(batch_size, len(lines)), seed)

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(self.arrays["encoder_input_tokens"]) - 1

    @property
    def per_epoch(self) -> int:
        """Number of batches in which every example is seen once."""
        return math.ceil(self.size / self.batch_size)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The batch of a step; the last one of an epoch is filled up with padding."""
        epoch, number = divmod(step, self.per_epoch)
        order = range(self.size) if self.seed is None else _shuffled(self.size, self.seed, epoch)
        rows = list(order[number * self.batch_size :][: self.batch_size])
        rows += [self.size] * (self.parts * math.ceil(self.batch_size / self.parts) - len(rows))
        batch = {name: array[rows].reshape(self.parts, -1, array.shape[-1]) for name, array in self.arrays.items()}
        return {**batch, "task_index": np.zeros(self.parts, np.int32)}


@functools.lru_cache(maxsize=2)  # of many examples it takes longer than a batch of them
def _shuffled(size: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The order of an epoch."""
    return tuple(stream(seed, _EPOCHS, epoch).distinct(size, size))
