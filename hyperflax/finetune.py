"""Fine-tuning jobs: one adapter for one task, trained from a generated, shared, random or given start.

`Table` with a single row takes the place of the hypernetwork, so the training step and the host loop are those of
everything else. The held-out loss chooses the checkpoint that is kept and ends the run; at the end stand the held-out
scores of the bare model, of the adapter as generated and of the tuned one (generated parameters as initialisation:
Phang et al. 2022, HyperTuning, section 5).

    out/adapter.json, adapter.safetensors    the best checkpoint, an ordinary adapter directory
    out/run.json, report.json, loss.png      settings; scores and verdict; the curve
    out/checkpoints/, metrics.jsonl, tensorboard/, best.safetensors    of the run, which goes on where it was killed

>>> report = finetune(model=load("strings"), examples="train.jsonl", kinds=(LoRA(rank=8),), out="dates")
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax

from hyperflax import configs
from hyperflax.adapters.kind_config import KindConfig
from hyperflax.adapters.kinds import build_spec, check_spec, kind_of
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.adapters.start import start_from
from hyperflax.checkpoints.artefacts import Adapter, AdapterMetadata, check_base
from hyperflax.checkpoints.fingerprint import fingerprint, support_hash
from hyperflax.checkpoints.tensors import load_tree, save_tree
from hyperflax.data.episode_plan import support_overhead
from hyperflax.data.examples import TaskInfo, tokenise
from hyperflax.data.finetuning import PairBatches, hold_out
from hyperflax.data.jsonl import Line, read_lines
from hyperflax.data.vocabularies import as_written
from hyperflax.errors import CheckpointError, ConfigError, DataError, HyperflaxError
from hyperflax.evaluation import contamination
from hyperflax.evaluation.metrics import get_metric
from hyperflax.evaluation.worth import TUNED, compare
from hyperflax.files import local_folder, require_run_place
from hyperflax.hypermodel import Hypermodel
from hyperflax.hypernets.table import Table, table_params
from hyperflax.json_files import read_json, write_json
from hyperflax.locks import alone_in
from hyperflax.models import memory
from hyperflax.training import loop
from hyperflax.training.evaluate import loss_evaluator
from hyperflax.training.finetuning import FineTuning, TableObjective
from hyperflax.training.partitioning import Partitioner, make_mesh
from hyperflax.training.run_log import METRICS_FILE, read_rows
from hyperflax.training.stopping import EarlyStopping
from hyperflax.types import PyTree

RUN, BEST, REPORT = "run.json", "best.safetensors", "report.json"
GENERATED, RANDOM = "generated", "random"
SUPPORTS = 8  # most supports that the generated adapter is averaged over, each of as many shots as in training


def finetune(
    *,
    model: Hypermodel,
    examples: str | os.PathLike[str],
    out: str | os.PathLike[str],
    kinds: Sequence[KindConfig] | None = None,
    init: str | Adapter = GENERATED,
    validation: str | os.PathLike[str] | None = None,
    settings: FineTuning | None = None,
    progress: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Trains an adapter on a task's examples; called again with the same arguments it goes on where it was killed.

    Args:
      model: gives the frozen T5, and the generated adapter.
      examples: jsonl file.
      out: the run's folder, and the adapter directory.
      kinds: what to train; None trains what `init` has, what the model generates where that is no adapter.
      init: `generated`, `random`, or an adapter of the same base model; see `adapters.start` for what fits what.
      validation: jsonl file of held-out examples; None holds a part of `examples` out.
      settings: see there.
      progress: show a progress bar.
      say: is told what was held out.

    Returns:
      the report, as `report.json` has it: see `evaluation.worth.compare`; `best_step`, `held_out`, `overlap`.

    Raises:
      ConfigError: an unknown `init`.
      DataError: a broken or too long example, with file and line; too few examples.
      AdapterError: an adapter that cannot be the start, or is of another base model.
      CheckpointError: `out` holds something else, or a run with other settings.
      BusyError: another process is at work in `out`.
    """
    if isinstance(init, str) and init not in (GENERATED, RANDOM):
        raise ConfigError(f"finetune.init: expected '{GENERATED}', '{RANDOM}' or an adapter, got '{init}'")
    settings, folder = settings or FineTuning(), local_folder(out)
    require_run_place(folder, RUN, "finetune")
    if kinds is not None:
        spec = build_spec(tuple(kinds), model.config.base)
    elif isinstance(init, Adapter):
        check_base(init, model.base_fingerprint)
        check_spec(init.spec, model.config.base)
        spec = init.spec
    else:
        spec = model.config.spec
    lines, held = read_lines(examples), None if validation is None else read_lines(validation)
    if held is None:
        lines, held = hold_out(lines, settings.held_out, settings.seed)
        total = len(lines) + len(held)
        say(f"held out {len(held)} of {total} examples (seed {settings.seed}), {len(lines)} to train on")
    arrays = {"config": model.config.episodes, "vocabulary": model.config.vocabulary, "batch_size": settings.batch_size}
    batches, held_batches = (
        PairBatches.of(lines, seed=settings.seed, **arrays),
        PairBatches.of(held, seed=None, **arrays),
    )
    generated = generate(model, lines)
    if init == GENERATED and generated is None:
        raise DataError(
            f"{lines[0].at}: too long for the hypernetwork to read, as all others: expected at most "
            f"{model.config.episodes.support_length} tokens of input, target, two sentinels and end of sequence"
        )
    adapter = init if isinstance(init, Adapter) else generated if init == GENERATED else None
    start = None if adapter is None else _table_of(adapter, model, spec, settings.seed)
    with alone_in(folder):
        if isinstance(init, Adapter):
            origin = fingerprint(init.tree)
        else:  # a generated start by what it was generated with: its last bits differ between machines
            origin = f"{GENERATED} by {model.parts.id}" if init == GENERATED else init
        _claim(folder, settings, spec, model, lines, held, origin)
        _train(folder, settings, spec, model, batches, held_batches, start, progress)
    rows = [row for row in read_rows(folder / METRICS_FILE) if row["kind"] == "eval" and "loss" in row]
    best = min(rows, key=lambda row: (row["loss"], row["step"]))
    metadata = AdapterMetadata(
        base_fingerprint=model.base_fingerprint,
        hypermodel=None if adapter is None else adapter.metadata.hypermodel,
        support_hash=_hash(lines),
        refine_steps=best["step"],
        created_with="hyperflax finetune",
    )
    tuned = Adapter(load_tree(folder / BEST), spec, metadata)
    seen = {line.input for line in lines}
    report = {
        **_compared(model, held, settings.metric, generated, None if init == GENERATED else adapter, tuned),
        "metric": settings.metric,
        "best_step": best["step"],
        "loss": {"start": next((row["loss"] for row in rows if row["step"] == 0), None), TUNED: best["loss"]},
        "examples": len(lines),
        "held_out": len(held),
        "overlap": sum(line.input in seen for line in held),
    }
    earlier = {} if adapter is None else adapter.metadata.provenance
    provenance = {
        **contamination.inherited(earlier, unrecorded=[type(batches).__name__]),
        "finetuning": {"settings": configs.to_json(settings), "report": report},
    }
    metadata = dataclasses.replace(metadata, provenance=provenance)
    dataclasses.replace(tuned, metadata=metadata).save(folder, beside_others=True)
    write_json(folder / REPORT, report)
    return report


