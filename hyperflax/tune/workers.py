"""A collection by many processes, on one machine or on many: Ray hands out its structures.

Ray only schedules. A worker keeps a bench and carries out one structure after another, just as `collect` does, and
writes the files of its groups into the folder of the table, which all machines see under one path. So what a killed
worker had written is kept, what it had not is done again by another one, and a collection that was killed as a whole
goes on when it is called again.

>>> collect_on_ray(functools.partial(make_bench, "strings"), datasets, workers=4, out="runs", structures=30)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from hyperflax.errors import ConfigError, MissingExtraError
from hyperflax.tune.bench import Bench
from hyperflax.tune.collect import Collection
from hyperflax.tuner.datasets import DataSet

LOST = 3
"""How often a worker that was lost, with its machine or for want of memory, is started again."""


def collect_on_ray(
    make_bench: Callable[[], Bench],
    datasets: Sequence[DataSet],
    *,
    workers: int,
    structures: int,
    address: str | None = None,
    progress: bool = True,
    **given: Any,
) -> int:
    """Carries out a collection, or what is left of it, and returns the number of runs that were written.

    Args:
      make_bench: called once by every worker; what it reads is there on every machine.
      datasets: as of `Collection`.
      workers: how many; one for each processor of the cluster at most, where it has GPUs one for each of them.
      structures, given: of `Collection`.
      address: of a running Ray cluster, `auto` for that of this machine; None starts one here for the call's duration.
      progress: show a bar.

    Raises:
      ConfigError: numbers of workers or structures below 1, or more workers than the cluster has room for.
      MissingExtraError: Ray is not installed.
      DataError, AdapterError, CheckpointError: as of `Collection` and of `make_bench`.
    """
    if workers < 1 or structures < 1:
        raise ConfigError(f"collect: expected workers and structures of at least 1, got {workers} and {structures}")
    ray = _ray()
    own = {"num_cpus": workers, "include_dashboard": False} if address is None else {}
    ray.init(address=address or "local", **own)
    try:
        there = ray.cluster_resources()
        gpus = 1 if there.get("GPU") else 0
        scarce = "GPU" if gpus and there["GPU"] < there.get("CPU", 0) else "CPU"
        if workers > (most := int(there.get(scarce, 0))):  # Ray would wait for ever for room for the others
            raise ConfigError(
                f"collect: expected at most {most} workers, one for each {scarce} of the cluster, got {workers}"
            )
        worker = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=LOST, max_task_retries=LOST)(_Worker)
        shared = ray.put(list(datasets))
        pool = ray.util.ActorPool(
            [worker.remote(make_bench, shared, {"structures": structures, **given}) for _ in range(workers)]
        )
        done = pool.map_unordered(lambda one, number: one.fill.remote(number), range(structures))
        return sum(tqdm(done, total=structures, unit="structure", disable=not progress))
    except ray.exceptions.RayTaskError as error:
        # As if there were no other process: errors on purpose keep their class and their words.
        raise error.cause from error
    finally:
        ray.shutdown()


class _Worker:
    """What runs in a process of its own. Nothing is made before the first structure, so that errors are the task's."""

    def __init__(self, make_bench: Callable[[], Bench], datasets: Sequence[DataSet], given: dict[str, Any]):
        self._make_bench, self._datasets, self._given = make_bench, datasets, given
        self._collection: Collection | None = None

    def fill(self, number: int) -> int:
        """Carries out what is left of a structure, see `Collection.fill`."""
        if self._collection is None:
            self._collection = Collection(self._make_bench(), self._datasets, **self._given)
        return self._collection.fill(number)


def _ray() -> Any:
    try:
        import ray
        import ray.util
    except ImportError as error:
        raise MissingExtraError("ray", "ray") from error
    return ray
