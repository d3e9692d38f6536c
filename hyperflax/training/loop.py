"""The host loop: batches in, checkpoints, metrics and a curve out.

A run is its folder. Calling `train` again with the same arguments goes on where the last checkpoint left off and ends
bit for bit where an unbroken run would have: batches and dropout depend on (seed, step) alone, and a checkpoint holds
the sums of the log period that was under way.

    model_dir/checkpoints/checkpoint_<step>   model_dir/metrics.jsonl   model_dir/tensorboard/   model_dir/loss.png

>>> state = train(objective=objective, optimizer=make_optimizer("adamw", 1e-3), batches=batches,
...               frozen=t5_params, model_dir="runs/first", total_steps=1500)
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from typing import Any

import jax
from tqdm import tqdm

from hyperflax.configs import whole_number
from hyperflax.data.batches import Batches
from hyperflax.errors import CheckpointError, ConfigError, HyperflaxError
from hyperflax.locks import alone_in
from hyperflax.objectives.normalisation import REAL_TOKENS, LossNormalizingFactor
from hyperflax.objectives.protocol import Objective
from hyperflax.processes import Processes
from hyperflax.training.base_model import Origin
from hyperflax.training.checkpointing import Checkpoints, check_keep
from hyperflax.training.optimizers import Transformation
from hyperflax.training.partitioning import Partitioner
from hyperflax.training.prefetch import Prefetcher
from hyperflax.training.run import GIVE_UP_AFTER, Evaluator, Run
from hyperflax.training.run_log import RunLog, plot_curve
from hyperflax.training.standard_error import StandardError
from hyperflax.training.state import TrainState
from hyperflax.training.step import Step, make_train_step
from hyperflax.training.stopping import EarlyStopping, StopRequest
from hyperflax.types import PyTree

CHECKPOINTS = "checkpoints"


def prepare(
    *,
    objective: Objective,
    optimizer: Transformation,
    microbatches: int = 1,
    loss_normalizing_factor: LossNormalizingFactor = REAL_TOKENS,
    partitioner: Partitioner | None = None,
) -> tuple[Step, Partitioner]:
    """Returns the step that `train` runs with these arguments, and where it runs; `hyperflax compile` looks at both."""
    step = make_train_step(
        objective, optimizer, microbatches=microbatches, loss_normalizing_factor=loss_normalizing_factor
    )
    return step, partitioner or Partitioner()


def train(
    *,
    objective: Objective,
    optimizer: Transformation,
    batches: Batches,
    model_dir: str | os.PathLike[str],
    total_steps: int,
    frozen: PyTree = None,
    origin: Origin | None = None,
    meaning: Mapping[str, Any] | None = None,
    provenance: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
    initial_params: PyTree | Callable[[PyTree], PyTree] | None = None,
    seed: int = 0,
    microbatches: int = 1,
    loss_normalizing_factor: LossNormalizingFactor = REAL_TOKENS,
    log_period: int = 50,
    save_period: int = 1000,
    keep: int | None = 3,
    eval_period: int = 0,
    evaluator: Evaluator | None = None,
    early_stopping: EarlyStopping | None = None,
    max_seconds: float | None = None,
    partitioner: Partitioner | None = None,
    async_checkpoints: bool = False,
    progress: bool = True,
    started: Callable[[], None] = lambda: None,
) -> TrainState:
    """Trains until `total_steps`, or until `max_seconds`, SIGTERM or Ctrl-C, and returns the last state.

    Args:
      objective: what is learned.
      optimizer: from `make_optimizer`, or any optax transformation.
      batches: `.batch(step)` -> numpy dict, pure in (its seed, step).
      model_dir: the run's folder, or its address in a bucket; one that has a checkpoint is continued.
      total_steps: steps of the whole run, those before a restart included.
      frozen: parameters that the objective only reads, see `Partitioner.place_frozen`. Never changed, never saved.
      origin: of `frozen`; it is saved, and a run that began with another digest is not continued. None checks nothing.
      meaning: json on what the parameters mean where their shapes do not show it, such as the scales of adapters; it is
        saved, and a run that means something else is not continued. See `Trainable.meaning`.
      provenance: is given what the folder's run has learnt from so far, {} of a new one, and returns that of this run:
        json, which is saved.
      initial_params: a tree to start from, or a function of the fresh parameters; see `start_from`.
      seed: of initial parameters and dropout.
      microbatches, loss_normalizing_factor: see `make_train_step`.
      log_period: steps per row of metrics.jsonl.
      save_period: steps between checkpoints; 0 saves at the end only.
      keep: checkpoints that stay; None keeps all.
      eval_period: steps between evaluations; 0 evaluates at the end only.
      evaluator: (params, frozen, step) -> {name: number}, called on the host; see `loss_evaluator`.
      early_stopping: keeps the best parameters and ends the run when the evaluator's `loss` falls no more.
      max_seconds: wall-clock limit of this call; the run is saved and can be continued.
      partitioner: where arrays live; all devices as data shards by default.
      async_checkpoints: write checkpoints in the background.
      progress: show a progress bar.
      started: called once the run is accepted, before its first step: what does not fit the folder's run was refused.

    Raises:
      ConfigError: an impossible setting, or fewer steps than the folder's run has taken.
      CheckpointError: the folder's run has another seed, model, optimizer or origin, or hosts see other checkpoints.
      BusyError: another process trains in the folder.
      HyperflaxError: when a log period ends, its last `GIVE_UP_AFTER` steps or more, those of periods before it
        included, had no finite loss, gradient and update; the run is saved.
      SystemExit: with `RESUME_EXIT_CODE` (75) after a SIGTERM, once the run is saved.
      KeyboardInterrupt: after Ctrl-C, once the run is saved; at once after a second one.
    """
    for name, value, least in (("total_steps", total_steps, 1), ("log_period", log_period, 1),
                               ("save_period", save_period, 0), ("eval_period", eval_period, 0)):  # fmt: skip
        whole_number(f"train.{name}", value, least)
    check_keep("train", keep)
    if early_stopping is not None and evaluator is None:
        raise ConfigError("train.early_stopping: expected an evaluator, got None")
    step_fn, partitioner = prepare(
        objective=objective,
        optimizer=optimizer,
        microbatches=microbatches,
        loss_normalizing_factor=loss_normalizing_factor,
        partitioner=partitioner,
    )
    processes, directory, shown = Processes.running(), os.fspath(model_dir), StandardError()
    with (
        alone_in(directory),
        StopRequest(max_seconds) as stop,
        Checkpoints(os.path.join(directory, CHECKPOINTS), keep=keep, asynchronous=async_checkpoints) as checkpoints,
        RunLog(directory, enabled=processes.first) as log,
    ):
        run = Run(
            resume_step=_step_to_go_on_from(checkpoints, directory, total_steps),
            objective=objective,
            optimizer=optimizer,
            batches=batches,
            frozen=partitioner.place_frozen(frozen),
            origin=origin,
            initial_params=initial_params,
            seed=seed,
            partitioner=partitioner,
            checkpoints=checkpoints,
            log=log,
            microbatches=microbatches,
            meaning=meaning or {},
            loss_normalizing_factor=loss_normalizing_factor,
            provenance=provenance,
        )
        started()
        compiled = partitioner.compile(step_fn, run.state)
        if early_stopping is not None and evaluator is not None and not run.step:
            _evaluate(run, evaluator, early_stopping)
        ended = early_stopping is not None and early_stopping.exhausted(run.losses)
        with (
            tqdm(
                total=total_steps,
                initial=run.step,
                unit="step",
                file=shown,
                dynamic_ncols=True,
                disable=not (progress and processes.first),
            ) as bar,
            Prefetcher(
                batches, start=run.step, stop=run.step if ended else total_steps, place=partitioner.place_batch
            ) as source,
        ):
            for _, batch, tokens in source:
                run.state, metrics = compiled(run.state, run.frozen, batch, run.key)
                run.clock.waited(source.waited)
                if run.did(metrics, batch, tokens):
                    # Take the compilation out of the bar's estimate.
                    bar.unpause()
                bar.update()
                last = run.step == total_steps
                report = last or _due(run.step, log_period)
                # One process may look every step; several must agree, which costs a message.
                stopping = (jax.process_count() == 1 or report) and stop.requested()
                if report:
                    bar.set_postfix(run.report(whole=_due(run.step, log_period)))
                diverged = report and run.skipped >= GIVE_UP_AFTER
                # Rows before the checkpoint: what a checkpoint's step should have written is then on disk.
                if evaluator is not None and (last or _due(run.step, eval_period)):
                    stopping = _evaluate(run, evaluator, early_stopping) or stopping
                if last or stopping or diverged or _due(run.step, save_period):
                    run.save()
                if diverged:
                    raise HyperflaxError(
                        f"training: none of the last {run.skipped} steps, up to step {run.step}, had a finite loss, "
                        "gradient and update; a lower learning rate or float32 computation may help, and ids that the "
                        "model has no embedding for make every loss NaN"
                    )
                if stopping:
                    break
    if processes.first:
        plot_curve(directory)
        if progress:
            print(run.clock.summary(), file=shown)
        if stop.signal:
            print(f"{signal.Signals(stop.signal).name}: {directory} is saved at step {run.step}", file=shown)
    stop.leave()
    return run.state


def _step_to_go_on_from(checkpoints: Checkpoints, directory: str, total_steps: int) -> int | None:
    """Returns the latest checkpoint's step, None for a new run; raises as `train` does."""
    processes, latest = Processes.running(), checkpoints.latest_step()
    if not processes.all_see(processes.told_by_first(str(latest)) == str(latest)):
        raise CheckpointError(
            f"{directory}: expected all hosts to see the same checkpoints, got another latest one than step "
            f"{latest or 0} on one of them; a network disk may show files late: start again"
        )
    if latest is not None and latest > total_steps:
        raise ConfigError(
            f"train.total_steps: expected at least {latest}, the steps of the run in {directory}, got {total_steps}"
        )
    return latest


def _evaluate(run: Run, evaluator: Evaluator, early_stopping: EarlyStopping | None) -> bool:
    """Evaluates, keeps what is best, and returns whether that was the last evaluation worth making."""
    run.evaluate(evaluator)
    if early_stopping is None:
        return False
    if early_stopping.improved(run.losses):
        early_stopping.keep(run.state.params, run.step)
    return early_stopping.exhausted(run.losses)


def _due(step: int, period: int) -> bool:
    return period > 0 and step % period == 0
