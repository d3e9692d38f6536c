"""The processes of one job, one per host: which of them this is, what falls to it, and waiting for the others.

One process is the ordinary case and costs nothing here. Several were joined by `jax.distributed.initialize`
(`--multiprocess`). They run the same program; training is one computation over all their devices, evaluation and
inference are shared out: each does its part alone and writes a file of its own.

>>> Processes(index=1, count=4).part(10)
slice(2, 5, None)
>>> Processes(index=1, count=4).shard("out/answers.jsonl")
PosixPath('out/answers.jsonl-00001-of-00004')
"""

from __future__ import annotations

import dataclasses
import os
import pathlib

from hyperflax.errors import ConfigError

_MESSAGE = 1024  # bytes
_PATIENCE = 14 * 24 * 3600 * 1000  # milliseconds: no process of a job is so far ahead of another


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process among those of its job.

    Attributes:
      index: 0 for the first, which alone writes what there is only one of.
      count: of the job.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ConfigError(f"Processes.index: expected 0 to {self.count - 1}, got {self.index!r}")

    @classmethod
    def running(cls) -> Processes:
        """Returns what JAX knows."""
        import jax

        return cls(jax.process_index(), jax.process_count())

    @property
    def first(self) -> bool:
        return self.index == 0

    def part(self, size: int) -> slice:
        """Returns which of `size` things in a row fall to this process: all parts in order are the whole."""
        return slice(self.index * size // self.count, (self.index + 1) * size // self.count)

    def shard(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Returns where this process writes its part of a file: T5X's `NAME-00001-of-00004`, or NAME if alone."""
        path = pathlib.Path(path)
        return path if self.count == 1 else path.with_name(f"{path.name}-{self.index:05d}-of-{self.count:05d}")

    def wait(self, what: str) -> None:
        """Returns once every process has come to the same `what`, a name of the place, however long that takes."""
        if self.count > 1:
            from orbax.checkpoint import multihost

            # At the coordinator: what the devices do together fails on CPUs where one comes half a minute late.
            multihost.get_barrier_sync_fn()(key=what, timeout_ms=_PATIENCE)

    def told_by_first(self, text: str) -> str:
        """Returns the first process's `text`, in every process, once all have come here; at most 1,024 bytes of it."""
        if self.count == 1:
            return text
        import numpy as np
        from jax.experimental import multihost_utils

        sent = np.frombuffer(text.encode("utf-8")[:_MESSAGE].ljust(_MESSAGE), np.uint8)
        told = multihost_utils.broadcast_one_to_all(sent, is_source=self.first)
        return np.asarray(told, np.uint8).tobytes().decode("utf-8", errors="replace").rstrip()

    def all_see(self, seen: bool) -> bool:
        """Returns whether every process has `seen` something, in every process, once all have come here."""
        if self.count == 1:
            return seen
        import numpy as np
        from jax.experimental import multihost_utils

        return bool(np.all(multihost_utils.process_allgather(np.array(seen))))
