"""Where arrays live: the mesh, the rules from logical axis names to mesh axes, and the one place that jits a step.

The mesh has the axes `data`, `fsdp` and `model`. Batches are split over `data` and `fsdp` by their leading axis (task
or batch); parameters and their optimizer state over `fsdp` (embed) and `model` (vocab, mlp, heads). With fsdp = 1 this
is T5X's partitioning. A single device is the mesh 1 x 1 x 1 and needs no special case.

>>> partitioner = Partitioner(make_mesh(data=2, fsdp=4))
>>> state = partitioner.create_state(objective, optimizer, rng, batch)
>>> step = partitioner.compile(make_train_step(objective, optimizer), state)
>>> state, metrics = step(state, frozen, partitioner.place_batch(batch), rng)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hyperflax import trees
from hyperflax.checkpoints.fingerprint import fingerprint
from hyperflax.errors import CheckpointError, ConfigError
from hyperflax.models.axes import parameter_axes
from hyperflax.objectives.protocol import BATCH_AXES, Metrics, Objective
from hyperflax.training.optimizers import Transformation
from hyperflax.training.state import TrainState, create_state, start_from
from hyperflax.training.step import Step
from hyperflax.types import Array, Batch, PyTree

MESH_AXES = ("data", "fsdp", "model")

Rules: TypeAlias = tuple[tuple[str, str | tuple[str, ...] | None], ...]

# First match wins; a mesh axis that is taken by an earlier dimension, has size 1, or does not divide this one, is
# passed over. So without model axis the kernels `wo` and `out` are split by their first dimension, like all others: the
# sum of their gradients over the mesh is then a reduce-scatter on TPUs, and not a whole all-reduce.
LOGICAL_RULES: Rules = (
    ("batch", BATCH_AXES),
    ("vocab", "model"),
    ("mlp", "model"),
    ("heads", "model"),
    ("joined_kv", "model"),
    ("mlp", "fsdp"),
    ("joined_kv", "fsdp"),
    ("embed", "fsdp"),
    ("task", "fsdp"),
    ("kv", None),
    ("layers", None),
    ("relpos_buckets", None),
    ("rank", None),
    ("prefix", None),
    ("term", None),
    ("slot", None),
    ("head", None),
    ("slot_values", None),
)


def make_mesh(data: int = -1, fsdp: int = 1, model: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh over all devices.

    Args:
      data, fsdp, model: sizes; one of them may be -1 and takes what is left.
      devices: all of every process by default.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices, or one of them is not a product of whole axes of
        a TPU slice.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [data, fsdp, model]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ConfigError(f"make_mesh: expected positive sizes and at most one -1, got {tuple(sizes)}")
    known = int(np.prod([size for size in sizes if size != -1]))
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    if int(np.prod(sizes)) != len(devices):
        raise ConfigError(f"make_mesh: data x fsdp x model = {tuple(sizes)} does not make {len(devices)} devices")
    try:
        return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
    except NotImplementedError as error:  # on TPUs, whose chips have places
        raise ConfigError(f"make_mesh: data x fsdp x model = {tuple(sizes)} does not fit the slice: {error}") from error


@dataclasses.dataclass(frozen=True)
class Partitioner:
    """Places states, frozen parameters and batches on a mesh, and compiles steps for them.

    Attributes:
      mesh: from `make_mesh`.
      rules: (logical axis, mesh axis or axes or None), first match wins.
    """

    mesh: Mesh = dataclasses.field(default_factory=make_mesh)
    rules: Rules = LOGICAL_RULES

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def spec(self, path: str, shape: tuple[int, ...], axes: tuple[str | None, ...] | None) -> PartitionSpec:
        """Returns the partition of one parameter.

        Raises:
          ConfigError: the parameter has no axis names, a wrong number of them, or one that no rule covers.
        """
        if axes is None:
            raise ConfigError(
                f"parameter '{path}' {shape}: no logical axis names are known for it, no rule can cover it"
            )
        if len(axes) != len(shape):
            raise ConfigError(f"parameter '{path}' {shape}: {len(axes)} logical axis names {axes}")
        taken: set[str] = set()
        return PartitionSpec(*(self._place(path, axis, size, taken) for axis, size in zip(axes, shape, strict=True)))

    def _place(self, path: str, axis: str | None, size: int, taken: set[str]) -> str | tuple[str, ...] | None:
        if axis is None:
            return None
        matching = [mesh_axes for name, mesh_axes in self.rules if name == axis]
        if not matching:
            raise ConfigError(f"parameter '{path}': no rule covers its logical axis '{axis}'")
        for mesh_axes in matching:
            names = (mesh_axes,) if isinstance(mesh_axes, str) else tuple(mesh_axes or ())
            parts = int(np.prod([self.mesh.shape[name] for name in names]))
            if parts > 1 and size % parts == 0 and not taken.intersection(names):
                taken.update(names)
                return mesh_axes
        return None

    def shardings(self, params: PyTree, axes: PyTree) -> PyTree:
        """Returns a sharding for each parameter; `axes`, a tree like it, is what modules declare, None elsewhere."""
        declared = trees.flatten(axes)

        def place(path: str, leaf: Any) -> NamedSharding:
            names = declared.get(path) or t5_axes(path)
            return NamedSharding(self.mesh, self.spec(path, tuple(leaf.shape), names))

        return trees.map_with_path(place, params)

    def state_shardings(self, state: TrainState, axes: PyTree) -> TrainState:
        """Returns a sharding for each leaf of a (possibly abstract) state.

        An optimizer slot that has its parameter's path and shape lies like the parameter; counters and Adafactor's row
        and column sums are replicated, as in T5X.
        """
        params = trees.flatten(state.params)
        placed = trees.flatten(self.shardings(state.params, axes))

        def of_slot(key_path: Any, leaf: Any) -> NamedSharding:
            parts = trees.path_of(key_path).split(trees.SEPARATOR)
            for start in range(len(parts)):
                path = trees.SEPARATOR.join(parts[start:])
                if path in params and tuple(params[path].shape) == tuple(leaf.shape):
                    return placed[path]
            return self.replicated

        return TrainState(
            step=self.replicated,  # pyrefly: ignore[bad-argument-type]  # a state of shardings
            params=trees.unflatten(placed),
            opt_state=jax.tree.map_with_path(of_slot, state.opt_state),
        )

    def create_state(
        self,
        objective: Objective,
        optimizer: Transformation,
        rng: Array,
        batch: Batch,
        initial_params: PyTree | Callable[[PyTree], PyTree] | None = None,
    ) -> TrainState:
        """Returns the state before the first step, made in place shard by shard."""
        _, shardings = self.abstract_state(objective, optimizer, rng, batch)
        params = jax.jit(objective.init, out_shardings=shardings.params)(rng, batch)
        params = start_from(params, initial_params)
        return jax.jit(functools.partial(create_state, optimizer=optimizer), out_shardings=shardings)(params)

    def abstract_state(
        self, objective: Objective, optimizer: Transformation, rng: Array, batch: Batch
    ) -> tuple[TrainState, TrainState]:
        """Returns (shapes with their shardings, shardings) of the state, without computing anything."""

        def make(rng: Array, batch: Batch) -> TrainState:
            return create_state(objective.init(rng, batch), optimizer)

        state = jax.eval_shape(make, rng, batch)
        shardings = self.state_shardings(state, objective.logical_axes(batch))
        return described(state, shardings), shardings

    def t5_sharding(self, path: str, shape: tuple[int, ...]) -> NamedSharding:
        """Returns where a T5's parameter lies, for `checkpoints.onto_mesh.read_onto_mesh`."""
        return NamedSharding(self.mesh, self.spec(path, shape, t5_axes(path)))

    def place_frozen(self, frozen: PyTree) -> PyTree:
        """Returns the frozen tree, a T5's, on the mesh: in pieces, by the same rules as parameters that are trained.

        Every process holds the whole tree on its host, as it was read, and uploads the parts of its own devices; or it
        lies on the mesh already, see `read_base`.

        Raises:
          CheckpointError: processes hold different values, or one of them another tree.
        """
        if frozen is None:
            return None
        shardings = self.shardings(frozen, {})
        lies = jax.tree.map(lambda leaf, sharding: getattr(leaf, "sharding", None) == sharding, frozen, shardings)
        if all(jax.tree.leaves(lies)):
            return frozen
        if jax.process_count() == 1:
            return jax.device_put(frozen, shardings)
        # Compared by digest, on the hosts: `device_put` would send every leaf whole to every device to compare them.
        _require_same_everywhere(fingerprint(frozen))
        return jax.tree.map(_from_host, frozen, shardings)

    def abstract_frozen(self, frozen: PyTree) -> PyTree:
        """Returns shapes with their shardings for a frozen tree, of arrays or of shapes."""
        return None if frozen is None else described(frozen, self.shardings(frozen, {}))

    def abstract_batch(self, batch: Mapping[str, Any]) -> Batch:
        """Returns shapes with their shardings for a batch, of arrays or of shapes; see `place_batch`."""
        sharding = self._batch_sharding(batch)
        return {
            name: jax.ShapeDtypeStruct(feature.shape, feature.dtype, sharding=sharding)
            for name, feature in batch.items()
        }

    def place_batch(self, batch: Mapping[str, np.ndarray]) -> Batch:
        """Returns a batch split over the data axes by its leading axis.

        Every process holds the whole batch (it is a pure function of seed and step) and uploads its own part.

        Raises:
          ConfigError: the leading axis does not divide.
        """
        sharding = self._batch_sharding(batch)
        if jax.process_count() == 1:
            return jax.device_put(dict(batch), sharding)
        return {name: _from_host(feature, sharding) for name, feature in batch.items()}

    def divides(self, batch: Mapping[str, Any]) -> bool:
        """Whether the rows of a batch divide over the data shards."""
        return all(np.shape(feature)[0] % self._data_shards == 0 for feature in batch.values())

    @property
    def _data_shards(self) -> int:
        return int(np.prod([self.mesh.shape[name] for name in BATCH_AXES]))

    def _batch_sharding(self, batch: Mapping[str, Any]) -> NamedSharding:
        parts = self._data_shards
        for name, feature in batch.items():
            if np.shape(feature)[0] % parts:
                raise ConfigError(
                    f"batch feature '{name}': {np.shape(feature)[0]} rows do not divide over {parts} data shards"
                )
        return NamedSharding(self.mesh, PartitionSpec(BATCH_AXES))

    def jit(self, step: Step, state: TrainState) -> Any:
        """Returns the step jitted for states placed like `state`, whose buffers it takes over; to be called or lowered
        while the mesh is in use (`jax.set_mesh`)."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        return jax.jit(step, donate_argnums=(0,), out_shardings=(shardings, self.replicated))

    def compile(self, step: Step, state: TrainState) -> Step:
        """Returns the step jitted for states placed like `state`, whose buffers it takes over."""
        compiled = self.jit(step, state)

        def on_mesh(state: TrainState, frozen: PyTree, batch: Batch, rng: Array) -> tuple[TrainState, Metrics]:
            # What the objective and the step say about batch axes refers to this mesh.
            with jax.set_mesh(self.mesh):
                return compiled(state, frozen, batch, rng)

        return on_mesh

    def compile_metrics(self, metrics: Callable[[PyTree, PyTree, Batch], Metrics]) -> Callable[..., Metrics]:
        """Returns the function jitted; its batch comes from the host and is split as in training.

        Unlike there, a batch whose rows do not divide is no error: every device computes all of it.
        """
        compiled = jax.jit(metrics, out_shardings=self.replicated)

        def on_mesh(params: PyTree, frozen: PyTree, batch: Mapping[str, np.ndarray]) -> Metrics:
            if not self.divides(batch):
                return compiled(params, frozen, dict(batch))
            with jax.set_mesh(self.mesh):
                return compiled(params, frozen, self.place_batch(batch))

        return on_mesh


def described(tree: PyTree, shardings: PyTree) -> PyTree:
    """Returns a tree's shapes and dtypes with the shardings."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree, shardings
    )


def _from_host(leaf: Array | np.ndarray, sharding: NamedSharding) -> Array:
    """Returns an array of which this process uploads what its own devices hold."""
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def _require_same_everywhere(digest: str) -> None:
    """Raises CheckpointError, in all processes, unless the frozen trees of all of them have the same digest."""
    from jax.experimental import multihost_utils

    found = multihost_utils.process_allgather(np.frombuffer(digest.encode("ascii"), np.uint8))
    digests = [row.tobytes().decode("ascii") for row in np.asarray(found)]
    if different := [index for index, other in enumerate(digests) if other != digests[0]]:
        index = different[0]
        raise CheckpointError(
            f"frozen parameters: process 0 has read {digests[0]}, process {index} {digests[index]}; expected the same "
            "base model on every host"
        )


def t5_axes(path: str) -> tuple[str, ...] | None:
    """Axes of a T5's parameter, wherever that T5 stands in the tree; None for any other name."""
    try:
        return parameter_axes(path)
    except (KeyError, ValueError):
        return None
