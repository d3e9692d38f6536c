"""The state of a run on the host: what is saved, what is logged, and how fast it goes. Used by `loop.train` only."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax

from hyperflax.checkpoints.shapes import difference
from hyperflax.data.batches import Batches
from hyperflax.errors import CheckpointError
from hyperflax.objectives.normalisation import LossNormalizingFactor, weighted
from hyperflax.objectives.protocol import Metrics, Objective, is_episodes
from hyperflax.training.base_model import Origin
from hyperflax.training.checkpointing import Checkpoints
from hyperflax.training.clock import Clock
from hyperflax.training.optimizers import Transformation
from hyperflax.training.partitioning import Partitioner
from hyperflax.training.run_log import RunLog, Sums, read_rows
from hyperflax.training.state import TrainState
from hyperflax.training.step import sum_over_microbatches
from hyperflax.types import Array, Batch, PyTree

# (params, frozen, step) -> numbers for the log
Evaluator: TypeAlias = Callable[[PyTree, PyTree, int], Mapping[str, float]]

# Steps that may be under way on the device before the host waits: enough to keep it busy, few enough that the
# progress bar, the clock and a signal mean something.
STEPS_AHEAD = 2

# Steps skipped in a row after which a run is given up: a skipped step changes no parameter, so by then the parameters
# are to blame and not a batch.
GIVE_UP_AFTER = 10


class Run:
    """A training state with its log period, checkpoints and clock.

    Attributes:
      state: the current `TrainState`.
      step: its step, known without asking the device.
      key: of dropout; steps fold their number into it.
      clock: where the seconds of this process go.
      losses: of all evaluations so far, those before a restart included; infinite where one was not finite.
      skipped: how many steps in a row, up to the last report and since this process started, were skipped.
    """

    def __init__(
        self,
        *,
        resume_step: int | None,
        objective: Objective,
        optimizer: Transformation,
        batches: Batches,
        frozen: PyTree,
        origin: Origin | None,
        initial_params: PyTree | Callable[[PyTree], PyTree] | None,
        seed: int,
        partitioner: Partitioner,
        checkpoints: Checkpoints,
        log: RunLog,
        microbatches: int,
        loss_normalizing_factor: LossNormalizingFactor,
        meaning: Mapping[str, Any],
        provenance: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    ) -> None:
        self.frozen, self._origin, self._checkpoints, self._log, self._seed = frozen, origin, checkpoints, log, seed
        self._meaning = json.loads(json.dumps(meaning))  # as it will be read: with lists for tuples
        self._sums, self._waiting = Sums(), collections.deque[Metrics]()
        self._objective, self._flops = objective, dict[tuple, int]()
        self.clock = Clock(partitioner.mesh.devices.flatten().tolist())
        self._earlier_seconds, self._compiled = 0.0, False
        init_key, self.key = jax.random.split(jax.random.key(seed))
        self.step, self.skipped = resume_step or 0, 0
        earlier = read_rows(log.path) if self.step else []
        self.losses = [
            row.get("loss", math.inf) for row in earlier if row["kind"] == "eval" and row["step"] <= self.step
        ]
        batch = dict(batches.batch(self.step))
        if resume_step is not None:
            abstract, _ = partitioner.abstract_state(objective, optimizer, init_key, batch)
            self.state, host = checkpoints.restore(abstract, resume_step)
            self._restore_host(host)
            self._provenance = provenance(host.get("provenance") or {})
            # What was logged after the checkpoint is cut off, so not before the run is known to go on from it.
            log.start(resume_step)
            return
        self.state: TrainState = partitioner.create_state(objective, optimizer, init_key, batch, initial_params)
        self._provenance = provenance({})
        log.start(None)
        self._log_initial(objective, batch, partitioner, microbatches, loss_normalizing_factor)

    def did(self, metrics: Metrics, batch: Batch, tokens: int) -> bool:
        """Notes a step that was dispatched; waits only for the one `STEPS_AHEAD` before it.

        Returns whether it was the first, which was waited for.
        """
        self.step += 1
        self._waiting.append(metrics)
        if not self._compiled:
            # Compilation is not part of the speed that is reported.
            jax.block_until_ready(metrics)
            self._compiled = True
            self.clock.lap("compiling")
            return True
        if len(self._waiting) > STEPS_AHEAD:
            jax.block_until_ready(self._waiting[-1 - STEPS_AHEAD])
        episodes = len(batch["decoder_target_tokens"]) if is_episodes(batch) else 0
        self.clock.stepped(tokens=tokens, episodes=episodes, flops=self._flops_of(batch))
        self.clock.lap("steps")
        return False

    def report(self, *, whole: bool = True) -> dict[str, str]:
        """Writes the log period's row and returns what a progress bar shows.

        Args:
          whole: the period ends here and the next one starts; False at the end of a run in mid-period, which a longer
            run would go on with.
        """
        self._collect()
        self.clock.lap("steps")
        values = self._sums.means() | self.clock.period(whole=whole)
        self._log.write(self.step, "train", values | {"seconds": self._seconds()})
        if whole:
            self._sums = Sums()
        shown = {name: f"{values[name]:.4g}" for name in ("loss", "accuracy") if name in values}
        if "tokens_per_second" in values:
            shown["tok/s"] = f"{values['tokens_per_second']:.0f}"
        if "mfu" in values:
            shown["mfu"] = f"{values['mfu']:.1%}"
        return shown

    def evaluate(self, evaluator: Evaluator) -> None:
        """Writes a row of kind `eval`."""
        values = evaluator(self.state.params, self.frozen, self.step)
        self._log.write(self.step, "eval", dict(values) | {"seconds": self._seconds()})
        loss = float(values.get("loss", math.inf))
        self.losses.append(loss if math.isfinite(loss) else math.inf)
        self.clock.lap("evaluating")

    def save(self) -> None:
        """Writes a checkpoint with everything that an exact resume needs."""
        self._collect()
        self.clock.lap("steps")
        host = {
            "seed": self._seed,
            "origin": None if self._origin is None else dataclasses.asdict(self._origin),
            "meaning": self._meaning,
            "provenance": self._provenance,
            "seconds": self._seconds(),
            "period": {"pairs": self._sums.as_json()},
        }
        self._log.flush()
        self._checkpoints.save(self.state, host)
        self.clock.lap("saving")

    def _restore_host(self, host: Mapping) -> None:
        if host["seed"] != self._seed:
            raise CheckpointError(
                f"{self._checkpoints.directory}: holds a run of seed {host['seed']}, got seed {self._seed}; "
                "continue with that seed or choose another folder"
            )
        if self._origin is not None and (known := host.get("origin")):  # which earlier versions did not save
            Origin(**known).check(self._checkpoints.directory, self._origin.path, self._origin.digest)
        if other := difference(host.get("meaning", {}), self._meaning):  # nor that
            name, theirs, ours = other
            raise CheckpointError(
                f"{self._checkpoints.directory}: holds a run with other {name}: expected {theirs!r}, got {ours!r}; "
                "choose another folder"
            )
        self._earlier_seconds = float(host["seconds"])
        self._sums = Sums(host["period"]["pairs"])

    def _log_initial(
        self,
        objective: Objective,
        batch: Batch,
        partitioner: Partitioner,
        microbatches: int,
        factor: LossNormalizingFactor,
    ) -> None:
        def initial(params: PyTree, frozen: PyTree, batch: Batch) -> Metrics:
            def one(part: Batch, _: Array | None) -> Metrics:
                return {
                    **objective.loss(params, frozen, part, None)[2],
                    **objective.initial_metrics(params, frozen, part),
                }

            # In parts like the step: what only fits in parts would run out of memory here.
            return sum_over_microbatches(one, weighted(factor, batch), None, microbatches)

        sums = Sums()
        compiled = partitioner.compile_metrics(initial)
        sums.add(jax.device_get(compiled(self.state.params, self.frozen, batch)))
        self._log.write(0, "initial", sums.means())

    def _collect(self) -> None:
        for metrics in jax.device_get(list(self._waiting)):
            self._sums.add(metrics)
            self.skipped = self.skipped + 1 if metrics["skipped_steps"][0] else 0
        self._waiting.clear()

    def _flops_of(self, batch: Batch) -> int:
        """Operations of a step on a batch of this shape; a curriculum has few shapes."""
        shapes = tuple(sorted((name, feature.shape) for name, feature in batch.items()))
        if shapes not in self._flops:
            self._flops[shapes] = self._objective.flops(batch)
        return self._flops[shapes]

    def _seconds(self) -> float:
        return self._earlier_seconds + self.clock.total
