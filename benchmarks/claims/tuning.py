"""Further tuning of adapters on held-out tasks: from generated, shared and random starts, each at its best rate.

For every task some examples are for tuning; the first of them are the support that the generated adapter was made from.
Every start takes Adam steps on them (`hyperflax.training.refine`, full batches). Loss and score on the task's scored
examples are taken at the marks. The rate is the one with the lowest mean loss at the last mark on other held-out tasks,
chosen for each start and each number of examples with the systems of the first seed, and used for all seeds. Rates are
tried from the middle one outwards as long as the loss falls.

`marks_to_loss` is the first mark, counted from 0, at which a task's loss on scored examples is at most what the random
start ends with there; one behind the last where it never is. The random start always gets there, so a start that never
does must count as later than any that does: as the last mark, it could only be sooner.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from benchmarks.claims.evaluation import Measures
from benchmarks.claims.experiments import Tuning
from benchmarks.claims.table import tuned
from benchmarks.claims.training import Workspace, trained
from hyperflax.checkpoints.artefacts import check_base, load_adapter
from hyperflax.data.rendering import episode_arrays
from hyperflax.errors import HyperflaxError
from hyperflax.evaluation.held_out import HeldOut, TaskTokens
from hyperflax.evaluation.metrics import Metric, get_metric
from hyperflax.evaluation.runner import EvaluationTask
from hyperflax.hypermodel import Hypermodel, load
from hyperflax.json_files import read_json, write_json
from hyperflax.models.t5 import T5
from hyperflax.objectives.language_model import task_loss
from hyperflax.padding import rounded_up
from hyperflax.training import refine
from hyperflax.types import Array, Batch, PyTree

STARTS = ("generated", "shared", "random")
BLOCK = 8  # tasks tuned at once, at most


def run_tuning(tuning: Tuning, seed: int, workspace: Workspace) -> tuple[Measures, dict[str, float]]:
    """Tunes, and trains first what it starts from.

    Returns:
      measures `START_EXAMPLES_loss_STEP`, `..._score_STEP`, `..._marks_to_loss`; figures `..._rate`, and
      `..._rate_at_end`, 1 where the best rate is the lowest or the highest of the table.

    Raises:
      HyperflaxError: another seed than the first, whose learning rates it takes, and the first was not run.
    """
    first = tuning.seeds[0]
    path = workspace.run(tuning, first) / "rates.json"
    if seed != first and not path.is_file():
        raise HyperflaxError(
            f"{tuning.name}, seed {seed}: expected {path}, the learning rates that seed {first} chooses for all, and "
            "it is not there: run that seed first"
        )
    bench, rate_tasks, tasks = _bench(tuning, seed, workspace)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, _chosen_rates(tuning, bench, rate_tasks))
    rates = read_json(path)
    measures: Measures = {}
    figures: dict[str, float] = {}
    for count in tuning.train_examples:
        losses: dict[str, np.ndarray] = {}
        for start in STARTS:
            rate = rates[tuned(start, count, "rate")]
            figures[tuned(start, count, "rate")] = rate
            figures[tuned(start, count, "rate_at_end")] = float(rate in (tuning.rates[0], tuning.rates[-1]))
            losses[start], scores = bench.curves(tasks, start, count, rate)
            for at, mark in enumerate(tuning.marks):
                for what, values in (("loss", losses[start]), ("score", scores)):
                    measures[tuned(start, count, f"{what}_{mark}")] = by_task(tasks, values[at])
        for start in STARTS:
            marks = marks_to(losses[start], losses["random"][-1])
            measures[tuned(start, count, "marks_to_loss")] = by_task(tasks, marks)
    return measures, figures


def _chosen_rates(tuning: Tuning, bench: _Bench, tasks: Sequence[EvaluationTask]) -> dict[str, float]:
    """Returns `{START_EXAMPLES_rate: rate}`, the best on some tasks."""
    found = {}
    for count in tuning.train_examples:
        for start in STARTS:
            best = descend([functools.partial(bench.loss, tasks, start, count, rate) for rate in tuning.rates])
            found[tuned(start, count, "rate")] = tuning.rates[best]
    return found


def descend(losses: Sequence[Callable[[], float]]) -> int:
    """Returns where the lowest of some losses is, going from the middle one to a lower neighbour until there is none.

    Losses over a learning rate fall and then rise, so most of them need not be known. One that is no number, of a rate
    that diverged, is higher than all others.

    >>> descend([lambda loss=loss: loss for loss in (4.0, 2.0, 1.0, 3.0, float("nan"))])
    2
    """

    @functools.cache
    def loss(at: int) -> float:
        found = losses[at]() if 0 <= at < len(losses) else math.inf
        return math.inf if math.isnan(found) else found

    at = len(losses) // 2
    while (best := min((at, at - 1, at + 1), key=loss)) != at:
        at = best
    return at


def marks_to(losses: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Returns for every task the first mark with a loss of at most `given`, one behind the last where there is none.

    Where `given` is no number, neither is the answer.

    Args:
      losses: [mark, task]. given: [task].
    """
    reached = losses <= given
    first = np.where(reached.any(axis=0), reached.argmax(axis=0), len(losses))
    return np.where(np.isnan(given), np.nan, first)


