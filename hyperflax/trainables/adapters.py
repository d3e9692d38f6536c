"""Adapters that are trained themselves, without a hypernetwork: one for all tasks, or one for each."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hyperflax.adapters.kinds import check_spec
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.buckets import Location
from hyperflax.checkpoints.artefacts import Adapter, AdapterMetadata
from hyperflax.checkpoints.fingerprint import fingerprint
from hyperflax.checkpoints.shapes import unseen
from hyperflax.checkpoints.task_adapters import TaskAdaptersMetadata, save_task_adapters
from hyperflax.data import vocabularies
from hyperflax.data.examples import ExampleSource
from hyperflax.data.vocabularies import Vocabulary
from hyperflax.hypernets.table import Table, table_rows
from hyperflax.models.t5 import T5
from hyperflax.objectives.episode import HypermodelObjective
from hyperflax.trainables.protocol import Trained, abstract_t5, load_same
from hyperflax.training.base_model import digest, read_base
from hyperflax.training.partitioning import Partitioner
from hyperflax.types import PyTree, T5Config


@dataclasses.dataclass(frozen=True)
class _AdaptersOf:
    """Adapters for a frozen T5 that are trained as they are: no hypernetwork writes them.

    Attributes:
      base: shape of the frozen T5.
      spec: what is trained for it.
      vocabulary: of the frozen T5.
      base_checkpoint: the frozen T5, see `HypernetworkOf`. Adapters fit this base alone, so to be compared with a
        hypermodel that was exported in bfloat16, they are trained on the base in that model directory.
      z_loss, label_smoothing: of the token loss.
    """

    base: T5Config
    spec: AdapterSpec
    vocabulary: Vocabulary
    base_checkpoint: str
    z_loss: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_spec(self.spec, self.base)
        vocabularies.check_room(f"{type(self).__name__}.base", self.base.vocab_size, self.vocabulary)

    @property
    def table(self) -> Table:
        raise NotImplementedError

    @property
    def checkpoints(self) -> tuple[str, ...]:
        return (self.base_checkpoint,)

    @property
    def objective(self) -> HypermodelObjective:
        return HypermodelObjective(T5(self.base), self.table, z_loss=self.z_loss, label_smoothing=self.label_smoothing)

    @property
    def validation_objective(self) -> HypermodelObjective:
        return self.objective

    @property
    def meaning(self) -> dict[str, Any]:
        return {"base": unseen(self.base), "scales": self.spec.scales}

    def read_frozen(self, partitioner: Partitioner) -> PyTree:
        return read_base(self.base_checkpoint, self.base, partitioner, vocabulary=self.vocabulary)

    @property
    def abstract_frozen(self) -> PyTree:
        return abstract_t5(self.base)

    def initial_params(self, fresh: PyTree, partitioner: Partitioner) -> PyTree:
        return fresh


@dataclasses.dataclass(frozen=True)
class SharedAdapter(_AdaptersOf):
    """One adapter for a frozen T5, trained on the examples of all tasks: the baseline that reads no support.

    What is exported is an adapter directory, for `hyperflax evaluate --shared` and `hyperflax predict --adapter`.
    Attributes as of `_AdaptersOf`.
    """

    @property
    def table(self) -> Table:
        return Table(self.spec, shared=True)

    def export(self, directory: Location, trained: Trained) -> None:
        adapters = self.table.apply({"params": trained.params}, {})
        provenance = {**trained.provenance, "results": trained.results}
        base = fingerprint(load_same(self.base_checkpoint, self.base, self.vocabulary, trained.origin))
        metadata = AdapterMetadata(base_fingerprint=base, created_with="hyperflax train", provenance=provenance)
        Adapter(adapters, self.spec, metadata).save(directory, dtype=trained.dtype, overwrite=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskAdapters(_AdaptersOf):
    """An adapter for each training task, all trained in one run: what `HypernetworkOf.reconstruction` comes near to.

    What is exported is a directory of task adapters, see `checkpoints.task_adapters`. An adapter has a gradient where
    its task is drawn: with 800 tasks and batches of eight, in one step of a hundred; an optimizer with momentum would
    move it in the others as well (`runs/natural_instructions_task_adapters.gin` has none). All start from the same
    draw, so that what tells two of them apart is what their tasks taught them.

    Attributes:
      source: whose tasks; the batches are episodes of it.
      base, spec, vocabulary, base_checkpoint, z_loss, label_smoothing: as of `SharedAdapter`.
    """

    source: ExampleSource

    @property
    def table(self) -> Table:
        return Table(self.spec, num_tasks=len(self.source.task_names))

    @property
    def meaning(self) -> dict[str, Any]:
        return {**super().meaning, "tasks": {str(row): name for row, name in enumerate(self.source.task_names)}}

    def initial_params(self, fresh: PyTree, partitioner: Partitioner) -> PyTree:
        def alike(rows: Any) -> Any:
            # Placed as it was: every device makes its own rows.
            place = rows.sharding if isinstance(rows, jax.Array) else None
            return jax.jit(lambda x: jnp.broadcast_to(x[:1], x.shape), out_shardings=place)(rows)

        return jax.tree.map(alike, fresh)

    def export(self, directory: Location, trained: Trained) -> None:
        adapters = self.spec.materialise(table_rows(jax.tree.map(np.asarray, trained.params)))
        base = load_same(self.base_checkpoint, self.base, self.vocabulary, trained.origin)
        metadata = TaskAdaptersMetadata(
            tasks=tuple(self.source.task_names),
            base_fingerprint=fingerprint(base),
            base_digest=digest(base),
            provenance={**trained.provenance, "results": trained.results},
        )
        save_task_adapters(directory, adapters, self.spec, metadata, dtype=trained.dtype, overwrite=True)
