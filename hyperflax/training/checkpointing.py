"""Checkpoints of a training run: whole or absent, resumed exactly.

    model_dir/checkpoints/checkpoint_200/{state, host}

`state` holds the arrays of a `TrainState` under readable names (`params/...`, `opt_state/0/mu/...`), `host` a small
json: the seed, the sums of the log period that was under way, where the frozen tree comes from, which is not saved, and
what the parameters mean where their shapes do not show it.
On a disk they are Orbax's (`orbax_store.py`), in a bucket TensorStore's (`bucket_store.py`). What a run that was killed
while writing has left is never taken for a checkpoint, and the next run removes it.

>>> with Checkpoints("runs/first/checkpoints", keep=3) as checkpoints:
...     checkpoints.save(state, {"seed": 0})
...     state, host = checkpoints.restore(abstract_state)
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from hyperflax import trees
from hyperflax.buckets import locate
from hyperflax.errors import CheckpointError, ConfigError
from hyperflax.training.bucket_store import BucketStore
from hyperflax.training.orbax_store import PREFIX, OrbaxStore
from hyperflax.training.state import TrainState
from hyperflax.types import PyTree


class Checkpoints:
    """The checkpoints of one folder.

    Args:
      directory: made if it does not exist.
      keep: how many of the latest ones stay; None keeps all.
      asynchronous: write in the background. Off by default: on CPU the writer competes with the training step.
      read_only: never write nor clean up, for a folder that a run may be writing to.

    Raises:
      ConfigError: `keep` is less than 1.
      CheckpointError: `read_only`, and there is no such folder.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int | None = 3,
        asynchronous: bool = False,
        read_only: bool = False,
    ) -> None:
        check_keep("Checkpoints", keep)
        place = locate(os.fspath(directory))
        local = isinstance(place, pathlib.Path)
        self.directory = os.path.abspath(place) if local else str(place)
        self._store = (OrbaxStore if local else BucketStore)(
            self.directory, keep=keep, asynchronous=asynchronous, read_only=read_only
        )

    def latest_step(self) -> int | None:
        """Returns the last complete checkpoint's step, or None."""
        return max(self._store.steps(), default=None)

    def save(self, state: TrainState, host: Mapping[str, Any]) -> None:
        """Writes a checkpoint of `state.step`; does nothing where there is one already.

        Args:
          state: as after a step; the caller may donate it once this returns, asynchronous or not.
          host: what json can hold.
        """
        step = int(state.step)
        if step != self.latest_step():
            self._store.write(step, dict(_named_leaves(state)), host)

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any]]:
        """Returns (state, host) of a checkpoint.

        Args:
          like: shapes, dtypes and shardings to restore to: arrays or `jax.ShapeDtypeStruct`s with a sharding. The
            shardings that were saved are never trusted.
          step: the latest one if None.

        Raises:
          CheckpointError: there is none, or a leaf is missing, extra or of another shape.
        """
        step = self._existing(step)
        named = _named_leaves(like)
        self._check(dict(named), step)
        found = self._store.read(step, {path: _described(leaf, leaf) for path, leaf in named})
        restored = jax.tree.unflatten(jax.tree.structure(like), [found[path] for path, _ in named])
        return restored, self._store.host(step)

    def parameters(self, step: int | None = None) -> PyTree:
        """Returns the parameters of a checkpoint, the latest if `step` is None: a nested dict of numpy arrays."""
        return self.arrays(step)["params"]

    def arrays(self, step: int | None = None) -> PyTree:
        """Returns all arrays of a checkpoint as a nested dict of numpy arrays; needs no template.

        Raises:
          CheckpointError: there is no such checkpoint.
        """
        step = self._existing(step)
        wanted = {path: _described(leaf) for path, leaf in self._store.shapes(step).items()}
        return trees.unflatten({path: np.asarray(leaf) for path, leaf in self._store.read(step, wanted).items()})

    def close(self) -> None:
        """Waits for what is being written."""
        self._store.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _existing(self, step: int | None) -> int:
        steps = self._store.steps()
        if not steps:
            raise CheckpointError(f"{self.directory}: holds no complete checkpoint")
        if step is not None and step not in steps:
            raise CheckpointError(f"{self.directory}: no checkpoint of step {step}; there are {sorted(steps)}")
        return max(steps) if step is None else step

    def _check(self, wanted: Mapping[str, Any], step: int) -> None:
        where = f"{self.directory}/{PREFIX}_{step}"
        saved = {path: tuple(leaf.shape) for path, leaf in self._store.shapes(step).items()}
        for path in sorted(wanted, key=_parameters_first):
            leaf = wanted[path]
            if path not in saved:
                raise CheckpointError(f"{where}: '{path}' is missing; expected shape {tuple(leaf.shape)}")
            if saved[path] != tuple(leaf.shape):
                raise CheckpointError(f"{where}: '{path}' should be {tuple(leaf.shape)}, the file has {saved[path]}")
        if extra := sorted(set(saved) - set(wanted), key=_parameters_first):
            raise CheckpointError(f"{where}: '{extra[0]}' is not in this model or optimizer ({len(extra)} such)")


def check_keep(where: str, keep: int | None) -> None:
    """Raises ConfigError for a number of checkpoints to keep that would remove every one that is written."""
    if keep is not None and keep < 1:
        raise ConfigError(f"{where}.keep: expected at least 1 or None, got {keep!r}")


def _named_leaves(state: PyTree) -> list[tuple[str, Any]]:
    """[(path, leaf)] in jax's order; attributes, dict keys and tuple indices alike become parts of the path."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return [(trees.path_of(path), leaf) for path, leaf in leaves]


def _parameters_first(path: str) -> tuple[bool, str]:
    """Sorting key: an optimizer slot that does not fit says less than the parameter that it belongs to."""
    return not path.startswith("params"), path


def _described(leaf: Any, placed: Any = None) -> jax.ShapeDtypeStruct:
    """A leaf's shape and dtype, with the sharding of `placed`, or of this process's first device if that has none."""
    sharding = getattr(placed, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
