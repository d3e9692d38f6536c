"""Checkpoints of a training run: Orbax, atomically complete, resumed exactly.

    model_dir/checkpoints/checkpoint_200/{state, host}

`state` holds the arrays of a `TrainState` under readable names (`params/...`, `opt_state/0/mu/...`), `host` a small
json: the seed, and the sums of the log period that was under way. The frozen tree is not in it. A run that was killed
while writing leaves a temporary folder that the next one removes; a checkpoint under its final name is whole.

>>> with Checkpoints("runs/first/checkpoints", keep=3) as checkpoints:
...     checkpoints.save(state, {"seed": 0})
...     state, host = checkpoints.restore(abstract_state)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hyperflax import trees
from hyperflax.errors import CheckpointError
from hyperflax.training.state import TrainState
from hyperflax.types import PyTree

PREFIX = "checkpoint"


class Checkpoints:
    """The checkpoints of one folder.

    Args:
      directory: made if it does not exist.
      keep: how many of the latest ones stay; None keeps all.
      asynchronous: write in the background. Off by default: on CPU the writer competes with the training step.
      read_only: never write nor clean up, for a folder that a run may be writing to.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int | None = 3,
        asynchronous: bool = False,
        read_only: bool = False,
    ) -> None:
        self.directory = os.path.abspath(os.fspath(directory))
        self._asynchronous = asynchronous and not read_only
        if read_only and not os.path.isdir(self.directory):
            raise CheckpointError(f"{self.directory}: no such folder of checkpoints")
        # Imported late: Orbax takes seconds, and who only adapts or predicts comes past this module.
        import orbax.checkpoint as ocp

        self._args = ocp.args
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep,
            step_prefix=PREFIX,
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
            enable_async_checkpointing=self._asynchronous,
        )
        # Named handlers, or a manager that has not written yet cannot say what a checkpoint holds.
        handlers = {"state": ocp.StandardCheckpointHandler(), "host": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

    def latest_step(self) -> int | None:
        """Returns the last complete checkpoint's step, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, host: Mapping[str, Any]) -> None:
        """Writes a checkpoint of `state.step`; does nothing where there is one already.

        Args:
          state: as after a step; the caller may donate it once this returns, asynchronous or not.
          host: what json can hold.
        """
        step = int(state.step)
        if step == self.latest_step():
            return
        if self._asynchronous and jax.default_backend() == "cpu":
            # On CPU the writer reads the very buffers that the next step takes over.
            state = jax.tree.map(jnp.copy, state)
        items = self._args.Composite(
            state=self._args.StandardSave(_to_dict(state)), host=self._args.JsonSave(dict(host))
        )
        self._manager.save(step, args=items, force=True)

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
        wanted = trees.flatten(_to_dict(like))
        self._check(wanted, step)
        abstract = {
            path: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or _host_device()
            )
            for path, leaf in wanted.items()
        }
        items = self._args.Composite(
            state=self._args.StandardRestore(trees.unflatten(abstract)), host=self._args.JsonRestore()
        )
        found = self._manager.restore(step, args=items)
        leaves = trees.flatten(found["state"])
        restored = jax.tree.unflatten(jax.tree.structure(like), [leaves[path] for path, _ in _named_leaves(like)])
        return restored, dict(found["host"])

    def parameters(self, step: int | None = None) -> PyTree:
        """Returns the parameters of a checkpoint, the latest if `step` is None: a nested dict of numpy arrays."""
        return self.arrays(step)["params"]

    def arrays(self, step: int | None = None) -> PyTree:
        """Returns all arrays of a checkpoint as a nested dict of numpy arrays; needs no template.

        Raises:
          CheckpointError: there is no such checkpoint.
        """
        step = self._existing(step)
        metadata = self._manager.item_metadata(step)["state"]
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_host_device()), dict(metadata)
        )
        found = self._manager.restore(step, args=self._args.Composite(state=self._args.StandardRestore(abstract)))
        return jax.tree.map(np.asarray, found["state"])

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _existing(self, step: int | None) -> int:
        steps = self._manager.all_steps()
        if not steps:
            raise CheckpointError(f"{self.directory}: holds no complete checkpoint")
        if step is not None and step not in steps:
            raise CheckpointError(f"{self.directory}: no checkpoint of step {step}; there are {sorted(steps)}")
        return max(steps) if step is None else step

    def _check(self, wanted: Mapping[str, Any], step: int) -> None:
        where = f"{self.directory}/{PREFIX}_{step}"
        saved = {path: tuple(leaf.shape) for path, leaf in _metadata_leaves(self._manager.item_metadata(step)["state"])}
        for path in sorted(wanted, key=_parameters_first):
            leaf = wanted[path]
            if path not in saved:
                raise CheckpointError(f"{where}: '{path}' is missing; expected shape {tuple(leaf.shape)}")
            if saved[path] != tuple(leaf.shape):
                raise CheckpointError(f"{where}: '{path}' should be {tuple(leaf.shape)}, the file has {saved[path]}")
        if extra := sorted(set(saved) - set(wanted), key=_parameters_first):
            raise CheckpointError(f"{where}: '{extra[0]}' is not in this model or optimizer ({len(extra)} such)")


def _named_leaves(state: PyTree) -> list[tuple[str, Any]]:
    """[(path, leaf)] in jax's order; attributes, dict keys and tuple indices alike become parts of the path."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator=trees.SEPARATOR), leaf) for path, leaf in leaves]


def _parameters_first(path: str) -> tuple[bool, str]:
    """Sorting key: an optimizer slot that does not fit says less than the parameter that it belongs to."""
    return not path.startswith("params"), path


def _metadata_leaves(metadata: Any) -> list[tuple[str, Any]]:
    return list(trees.flatten(dict(metadata)).items())


def _to_dict(state: PyTree) -> PyTree:
    return trees.unflatten(dict(_named_leaves(state)))


def _host_device() -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])
