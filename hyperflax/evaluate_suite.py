"""Evaluation on a benchmark suite by the suite's own rules: `hyperflax evaluate --suite NAME`, or the gin job
`python -m hyperflax.evaluate_suite --gin_file=F`.

>>> report = evaluate_suite(model=hyperflax.load("runs/ni/model"), suite=suite(), out="reports/ni")
>>> report["suite"]["complete"]

What the model was trained on is compared with what is evaluated, and a part of the suite is never called the whole. On
several hosts (`--multiprocess`) as in `hyperflax.evaluate`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from hyperflax import configs
from hyperflax.data.examples import ExampleSource
from hyperflax.evaluation.conditions import Conditions
from hyperflax.evaluation.contamination import (
    TRAINING_TASKS,
    check_contamination,
    check_names,
    not_recorded,
    record,
    trained_elsewhere,
)
from hyperflax.evaluation.coverage import common_tasks, count_cut, count_cut_supports, lacks
from hyperflax.evaluation.held_out import HeldOut
from hyperflax.evaluation.plots import write_plots
from hyperflax.evaluation.provenance import run_info
from hyperflax.evaluation.references import References
from hyperflax.evaluation.report import require_place, write_report
from hyperflax.evaluation.runner import Condition, EvaluationTask, ScoreTable, evaluate_conditions
from hyperflax.evaluation.suite import Suite, check_units, suite_report
from hyperflax.hypermodel import Hypermodel
from hyperflax.processes import Processes


def evaluate_suite(
    *,
    model: Hypermodel,
    suite: Suite,
    out: str,
    conditions: Sequence[str] = (),
    shots: int | None = None,
    examples: int | None = None,
    tasks: int | None = None,
    draws: int = 1,
    support: Literal["examples", "positives"] | None = None,
    refine_steps: int = 10,
    learning_rate: float = 1e-3,
    seed: int = 0,
    supports: int = 1,
    shared: str | None = None,
    mtf: str | None = None,
    mtf_zero_shot: str | None = None,
    trained_on: Mapping[str, ExampleSource] | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> dict[str, Any]:
    """Scores a hypermodel on a benchmark suite by the suite's rules and writes one report.

    Inputs that are too long are cut, never left out.

    Args:
      model, out, conditions, refine_steps, learning_rate, batch_size, progress: as in `hyperflax.evaluate.evaluate`.
      supports, shared, mtf, mtf_zero_shot: as there.
      suite: its tasks and rules.
      shots: support examples of a task, as far as the suite has them; by default as many as the model was trained with.
      examples, tasks: score only so many; the report says so where there are more.
      draws: supports of every task, over which its score is averaged.
      support: where supports come from; by default as the suite has it.
      seed: of drawn supports and of the shuffled-support control.
      trained_on: `{name: what the model and its base were trained on}`, which must not hold what is evaluated.

    Returns:
      the report, see `hyperflax.evaluation.schema`.

    Raises:
      DataError: `trained_on` holds a task or an example of the suite, or the record that the model, the shared adapter
        or the fine-tuned T5 has of its training tasks such a task; no task can be evaluated.
      ConfigError: a condition that cannot be had, or a file in the place of `out`.
    """
    require_place(out)
    processes = Processes.running()
    episodes = model.config.episodes.replace(min_shots=None, too_long="truncate")
    episodes = episodes if shots is None else episodes.replace(shots=shots)
    source_of_support = support or suite.support
    runs: dict[str, HeldOut] = {}
    most_tasks, most_examples = 0, 0
    for label, load in suite.sources.items():
        source = load(model.config.vocabulary)
        most_tasks = max(most_tasks, len(source.task_names))
        most_examples = max([most_examples, *source.sizes.tolist()])
        for draw in range(draws):
            runs[label if draws == 1 else f"{label} draw {draw}"] = HeldOut.from_source(
                source,
                episodes,
                examples=examples,
                tasks=tasks,
                seed=seed,
                draw=draw,
                draws=draws,
                first=suite.ranked is None,
                support=source_of_support,
                ranked=suite.ranked,
            )
    evaluated = [task for held_out in runs.values() for task in held_out.tasks]
    check_units(suite, evaluated)
    references = References.load(model, shared, mtf, mtf_zero_shot)
    for who, seen in references.trained_on.items():
        check_names(who, seen.get(TRAINING_TASKS, ()), evaluated)
    checked_against = []
    for name, training in (trained_on or {}).items():
        unknown = check_contamination(name, training, evaluated)
        but = f" (but {unknown} inputs with characters that a vocabulary lacks were not compared)" if unknown else ""
        checked_against.append(name + but)
    given = {f"'{name}'": record([training]) for name, training in (trained_on or {}).items()}
    seen_elsewhere = {
        task: f"task '{task}': {who} has its data set as {data_set}"
        for who, seen in {**references.trained_on, **given}.items()
        for task, data_set in trained_elsewhere(seen, evaluated).items()
    }
    runs = {label: held_out.without(seen_elsewhere) for label, held_out in runs.items()}
    config: dict[str, Any] = {
        "model": model.parts.id,
        "base": model.base_fingerprint,
        "episodes": configs.to_json(episodes),
        "suite": suite.name,
        "tasks": _fewer(tasks, most_tasks),
        "examples": _fewer(examples, most_examples),
        "draws": draws,
        "support": source_of_support,
        "ranked": suite.ranked,
        "refine_steps": refine_steps,
        "learning_rate": learning_rate,
        "seed": seed,
        "supports": supports,
        **references.described,
    }
    tables: dict[str, ScoreTable] = {}
    figures: dict[str, float] = {}
    common = common_tasks(runs)
    for name, held_out in common.items():
        everything = Conditions(
            model,
            held_out,
            refine_steps=refine_steps,
            learning_rate=learning_rate,
            seed=seed,
            supports=supports,
            unlike=suite.grouped,
            **references.systems,
        )
        runnable = everything.pick(*conditions)
        first = next(iter(tables.values()), None)
        if first and _asked(first.tasks) == _asked(held_out.tasks):
            # These conditions read no support, and all else is the same: they would only say it again.
            runnable |= {free: _repeat(first, free) for free in everything.support_free & set(runnable)}
        tables[name] = evaluate_conditions(
            held_out.tasks,
            runnable,
            suite.metric,
            batch_size=batch_size,
            out=out,
            config={**config, "run": name, **held_out.described, **everything.described(runnable)},
            progress=progress,
            processes=processes,
        )
        if not figures and "generated" in runnable:
            # The first two runs are two supports of a task, which may be the same; of a single run the scored examples
            # make the second one.
            second = list(common.values())[1] if len(common) > 1 else held_out.shown_scored(episodes, seed)
            figures = everything.adapter_figures(second.where_supports_differ(held_out))
    if unknown := not_recorded(references.trained_on):
        config["not_recorded"] = unknown
    cut, inputs = count_cut(common, episodes.inputs_length)
    config["inputs_cut"] = f"{cut} of {inputs}"
    cut_supports = sum(
        count_cut_supports(held_out, episodes, model.config.vocabulary, supports) for held_out in common.values()
    )
    report = suite_report(
        suite,
        tables,
        run_info(config, seconds=sum(sum(table.seconds.values()) for table in tables.values())),
        missing=lacks(suite, common, config, episodes, cut, cut_supports),
        checked_against=checked_against,
        adapters=figures or None,
    )
    if processes.first:
        write_report(report, out)
        write_plots(report, out)
    return report


def _fewer(asked: int | None, there: int) -> int | None:
    """The number that was asked for; None where it leaves nothing out."""
    return asked if asked is not None and asked < there else None


def _asked(tasks: Sequence[EvaluationTask]) -> list[EvaluationTask]:
    """The tasks without their support."""
    return [dataclasses.replace(task, support=()) for task in tasks]


def _repeat(table: ScoreTable, condition: str) -> Condition:
    """A condition that gives the answers it gave before."""
    return lambda batch: [table.predictions[condition][task.name] for task in batch]


if __name__ == "__main__":
    from hyperflax.cli.gin_main import main

    sys.exit(main("hyperflax.evaluate_suite.evaluate_suite", sys.argv[1:]))
