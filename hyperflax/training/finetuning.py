"""How one adapter is fine-tuned: the settings, the optimizer that they make, and the objective.

>>> FineTuning(steps=200, learning_rate=3e-4).optimizer((LoRA(rank=8),))
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from hyperflax.adapters.kind_config import KindConfig
from hyperflax.configs import check_sizes
from hyperflax.errors import ConfigError
from hyperflax.evaluation.metrics import example_metric
from hyperflax.objectives.episode import HypermodelObjective
from hyperflax.training.optimizers import Optimizer, make_optimizer
from hyperflax.training.schedules import warmup_cosine
from hyperflax.types import PyTree

# Usual peak learning rates under AdamW, and the kinds that want another; of several kinds the lowest is taken.
LEARNING_RATE = 1e-3
LEARNING_RATES = {"prefix": 3e-3, "soft_prompt": 3e-2, "full": 1e-4}


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """How to fine-tune.

    Attributes:
      steps: of the whole run, if it is not stopped early.
      batch_size: examples of a step.
      learning_rate: peak of a warm-up and cosine; None takes the kinds' own.
      warmup: share of the steps that it takes.
      weight_decay: of AdamW, on raw values.
      evaluations: of the held-out loss over the run, at most, beside the one of the start.
      patience: evaluations in a row without a lower held-out loss, after which the run ends.
      held_out: share of the examples, where there is no validation file.
      metric: of the held-out score, one that scores an example alone, see `example_metric`.
      seed: of the part held out, the start and the order of examples.
    """

    steps: int = 400
    batch_size: int = 16
    learning_rate: float | None = None
    warmup: float = 0.05
    weight_decay: float = 0.0
    evaluations: int = 20
    patience: int = 5
    held_out: float = 0.2
    metric: str = "exact_match"
    seed: int = 0

    def __post_init__(self) -> None:
        check_sizes(self, steps=1, batch_size=1, evaluations=1, patience=1)
        for name in ("warmup", "held_out"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"FineTuning.{name}: expected a share in [0, 1), got {getattr(self, name)!r}")
        if self.learning_rate is not None and not (0 < self.learning_rate < math.inf):
            raise ConfigError(f"FineTuning.learning_rate: expected a positive number, got {self.learning_rate!r}")
        example_metric(self.metric, "FineTuning.metric")

    @property
    def period(self) -> int:
        """Steps between two evaluations."""
        return math.ceil(self.steps / self.evaluations)

    def optimizer(self, kinds: Iterable[KindConfig | type[KindConfig]]) -> Optimizer:
        """Returns AdamW with its schedule, for an adapter of these kinds."""
        peak = self.learning_rate or min(LEARNING_RATES.get(kind.kind, LEARNING_RATE) for kind in kinds)
        schedule = warmup_cosine(peak, int(self.warmup * self.steps), self.steps)
        return make_optimizer("adamw", schedule, weight_decay=self.weight_decay)


class TableObjective(HypermodelObjective):
    """Without figures of the adapters at every validation: there is one, and it is there to be looked at."""

    def validation_metrics(self, params: PyTree, frozen: PyTree, batch: Any) -> dict:
        return {}
