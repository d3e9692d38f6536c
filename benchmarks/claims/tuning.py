"""Further tuning of adapters on held-out tasks: from generated, shared and random starts, each at its best rate.

For every task some examples are for tuning; the first of them are the support that the generated adapter was made from.
Every start takes Adam steps on them (`hyperflax.training.refine`, full batches). Loss and score on the task's scored
examples are taken at the marks. The rate is the one with the lowest mean loss at the last mark on other held-out tasks,
chosen for each start and each number of examples.

`steps_to_loss` is the first mark at which a task's loss on scored examples is at most what the random start ends with
there; the last mark where it never is. So 100 for random means that it was best at its end.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.claims.evaluation import Measures
from benchmarks.claims.experiments import Tuning
from benchmarks.claims.table import tuned
from benchmarks.claims.training import Workspace, trained
from hyperflax.checkpoints.artefacts import check_base, load_adapter
from hyperflax.data.rendering import episode_arrays
from hyperflax.evaluation.held_out import HeldOut
from hyperflax.evaluation.metrics import Metric, get_metric
from hyperflax.evaluation.runner import EvaluationTask
from hyperflax.hypermodel import Hypermodel, load
from hyperflax.models.t5 import T5
from hyperflax.objectives.token_loss import token_loss
from hyperflax.types import Array, Batch, PyTree

STARTS = ("generated", "shared", "random")
BLOCK = 16  # tasks tuned at once


def run_tuning(tuning: Tuning, seed: int, workspace: Workspace) -> tuple[Measures, dict[str, float]]:
    """Tunes, and trains first what it starts from.

    Returns:
      measures `START_EXAMPLES_loss_STEP`, `..._score_STEP`, `..._steps_to_loss`; figures `..._rate`, and
      `..._rate_at_end`, 1 where the best rate is the lowest or the highest of those tried.
    """
    model = load(trained(tuning.hypermodel, seed, workspace))
    shared = load_adapter(trained(tuning.shared, seed, workspace))
    check_base(shared, model.base_fingerprint)
    family = workspace.family(tuning.base)
    metric = get_metric(family.metric)
    most = max(tuning.train_examples)
    held_out = HeldOut.from_source(
        family.held_out(),
        tuning.hypermodel.episodes.replace(shots=most, min_shots=None),
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
    bench = _Bench(tuning, model, shared.tree, held_out, metric, seed)
    measures: Measures = {}
    figures: dict[str, float] = {}
    for count in tuning.train_examples:
        losses: dict[str, np.ndarray] = {}
        for start in STARTS:
            best = lowest([bench.losses(rate_tasks, start, count, rate).mean() for rate in tuning.rates])
            figures[tuned(start, count, "rate")] = tuning.rates[best]
            figures[tuned(start, count, "rate_at_end")] = float(best in (0, len(tuning.rates) - 1))
            found, scores = bench.curves(reported, start, count, tuning.rates[best])
            losses[start] = found
            for at, mark in enumerate(tuning.marks):
                for what, values in (("loss", found), ("score", scores)):
                    measures[tuned(start, count, f"{what}_{mark}")] = _by_task(reported, values[at])
        for start in STARTS:
            steps = steps_to(losses[start], losses["random"][-1], tuning.marks)
            measures[tuned(start, count, "steps_to_loss")] = _by_task(reported, steps)
    return measures, figures


def lowest(losses: Sequence[float]) -> int:
    """Returns where the lowest loss is; one that is no number, of a rate that diverged, comes after all others."""
    return int(np.argmin(np.nan_to_num(losses, nan=np.inf)))


def steps_to(losses: np.ndarray, given: np.ndarray, marks: Sequence[int]) -> np.ndarray:
    """Returns for every task the first mark with a loss of at most `given`, the last mark where there is none.

    Args:
      losses: [mark, task]. given: [task]. marks: steps, ascending.
    """
    reached = losses <= given
    first = np.where(reached.any(axis=0), reached.argmax(axis=0), len(marks) - 1)
    return np.asarray(marks, np.float64)[first]


class _Bench:
    """Tunes blocks of tasks."""

    def __init__(self, tuning: Tuning, model: Hypermodel, shared: PyTree, held_out: HeldOut, metric: Metric, seed: int):
        self._tuning, self._model, self._shared = tuning, model, shared
        self._held_out, self._metric, self._seed = held_out, metric, seed

    def losses(self, tasks: Sequence[EvaluationTask], start: str, count: int, rate: float) -> np.ndarray:
        """Returns the losses on scored examples at the last mark, [task]."""
        return self._run(tasks, start, count, rate, self._tuning.marks[-1:], scored=False)[0][0]

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
        losses, scores = [], []
        for at in range(0, len(tasks), BLOCK):
            block = tasks[at : at + BLOCK]
            tokens = [self._held_out.tokens[task.name] for task in block]
            # Without padding, the last block would be compiled for itself.
            padded = [*tokens, *tokens[:1] * (BLOCK - len(block))]
            examples = self._model.own_examples([given.support[:count] for given in padded], too_long="truncate")
            asked = self._model.own_examples([given.scored for given in padded], too_long="truncate")
            begin = self._start(start, padded, at)
            rows = []
            for mark in marks:
                # From the start for every mark: the same steps again, and no optimizer state to keep.
                adapters = self._model.refine(begin, examples, mark, rate)[0] if mark else begin
                found = _task_losses(self._model.model, self._model.base_params, adapters, asked)
                score = self._scores(block, asked, adapters) if scored else np.zeros(len(block))
                rows.append((np.asarray(found)[: len(block)], score))
            losses.append(np.stack([loss for loss, _ in rows]))
            scores.append(np.stack([score for _, score in rows]))
        return np.concatenate(losses, axis=1), np.concatenate(scores, axis=1)

    def _start(self, start: str, tokens: Sequence, at: int) -> PyTree:
        """Adapters [task, ...] to tune from."""
        if start == "shared":
            many = len(tokens)
            return jax.tree.map(lambda leaf: jnp.broadcast_to(jnp.asarray(leaf), (many, *leaf.shape)), self._shared)
        config = self._model.config
        if start == "random":
            keys = jax.random.split(jax.random.fold_in(jax.random.key(self._seed), at), len(tokens))
            return jax.vmap(lambda key: config.spec.materialise(config.spec.init(key)))(keys)
        shots = config.episodes.shots
        rows = [
            episode_arrays(given.support[:shots], (), config.episodes, config.vocabulary, given.info)["support_tokens"]
            for given in tokens
        ]
        return self._model.generate({"support_tokens": np.stack(rows)})

    def _scores(self, block: Sequence[EvaluationTask], asked: Batch, adapters: PyTree) -> np.ndarray:
        out = self._model.decode(asked["encoder_input_tokens"], adapters)
        decode = self._model.config.vocabulary.decode
        # Rows behind the block's tasks, and behind a task's examples, are padding.
        answers = [[decode(row.tolist()) for row in rows] for rows in out[: len(block)]]
        return np.array(
            [
                self._metric.score(found[: len(task.inputs)], task.references)
                for found, task in zip(answers, block, strict=True)
            ]
        )


def _by_task(tasks: Sequence[EvaluationTask], values: np.ndarray) -> dict[str, list[float]]:
    return {task.name: [float(value)] for task, value in zip(tasks, values, strict=True)}


@functools.partial(jax.jit, static_argnums=0)
def _task_losses(model: T5, params: PyTree, adapters: PyTree, examples: Batch) -> Array:
    """Mean token loss of every task, [task]."""

    def one(adapter: PyTree, example: Batch) -> Array:
        names = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
        logits = model.apply({"params": params, "adapters": adapter}, *(example[name] for name in names))
        loss = token_loss(logits, example["decoder_target_tokens"], example["decoder_loss_weights"])
        return loss.loss_sum / jnp.maximum(loss.weight_sum, 1.0)

    return jax.vmap(one)(adapters, examples)
