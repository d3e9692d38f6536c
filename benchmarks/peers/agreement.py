"""Do the sides compute the same? Two that do not cannot be compared.

Entries that differ in their side alone are compared by what their first calls gave: losses of two training steps, the
second of which has seen the optimizer, and decoded tokens. Sums are taken in other orders by other libraries, so losses
differ in their last digits, and where two tokens are nearly as likely, a row may go on with another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.peers.case import Entry
from hyperflax.errors import HyperflaxError

LOSS_DIFFERENCE = 1e-3  # relative
TOKENS_EQUAL = 0.75


def agreement(entries: Mapping[str, Entry], made: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Compares every entry with the first one that does the same work.

    Args:
      entries: by name.
      made: what each one's first calls gave: two losses, tokens [row, length], or None.

    Returns:
      `{"entries": [first, other], "losses": [before, after], "loss_difference": x}`, relative, or `{"entries": ...,
      "tokens_equal": share}`.

    Raises:
      HyperflaxError: two differ by more than rounding explains.
    """
    found, first = [], {}
    for name, entry in entries.items():
        if made[name] is None:
            continue
        like = first.setdefault(entry.on("hyperflax"), name)
        if like == name or entries[like].side == entry.side:
            continue
        pair: dict[str, Any] = {"entries": [like, name]}
        ours, theirs = np.asarray(made[like]), np.asarray(made[name])
        if ours.shape != theirs.shape:
            raise HyperflaxError(f"{name}: expected a result of shape {ours.shape} as {like}, got {theirs.shape}")
        if entry.program.startswith("train"):
            pair["losses"] = ours.tolist()
            pair["loss_difference"] = float(f"{np.max(np.abs(theirs - ours) / np.abs(ours)):.2g}")
            same = pair["loss_difference"] <= LOSS_DIFFERENCE
        else:
            pair["tokens_equal"] = float(np.mean(ours == theirs))
            same = pair["tokens_equal"] >= TOKENS_EQUAL
        if not same:
            raise HyperflaxError(f"{name} does not compute what {like} does: {pair}; {theirs!r} and {ours!r}")
        found.append(pair)
    return found


def in_words(pair: Mapping[str, Any]) -> str:
    """Returns one entry of what `agreement` returns as a sentence."""
    first, other = pair["entries"]
    if "loss_difference" in pair:
        return f"{first} and {other}: losses differ by {pair['loss_difference']:.0e}."
    return f"{first} and {other}: {pair['tokens_equal']:.1%} of the tokens are equal."
