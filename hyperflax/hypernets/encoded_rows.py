"""Rows of supports, each encoded once.

A hypernetwork's encoder reads every row of a support alone, so what it makes of a row depends on that row only. Whoever
adds an example to those that an adapter was made from, or leaves one out after the other to see how good adapters get,
shows the same rows again. Long supports are read in parts of bounded size.

What is computed for a row depends, in its last bits, on how many others were encoded with it. Two processes that read
the same supports in the same order agree bit for bit, two that read them in another order agree but for rounding.

>>> encoded = EncodedRows(lambda rows: encode(params, rows))
>>> encoded(support_tokens)     # int32 [..., length] -> [..., length, emb]
"""

from __future__ import annotations

import collections
import hashlib
import threading
from collections.abc import Callable

import numpy as np

from hyperflax.padding import rounded_up
from hyperflax.types import Array

KEEP = 64 << 20
"""Bytes of encoded rows that are kept, in host memory; the ones used longest ago give way."""
AT_ONCE = 1 << 15
"""Tokens that are encoded at once, but one row."""


class EncodedRows:
    """See the module. Threads may share one.

    Args:
      encode: int32 [rows, length] -> [rows, length, emb], each row alone. It is called with few numbers of rows.
      keep: bytes, see `KEEP`. at_once: tokens, see `AT_ONCE`.
    """

    def __init__(self, encode: Callable[[np.ndarray], Array], *, keep: int = KEEP, at_once: int = AT_ONCE):
        self._encode, self._keep, self._at_once = encode, keep, at_once
        self._kept: collections.OrderedDict[bytes, np.ndarray] = collections.OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        """Returns [..., length, emb] for int32 [..., length]."""
        tokens = np.ascontiguousarray(tokens, np.int32)
        flat = tokens.reshape(-1, tokens.shape[-1])
        keys = [_key(row) for row in flat]
        rows = dict(zip(keys, flat, strict=True))
        with self._lock:
            found = {key: self._kept[key] for key in rows if key in self._kept}
        missing = [key for key in rows if key not in found]
        size = max(1, self._at_once // tokens.shape[-1])
        for start in range(0, len(missing), size):
            part = missing[start : start + size]
            padded = np.zeros((min(rounded_up(len(part)), size), tokens.shape[-1]), np.int32)
            padded[: len(part)] = [rows[key] for key in part]
            made = np.asarray(self._encode(padded))
            found.update((key, row.copy()) for key, row in zip(part, made[: len(part)], strict=True))
        self._remember(found)
        out = np.stack([found[key] for key in keys])
        return out.reshape(*tokens.shape, out.shape[-1])

    def _remember(self, rows: dict[bytes, np.ndarray]) -> None:
        with self._lock:
            for key, row in rows.items():
                if self._kept.pop(key, None) is None:
                    self._bytes += row.nbytes
                self._kept[key] = row
            while self._bytes > self._keep:
                _, row = self._kept.popitem(last=False)
                self._bytes -= row.nbytes


def _key(row: np.ndarray) -> bytes:
    """A hash of the content; rows of other lengths have other contents."""
    return hashlib.blake2b(row.tobytes(), digest_size=16).digest()
