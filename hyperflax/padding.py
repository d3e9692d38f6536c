"""Sizes to which batches are padded, so that few programs are compiled for many sizes."""

from __future__ import annotations


def rounded_up(count: int) -> int:
    """Returns the next number of 1, 2, 3, 4, 6, 8, 12, 16 ...: at most half as many again.

    >>> rounded_up(33)
    48
    """
    power = 1 << max(count - 1, 0).bit_length()
    return 3 * power // 4 if power >= 4 and count <= 3 * power // 4 else power
