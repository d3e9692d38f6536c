"""The models of the experiments: each is trained once through `hyperflax.train` and found again afterwards.

    OUT/bases/NAME-HASH/model                        a base
    OUT/bases/NAME-HASH/start                        the layers of a deeper base that it starts from
    OUT/runs/FAMILY/NAME-HASH-seedN/model            an experiment's system
    OUT/runs/FAMILY/NAME-HASH-seedN/before/model     its hypernetwork after hyperpretraining
    OUT/runs/FAMILY/NAME-HASH-tasks/model            adapters of the training tasks' own, for all seeds

A run that was stopped goes on from its last checkpoint; a changed configuration has another hash and another folder.
Checkpoints are removed once the model is there.

>>> directory = trained(experiment, seed=0, workspace=Workspace(pathlib.Path("runs/claims")))
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.claims.experiments import (
    PROTOCOL,
    AnotherBase,
    Base,
    Experiment,
    Hyperpretraining,
    PrunedBase,
    ReconstructionExperiment,
    TaskTraining,
    Tuning,
    described,
    digest,
)
from benchmarks.claims.families import FAMILIES, Family
from hyperflax.checkpoints.artefacts import ADAPTER_FILES
from hyperflax.checkpoints.fingerprint import fingerprint
from hyperflax.checkpoints.forms import load_base
from hyperflax.checkpoints.t5_directory import save_t5
from hyperflax.data.batches import Batches
from hyperflax.data.episode_config import EpisodeConfig
from hyperflax.data.episodes import Episodes
from hyperflax.data.examples import ExampleSource, InMemorySource, TaskExamples
from hyperflax.data.hyperpretraining import CACLM
from hyperflax.data.multitask import TaskPairs
from hyperflax.data.text import PackedBatches
from hyperflax.errors import DataError
from hyperflax.json_files import read_json, write_json
from hyperflax.train import EXPORT, HypernetworkOf, PlainT5, SharedAdapter, TaskAdapters, train
from hyperflax.training.loop import CHECKPOINTS
from hyperflax.training.optimizers import Optimizer, Schedule, adamw, make_optimizer
from hyperflax.training.schedules import warmup_cosine
from hyperflax.training.task_adapters import WithTaskAdapters
from hyperflax.types import T5Config

EVALUATIONS = 10  # of the validation loss, in a run
LOGGED = 600  # rows of the training loss, in a run, at most twice as many: spikes are looked for in them
NEIGHBOUR_HEADS = 3.0  # of a base from scratch; see `hyperflax.train.PlainT5`
VALIDATION_SEED = 1_000_003  # episodes that no run trains on


@dataclasses.dataclass(frozen=True)
class Workspace:
    """Where a benchmark works.

    Attributes:
      out: folder of everything that it writes.
      families: by name.
      bases: models from elsewhere, `{name of a base: directory}`, instead of training them.
      progress: show progress bars.
    """

    out: pathlib.Path
    families: Mapping[str, Family] = dataclasses.field(default_factory=lambda: FAMILIES)
    bases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    progress: bool = True

    def family(self, base: Base) -> Family:
        return self.families[base.family]

    def run(self, experiment: Experiment | Tuning, seed: int) -> pathlib.Path:
        """The folder of an experiment's run."""
        return self.out / "runs" / experiment.base.family / f"{experiment.name}-{digest(experiment)}-seed{seed}"


def trained_base(base: Base, workspace: Workspace) -> pathlib.Path:
    """Returns the directory of a base model, which is trained if it is not there."""
    if base.name in workspace.bases:
        return pathlib.Path(workspace.bases[base.name])
    family = workspace.family(base)
    code = hashlib.sha256(json.dumps([PROTOCOL, described(base)], sort_keys=True).encode()).hexdigest()[:16]
    folder = workspace.out / "bases" / f"{base.name}-{code}"
    if isinstance(base, PrunedBase):
        _same_base(folder, base.deeper, workspace)

    def job() -> dict[str, Any]:
        pruned = str(_pruned(base, workspace, folder / "start")) if isinstance(base, PrunedBase) else None
        heads = 0.0 if pruned else NEIGHBOUR_HEADS
        return {
            "model": PlainT5(base.shape, family.vocabulary(), initial_checkpoint=pruned, neighbour_heads=heads),
            "batches": family.base_batches(base),
            "optimizer": family.base_optimizer(base),
        }

    return _train(folder, job, base.steps, workspace, base.seed if isinstance(base, AnotherBase) else 0)


