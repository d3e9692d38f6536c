"""Expected improvement, and what it costs.

    EI(x) = (m - best - xi) Phi(z) + s phi(z),    z = (m - best - xi) / s        Jones, Schonlau and Welch 1998, eq. 15

for a score that is to be large, with mean m and standard deviation s; xi stands in both terms, so a larger one asks for
larger improvements and never makes the value negative. Quick-Tune (Arango et al. 2024, section 3) divides it by the
predicted cost of the trial.

>>> expected_improvement(np.array([0.5]), np.array([0.1]), best=0.5)
array([0.03989423])
"""

from __future__ import annotations

import math

import numpy as np

from hyperflax.errors import ConfigError


def expected_improvement(mean: np.ndarray, std: np.ndarray, best: float | np.ndarray, xi: float = 0.0) -> np.ndarray:
    """Returns the expected improvement over `best`, 0 or more.

    Args:
      mean, std: of the predicted score, [n]; a std of 0 stands for a score that is known.
      best: the score to improve on. xi: by how much at least.

    Raises:
      ConfigError: a negative std.
    """
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    if np.any(std < 0) or np.any(np.isnan(std)):
        raise ConfigError(f"expected_improvement: expected a std of 0 or more, got {std.min()}")
    gain = mean - best - xi
    z = np.clip(gain / np.where(std > 0, std, 1.0), -40.0, 40.0)  # beyond, both terms are what they are at the bound
    density = np.exp(-0.5 * np.square(z)) / math.sqrt(2.0 * math.pi)
    below = 0.5 * _erfc(-z / math.sqrt(2.0))  # 1 + erf would lose all digits where little is promised
    return np.where(std > 0, np.maximum(gain * below + std * density, 0.0), np.maximum(gain, 0.0))


def per_second(improvement: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Returns improvement per predicted second. Raises ConfigError where seconds are not positive."""
    if np.any(~(np.asarray(seconds) > 0)):
        raise ConfigError(f"per_second: expected positive seconds, got {np.min(seconds)}")
    return np.asarray(improvement, np.float64) / np.asarray(seconds, np.float64)


_erfc = np.vectorize(math.erfc, otypes=[np.float64])
