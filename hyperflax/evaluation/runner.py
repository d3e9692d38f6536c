"""The loop of an evaluation: every condition over every task, in batches, resumable.

A condition is any callable that answers a batch of tasks with one list of predictions per task. What is behind it
(which model, which adapter) is no concern of this module, and neither is JAX.

>>> tasks = [EvaluationTask("upper", ("ab", "c"), (("AB",), ("C",))), EvaluationTask("same", ("ab",), (("ab",),))]
>>> conditions = {"bare": lambda batch: [list(task.inputs) for task in batch]}
>>> evaluate_conditions(tasks, conditions, "exact_match", progress=False).scores
{'bare': {'upper': 0.0, 'same': 1.0}}

With `out`, finished tasks are kept in `out/scores-HASH.jsonl`, one line per task and condition with its predictions,
and an evaluation that was killed goes on where it stopped. HASH stands for hyperflax's version, the configuration, the
metric and the tasks: a change in any of them starts a new file. Several processes (`--multiprocess`) share out the
batches, and each keeps a file of its own, `scores-HASH.jsonl-00000-of-00002` and so on; when all are done, all read
everything. However many took part earlier, what is finished is not done again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

import hyperflax
from hyperflax.buckets import Location, locate
from hyperflax.errors import AdapterError, ConfigError, DataError
from hyperflax.evaluation.metrics import Metric, get_metric
from hyperflax.evaluation.provenance import plain_json
from hyperflax.evaluation.report import build_report
from hyperflax.evaluation.schema import CONDITIONS
from hyperflax.files import append_lines, atomic_file
from hyperflax.locks import require_shared
from hyperflax.processes import Processes

ALONE = Processes()


@dataclasses.dataclass(frozen=True)
class EvaluationTask:
    """One task to be evaluated, as text.

    Attributes:
      name: unique among the evaluated tasks.
      inputs: what the base model is asked, one per example.
      references: acceptable answers of each example, at least one.
      support: the few-shot examples as (input, target) pairs, disjoint from the inputs.
      instruction: the true instruction, for conditions that use one.
      options: answer choices of each example, for rank classification; empty where answers are free.
      category: a group of the report, such as a family of operations.
      data_sets, own_name: what its examples are made of, and its name inside a seqio Task, see `TaskInfo`.
    """

    name: str
    inputs: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]
    support: tuple[tuple[str, str], ...] = ()
    instruction: str = ""
    options: tuple[tuple[str, ...], ...] = ()
    category: str | None = None
    data_sets: tuple[str, ...] = ()
    own_name: str = ""


Condition = Callable[[Sequence[EvaluationTask]], Sequence[Sequence[str]]]


@dataclasses.dataclass(frozen=True)
class ScoreTable:
    """What an evaluation found.

    Attributes:
      metric: the metric's name.
      tasks: the evaluated tasks, in order.
      scores: {condition: {task: score in 0..1}}.
      predictions: {condition: {task: one string per input}}.
      seconds: {condition: wall time of its batches}, those of earlier, resumed runs and of other processes included.
    """

    metric: str
    tasks: tuple[EvaluationTask, ...]
    scores: dict[str, dict[str, float]]
    predictions: dict[str, dict[str, list[str]]]
    seconds: dict[str, float]

    def report(self, run: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        """The report on these scores; `run` as `run_info` makes it, `options` as in `build_report`."""
        return build_report(
            self.metric,
            self.scores,
            run,
            n_examples={task.name: len(task.inputs) for task in self.tasks},
            categories={task.name: task.category for task in self.tasks if task.category is not None},
            **options,
        )


def evaluate_conditions(
    tasks: Sequence[EvaluationTask],
    conditions: Mapping[str, Condition],
    metric: str | Metric,
    *,
    batch_size: int = 16,
    out: pathlib.Path | str | None = None,
    config: Mapping[str, Any] | None = None,
    progress: bool = True,
    processes: Processes = ALONE,
) -> ScoreTable:
    """Scores every task under every condition.

    Tasks of like size share a batch, whose tasks all cost what its largest costs. Batches are the same in every run,
    resumed or not and on however many hosts, so that a batch's composition cannot change a figure.

    Args:
      tasks: at least one.
      conditions: {name from `CONDITIONS`: callable from a batch of tasks to their predictions}.
      metric: a metric, or its name.
      batch_size: tasks per call of a condition, at most.
      out: folder of the file of finished tasks; None keeps none.
      config: all that decides the predictions (model fingerprint, seeds, refining steps ...), as json; part of the
        file's name and hence needed with `out`.
      progress: show a progress bar over tasks, in the first process.
      processes: that share the work; with several, `out` is a folder that all of them see.

    Raises:
      ConfigError: an unknown condition or metric, a batch size below 1, `out` without `config`, several processes
        without `out` or with one that they do not share.
      DataError: no tasks, a name given twice, a condition that answers with a wrong number of lists or strings, a
        broken file of finished tasks, or a folder in which what the other processes wrote does not appear.
      AdapterError: an adapter under which the base model's logits are not finite, as refining may leave it.
    """
    measure = get_metric(metric) if isinstance(metric, str) else metric
    _check(tasks, conditions, batch_size)
    done: dict[tuple[str, str], dict[str, Any]] = {}
    journal = None
    if out is not None:
        if not config:
            raise ConfigError(
                "evaluate_conditions: `out` needs `config`, or results of another model might be taken up"
            )
        journal = pathlib.Path(out) / f"scores-{_digest(config, measure.name, tasks)}.jsonl"
        if processes.count > 1:
            append_lines(processes.shard(journal), [])
            first = dataclasses.replace(processes, index=0).shard(journal)
            require_shared(locate(first.parent), first.name, processes)
        done = _read_journals(journal, processes)
    elif processes.count > 1:
        raise ConfigError("evaluate_conditions: several processes need `out`, where each finds what the others did")
    names = [task.name for task in tasks]
    finished = sum((condition, name) in done for condition in conditions for name in names)
    total = len(tasks) * len(conditions)
    batches = _batches(tasks, batch_size)
    with tqdm(total=total, initial=finished, unit="task", disable=not (progress and processes.first)) as bar:
        for condition, predict in conditions.items():
            bar.set_description(condition)
            for batch in batches[processes.index :: processes.count]:
                open_tasks = [task.name for task in batch if (condition, task.name) not in done]
                if not open_tasks:
                    continue
                rows = [row for row in _run_batch(condition, predict, batch, measure) if row["task"] in open_tasks]
                if journal is not None:
                    append_lines(processes.shard(journal), [json.dumps(row, ensure_ascii=False) for row in rows])
                done.update({(condition, row["task"]): row for row in rows})
                bar.update(len(rows))
    if journal is not None and processes.count > 1:
        processes.wait(journal.name)
        done = _read_journals(journal, processes)
        if missing := [name for condition in conditions for name in names if (condition, name) not in done]:
            raise DataError(
                f"{journal}*: {len(missing)} of {total} results are missing, such as that of task '{missing[0]}'; "
                "expected a folder that all hosts see"
            )
    table = {condition: {name: done[condition, name] for name in names} for condition in conditions}
    return ScoreTable(
        metric=measure.name,
        tasks=tuple(tasks),
        scores={c: {name: row["score"] for name, row in rows.items()} for c, rows in table.items()},
        predictions={c: {name: row["predictions"] for name, row in rows.items()} for c, rows in table.items()},
        seconds={c: sum(row["seconds"] for row in rows.values()) for c, rows in table.items()},
    )


def _check(tasks: Sequence[EvaluationTask], conditions: Mapping[str, Condition], batch_size: int) -> None:
    if unknown := set(conditions) - set(CONDITIONS):
        raise ConfigError(f"conditions: expected some of {', '.join(CONDITIONS)}, got {sorted(unknown)}")
    if not conditions or batch_size < 1:
        raise ConfigError(
            f"expected at least one condition and batch_size >= 1, got {len(conditions)} and {batch_size}"
        )
    if not tasks:
        raise DataError("evaluate_conditions: expected at least one task, got none")
    seen = set()
    for task in tasks:
        if task.name in seen:
            raise DataError(f"evaluate_conditions: task '{task.name}' is given twice")
        seen.add(task.name)
        if not task.inputs or len(task.inputs) != len(task.references):
            raise DataError(
                f"task '{task.name}': {len(task.inputs)} inputs for {len(task.references)} lists of references"
            )


def _batches(tasks: Sequence[EvaluationTask], most: int) -> list[list[EvaluationTask]]:
    """The tasks by their number of inputs, of which none of a batch has more than twice as many as another."""
    batches: list[list[EvaluationTask]] = []
    for task in sorted(tasks, key=lambda task: len(task.inputs)):
        if not batches or len(batches[-1]) == most or len(task.inputs) > 2 * len(batches[-1][0].inputs):
            batches.append([])
        batches[-1].append(task)
    return batches


def _run_batch(
    condition: str, predict: Condition, batch: Sequence[EvaluationTask], metric: Metric
) -> list[dict[str, Any]]:
    started = time.perf_counter()
    try:
        answers = predict(batch)
    except (AdapterError, DataError) as error:
        names = ", ".join(f"'{task.name}'" for task in batch)
        raise type(error)(f"condition '{condition}', tasks {names}: {error}") from error
    seconds = (time.perf_counter() - started) / len(batch)
    if len(answers) != len(batch):
        raise DataError(
            f"condition '{condition}': {len(answers)} lists of predictions for a batch of {len(batch)} tasks"
        )
    rows = []
    for task, predictions in zip(batch, answers, strict=True):
        try:
            score = metric.score(predictions, task.references)
        except DataError as error:
            raise DataError(f"condition '{condition}', task '{task.name}': {error}") from error
        rows.append(
            {
                "condition": condition,
                "task": task.name,
                "score": score,
                "seconds": round(seconds, 4),
                "predictions": list(predictions),
            }
        )
    return rows


def _digest(config: Mapping[str, Any], metric: str, tasks: Sequence[EvaluationTask]) -> str:
    asked = [dataclasses.astuple(task) for task in tasks]
    content = [hyperflax.__version__, plain_json(dict(config), "config"), metric, asked]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _read_journals(journal: pathlib.Path, processes: Processes) -> dict[tuple[str, str], dict[str, Any]]:
    """What is finished, by whichever process."""
    own, folder, done = processes.shard(journal), locate(journal.parent), {}
    for path in sorted(folder.iterdir() if folder.is_dir() else (), key=str):
        if path.name.startswith(journal.name):
            done.update(_read_journal(path, own=path.name == own.name))
    return done


def _read_journal(journal: Location, own: bool) -> dict[tuple[str, str], dict[str, Any]]:
    """What is finished by one file. A last line without its end is what a kill leaves, or what another process is just
    writing: its task does not count, and in our `own` file, which grows behind it, it is cut off."""
    content = journal.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if own and len(whole) < len(content):
        with atomic_file(journal) as temporary:
            temporary.write_bytes(whole)
    done = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = json.loads(line)
            done[row["condition"], row["task"]] = {key: row[key] for key in ("task", "score", "seconds", "predictions")}
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{journal}:{number}: expected a finished task as json ({error}); delete the line"
            ) from error
    return done
