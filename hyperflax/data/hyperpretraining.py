"""Hyperpretraining on plain text: context-augmented conditional language modelling, CACLM (Phang et al. 2022,
HyperTuning).

A window of text is cut at three random points. The hypernetwork reads the outer pieces, and the base model, with the
adapters that it writes, predicts the third piece from the second:

    A | B | C | D        support: A eos D        inputs: B        targets: C

What is around B and C can only help if the hypernetwork puts it into the adapters. A window is an episode of its own
with one row of support and one scored example, in the arrays of `data.episodes`, so the step that trains on tasks
trains on text, too.

>>> from hyperflax.data.examples import InMemorySource
>>> from hyperflax.data.vocabularies import Bytes
>>> texts = InMemorySource.from_strings({"text": [("", "the quick brown fox jumps over the lazy dog")]}, Bytes())
>>> windows = CACLM(texts, batch_size=2, length=32, shortest=4, support_length=26, inputs_length=16, targets_length=8)
>>> windows.batch(0)["support_tokens"].shape, windows.batch(0)["decoder_target_tokens"].shape
((2, 1, 26), (2, 1, 8))
"""

from __future__ import annotations

import dataclasses

import numpy as np

from hyperflax.configs import check_sizes
from hyperflax.data.batches import decoder_features
from hyperflax.data.corruption import Windows
from hyperflax.data.draws import stream
from hyperflax.data.examples import ExampleSource
from hyperflax.data.vocabularies import EOS_ID

_PURPOSE = 0x6361636C6D  # keeps these draws apart from those of episodes and of plain text


@dataclasses.dataclass(frozen=True)
class CACLM:
    """Batches of cut windows, pure in (seed, step).

    The paper gives the window, 512 tokens, and the three cuts. The rest is ours: all cuts that leave each piece
    `shortest` tokens are equally likely; B keeps its end and C its start where they are longer than their rows, because
    the two meet there; C has no end of sequence, because it ends where a random cut fell.

    Attributes:
      source: one or many tasks whose targets are texts; inputs are ignored.
      batch_size: windows in a batch (the task axis).
      length: tokens of a window; shorter texts are taken whole.
      shortest: tokens of a piece, at least: fewer than a sentence's worth tell a hypernetwork nothing. Texts with fewer
        than four such pieces are left out.
      support_length: of the row `A eos D eos`; it must hold the longest.
      inputs_length, targets_length: of the rows `B eos` and `C`.
      seed: of all draws.

    Raises:
      ConfigError: lengths that leave no room. DataError: no text is long enough.
    """

    source: ExampleSource
    batch_size: int
    length: int = 512
    shortest: int = 16
    support_length: int = 512
    inputs_length: int = 256
    targets_length: int = 128
    seed: int = 0
    _windows: Windows = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_sizes(self, batch_size=1, length=4, shortest=1, inputs_length=2, targets_length=1)
        check_sizes(self, support_length=self.length - 2 * self.shortest + 2)
        object.__setattr__(self, "_windows", Windows(self.source, self.length, 4 * self.shortest))

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Returns the features of `data.episodes`, one support row and one scored example for each window.

        `task_index` is 0 throughout: windows are of no task.
        """
        support = np.zeros((self.batch_size, 1, self.support_length), np.int32)
        inputs = np.zeros((self.batch_size, 1, self.inputs_length), np.int32)
        targets = np.zeros((self.batch_size, 1, self.targets_length), np.int32)
        for row in range(self.batch_size):
            rng = stream(self.seed, _PURPOSE, step, row).generator()
            before, asked, answer, after = cut(self._windows.draw(rng), self.shortest, rng)
            for to, tokens in (
                (support, [*before, EOS_ID, *after, EOS_ID]),
                (inputs, [*asked[1 - self.inputs_length :], EOS_ID]),
                (targets, answer[: self.targets_length]),
            ):
                to[row, 0, : len(tokens)] = tokens
        return {
            "support_tokens": support,
            "task_index": np.zeros(self.batch_size, np.int32),
            "encoder_input_tokens": inputs,
            **decoder_features(targets),
        }


def cut(tokens: np.ndarray, shortest: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Cuts tokens [n] into four pieces of at least `shortest` each, all such cuts equally likely."""
    spare = len(tokens) - 4 * shortest
    # Three bars among `spare` stars: every way to share out what is left over the four pieces, once.
    bars = np.sort(rng.choice(spare + 3, size=3, replace=False))
    return np.split(tokens, bars - np.arange(3) + shortest * np.arange(1, 4))
