"""Training checkpoints on a disk: Orbax's, written under a temporary name and renamed.

checkpoint_200/{state, host}
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from hyperflax import trees
from hyperflax.errors import CheckpointError
from hyperflax.files import array_writing
from hyperflax.types import Array

PREFIX = "checkpoint"


class OrbaxStore:
    """The checkpoints of a folder, which is made if it does not exist; see `BucketStore` for what it can.

    Args:
      directory: absolute.
      keep: how many of the latest ones stay; None keeps all.
      asynchronous: write in the background.
      read_only: never write nor clean up.
    """

    def __init__(self, directory: str, *, keep: int | None, asynchronous: bool, read_only: bool) -> None:
        if read_only and not os.path.isdir(directory):
            raise CheckpointError(f"{directory}: no such folder of checkpoints")
        # Imported late: Orbax takes seconds, and who only adapts or predicts comes past this module.
        import orbax.checkpoint as ocp

        self._args, self._directory = ocp.args, directory
        self._asynchronous = asynchronous and not read_only
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
        self._manager = ocp.CheckpointManager(directory, options=options, item_handlers=handlers)

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def shapes(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
        with self._reading(step):
            metadata = trees.flatten(dict(self._manager.item_metadata(step)["state"]))
            return {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in metadata.items()}

    def write(self, step: int, leaves: Mapping[str, Array], host: Mapping[str, Any]) -> None:
        if self._asynchronous and jax.default_backend() == "cpu":
            # On CPU the writer reads the very buffers that the next step takes over.
            leaves = {path: jnp.copy(leaf) for path, leaf in leaves.items()}
        items = self._args.Composite(
            state=self._args.StandardSave(trees.unflatten(dict(leaves))), host=self._args.JsonSave(dict(host))
        )
        with array_writing(self._directory):  # which may be what was refused of the save before
            self._manager.save(step, args=items, force=True)

    def read(self, step: int, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Array]:
        items = self._args.Composite(state=self._args.StandardRestore(trees.unflatten(dict(wanted))))
        with self._reading(step):
            return trees.flatten(self._manager.restore(step, args=items)["state"])

    def host(self, step: int) -> dict[str, Any]:
        with self._reading(step):
            return dict(self._manager.restore(step, args=self._args.Composite(host=self._args.JsonRestore()))["host"])

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """Turns what Orbax raises for a damaged checkpoint into an error that names it.

        What the system refuses, such as a disk that is gone, has a number, and is no damage.
        """
        try:
            yield
        except (ValueError, TypeError, KeyError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
                raise
            earlier = max((other for other in self.steps() if other < step), default=None)
            advice = "begin anew" if earlier is None else f"go on from step {earlier}"
            raise CheckpointError(
                f"{self._directory}/{PREFIX}_{step}: cannot be read, {error}; if it is damaged, remove it to {advice}"
            ) from error

    def close(self) -> None:
        with array_writing(self._directory):
            self._manager.wait_until_finished()
            self._manager.close()
