"""Evaluation jobs: `python -m hyperflax.evaluate --gin_file=F`, or `hyperflax evaluate` for the common case.

>>> report = evaluate(model=hyperflax.load("strings"), source=source("held_out"), out="reports/strings")
>>> report["conditions"]["generated"]["mean"]

`hyperflax.evaluate_suite` does it for a benchmark by the benchmark's own rules. On several hosts (`--multiprocess`) the
batches of tasks are shared out, `out` is a folder that all hosts see, and the first one writes the report.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Any, Literal

from hyperflax import configs
from hyperflax.data.examples import ExampleSource
from hyperflax.errors import ConfigError, DataError
from hyperflax.evaluation.conditions import NEIGHBOURS, Conditions
from hyperflax.evaluation.contamination import TRAINING_TASKS, not_recorded, recorded, task_digests, trained_elsewhere
from hyperflax.evaluation.coverage import not_covered
from hyperflax.evaluation.held_out import HeldOut
from hyperflax.evaluation.plots import write_plots
from hyperflax.evaluation.provenance import run_info
from hyperflax.evaluation.references import References
from hyperflax.evaluation.report import require_place, write_report
from hyperflax.evaluation.runner import evaluate_conditions
from hyperflax.hypermodel import Hypermodel
from hyperflax.processes import Processes


def evaluate(
    *,
    model: Hypermodel,
    source: ExampleSource,
    out: str,
    conditions: Sequence[str] = (),
    metric: str = "exact_match",
    shots: int | None = None,
    examples: int = 12,
    tasks: int | None = None,
    refine_steps: int = 10,
    learning_rate: float = 1e-3,
    support: Literal["examples", "positives"] = "examples",
    first: bool = False,
    seed: int = 0,
    supports: int = 1,
    neighbours: ExampleSource | None = None,
    shared: str | None = None,
    mtf: str | None = None,
    mtf_zero_shot: str | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> dict[str, Any]:
    """Scores a hypermodel on held-out tasks beside its baselines and controls, and writes one report.

    Args:
      model: to be evaluated.
      source: of the held-out tasks.
      out: folder for report.json, report.md, plots and the file of finished tasks (a killed evaluation goes on).
      conditions: names; by default all that can be had, `instruction` only where a task has one.
      metric: `exact_match`, `exact_match_normalised`, `rouge_l` ...
      shots: support examples of a task; by default as many as the model was trained with.
      examples: scored examples of a task, at most.
      tasks: only so many tasks; all by default.
      refine_steps, learning_rate: of the refined conditions.
      support, first: see `HeldOut.from_source`.
      seed: of examples and of the shuffled-support control.
      supports: parts that each task's support is read in, see `Hypermodel.adapt`; with `shots` above those of training.
      neighbours: training tasks for the condition `nearest_task`.
      shared: adapter directory for the condition `shared`, as `train.SharedAdapter` leaves it.
      mtf: for the condition `mtf`, a T5 of the base model's shape and vocabulary that was fine-tuned on the training
        tasks, as `train.PlainT5` leaves it. Before the input it reads what the hypernetwork reads as support.
      mtf_zero_shot: such a T5 for the condition `mtf_zero_shot`, which reads the definition alone before the input.
      batch_size: tasks at once.
      progress: show a progress bar.

    Returns:
      the report, see `hyperflax.evaluation.schema`.

    Raises:
      ConfigError: a source in another vocabulary than the model's, a condition that cannot be had, or a file in the
        place of `out`.
      DataError: no task can be evaluated.
    """
    require_place(out)
    for name, given in (("source", source), ("neighbours", neighbours)):
        if given is not None and given.vocabulary != model.config.vocabulary:
            raise ConfigError(
                f"evaluate.{name}: expected tokens of the model's {model.config.vocabulary!r}, got "
                f"{given.vocabulary!r}; registry.load_source.vocabulary is what a source is read with"
            )
    processes = Processes.running()
    episodes = model.config.episodes
    episodes = episodes if shots is None else episodes.replace(shots=shots, min_shots=None)

    drawing: dict[str, Any] = {"examples": examples, "tasks": tasks, "seed": seed, "first": first, "support": support}
    held_out = HeldOut.from_source(source, episodes, **drawing)
    references = References.load(model, shared, mtf, mtf_zero_shot)
    runnable = Conditions(
        model,
        held_out,
        refine_steps=refine_steps,
        learning_rate=learning_rate,
        seed=seed,
        supports=supports,
        neighbours=neighbours,
        **references.systems,
    )
    config = {
        "model": model.parts.id,
        "base": model.base_fingerprint,
        "episodes": configs.to_json(episodes),
        "metric": metric,
        "tasks": len(held_out.tasks),
        "examples": examples,
        "support": support,
        "first": first,
        "refine_steps": refine_steps,
        "learning_rate": learning_rate,
        "seed": seed,
        "supports": supports,
        **references.described,
        **held_out.described,
    }
    if neighbours is not None:
        config |= {"neighbours": runnable.neighbours.digest, "num_neighbours": NEIGHBOURS}
    table = evaluate_conditions(
        held_out.tasks,
        runnable.pick(*conditions),
        metric,
        batch_size=batch_size,
        out=out,
        config=config,
        progress=progress,
        processes=processes,
    )
    figures = None
    if "generated" in table.scores:
        again = None
        # The positives that come with a task are one support, and its examples may be too few for another.
        with contextlib.suppress(DataError):
            if support == "examples":
                again = HeldOut.from_source(source, episodes, draw=1, apart=True, **drawing)
        figures = runnable.adapter_figures(again)
    # Beside the configuration, whose hash names the file of finished tasks.
    told = not_covered(held_out, source, episodes, supports)
    # How well training tasks are done may be asked here; the report does not call them new.
    trained_on = dict(references.trained_on)
    if neighbours is not None:
        trained_on["the neighbours"] = {TRAINING_TASKS: task_digests(neighbours)}
    counts = {
        who: len({*recorded(seen.get(TRAINING_TASKS, ()), held_out.tasks), *trained_elsewhere(seen, held_out.tasks)})
        for who, seen in trained_on.items()
    }
    if counts := {who: count for who, count in counts.items() if count}:
        told["trained_on"] = counts
    if unknown := not_recorded(references.trained_on):
        told["not_recorded"] = unknown
    report = table.report(run_info({**config, **told}, seconds=sum(table.seconds.values())), adapters=figures)
    if processes.first:
        write_report(report, out)
        write_plots(report, out)
    return report


if __name__ == "__main__":
    from hyperflax.cli.gin_main import main

    sys.exit(main("hyperflax.evaluate.evaluate", sys.argv[1:]))
