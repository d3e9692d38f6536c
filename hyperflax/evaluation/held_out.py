"""Held-out tasks of a source, as text for the report and as tokens for the model.

>>> held_out = HeldOut.from_source(source, episodes, examples=12, seed=0)
>>> held_out.tasks[0].support, held_out.support(held_out.tasks[:1])
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

from hyperflax.data.episode_config import EpisodeConfig, in_support
from hyperflax.data.episodes import evaluation_episode
from hyperflax.data.examples import Example, ExampleSource, TaskInfo
from hyperflax.data.rendering import SENTINELS
from hyperflax.errors import DataError
from hyperflax.evaluation.runner import EvaluationTask


@dataclasses.dataclass(frozen=True)
class TaskTokens:
    """What a model is given of one task: its support, its scored examples, its definition."""

    support: tuple[Example, ...]
    scored: tuple[Example, ...]
    info: TaskInfo


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The tasks of an evaluation.

    Attributes:
      tasks: as text.
      tokens: the same by task name.
    """

    tasks: tuple[EvaluationTask, ...]
    tokens: dict[str, TaskTokens]

    @classmethod
    def from_source(
        cls,
        source: ExampleSource,
        config: EpisodeConfig,
        *,
        examples: int = 12,
        tasks: int | None = None,
        seed: int = 0,
        draw: int = 0,
        first: bool = False,
        support: Literal["examples", "positives"] = "examples",
        category: Callable[[str], str] | None = None,
    ) -> HeldOut:
        """Takes `config.shots` support examples and up to `examples` scored ones of every task.

        Args:
          source, config: where from, and what fits; over-long examples are not drawn (`too_long="skip"`) unless the
            config truncates.
          examples: scored examples of a task, at most.
          tasks: only so many tasks, evenly spread over the source; all by default.
          seed, draw: which examples; `draw` changes the support alone.
          first: score each task's first examples, as Super-NaturalInstructions has it.
          support: drawn from the task's `examples`, or the `positives` that come with it (the first K that fit a row; a
            task without any is left out, unless its definition stands in the support).
          category: of a task's name; by default what the source says.

        Raises:
          DataError: fewer than two tasks have enough examples.
        """
        shots = config.shots
        config = config.replace(examples=examples, min_shots=None, shots=0 if support == "positives" else shots)
        if config.too_long == "error":
            config = config.replace(too_long="skip")
        numbers = range(len(source.task_names))
        if tasks is not None and tasks < len(numbers):
            numbers = [i * len(numbers) // tasks for i in range(tasks)]
        chosen, tokens, problem = [], {}, ""
        for number in numbers:
            try:
                episode = evaluation_episode(source, number, config, seed, draw, first=first, allow_fewer=True)
            except DataError as error:
                problem = str(error)
                continue
            info = source.info(number)
            shown = source.examples(number, episode.support)
            if support == "positives":
                shown = [p for p in info.positives if _size(p) <= config.support_length][:shots]
            if not shown and not in_support(config.definition):
                problem = f"task '{episode.name}' has no positive example that fits {config.support_length} tokens"
                continue
            decode = source.vocabulary.decode
            tokens[episode.name] = TaskTokens(tuple(shown), episode.examples, info)
            chosen.append(
                EvaluationTask(
                    name=episode.name,
                    inputs=tuple(decode(e.inputs.tolist()) for e in episode.examples),
                    references=episode.references,
                    support=tuple((decode(e.inputs.tolist()), decode(e.targets.tolist())) for e in shown),
                    instruction=decode(info.definition.tolist()),
                    category=category(episode.name) if category else info.category or None,
                )
            )
        if len(chosen) < 2:
            raise DataError(
                f"evaluation: expected at least 2 tasks with enough examples, got {len(chosen)} ({problem})"
            )
        return cls(tuple(chosen), tokens)


def _size(example: Example) -> int:
    """Tokens of a rendered demonstration, end of sequence included."""
    return len(example.inputs) + len(example.targets) + SENTINELS + 1
