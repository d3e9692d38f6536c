"""Which training examples promise the least information, to leave them out of fine-tuning.

Information Gain Filtration (Antonello, Beskow, Turek and Huth 2021, section 3): the information gain of an example is
how much the loss on an objective set falls by one step on that example. It is measured for a sample of examples, and a
secondary learner predicts it for all from what is cheap to compute. Here the gain is taken to first order, the product
of the example's gradient and the objective set's, and the learner is a ridge regression on what one forward pass tells:
the example's loss and its lengths.

>>> kept = informative(trials, raw, data, held_out, share=0.75, seed=0)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hyperflax.training.trials import Trials
from hyperflax.types import Array, PyTree

SAMPLE = 32
"""Examples whose gain is measured, at most."""


def informative(
    trials: Trials, raw: PyTree, data: Mapping[str, Array], objective: Mapping[str, Array], *, share: float, seed: int
) -> np.ndarray:
    """Returns the numbers of the examples to keep, ascending: the `share` with the largest predicted gain.

    Args:
      trials: of the recipe that will train.
      raw: the start, without a run axis.
      data, objective: examples [n + 1, length], the last one padding; the gain is measured on `objective`.
      share: of the examples that are kept, above 0.
      seed: of the sample.
    """
    count = len(data["decoder_target_tokens"]) - 1
    if share >= 1.0:
        return np.arange(count)
    sample = np.random.default_rng(np.random.SeedSequence([0x696766, seed])).permutation(count)[:SAMPLE]
    losses, gains = (array.astype(np.float64) for array in trials.gains(raw, data, objective, sample))
    lengths = [np.count_nonzero(data[name], axis=1) for name in ("encoder_input_tokens", "decoder_target_tokens")]
    features = np.stack([losses, *lengths], axis=1)[:count].astype(np.float64)
    predicted = ridge(features[sample], gains, features)
    kept = max(1, round(share * count))
    return np.sort(np.argsort(-predicted, kind="stable")[:kept])


def ridge(features: np.ndarray, values: np.ndarray, queries: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """Returns the prediction of ridge regression on standardised features with an intercept.

    Args:
      features: [n, columns]. values: [n]. queries: [m, columns].
      strength: of the penalty on the standardised weights.
    """
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    x, q = (features - mean) / scale, (queries - mean) / scale
    weights = np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), x.T @ (values - values.mean()))
    return values.mean() + q @ weights
