"""Scores of a trained system on held-out tasks, and the figures of its run.

A *measure* has a value for every task and every support that was drawn, `{task: [score, ...]}`: a condition of a report
(`bare`, `generated`, ...), or `generated_8_shots`. A *figure* is one number of a run, see `figures`.

>>> measures, numbers = evaluate(experiment, trained(experiment, 0, workspace), 0, workspace)
>>> measures["generated"]["email | upper"], numbers["within_over_between"]
([0.5, 0.375, 0.5], 0.31)
"""

from __future__ import annotations

import itertools
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks.claims.experiments import Experiment, digest
from benchmarks.claims.table import shots as of_shots
from benchmarks.claims.training import Workspace, trained_base
from hyperflax.adapters.lora import LoRA
from hyperflax.checkpoints.artefacts import load_adapter
from hyperflax.checkpoints.forms import load_base
from hyperflax.evaluation.conditions import Conditions
from hyperflax.evaluation.held_out import HeldOut
from hyperflax.evaluation.runner import evaluate_conditions
from hyperflax.hypermodel import Hypermodel, load
from hyperflax.hypernets.heads import HeadsConfig
from hyperflax.hypernets.hyper_t5 import HyperT5Config
from hyperflax.training.run_log import METRICS_FILE, read_rows
from hyperflax.types import PyTree

Measures = dict[str, dict[str, list[float]]]

SPIKE_WINDOW = 20  # rows before a row, which say what is usual
SPIKE_DEVIATIONS = 6.0  # median absolute deviations; four standard deviations of normal noise


def evaluate(
    experiment: Experiment, directory: pathlib.Path, seed: int, workspace: Workspace
) -> tuple[Measures, dict[str, float]]:
    """Scores the system in `directory` on the held-out tasks; finished tasks are kept beside it and not done again.

    Returns:
      measures and figures.
    """
    plan, family = experiment.evaluation, workspace.family(experiment.base)
    model, systems = _systems(experiment, directory, workspace)
    source = family.held_out()

    def conditions(number: int, shots: int, draws: int) -> tuple[HeldOut, Conditions]:
        # Supports are the seed's own; scored examples are the same for all seeds and draws.
        held_out = HeldOut.from_source(
            source,
            experiment.episodes.replace(shots=shots, min_shots=None),
            examples=plan.examples,
            tasks=plan.tasks,
            draw=seed * plan.draws + number,
            draws=draws,
            first=family.first,
        )
        return held_out, Conditions(model, held_out, refine_steps=plan.refine_steps, **systems)

    def scores(number: int, names: Sequence[str], shots: int, draws: int) -> dict[str, dict[str, float]]:
        held_out, runnable = conditions(number, shots, draws)
        return evaluate_conditions(
            held_out.tasks,
            runnable.pick(*names),
            family.metric,
            out=directory.parent / "evaluation",
            config={"experiment": digest(experiment), "seed": seed, "draw": number, "shots": shots},
            progress=workspace.progress,
        ).scores

    shots = experiment.episodes.shots
    measures: Measures = {}
    for number in range(plan.draws if "generated" in plan.conditions else 1):
        names = plan.conditions if number == 0 else ("generated",)
        for name, found in scores(number, names, shots, plan.draws).items():
            for task, score in found.items():
                measures.setdefault(name, {}).setdefault(task, []).append(score)
    for count in plan.shots:
        found = scores(0, ("generated",), count, 1)["generated"]
        measures[of_shots(count)] = {task: [score] for task, score in found.items()}
    numbers = figures(read_rows(directory.parent / METRICS_FILE))
    if experiment.system == "hypernetwork":
        (_, first), (again, _) = (conditions(number, shots, max(2, plan.draws)) for number in (0, 1))
        found = first.adapter_figures(again)
        within, between = found["within_task_distance"], found["between_task_distance"]
        numbers |= {"within_task_distance": within, "between_task_distance": between}
        # Distances of two generators cannot be compared, their ratios can: one makes larger adapters than the other.
        numbers["within_over_between"] = within / between if between > 0 else 1.0
    return measures, numbers


def figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the figures of a run's log.

    Args:
      rows: of its metrics.jsonl.

    Returns:
      `loss_spikes`: rows of the training loss that lie more than `SPIKE_DEVIATIONS` median absolute deviations above
      the median of the `SPIKE_WINDOW` rows before them. `seconds_per_step`: the median between rows. Where there was
      validation, `validation_loss`, the last one, and `mean_validation_loss` over the run, low where a system learns
      early (both in nats per token).
    """
    training = [row for row in rows if row["kind"] == "train"]
    losses = [row["loss"] for row in training if "loss" in row]
    spikes = 0
    for at in range(SPIKE_WINDOW, len(losses)):
        before = losses[at - SPIKE_WINDOW : at]
        usual = statistics.median(before)
        deviation = statistics.median(abs(loss - usual) for loss in before)
        spikes += losses[at] > usual + SPIKE_DEVIATIONS * deviation
    numbers = {"loss_spikes": float(spikes)}
    paces = [(b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in itertools.pairwise(training)]
    if paces:
        numbers["seconds_per_step"] = statistics.median(paces)
    if validation := [row["loss"] for row in rows if row["kind"] == "eval" and "loss" in row]:
        numbers |= {"validation_loss": validation[-1], "mean_validation_loss": statistics.fmean(validation)}
    return numbers


def validation_curve(rows: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Returns [step, validation loss] of every evaluation in a run's log."""
    return [[row["step"], round(row["loss"], 5)] for row in rows if row["kind"] == "eval" and "loss" in row]


def _systems(experiment: Experiment, directory: pathlib.Path, workspace: Workspace) -> tuple[Hypermodel, dict]:
    """The hypermodel that conditions are run with, and the reference system among their arguments if it is one."""
    if experiment.system == "hypernetwork":
        return load(directory), {}
    shape = experiment.base.shape
    model = without_hypernetwork(experiment, load_base(trained_base(experiment.base, workspace), shape), workspace)
    if experiment.system == "shared":
        return model, {"shared": load_adapter(directory)}
    return model, {"mtf": model.with_base(load_base(directory, shape))}


def without_hypernetwork(experiment: Experiment, base: PyTree, workspace: Workspace) -> Hypermodel:
    """A hypermodel for conditions that generate nothing: its hypernetwork is small and all zeros."""
    network = HyperT5Config(t5=experiment.base.shape, heads=HeadsConfig(hidden=1))
    empty = experiment.replace(adapter=LoRA(rank=1), hypernetwork=network)
    config = empty.hypermodel(workspace.family(experiment.base).vocabulary())
    episode = {"support_tokens": jnp.zeros((1, 4), jnp.int32)}
    shapes = nn.unbox(jax.eval_shape(config.build()[1].init, jax.random.key(0), episode)["params"])
    return Hypermodel(config, base, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes))