def _bench(
    tuning: Tuning, seed: int, workspace: Workspace
) -> tuple[_Bench, list[EvaluationTask], list[EvaluationTask]]:
    """Returns what tunes, the tasks for the choice of the rate, and those that are reported: the same for all seeds."""
    model = load(trained(tuning.hypermodel, seed, workspace))
    shared = load_adapter(trained(tuning.shared, seed, workspace))
    check_base(shared, model.base_fingerprint)
    family = workspace.family(tuning.base)
    held_out = HeldOut.from_source(
        family.held_out(),
        tuning.hypermodel.episodes.replace(shots=max(tuning.train_examples), min_shots=None),
        examples=tuning.examples,
        tasks=tuning.tasks + tuning.rate_tasks,
        draw=seed,
        first=family.first,
    )
    # Tasks of the choice are spread over the others, as those are over the family; where some tasks are too small to be
    # tuned on, both parts lose in proportion.
    total = len(held_out.tasks)
    share = max(1, total * tuning.rate_tasks // (tuning.tasks + tuning.rate_tasks))
    chosen = {i * total // share for i in range(share)}
    rate_tasks = [task for i, task in enumerate(held_out.tasks) if i in chosen]
    reported = [task for i, task in enumerate(held_out.tasks) if i not in chosen]
    return _Bench(tuning, model, shared.tree, held_out, get_metric(family.metric), seed), rate_tasks, reported


class _Bench:
    """Tunes blocks of tasks."""

    def __init__(self, tuning: Tuning, model: Hypermodel, shared: PyTree, held_out: HeldOut, metric: Metric, seed: int):
        self._tuning, self._model, self._shared = tuning, model, shared
        self._held_out, self._metric, self._seed = held_out, metric, seed

    def loss(self, tasks: Sequence[EvaluationTask], start: str, count: int, rate: float) -> float:
        """Returns the mean loss on scored examples at the last mark."""
        return float(self._run(tasks, start, count, rate, self._tuning.marks[-1:], scored=False)[0].mean())

    def curves(
        self, tasks: Sequence[EvaluationTask], start: str, count: int, rate: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns losses and scores at all marks, [mark, task] each."""
        return self._run(tasks, start, count, rate, self._tuning.marks, scored=True)

    def _run(
        self,
        tasks: Sequence[EvaluationTask],
        start: str,
        count: int,
        rate: float,
        marks: Sequence[int],
        *,
        scored: bool,
    ) -> tuple[np.ndarray, np.ndarray]:
        tokens = [self._held_out.tokens[task.name] for task in tasks]
        starts = self._starts(start, tokens)
        losses, scores = np.zeros((2, len(marks), len(tasks)))
        # A block's rows are as long as its longest, so tasks of like lengths are tuned together.
        order = sorted(range(len(tasks)), key=lambda at: _lengths(tokens[at]))
        size = min(BLOCK, len(tasks))
        told = f"{start} start, {count} examples, rate {rate:g}"
        for first in tqdm(range(0, len(tasks), size), told, unit="block", leave=False):
            block = order[first : first + size]
            # Without padding, the last block would be compiled for itself.
            padded = np.array([*block, *block[:1] * (size - len(block))])
            examples = self._model.own_examples([tokens[at].support[:count] for at in padded])
            asked = self._model.own_examples([tokens[at].scored for at in padded])
            state = refine.start(jax.tree.map(lambda leaf, padded=padded: leaf[padded], starts))
            for mark, steps in enumerate(np.diff(marks, prepend=0)):
                state = _advance(self._model.model, self._model.base_params, state, examples, steps, rate)
                found = np.asarray(_task_losses(self._model.model, self._model.base_params, state.adapters, asked))
                losses[mark, block] = found[: len(block)]
                if scored:
                    sound = np.isfinite(found)
                    scores[mark, block] = self._scores([tasks[at] for at in block], asked, state.adapters, sound)
        return losses, scores

    def _starts(self, start: str, tokens: Sequence[TaskTokens]) -> PyTree:
        """Adapters [task, ...] to tune from."""
        if start == "shared":
            many = len(tokens)
            return jax.tree.map(lambda leaf: jnp.broadcast_to(jnp.asarray(leaf), (many, *leaf.shape)), self._shared)
        config = self._model.config
        if start == "random":
            of_blocks = [jax.random.fold_in(jax.random.key(self._seed), at) for at in range(0, len(tokens), BLOCK)]
            keys = jnp.concatenate([jax.random.split(key, BLOCK) for key in of_blocks])[: len(tokens)]
            return jax.vmap(lambda key: config.spec.materialise(config.spec.init(key)))(keys)
        shots = config.episodes.shots
        rows = [
            episode_arrays(given.support[:shots], (), config.episodes, config.vocabulary, given.info)["support_tokens"]
            for given in tokens
        ]
        return self._model.generate({"support_tokens": np.stack(rows)})

    def _scores(self, block: Sequence[EvaluationTask], asked: Batch, adapters: PyTree, sound: np.ndarray) -> np.ndarray:
        """The score of every task; 0 of one that diverged, which does not cost the others theirs."""
        if not sound.any():
            return np.zeros(len(block))
        taken = np.where(sound, np.arange(len(sound)), sound.argmax())
        out = self._model.decode(asked["encoder_input_tokens"], jax.tree.map(lambda leaf: leaf[taken], adapters))
        decode = self._model.config.vocabulary.decode
        # Rows behind the block's tasks, and behind a task's examples, are padding.
        answers = [[decode(row.tolist()) for row in rows] for rows in out[: len(block)]]
        return np.array(
            [
                self._metric.score(found[: len(task.inputs)], task.references) if right else 0.0
                for found, task, right in zip(answers, block, sound[: len(block)], strict=True)
            ]
        )


def _lengths(tokens: TaskTokens) -> tuple[int, int]:
    """The longest target and the longest input of a task, that of the targets as roughly as rows are padded."""
    examples = (*tokens.support, *tokens.scored)
    return rounded_up(max(len(e.targets) for e in examples) + 1), max(len(e.inputs) for e in examples)


def by_task(tasks: Sequence[EvaluationTask], values: np.ndarray) -> dict[str, list[float]]:
    """Returns a measure; a loss that is no number, of a task that diverged, is left out, for json has none."""
    return {task.name: [float(value)] for task, value in zip(tasks, values, strict=True) if math.isfinite(value)}


@functools.partial(jax.jit, static_argnums=0)
def _advance(
    model: T5, params: PyTree, state: refine.Refining, examples: Batch, steps: Array, rate: float
) -> refine.Refining:
    return refine.advance(model, params, state, examples, steps=steps, learning_rate=rate)


@functools.partial(jax.jit, static_argnums=0)
def _task_losses(model: T5, params: PyTree, adapters: PyTree, examples: Batch) -> Array:
    """Mean token loss of every task, [task]."""
    return jax.vmap(functools.partial(task_loss, model, params))(adapters, examples)
