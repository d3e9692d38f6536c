"""Sizes to which batches are padded, so that few programs are compiled for many sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from hyperflax.types import Array


def rounded_up(count: int) -> int:
    """Returns the next number of 1, 2, 3, 4, 6, 8, 12, 16 ...: at most half as many again.

    >>> rounded_up(33)
    48
    """
    power = 1 << max(count - 1, 0).bit_length()
    return 3 * power // 4 if power >= 4 and count <= 3 * power // 4 else power


def trim(tokens: np.ndarray, least: int = 32) -> np.ndarray:
    """Cuts trailing columns that are padding in every row, down to one of few lengths, at least `least`.

    >>> trim(np.array([[5, 0, 0, 0], [5, 6, 0, 0]]), least=1).tolist()
    [[5, 0], [5, 6]]
    """
    used = int(np.flatnonzero(tokens.reshape(-1, tokens.shape[-1]).any(axis=0)).max(initial=0)) + 1
    return tokens[..., : rounded_up(max(used, least))]


def trim_examples(examples: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`trim` of the inputs of some examples and, to at least 8, of all that belongs to their targets.

    Args:
      examples: encoder_input_tokens, decoder_target_tokens and other decoder_*, [..., length] each.
    """
    length = trim(examples["decoder_target_tokens"], least=8).shape[-1]
    return {
        name: trim(array) if name == "encoder_input_tokens" else array[..., :length] for name, array in examples.items()
    }


def blocks(data: Mapping[str, Array | np.ndarray], most: int, axis: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Yields the rows of arrays, whose last one is padding, in blocks of one size, at most `most`.

    What a block is short of is padding. A single block has one of few sizes, so that data sets of other sizes share
    what is compiled.

    >>> [part["x"].tolist() for part in blocks({"x": np.array([1, 2, 3, 0])}, most=2)]
    [[1, 2], [3, 0]]
    """
    rows = next(iter(data.values())).shape[axis] - 1
    size = min(rounded_up(rows), most)
    for at in range(0, rows, size):
        chosen = np.minimum(np.arange(at, at + size), rows)
        yield {name: np.take(np.asarray(array), chosen, axis) for name, array in data.items()}
