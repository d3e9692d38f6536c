"""The conditions of a report, as functions that run a hypermodel: bare, instruction, in context, generated, refined,
their controls, the nearest training task, a shared adapter, and fine-tuned base models.

A condition takes a batch of evaluation tasks and answers with one list of predictions per task. All of them ask the
same base model (`mtf` and `mtf_zero_shot` have their own), which decodes greedily or, where the tasks have answer
choices, picks the likeliest one; they differ in what stands in its input and which adapters it carries.

>>> held_out = HeldOut.from_source(source, model.config.episodes)
>>> conditions = Conditions(model, held_out, refine_steps=10)
>>> table = evaluate_conditions(held_out.tasks, conditions.pick("bare", "generated", "shuffled_support"), "exact_match")
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from hyperflax.adapters.kinds import check_spec
from hyperflax.checkpoints.artefacts import Adapter, check_base
from hyperflax.configs import whole_number
from hyperflax.data.episode_config import EpisodeConfig, in_inputs
from hyperflax.data.examples import Example, ExampleSource
from hyperflax.data.rendering import deal, episode_arrays
from hyperflax.errors import ConfigError, DataError
from hyperflax.evaluation.controls import shuffled_support
from hyperflax.evaluation.held_out import HeldOut, TaskTokens
from hyperflax.evaluation.neighbours import Neighbours
from hyperflax.evaluation.ranking import rank, slices
from hyperflax.evaluation.runner import Condition, EvaluationTask
from hyperflax.objectives.generated import adapter_metrics
from hyperflax.padding import rounded_up, trim
from hyperflax.types import PyTree

if TYPE_CHECKING:
    from hyperflax.hypermodel import Hypermodel

SUPPORT_FREE = frozenset({"bare", "instruction", "mtf_zero_shot"})  # conditions that read no support
SHUFFLED = frozenset({"shuffled_support", "shuffled_support_refined"})  # conditions that read another task's
NEIGHBOURS = 256  # training tasks with a stored adapter, for `nearest_task`
BLOCK = 32  # tasks whose adapters are looked at, for their figures, at once


class Conditions:
    """Conditions of one hypermodel over one set of held-out tasks.

    Args:
      model: the hypermodel.
      held_out: the tasks.
      refine_steps: Adam steps of the refined conditions.
      learning_rate: of those steps.
      seed: of the derangement behind the shuffled-support control.
      supports: each task's examples are dealt out to so many supports, see `Hypermodel.adapt`.
      neighbours: training tasks for `nearest_task`, of which `NEIGHBOURS` have a stored adapter; without them that
        condition is not to be had.
      unlike: the shuffled support comes from a task of another data set (of another category, where data sets are not
        told), for sources whose tasks of one are the same in other words (P3's prompts).
      shared: the adapter behind the condition `shared`; it must fit the model's base.
      mtf, mtf_zero_shot: models whose bases are those behind the conditions of these names, of the same shape and
        vocabulary as `model`'s.

    Raises:
      AdapterError: the shared adapter was made for another base model.
    """

    def __init__(
        self,
        model: Hypermodel,
        held_out: HeldOut,
        *,
        refine_steps: int = 10,
        learning_rate: float = 1e-3,
        seed: int = 0,
        supports: int = 1,
        neighbours: ExampleSource | None = None,
        unlike: bool = False,
        shared: Adapter | None = None,
        mtf: Hypermodel | None = None,
        mtf_zero_shot: Hypermodel | None = None,
    ):
        self.model, self.held_out = model, held_out
        self.refine_steps, self.learning_rate = refine_steps, learning_rate
        self.supports = whole_number("supports", supports)
        self._seed, self._unlike = seed, unlike
        told = {task.name: ", ".join(task.data_sets) or task.category for task in held_out.tasks if unlike}
        self._groups = {task.name: told.get(task.name) or task.name for task in held_out.tasks}
        self._neighbours = neighbours
        self._all: dict[str, Condition] = {
            "bare": self.bare,
            "instruction": self.instruction,
            "in_context": self.in_context,
            "generated": self.generated,
            "refined": self.refined,
            "shuffled_support": functools.partial(self.generated, shuffled=True),
            "shuffled_support_refined": functools.partial(self.refined, shuffled=True),
        }
        if neighbours is not None:
            self._all["nearest_task"] = self.nearest_task
        if shared is not None:
            check_base(shared, model.base_fingerprint)
            check_spec(shared.spec, model.config.base)
            self._all["shared"] = functools.partial(self.shared, shared.tree)
        # Whatever a condition does with a model, these do with a fine-tuned base.
        if mtf is not None:
            self._all["mtf"] = Conditions(mtf, held_out).with_support_in_inputs
        if mtf_zero_shot is not None:
            zero_shot = Conditions(mtf_zero_shot, held_out).with_support_in_inputs
            self._all["mtf_zero_shot"] = functools.partial(zero_shot, zero_shot=True)

    def pick(self, *names: str) -> dict[str, Condition]:
        """Returns the named conditions; all that can be had if none is named, `instruction` only if a task has one.

        Raises:
          ConfigError: a name that is not among them.
          DataError: one of `SHUFFLED` is named, and no task (with `unlike`, no data set) has another beside it.
        """
        if unknown := set(names) - set(self._all):
            raise ConfigError(f"conditions: expected some of {sorted(self._all)}, got {sorted(unknown)}")
        groups = set(self._groups.values())
        shuffled = SHUFFLED if len(groups) < 2 else frozenset()  # those that are not to be had
        if wanted := sorted(shuffled & set(names)):
            unit = "groups of tasks" if self._unlike else "tasks"
            raise DataError(
                f"conditions {', '.join(wanted)}: expected at least 2 {unit}, of which each gives another its "
                f"support, got {sorted(groups)}"
            )
        instructed = any(task.instruction for task in self.held_out.tasks)
        there = [name for name in self._all if name not in shuffled and (instructed or name != "instruction")]
        return {name: _of_few_sizes(self._all[name]) for name in names or there}

    @property
    def support_free(self) -> frozenset[str]:
        """Names of the conditions that read no support; `shared` is one unless examples stand before the inputs."""
        episodes = self.model.config.episodes
        shown = in_inputs(episodes.demonstrations) or in_inputs(episodes.positives)
        return SUPPORT_FREE if shown else SUPPORT_FREE | {"shared"}

    def described(self, names: Collection[str]) -> dict[str, Any]:
        """What a configuration has to say of the named conditions: who gives whom its support, if one is shuffled."""
        return {"donors": self._donors} if SHUFFLED & set(names) else {}

    # Conditions

    def bare(self, batch: Sequence[EvaluationTask]) -> list[list[str]]:
        """The base model on the input alone."""
        return self._answer(batch, self._bare_config(batch), None)

    def instruction(self, batch: Sequence[EvaluationTask]) -> list[list[str]]:
        """The base model with the task's definition before the input."""
        longest = max(len(self._tokens(task).info.definition) for task in batch)
        config = self._bare_config(batch).replace(definition="inputs")
        return self._answer(batch, _with_room(config, longest), None)

    def in_context(self, batch: Sequence[EvaluationTask]) -> list[list[str]]:
        """The base model with the support before the input."""
        config = self._bare_config(batch).replace(demonstrations="inputs")
        longest = max(sum(len(e.inputs) + len(e.targets) + 2 for e in self._tokens(task).support) for task in batch)
        return self._answer(batch, _with_room(config, longest), None)

    def with_support_in_inputs(self, batch: Sequence[EvaluationTask], zero_shot: bool = False) -> list[list[str]]:
        """The base model with all that a hypernetwork reads before the input: definition, positives, examples.

        Zero-shot leaves the examples out.
        """
        config = self._config(batch)
        places = {name: getattr(config, name) for name in ("definition", "positives", "demonstrations")}
        places = {name: "none" if place == "none" else "inputs" for name, place in places.items()}
        if zero_shot:
            places |= {"positives": "none", "demonstrations": "none"}
        config = config.replace(**places)

        def room(task: EvaluationTask) -> int:
            given = self._tokens(task)
            shown = (*given.info.positives[: config.num_positives], *given.support)
            return len(given.info.definition) + sum(len(e.inputs) + len(e.targets) + 2 for e in shown)

        return self._answer(batch, _with_room(config, max(map(room, batch))), None)

    def generated(self, batch: Sequence[EvaluationTask], shuffled: bool = False) -> list[list[str]]:
        """Adapters as generated."""
        return self._answer(batch, self._config(batch), self._generate(batch, shuffled))

    def refined(self, batch: Sequence[EvaluationTask], shuffled: bool = False) -> list[list[str]]:
        """Generated adapters after some steps on the support that they were generated from."""
        examples = self._as_examples([self._tokens(task, shuffled) for task in batch])
        adapters, _ = self.model.refine(
            self._generate(batch, shuffled), examples, self.refine_steps, self.learning_rate
        )
        return self._answer(batch, self._config(batch), adapters)

    def nearest_task(self, batch: Sequence[EvaluationTask]) -> list[list[str]]:
        """For each task the stored adapter, of all training tasks', with the lowest loss on the support."""
        chosen = [self.neighbours.nearest(self._as_examples([self._tokens(task)])) for task in batch]
        return self._answer(batch, self._config(batch), jax.tree.map(lambda *rows: jnp.stack(rows), *chosen))

    def shared(self, adapter: PyTree, batch: Sequence[EvaluationTask]) -> list[list[str]]:
        """The same adapter for every task."""
        adapters = jax.tree.map(lambda leaf: jnp.broadcast_to(jnp.asarray(leaf), (len(batch), *leaf.shape)), adapter)
        return self._answer(batch, self._config(batch), adapters)

    def adapter_figures(self, again: HeldOut | None = None) -> dict[str, float]:
        """Returns figures of the adapters as generated, see `objectives.generated`.

        The distance between tasks is that of a task and the next one of `held_out`, often of its kin, see
        `objectives.consistency.between_tasks`.

        Args:
          again: the same tasks, or some of them, with other supports, for the distance within tasks.
        """
        spec = self.model.config.spec
        others, paired = None, dict[str, TaskTokens]()
        if again is not None:
            # A task without another support is compared with itself, which adds nothing, and is not counted.
            paired, every = again.tokens, self.held_out.tokens | again.tokens
            others = Conditions(self.model, dataclasses.replace(again, tokens=every), supports=self.supports)
        figures = jax.jit(lambda adapters, more: adapter_metrics(adapters, spec, more))
        totals: dict[str, list[float]] = {}
        for start in range(0, len(self.held_out.tasks), BLOCK):
            batch = self.held_out.tasks[start : start + BLOCK]
            more = None if others is None else jax.tree.map(lambda x: x[:, None], others._generate(batch, False))
            for name, (total, weight) in figures(self._generate(batch, False), more).items():
                sums = totals.setdefault(name, [0.0, 0.0])
                sums[0] += float(total)
                within = name == "within_task_distance"
                sums[1] += sum(task.name in paired for task in batch) if within else float(weight)
        return {name: total / weight for name, (total, weight) in totals.items() if weight}

    # Their parts

    @functools.cached_property
    def _donors(self) -> dict[str, str]:
        """Whose support each task gets in the control."""
        return shuffled_support([task.name for task in self.held_out.tasks], self._seed, self._groups)

    def _tokens(self, task: EvaluationTask, shuffled: bool = False) -> TaskTokens:
        return self.held_out.tokens[self._donors[task.name] if shuffled else task.name]

    def _config(self, batch: Sequence[EvaluationTask]) -> EpisodeConfig:
        config = self.model.config.episodes
        shots = max(len(tokens.support) for tokens in self.held_out.tokens.values())
        return config.replace(
            shots=rounded_up(max(shots, 1)),
            min_shots=None,
            examples=max(len(self._tokens(task).scored) for task in batch),
            too_long="truncate",
            teacher="none",
        )

    def _bare_config(self, batch: Sequence[EvaluationTask]) -> EpisodeConfig:
        """Nothing before the input, whatever stood there in training."""
        return self._config(batch).replace(definition="none", positives="none", demonstrations="none")

    def _arrays(self, batch: Sequence[EvaluationTask], config: EpisodeConfig) -> dict[str, np.ndarray]:
        # No condition sees more of an input than `bare` does, and its context loses no room to one.
        most = self._config(batch).inputs_length - 1
        rows = []
        for task in batch:
            given = self._tokens(task)
            scored = [example._replace(inputs=example.inputs[:most]) for example in given.scored]
            rows.append(self._episode(given.support, scored, config, given, task))
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _generate(self, batch: Sequence[EvaluationTask], shuffled: bool) -> PyTree:
        config = self._config(batch)
        config = config.replace(shots=rounded_up(-(-config.shots // self.supports)))
        supports = []
        for task in batch:
            given = self._tokens(task, shuffled)
            parts = deal(given.support, self.supports)
            rows = [self._episode(part, (), config, given, task)["support_tokens"] for part in parts]
            supports.append(rows[0] if self.supports == 1 else np.stack(rows))
        return self.model.generate({"support_tokens": np.stack(supports)})

    def _episode(
        self,
        support: Sequence[Example],
        scored: Sequence[Example],
        config: EpisodeConfig,
        given: TaskTokens,
        task: EvaluationTask,
    ) -> dict[str, np.ndarray]:
        return episode_arrays(support, scored, config, self.model.config.vocabulary, given.info, task.name)

    def _answer(
        self, batch: Sequence[EvaluationTask], config: EpisodeConfig, adapters: PyTree | None
    ) -> list[list[str]]:
        inputs = trim(self._arrays(batch, config)["encoder_input_tokens"])
        if self.held_out.ranked:
            choices = [[example.options for example in self._tokens(task).scored] for task in batch]
            chosen = rank(self.model, inputs, choices, adapters, rule=self.held_out.ranked)
            return [
                [options[index] for options, index in zip(task.options, row, strict=True)]
                for task, row in zip(batch, chosen, strict=True)
            ]
        out = np.concatenate([self._decode(part, adapters)[:, :kept] for kept, part in slices(inputs)], axis=1)
        decode = self.model.config.vocabulary.decode
        return [
            [decode(row.tolist()) for row in rows[: len(task.inputs)]] for task, rows in zip(batch, out, strict=True)
        ]

    def _decode(self, inputs: np.ndarray, adapters: PyTree | None) -> np.ndarray:
        """Tokens [task, example, length]."""
        if adapters is not None:
            return self.model.decode(inputs, adapters)
        # One adapter-free batch of rows: the task axis means nothing to the bare model.
        return self.model.decode(inputs.reshape(1, -1, inputs.shape[-1]), None).reshape(*inputs.shape[:2], -1)

    def _as_examples(self, given: Sequence[TaskTokens]) -> dict[str, np.ndarray]:
        supports, infos = [tokens.support for tokens in given], [tokens.info for tokens in given]
        return self.model.own_examples(supports, infos)

    @functools.cached_property
    def neighbours(self) -> Neighbours:
        """Of the training tasks. Raises ConfigError where no source of them was given."""
        if self._neighbours is None:
            raise ConfigError("condition nearest_task: expected neighbours, got None")
        tasks = HeldOut.from_source(self._neighbours, self.model.config.episodes, examples=1, tasks=NEIGHBOURS)
        others = Conditions(self.model, tasks)
        return Neighbours(self.model, tasks, functools.partial(others._generate, shuffled=False))


def _with_room(config: EpisodeConfig, tokens: int) -> EpisodeConfig:
    """The config with room for so many tokens before the input, rounded up: a length of its own would be compiled."""
    return config.replace(inputs_length=rounded_up(config.inputs_length + tokens + 4))


def _of_few_sizes(condition: Condition) -> Condition:
    """Fills a batch up with copies of its last task to one of few sizes, so that not every size is compiled for."""

    def answer(batch: Sequence[EvaluationTask]) -> Sequence[Sequence[str]]:
        more = rounded_up(len(batch)) - len(batch)
        return condition([*batch, *more * [batch[-1]]])[: len(batch)]

    return answer
