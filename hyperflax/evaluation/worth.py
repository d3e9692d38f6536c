"""Was fine-tuning worth it? Scores of one task's held-out examples, before and after, with intervals over examples.

Here, unlike in a report over tasks, the example is what is resampled: the question is how this task's further examples
would be answered. Differences are taken example by example.

>>> compare({"bare": [0.0] * 4, "generated": [0, 1, 0, 0], "tuned": [1, 1, 0, 1]}, against="generated")["verdict"]
'within what 4 examples can show: +0.50 [-0.64, 0.93] over generated'
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hyperflax.evaluation.intervals import difference_of_examples, mean_of_examples

TUNED = "tuned"
FEWEST = 6  # examples whose scores differ: of fewer even a sign test, all one way, is no surprise (2 x 0.5^5 > 0.05)


def compare(scores: Mapping[str, Sequence[float]], against: str) -> dict[str, Any]:
    """Returns json: `scores`, each condition's mean with its interval; `gain` of `tuned` over every other; `verdict`.

    Args:
      scores: condition -> one score in 0..1 for every held-out example; `tuned` is one of them.
      against: the condition that the verdict is about: what there was without tuning.
    """
    tuned = scores[TUNED]
    gains = {name: difference_of_examples(tuned, values) for name, values in scores.items() if name != TUNED}
    gain = gains[against]
    differ = np.count_nonzero(np.asarray(tuned) != np.asarray(scores[against]))
    told = f"{gain.mean:+.2f} [{gain.low:.2f}, {gain.high:.2f}] over {against}"
    if not gain.excludes_zero or differ < FEWEST:
        verdict = f"within what {len(tuned)} examples can show: {told}"
    else:
        verdict = f"{'worth it' if gain.mean > 0 else 'worse than before'}: {told}"
    return {
        "scores": {name: dataclasses.asdict(mean_of_examples(values)) for name, values in scores.items()},
        "gain": {name: dataclasses.asdict(interval) for name, interval in gains.items()},
        "verdict": verdict,
    }


def table(comparison: Mapping[str, Any]) -> str:
    """Returns a row per condition: its mean, its interval, and the gain of tuning over it."""
    rows = [f"{'':<10} {'score':>6}  {'95% interval':<14} {'tuned is':>8}"]
    for name, score in comparison["scores"].items():
        gain = comparison["gain"].get(name)
        told = f"{gain['mean']:+.3f}" if gain else ""
        rows.append(f"{name:<10} {score['mean']:>6.3f}  [{score['low']:.3f}, {score['high']:.3f}] {told:>8}".rstrip())
    return "\n".join(rows)
