"""Evaluation jobs: `python -m hyperflax.evaluate --gin_file=F`, or `hyperflax evaluate` for the common case.

>>> report = evaluate(model=hyperflax.load("strings"), source=source("held_out"), out="reports/strings")
>>> report["conditions"]["generated"]["mean"]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any, Literal

from hyperflax import configs
from hyperflax.checkpoints.artefacts import load_adapter
from hyperflax.checkpoints.fingerprint import fingerprint
from hyperflax.checkpoints.t5_directory import load_base
from hyperflax.data.examples import ExampleSource
from hyperflax.evaluation.conditions import Conditions
from hyperflax.evaluation.held_out import HeldOut
from hyperflax.evaluation.plots import write_plots
from hyperflax.evaluation.provenance import run_info
from hyperflax.evaluation.report import write_report
from hyperflax.evaluation.runner import evaluate_conditions
from hyperflax.hypermodel import Hypermodel


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
    mtf_zero_shot: bool = False,
    batch_size: int = 16,
    progress: bool = True,
) -> dict[str, Any]:
    """Scores a hypermodel on held-out tasks beside its baselines and controls, and writes one report.

    Args:
      model: to be evaluated.
      source: of the held-out tasks.
      out: folder for report.json, report.md, plots and the file of finished tasks (a killed evaluation goes on).
      conditions: names; all that can be had by default.
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
      mtf_zero_shot: of that it reads the definition alone.
      batch_size: tasks at once.
      progress: show a progress bar.

    Returns:
      the report, see `hyperflax.evaluation.schema`.
    """
    began = time.monotonic()
    episodes = model.config.episodes
    episodes = episodes if shots is None else episodes.replace(shots=shots, min_shots=None)

    def held_out_tasks(draw: int) -> HeldOut:
        return HeldOut.from_source(
            source, episodes, examples=examples, tasks=tasks, seed=seed, draw=draw, first=first, support=support
        )

    held_out = held_out_tasks(0)
    adapter = load_adapter(shared) if shared else None
    fine_tuned = model.with_base(load_base(mtf, model.config.base)) if mtf else None
    runnable = Conditions(
        model,
        held_out,
        refine_steps=refine_steps,
        learning_rate=learning_rate,
        seed=seed,
        supports=supports,
        neighbours=neighbours,
        shared=adapter,
        mtf=fine_tuned,
        mtf_zero_shot=mtf_zero_shot,
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
    }
    if supports > 1:
        config["supports"] = supports
    if adapter is not None:
        config["shared"] = fingerprint(adapter.tree)
    if fine_tuned is not None:
        config |= {"mtf": fine_tuned.base_fingerprint, "mtf_zero_shot": mtf_zero_shot}
    table = evaluate_conditions(
        held_out.tasks,
        runnable.pick(*conditions),
        metric,
        batch_size=batch_size,
        out=out,
        config=config,
        progress=progress,
    )
    figures = None
    if "generated" in table.scores:
        # The positives that come with a task are one support; there is no other to compare it with.
        figures = runnable.adapter_figures(held_out_tasks(1) if support == "examples" else None)
    report = table.report(run_info(config, seconds=time.monotonic() - began), adapters=figures)
    write_report(report, out)
    write_plots(report, out)
    return report


if __name__ == "__main__":
    from hyperflax.cli.gin_main import main

    sys.exit(main("hyperflax.evaluate.evaluate", sys.argv[1:]))