def generate(model: Hypermodel, lines: Sequence[Line]) -> Adapter | None:
    """Returns the hypermodel's adapter from the first examples that it can read, in up to `SUPPORTS` supports.

    None if every example is longer than a row of its support.
    """
    shown, shots = readable(model, lines), max(1, model.config.episodes.shots)
    return model.adapt(shown[: SUPPORTS * shots], supports=supports_for(len(shown), shots)) if shown else None


def supports_for(examples: int, shots: int) -> int:
    """Returns in how many supports of `shots` the hypernetwork reads so many examples; 0 shots count as one."""
    return min(SUPPORTS, math.ceil(examples / max(1, shots)))


def readable(model: Hypermodel, lines: Sequence[Line]) -> list[tuple[str, str]]:
    """Returns the examples that fit into a row of the hypermodel's support."""
    episodes, vocabulary = model.config.episodes, model.config.vocabulary
    room = episodes.support_length - support_overhead(TaskInfo(), episodes)

    def size(line: Line) -> int:
        return len(tokenise(line.input, vocabulary)) + len(tokenise(line.target, vocabulary))

    return [(line.input, line.target) for line in lines if size(line) <= room]


def _train(
    folder: pathlib.Path,
    settings: FineTuning,
    spec: AdapterSpec,
    model: Hypermodel,
    batches: PairBatches,
    held_batches: PairBatches,
    start: PyTree | None,
    progress: bool,
) -> None:
    """Trains the table, or goes on; leaves the adapter of the lowest held-out loss in `BEST`."""
    table = Table(spec, shared=True)
    objective = TableObjective(model.model, table)
    inputs, targets = (batches.arrays[name].shape[-1] for name in ("encoder_input_tokens", "decoder_target_tokens"))
    kept = memory.kept_bytes(model.config.base, batches.batch_size, inputs, targets)
    parts = memory.filled_microbatches(kept, batches.batch_size)

    def keep(params: PyTree, step: int) -> None:
        del step
        save_tree(folder / BEST, table.apply({"params": params}, {}))

    loop.train(
        objective=objective,
        optimizer=settings.optimizer([kind_of(leaf) for leaf in spec.leaves]),
        batches=dataclasses.replace(batches, parts=parts),
        microbatches=parts,
        model_dir=folder,
        total_steps=settings.steps,
        frozen=model.base_params,
        initial_params=start,
        seed=settings.seed,
        log_period=settings.period,
        save_period=settings.period,
        keep=1,
        eval_period=settings.period,
        evaluator=loss_evaluator(objective, held_batches, held_batches.per_epoch),
        early_stopping=EarlyStopping(settings.patience, keep),
        partitioner=Partitioner(make_mesh(devices=jax.devices()[:1])),  # one task does not divide over several
        progress=progress,
    )
    if not (folder / BEST).is_file():
        raise HyperflaxError(f"{folder}: no evaluation had a finite loss; a lower learning rate may help")


