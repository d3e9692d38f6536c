"""What a training job needs to know of a model, and what models with a frozen base share."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from hyperflax.buckets import Location
from hyperflax.checkpoints.forms import load_base
from hyperflax.checkpoints.tensors import StorageDtype
from hyperflax.data.vocabularies import Vocabulary
from hyperflax.models.t5 import T5
from hyperflax.objectives.protocol import Objective
from hyperflax.training.base_model import Origin, digest
from hyperflax.training.partitioning import Partitioner
from hyperflax.types import PyTree, T5Config


class Trained(NamedTuple):
    """What a run leaves, for `Trainable.export`.

    Attributes:
      params: the trained parameters, on the host.
      results: steps, and the figures of the last validation.
      provenance: what is recorded of the training data.
      dtype: in which parameters are stored; as they are by default.
      origin: the base that the run began with; None if there is none.
    """

    params: PyTree
    results: dict[str, Any]
    provenance: dict[str, Any]
    dtype: StorageDtype | None = None
    origin: Origin | None = None


class Trainable(Protocol):
    """What `train` needs to know of a model."""

    @property
    def objective(self) -> Objective: ...

    @property
    def vocabulary(self) -> Vocabulary:
        """Returns the vocabulary that its batches are in."""
        ...

    @property
    def base_checkpoint(self) -> str | None:
        """Where the frozen parameters are read from; None if there are none."""
        ...

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Returns the checkpoints that any of its parameters come from, frozen or trained."""
        ...

    @property
    def validation_objective(self) -> Objective:
        """What validation measures: the token loss alone, whatever else training adds to it."""
        ...

    @property
    def meaning(self) -> dict[str, Any]:
        """Returns what decides about the meaning of its parameters and is not in their shapes, ready for json."""
        ...

    def read_frozen(self, partitioner: Partitioner) -> PyTree:
        """Returns what the objective only reads, see `read_base`."""
        ...

    @property
    def abstract_frozen(self) -> PyTree:
        """Returns the shapes of that, without reading it."""
        ...

    def initial_params(self, fresh: PyTree, partitioner: Partitioner) -> PyTree:
        """Returns where to start from, given freshly initialised parameters."""
        ...

    def export(self, directory: Location, trained: Trained) -> None:
        """Writes what users load. Raises CheckpointError if the frozen base is not the one that the run began with."""
        ...


def load_same(path: str, config: T5Config, vocabulary: Vocabulary, origin: Origin | None) -> PyTree:
    """Returns a base as `load_base` does. Raises CheckpointError if it is another one than that of `origin`."""
    base = load_base(path, config, vocabulary)
    if origin is not None:
        origin.check(path, path, digest(base))
    return base


def abstract_t5(config: T5Config) -> PyTree:
    """Returns the shapes of a T5's parameters."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(T5(config).init, jax.random.key(0), tokens, tokens)["params"]