def _pruned(base: PrunedBase, workspace: Workspace, directory: pathlib.Path) -> pathlib.Path:
    """Writes the layers that `base` starts from as a T5 directory, unless they are there; returns it."""
    if not directory.is_dir():
        params = dict(load_base(trained_base(base.deeper, workspace), base.deeper.shape))
        for stack, layers in base.kept().items():
            others = {name: part for name, part in params[stack].items() if not name.startswith("layers_")}
            taken = {f"layers_{i}": params[stack][f"layers_{layer}"] for i, layer in enumerate(layers)}
            params[stack] = {**others, **taken}
        save_t5(directory, params, base.shape, workspace.family(base).vocabulary())
    return directory


def trained(experiment: Experiment, seed: int, workspace: Workspace) -> pathlib.Path:
    """Returns the directory that a run's training left: a hypermodel, an adapter or a T5; trains what is not there.

    Raises:
      DataError: what is there began with another base than the one that is named now.
    """
    folder = workspace.run(experiment, seed)
    _same_base(folder, experiment.base, workspace)
    return _train(folder, lambda: _job(experiment, seed, workspace, folder), experiment.steps, workspace, seed)


def _same_base(folder: pathlib.Path, base: Base, workspace: Workspace) -> None:
    """Notes in a run's folder what base it is for; raises DataError where another is noted, or a model without a note
    is on another, or does not tell."""
    note, found = folder / "base.json", base_fingerprint(base, workspace)
    if note.is_file():
        noted = read_json(note)["fingerprint"]
    elif (folder / EXPORT).is_dir():
        noted = _told_base(folder / EXPORT)
    else:
        noted = found
        folder.mkdir(parents=True, exist_ok=True)
        write_json(note, {"fingerprint": found})
    if noted != found:
        told = f"one on {noted}" if noted else "one without base.json, whose model does not tell its base"
        raise DataError(f"{folder}: expected a run on the base {found}, got {told}; take another --out")


def _told_base(model: pathlib.Path) -> str | None:
    """The fingerprint that a hypermodel or an adapter names as its base's; None of a T5, which names none."""
    files = (model / name for name in ("hypermodel.json", ADAPTER_FILES[0]))
    return next((read_json(file)["base_fingerprint"] for file in files if file.is_file()), None)


def base_fingerprint(base: Base, workspace: Workspace) -> str:
    """The fingerprint of a base's parameters; it is trained if it is not there."""
    return _fingerprint(trained_base(base, workspace), base.shape)


@functools.cache  # every run on a base asks for it, more than once
def _fingerprint(directory: pathlib.Path, shape: T5Config) -> str:
    return fingerprint(load_base(directory, shape))


