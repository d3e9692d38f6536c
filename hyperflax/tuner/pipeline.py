"""A fine-tuning pipeline: everything that is decided before an adapter is trained on a data set.

A pipeline is a point of the space in `space.py`, as plain values. What does not apply to it is None: the rank of a
prefix, everything of a pipeline that trains nothing. Its `id` is a hash of its values, the same on every machine.

>>> Pipeline(kind="lora", rank=8, epochs=16).id
'…'
>>> Pipeline(method="as_generated")
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from hyperflax import configs
from hyperflax.adapters.full import Full
from hyperflax.adapters.kind_config import KindConfig
from hyperflax.adapters.lora import LoRA
from hyperflax.adapters.parallel_mlp import ParallelMLP
from hyperflax.adapters.prefix import Prefix
from hyperflax.adapters.soft_prompt import SoftPrompt
from hyperflax.adapters.spec import AdapterSpec

AS_GENERATED, TUNE = "as_generated", "tune"
RANDOM, SHARED, GENERATED, SOURCE = "random", "shared", "generated", "source"
FIDELITIES = 8
"""Parts of equal length that a run is stopped and scored at: fidelity f is after `epochs * f / FIDELITIES` epochs."""

SITES = {
    "query_value": ("*/query", "*/value"),
    "attention": ("*/query", "*/key", "*/value", "*/out"),
    "all": ("*",),
}


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Values of one pipeline; None where a value does not apply.

    Attributes:
      method: `tune`, or `as_generated`: use the generated adapter and train nothing.
      init: where training starts: `random`, `shared` (one adapter trained uniformly on many tasks, MAMF's warm start),
        `generated` by the hypermodel, `source` (the adapter of the source task that ranks first).
      kind: kinds joined by '+': `lora`, `prefix`, `lora+prefix`, `soft_prompt`, `parallel_mlp`, `prefix+parallel_mlp`
        (MAM), `full`.
      sites: of LoRA, a name of `SITES`.
      rank: of LoRA. alpha_per_rank: its alpha / rank. length: positions of a prefix or soft prompt. bottleneck: of the
        parallel adapter. The last three are None with a start, which brings its own.
      prompt_first: share of the epochs in which a soft prompt of `length` is tuned before anything else, to take over
        the format, and is then kept as it is (ProMoT, Wang et al. 2022); 0 has no such stage.
      dropout: of the frozen T5's activations while training.
      optimizer: `adamw`, `adafactor` or `lion`.
      learning_rate: peak. schedule: `constant`, `linear` or `cosine`, down to 0. warmup: share of the steps.
      weight_decay: decoupled, times the learning rate.
      batch_size: examples of a step. epochs: passes over the training examples.
      skip: share of the training examples that promise the least information and are left out (IGF, Antonello et al.
        2021).
    """

    method: str = TUNE
    init: str | None = None
    kind: str | None = None
    sites: str | None = None
    rank: int | None = None
    alpha_per_rank: float | None = None
    length: int | None = None
    bottleneck: int | None = None
    prompt_first: float | None = None
    dropout: float | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    schedule: str | None = None
    warmup: float | None = None
    weight_decay: float | None = None
    batch_size: int | None = None
    epochs: int | None = None
    skip: float | None = None

    @property
    def id(self) -> str:
        """Sixteen hexadecimal digits that tell this pipeline from every other."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Returns the values that apply."""
        return {name: value for name, value in configs.to_json(self).items() if value is not None}

    @classmethod
    def from_json(cls, data: Any, where: str) -> Pipeline:
        """The inverse of `to_json`. Raises ConfigError with `where` on an unknown key or a wrong type."""
        return configs.from_json(cls, data, where)

    def kinds(self: Any, start: AdapterSpec | None = None) -> tuple[KindConfig, ...]:
        """Returns the settings of the kinds that are trained; a prompt that is tuned first is among them.

        Args:
          start: of the adapter that training starts from; it brings its own settings but for LoRA's rank and sites.
        """
        names = self.kind.split("+") + (["soft_prompt"] if self.prompt_first else [])
        given = {kind.kind: kind for kind in (start.kinds if start else ())}
        return tuple(self._settings(name, given.get(name)) for name in dict.fromkeys(names))

    # Whatever is not None here is decided by `kind`, so the checker is not asked.
    def _settings(self: Any, name: str, start: KindConfig | None) -> KindConfig:
        if isinstance(start, LoRA):
            return dataclasses.replace(start.resized(self.rank), sites=SITES[self.sites])
        if start is not None:
            return start
        if name == "lora":
            return LoRA(rank=self.rank, alpha=self.rank * (self.alpha_per_rank or 1.0), sites=SITES[self.sites])
        if name == "prefix":
            return Prefix(length=self.length)
        if name == "soft_prompt":
            return SoftPrompt(length=self.length)
        if name == "parallel_mlp":
            return ParallelMLP(bottleneck=self.bottleneck)
        return Full()


def default_pipeline() -> Pipeline:
    """What most people would run: LoRA on queries and values, AdamW with warm-up and cosine decay."""
    return Pipeline(
        init=RANDOM, kind="lora", sites="query_value", rank=8, alpha_per_rank=1.0, prompt_first=0.0, dropout=0.0,
        optimizer="adamw", learning_rate=1e-3, schedule="cosine", warmup=0.05, weight_decay=0.0, batch_size=16,
        epochs=16, skip=0.0,
    )  # fmt: skip
