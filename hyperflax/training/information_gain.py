"""Which training examples promise the least information, to leave them out of fine-tuning.

Information Gain Filtration (Antonello, Beskow, Turek and Huth 2021, section 3): the information gain of an example is
how much the loss on an objective set falls by one step on that example. There it is measured for some examples, one
step each, and a secondary learner predicts it for the others. Here it is predicted for all of them to first order, as
the product of the example's gradient and the objective set's, which one pass gives for many examples at once
(`Trials.gains`).

>>> kept = informative(trials, raw, data, held_out, share=0.75)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hyperflax.training.trials import Trials
from hyperflax.types import Array, PyTree


def informative(
    trials: Trials, raw: PyTree, data: Mapping[str, Array], objective: Mapping[str, Array], *, share: float
) -> np.ndarray:
    """Returns the numbers of the examples to keep, ascending: the `share` with the largest predicted gain.

    Args:
      trials: of the recipe that will train.
      raw: the start, without a run axis.
      data, objective: examples [n + 1, length], the last one padding; the gain is predicted on `objective`.
      share: of the examples that are kept, above 0.
    """
    count = len(data["decoder_target_tokens"]) - 1
    if share >= 1.0:
        return np.arange(count)
    gains = trials.gains(raw, data, objective)
    return np.sort(np.argsort(-gains, kind="stable")[: num_kept(count, share)])


def num_kept(examples: int, share: float) -> int:
    """Returns how many of so many examples `informative` keeps."""
    return max(1, round(share * examples))
