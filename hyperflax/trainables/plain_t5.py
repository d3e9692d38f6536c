"""A T5 of its own: pretraining, fine-tuning, and the multi-task reference systems."""

from __future__ import annotations

import dataclasses
from typing import Any

from hyperflax.buckets import Location
from hyperflax.checkpoints.shapes import unseen
from hyperflax.checkpoints.t5_directory import save_t5
from hyperflax.data import vocabularies
from hyperflax.data.vocabularies import Vocabulary
from hyperflax.errors import ConfigError
from hyperflax.models.neighbour_heads import start_neighbour_heads
from hyperflax.models.t5 import T5
from hyperflax.objectives.language_model import T5Objective
from hyperflax.trainables.protocol import Trained
from hyperflax.training.base_model import read_base
from hyperflax.training.partitioning import Partitioner
from hyperflax.types import PyTree, T5Config


@dataclasses.dataclass(frozen=True)
class PlainT5:
    """A T5 whose own parameters are trained: pretraining, fine-tuning, multi-task reference systems.

    Attributes:
      config, vocabulary: of the model.
      initial_checkpoint: T5 directory, model directory or T5X checkpoint to start from; None starts from scratch.
      neighbour_heads: from scratch, how strongly two heads of each stack look next door at first, in nats; see
        `start_neighbour_heads`.
      z_loss, label_smoothing: of the token loss.
    """

    config: T5Config
    vocabulary: Vocabulary
    initial_checkpoint: str | None = None
    neighbour_heads: float = 0.0
    z_loss: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        vocabularies.check_room("PlainT5.config", self.config.vocab_size, self.vocabulary)
        if self.neighbour_heads and self.initial_checkpoint:
            raise ConfigError("PlainT5.neighbour_heads: expected 0 beside an initial_checkpoint, which has its own")
        if self.config.scan_layers:
            raise ConfigError("PlainT5.config: expected unrolled layers, got scan_layers=True")

    @property
    def objective(self) -> T5Objective:
        return T5Objective(T5(self.config), z_loss=self.z_loss, label_smoothing=self.label_smoothing)

    @property
    def base_checkpoint(self) -> None:
        return None

    @property
    def checkpoints(self) -> tuple[str, ...]:
        return (self.initial_checkpoint,) if self.initial_checkpoint else ()

    @property
    def validation_objective(self) -> T5Objective:
        return self.objective

    @property
    def meaning(self) -> dict[str, Any]:
        return unseen(self.config)

    def read_frozen(self, partitioner: Partitioner) -> None:
        return None

    @property
    def abstract_frozen(self) -> None:
        return None

    def initial_params(self, fresh: PyTree, partitioner: Partitioner) -> PyTree:
        if self.initial_checkpoint:
            return read_base(self.initial_checkpoint, self.config, partitioner, vocabulary=self.vocabulary)
        return start_neighbour_heads(fresh, self.config, self.neighbour_heads) if self.neighbour_heads else fresh

    def export(self, directory: Location, trained: Trained) -> None:
        params, results, provenance, dtype, _ = trained
        told = {"results": results, "provenance": provenance}
        save_t5(directory, params, self.config, self.vocabulary, **told, dtype=dtype, overwrite=True)
