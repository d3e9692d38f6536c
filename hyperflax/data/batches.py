"""Model features from token lists: padded and packed batches, as numpy dicts.

Shapes and names are T5X's: `encoder_input_tokens`, `decoder_input_tokens` (targets shifted right, 0 in front),
`decoder_target_tokens` (int32) and `decoder_loss_weights` (float32, 1 on real targets), all `[batch, length]`. Packed
batches add `encoder_segment_ids`, `encoder_positions`, `decoder_segment_ids`, `decoder_positions`: segments count from
1 in every row, positions from 0 in every segment.

>>> text_batch([([5, 6], [7])], inputs_length=4, targets_length=3)["decoder_target_tokens"].tolist()
[[7, 1, 0]]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from hyperflax.data.vocabularies import EOS_ID, PAD_ID
from hyperflax.errors import DataError

Tokens = Sequence[int] | np.ndarray
Pair = tuple[Tokens, Tokens]


class Batches(Protocol):
    """Whatever has batches by step; `Episodes`, `PackedBatches` and `PaddedBatches` do.

    What batches are made of is found in their attributes `source`, `sources`, `stages`, `batches` and `pairs`, those of
    them that are there: an `ExampleSource`, something that has such attributes itself, or a list of them. A training
    job compares these sources' vocabulary and tasks with the model's, and records their tasks in the model, whose
    evaluations then find what it was trained on. Of batches, or parts of them, without any nothing is compared, and
    the model records that not all of its training is known.

    >>> class MyBatches:
    ...     def __init__(self, source):
    ...         self.source = source    # not `_source`, which nobody finds
    ...
    ...     def batch(self, step):
    ...         return text_batch(self.source.examples(0, [step]), inputs_length=64, targets_length=32)
    """

    def batch(self, step: int) -> Mapping[str, np.ndarray]:
        """The batch of a step, pure in the source's own seed and the step, so that a step number is a position."""


def shift_right(targets: np.ndarray, segment_ids: np.ndarray | None = None) -> np.ndarray:
    """Decoder inputs of the targets `[..., length]`: one to the right, 0 first; 0 at the start of every segment."""
    shifted = np.zeros_like(targets)
    shifted[..., 1:] = targets[..., :-1]
    if segment_ids is not None:
        starts = segment_ids[..., 1:] != segment_ids[..., :-1]
        shifted[..., 1:][starts] = 0
    return shifted


def decoder_features(targets: np.ndarray, segment_ids: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """`decoder_input_tokens`, `decoder_target_tokens` and `decoder_loss_weights` of int32 targets `[..., length]`."""
    return {
        "decoder_input_tokens": shift_right(targets, segment_ids),
        "decoder_target_tokens": targets,
        "decoder_loss_weights": (targets != PAD_ID).astype(np.float32),
    }


def text_batch(
    pairs: Sequence[Pair],
    *,
    inputs_length: int,
    targets_length: int,
    batch_size: int | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """One padded row for each (inputs, targets) pair.

    Args:
      pairs: token ids without end of sequence.
      inputs_length, targets_length: tokens of a row, end of sequence included.
      batch_size: rows; rows behind the last pair are padding with weight 0. By default `len(pairs)`.
      names: what to call the pairs in an error.

    Raises:
      DataError: a pair longer than its row (nothing is truncated), or more pairs than rows.
    """
    rows = len(pairs) if batch_size is None else batch_size
    if len(pairs) > rows:
        raise DataError(f"expected at most {rows} examples for a batch of {rows} rows, got {len(pairs)}")
    inputs = np.zeros((rows, inputs_length), np.int32)
    targets = np.zeros((rows, targets_length), np.int32)
    for row, (source, target) in enumerate(pairs):
        name = names[row] if names else f"example {row}"
        _fill(inputs[row], source, f"{name}: inputs")
        _fill(targets[row], target, f"{name}: targets")
    return {"encoder_input_tokens": inputs, **decoder_features(targets)}


def _fill(row: np.ndarray, tokens: Tokens, name: str) -> None:
    length = len(tokens)
    if length >= len(row):
        raise DataError(f"{name}: expected at most {len(row)} tokens, end of sequence included, got {length + 1}")
    row[:length] = tokens
    row[length] = EOS_ID


class Packer:
    """Packs whole (inputs, targets) pairs into rows, several segments a row, first row that has room.

    Raises (from `add`):
      DataError: a pair that fits no empty row.
    """

    def __init__(self, *, batch_size: int, inputs_length: int, targets_length: int):
        self._lengths = (inputs_length, targets_length)
        self._tokens = tuple(np.zeros((batch_size, length), np.int32) for length in self._lengths)
        self._segments = tuple(np.zeros_like(tokens) for tokens in self._tokens)
        self._positions = tuple(np.zeros_like(tokens) for tokens in self._tokens)
        self._used = np.zeros((2, batch_size), np.int64)
        self._count = np.zeros(batch_size, np.int64)

    def add(self, inputs: Tokens, targets: Tokens, name: str = "example") -> bool:
        """Puts the pair into the first row with room; False if there is none left."""
        sizes = (len(inputs) + 1, len(targets) + 1)
        for size, length, what in zip(sizes, self._lengths, ("inputs", "targets"), strict=True):
            if size > length:
                raise DataError(
                    f"{name}: {what}: expected at most {length} tokens, end of sequence included, got {size}"
                )
        room = (self._used[0] + sizes[0] <= self._lengths[0]) & (self._used[1] + sizes[1] <= self._lengths[1])
        row = int(room.argmax())
        if not room[row]:
            return False
        self._count[row] += 1
        for side, tokens in enumerate((inputs, targets)):
            start, stop = int(self._used[side, row]), int(self._used[side, row]) + sizes[side]
            self._tokens[side][row, start : start + len(tokens)] = tokens
            self._tokens[side][row, stop - 1] = EOS_ID
            self._segments[side][row, start:stop] = self._count[row]
            self._positions[side][row, start:stop] = np.arange(sizes[side])
            self._used[side, row] = stop
        return True

    def batch(self) -> dict[str, np.ndarray]:
        """The packed features, `[batch, length]` each."""
        return {
            "encoder_input_tokens": self._tokens[0],
            "encoder_segment_ids": self._segments[0],
            "encoder_positions": self._positions[0],
            **decoder_features(self._tokens[1], self._segments[1]),
            "decoder_segment_ids": self._segments[1],
            "decoder_positions": self._positions[1],
        }