def _train(
    folder: pathlib.Path, job: Callable[[], dict[str, Any]], steps: int, workspace: Workspace, seed: int = 0
) -> pathlib.Path:
    """Runs `hyperflax.train.train` on what `job` returns, unless its model is there: it is exported last, and whole."""
    directory = folder / EXPORT
    if not directory.is_dir():
        train(
            **job(),
            total_steps=steps,
            model_dir=str(folder),
            seed=seed,
            validation_batches=2,
            eval_period=max(1, steps // EVALUATIONS),
            log_period=max(1, steps // LOGGED),
            save_period=max(1, min(500, steps // 4)),
            keep=1,
            progress=workspace.progress,
        )
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return directory


def _job(experiment: Experiment, seed: int, workspace: Workspace, folder: pathlib.Path) -> dict[str, Any]:
    """Model, data and optimizer of an experiment."""
    base, family = experiment.base, workspace.family(experiment.base)
    checkpoint = str(trained_base(base, workspace))
    optimizer = _optimizer(experiment.learning_rate, experiment.steps, experiment.optimizer)
    if experiment.system == "mtf":
        shown = mtf_episodes(experiment)
        return {
            "model": PlainT5(base.shape, family.vocabulary(), initial_checkpoint=checkpoint),
            "batches": PackedBatches(
                TaskPairs(family.training(), shown),
                shown.tasks_per_batch,
                inputs_length=shown.inputs_length,
                targets_length=2 * shown.targets_length,
                seed=seed,
            ),
            "optimizer": optimizer,
        }
    episodes = experiment.episodes
    # Validation shows one support and no teacher: what is watched is the token loss, the same for all.
    watched = episodes.replace(supports=1, teacher="none", tasks_per_batch=32)
    data: dict[str, Batches] = {
        "batches": Episodes(family.training(), episodes, seed),
        "validation": Episodes(family.held_out(), watched, VALIDATION_SEED),
    }
    if experiment.system == "shared":
        shared = SharedAdapter(base.shape, experiment.spec, family.vocabulary(), checkpoint)
        return {"model": shared, "optimizer": optimizer, **data}
    start = "base"
    if experiment.hyperpretraining is not None:
        start = str(_hyperpretrained(experiment, experiment.hyperpretraining, seed, workspace, folder, checkpoint))
    model = _hypernetwork(experiment, family, checkpoint, start)
    model = dataclasses.replace(model, distillation=experiment.distillation, consistency=experiment.consistency)
    if isinstance(experiment, ReconstructionExperiment):
        adapters = _task_adapters(experiment, experiment.task_adapters, workspace, checkpoint)
        data["batches"] = WithTaskAdapters(data["batches"], str(adapters))
        model = dataclasses.replace(model, reconstruction=experiment.reconstruction)
    return {"model": model, "optimizer": optimizer, **data}


def mtf_episodes(experiment: Experiment) -> EpisodeConfig:
    """The episodes of multi-task fine-tuning: what a hypernetwork reads as support stands before the input."""
    episodes = experiment.episodes
    return episodes.replace(
        examples=1,
        demonstrations="inputs",
        definition="none" if episodes.definition == "none" else "inputs",
        inputs_length=episodes.rows * episodes.support_length + episodes.inputs_length,
    )


def _hyperpretrained(
    experiment: Experiment,
    stage: Hyperpretraining,
    seed: int,
    workspace: Workspace,
    folder: pathlib.Path,
    checkpoint: str,
) -> pathlib.Path:
    family = workspace.family(experiment.base)
    return _train(
        folder / "before",
        lambda: {
            "model": _hypernetwork(experiment, family, checkpoint, "base"),
            "batches": CACLM(
                family.text(),
                stage.batch_size,
                stage.length,
                stage.shortest,
                stage.support_length,
                stage.inputs_length,
                stage.targets_length,
                seed,
            ),
            "optimizer": _optimizer(stage.learning_rate, stage.steps, experiment.optimizer),
        },
        stage.steps,
        workspace,
        seed,
    )


def _task_adapters(experiment: Experiment, stage: TaskTraining, workspace: Workspace, checkpoint: str) -> pathlib.Path:
    """Returns the directory of the training tasks' own adapters, which are trained if they are not there."""
    family, base = workspace.family(experiment.base), experiment.base
    alone = experiment.episodes.replace(
        supports=1,
        shots=0,
        demonstrations="none",
        teacher="none",
        definition="none",
        tasks_per_batch=stage.tasks_per_batch,
    )

    def job() -> dict[str, Any]:
        source = _some_tasks(family.training(), stage.tasks)
        return {
            "model": TaskAdapters(base.shape, experiment.spec, family.vocabulary(), checkpoint, source=source),
            "batches": Episodes(source, alone, seed=0),
            # Without memory: momentum would move adapters whose tasks are not drawn.
            "optimizer": adamw(_schedule(stage.learning_rate, stage.steps), b1=0.0, b2=0.0, clip_norm=None),
        }

    folder = workspace.run(experiment, 0)
    return _train(folder.with_name(f"{folder.name.removesuffix('-seed0')}-tasks"), job, stage.steps, workspace)


def _some_tasks(source: ExampleSource, most: int) -> ExampleSource:
    """Evenly spaced tasks of a source, the first among them; the source itself if it has no more."""
    total = len(source.task_names)
    if total <= most:
        return source
    taken = [number * total // most for number in range(most)]
    return InMemorySource(
        [
            TaskExamples(
                source.task_names[task], source.examples(task, range(int(source.sizes[task]))), source.info(task)
            )
            for task in taken
        ],
        source.vocabulary,
    )


def _hypernetwork(experiment: Experiment, family: Family, checkpoint: str, start: str) -> HypernetworkOf:
    config = experiment.hypermodel(family.vocabulary())
    return HypernetworkOf(config, checkpoint, start=start, name=experiment.name)


def _optimizer(peak: float, steps: int, name: str) -> Optimizer:
    return make_optimizer(name, _schedule(peak, steps), clip_norm=1.0)


def _schedule(peak: float, steps: int) -> Schedule:
    return warmup_cosine(peak, min(100, steps // 10), steps)
