"""Held-out tasks of a source, as text for the report and as tokens for the model.

>>> held_out = HeldOut.from_source(source, episodes, examples=12, seed=0)
>>> held_out.tasks[0].support, held_out.support(held_out.tasks[:1])
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from hyperflax.data.draws import stream
from hyperflax.data.episode_config import EpisodeConfig, in_inputs, in_support
from hyperflax.data.episode_plan import fitting_scored, fitting_support, support_overhead, usable_info
from hyperflax.data.episodes import EvaluationEpisode, evaluation_episode
from hyperflax.data.examples import Example, ExampleSource, TaskInfo
from hyperflax.data.vocabularies import Vocabulary
from hyperflax.errors import DataError
from hyperflax.evaluation.ranking import Rule
from hyperflax.evaluation.runner import EvaluationTask

_POSITIVES = 0x6573  # purpose of the random stream that draws positives


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
      left_out: tasks that could not be evaluated, with the reason.
      ranked: the rule by which answer choices are ranked; None where answers are generated.
      too_long: of the tasks that have examples too long to be scored, how many.
    """

    tasks: tuple[EvaluationTask, ...]
    tokens: dict[str, TaskTokens]
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)
    ranked: Rule | None = None
    too_long: dict[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_source(
        cls,
        source: ExampleSource,
        config: EpisodeConfig,
        *,
        examples: int | None = 12,
        tasks: int | None = None,
        seed: int = 0,
        draw: int = 0,
        draws: int = 1,
        apart: bool = False,
        first: bool = False,
        support: Literal["examples", "positives"] = "examples",
        ranked: Rule | None = None,
    ) -> HeldOut:
        """Takes `config.shots` support examples and up to `examples` scored ones of every task.

        Args:
          source, config: where from, and what fits; over-long examples are not drawn (`too_long="skip"`) unless the
            config truncates.
          examples: scored examples of a task, at most; None scores all that the supports leave.
          tasks: only so many tasks, evenly spread over the source; all by default.
          seed, draw: which examples; `draw` changes the support alone.
          draws: how many draws of the support the evaluation takes; so many times `shots` examples are never scored, so
            that every draw is scored on the same ones.
          apart: the support has no example of draw 0's; tasks that are too small for another one are left out.
          first: score each task's first examples, as Super-NaturalInstructions has it.
          support: drawn from the task's `examples`, or the `positives` that come with it: the first K that fit a row,
            in further draws any K. A task without any is left out, unless its definition stands in the support.
          ranked: answers are found by ranking the answer choices of the examples, by this rule.

        Raises:
          DataError: no task has enough examples; with `ranked`, an example whose target is none of its choices, or of
            whose choices the vocabulary makes one, knowing none of the characters in which they differ.
        """
        shots = config.shots
        # A teacher is for training: no condition reads its rows.
        config = config.replace(min_shots=None, shots=0 if support == "positives" else shots, teacher="none")
        if config.too_long == "error":
            config = config.replace(too_long="skip")
        numbers = range(len(source.task_names))
        if tasks is not None and tasks < len(numbers):
            numbers = [i * len(numbers) // tasks for i in range(tasks)]
        chosen, tokens, left_out, too_long = [], {}, {}, {}
        for number in numbers:
            name, size = source.task_names[number], int(source.sizes[number])
            most = max(1, min(examples or size, size - draws * config.shots))
            try:
                episode = evaluation_episode(
                    source,
                    number,
                    config.replace(examples=most),
                    seed,
                    draw,
                    first=first,
                    allow_fewer=True,
                    apart=apart,
                )
            except DataError as error:
                left_out[name] = str(error)
                continue
            info = source.info(number)
            usable, _ = usable_info(info, config, name)
            shown = source.examples(number, episode.support)
            if support == "positives":
                room = config.support_length - support_overhead(info, config)
                fitting = [p for p in info.positives if len(p.inputs) + len(p.targets) <= room]
                shown = _draw(fitting, shots, seed, draw, name)
            others = in_support(config.definition) or (in_support(config.positives) and usable.positives)
            if not shown and not others:
                left_out[name] = (
                    f"task '{name}' has no positive example that fits {config.support_length} tokens"
                    if (support == "positives" and shots) or in_support(config.positives)
                    else f"task '{name}': expected one shot or more, or a definition in the support, got 0 shots"
                )
                continue
            decode = source.vocabulary.decode
            # The definition is kept whatever the config says: `instruction` reads it.
            given = info._replace(positives=_beside(shown, usable.positives, config))
            tokens[name] = TaskTokens(tuple(shown), episode.examples, given)
            if over := int(np.count_nonzero(~fitting_scored(source.lengths(number), usable, config))):
                too_long[name] = over
            chosen.append(
                EvaluationTask(
                    name=name,
                    inputs=tuple(decode(e.inputs.tolist()) for e in episode.examples),
                    references=episode.references,
                    support=tuple((decode(e.inputs.tolist()), decode(e.targets.tolist())) for e in shown),
                    instruction=decode(info.definition.tolist()),
                    options=_options(episode, source.vocabulary) if ranked else (),
                    category=info.category or None,
                    data_sets=info.data_sets,
                    own_name=info.own_name,
                )
            )
        if not chosen:
            raise DataError(
                f"evaluation: expected at least one task that can be evaluated, got none of {len(numbers)} "
                f"({next(iter(left_out.values()), '')})"
            )
        return cls(tuple(chosen), tokens, left_out, ranked, too_long)

    def without(self, reasons: Mapping[str, str]) -> HeldOut:
        """Leaves some tasks out, `{task: why}`. Raises DataError if none is left."""
        left = tuple(task for task in self.tasks if task.name not in reasons)
        if not left:
            raise DataError(
                f"evaluation: expected at least one task that can be evaluated, got none of {len(self.tasks)} "
                f"({next(iter(reasons.values()), '')})"
            )
        out = {task.name: reasons[task.name] for task in self.tasks if task.name in reasons}
        tokens = {task.name: self.tokens[task.name] for task in left}
        return dataclasses.replace(self, tasks=left, tokens=tokens, left_out={**self.left_out, **out})

    def shown_scored(self, config: EpisodeConfig, seed: int) -> HeldOut:
        """The tokens of those tasks that have scored examples enough for another support, drawn from them.

        For figures of adapters alone: no score may come of it.

        Args:
          config: what fits a support row.
          seed: of the draw; a support has as many examples as the task's own.
        """
        others = {}
        for name, given in self.tokens.items():
            lengths = np.asarray([(len(e.inputs), len(e.targets)) for e in given.scored])
            fits = fitting_support(lengths, given.info, config)
            fitting = [example for example, fit in zip(given.scored, fits, strict=True) if fit]
            if len(fitting) >= (shots := len(given.support)):
                others[name] = dataclasses.replace(given, support=tuple(_draw(fitting, shots, seed, 1, name)))
        return dataclasses.replace(self, tokens=others)

    def where_supports_differ(self, first: HeldOut) -> HeldOut | None:
        """The tokens of those tasks whose support is another than in `first`; None if there are none."""

        def content(given: TaskTokens) -> list[tuple[bytes, bytes]]:
            return [(shot.inputs.tobytes(), shot.targets.tobytes()) for shot in given.support]

        others = {name: given for name, given in self.tokens.items() if content(given) != content(first.tokens[name])}
        return dataclasses.replace(self, tokens=others) if others else None

    @property
    def described(self) -> dict[str, str]:
        """What a configuration has to say of them beside their text: a digest where positives are read as well."""
        return {"positives": self.digest} if any(given.info.positives for given in self.tokens.values()) else {}

    @property
    def digest(self) -> str:
        """Of what adapters of these tasks are generated from; 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for name, given in self.tokens.items():
            shown = (*given.info.positives, *given.support)
            pieces = [given.info.definition, *(tokens for shot in shown for tokens in (shot.inputs, shot.targets))]
            digest.update(json.dumps([name, *(piece.tolist() for piece in pieces)]).encode())
        return digest.hexdigest()[:16]


def _draw(examples: list[Example], shots: int, seed: int, draw: int, name: str) -> list[Example]:
    """The first K, as benchmarks have it of positives; in further draws any K of them."""
    if draw == 0 or len(examples) <= shots:
        return examples[:shots]
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return [examples[i] for i in stream(seed, _POSITIVES, draw, key).distinct(len(examples), shots)]


def _beside(shown: Sequence[Example], positives: tuple[Example, ...], config: EpisodeConfig) -> tuple[Example, ...]:
    """The positives but those that are shown as demonstrations already, and would stand there twice.

    Where demonstrations do not stand wherever positives do, all stay: a model that was trained with them must not miss
    them. Those that training does not show do not move up for the ones left out.
    """
    places = [stand for stand in (in_support, in_inputs) if stand(config.positives)]
    if not all(stand(config.demonstrations) for stand in places):
        return positives
    return tuple(p for p in positives[: config.num_positives] if not any(p is example for example in shown))


def _options(episode: EvaluationEpisode, vocabulary: Vocabulary) -> tuple[tuple[str, ...], ...]:
    """The answer choices of every scored example, as text."""
    texts = []
    for index, example in zip(episode.scored, episode.examples, strict=True):
        if not any(np.array_equal(example.targets, option) for option in example.options):
            raise DataError(
                f"task '{episode.name}', example {index}: expected its target among its answer choices, it has "
                f"{len(example.options)} choices"
            )
        choices = [option.tolist() for option in example.options]
        if alike := [tokens for tokens in choices if vocabulary.unk_id in tokens and choices.count(tokens) > 1]:
            raise DataError(
                f"task '{episode.name}', example {index}: expected answer choices that the vocabulary tells apart, got "
                f"{len(alike)} of {len(choices)} that it writes alike, as {vocabulary.decode(alike[0])!r:.80}"
            )
        texts.append(tuple(map(vocabulary.decode, choices)))
    return tuple(texts)