def _table_of(adapter: Adapter, model: Hypermodel, spec: AdapterSpec, seed: int) -> PyTree:
    """The parameters of a table whose only row is the adapter."""
    check_base(adapter, model.base_fingerprint)
    raw = start_from(adapter.tree, adapter.spec, spec, jax.random.key(seed))
    return table_params(jax.tree.map(lambda leaf: leaf[None], raw))


def _claim(
    folder: pathlib.Path,
    settings: FineTuning,
    spec: AdapterSpec,
    model: Hypermodel,
    lines: Sequence[Line],
    held: Sequence[Line],
    start: str,
) -> None:
    """Makes the folder this run's, or makes sure that it is; a run goes on with exactly what it began with."""
    run: dict[str, Any] = {
        "settings": configs.to_json(settings),
        "spec": spec.to_json(),
        "base": model.base_fingerprint,
        "examples": _hash(lines),
        "held_out": _hash(held),
        "start": start,
    }
    if (folder / RUN).is_file():
        earlier = read_json(folder / RUN)
        if other := [key for key in run if earlier.get(key) != run[key]]:
            was, now = earlier.get(other[0]), run[other[0]]
            if other[0] == "settings" and isinstance(was, dict):
                changed = [name for name in now if was.get(name) != now[name]]
                was, now = {name: was.get(name) for name in changed}, {name: now[name] for name in changed}
            shown = f": expected {was}, got {now}" if other[0] != "spec" else ""
            raise CheckpointError(f"{folder}: holds a run with other {', '.join(other)}{shown}; choose another folder")
    else:
        require_run_place(folder, RUN, "finetune")
        write_json(folder / RUN, run)


def _hash(lines: Sequence[Line]) -> str:
    return support_hash({"input": line.input, "target": line.target} for line in lines)


def _compared(
    model: Hypermodel,
    held: Sequence[Line],
    metric: str,
    generated: Adapter | None,
    start: Adapter | None,
    tuned: Adapter,
) -> dict[str, Any]:
    """Scores every condition that there is on the held-out examples; see `evaluation.worth.compare`."""
    conditions = {"bare": None}
    conditions |= {name: adapter for name, adapter in ((GENERATED, generated), ("start", start)) if adapter is not None}
    score, scores = get_metric(metric).score, {}
    targets = [as_written(line.target, model.config.vocabulary) for line in held]
    for name, adapter in {**conditions, TUNED: tuned}.items():
        predictions = model.predict([line.input for line in held], adapter)
        scores[name] = [score([text], [[target]]) for text, target in zip(predictions, targets, strict=True)]
    return compare(scores, against=GENERATED if generated is not None else "bare")
