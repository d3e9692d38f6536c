"""Episodes: K support examples and Q scored ones of one task, pure in (examples, seed, step).

Batch features (METHODS of hypertuning: support and scored examples are disjoint draws of one task, HyperTuning,
Phang et al. 2023, section 4):

- support_tokens int32 `[task, rows, support_length]`
- with more than one support, other_support_tokens int32 `[task, supports - 1, rows, support_length]`
- task_index int32 `[task]`, the task's number in the source
- encoder_input_tokens int32 `[task, example, inputs_length]`
- decoder_input_tokens, decoder_target_tokens int32, decoder_loss_weights float32 `[task, example, targets_length]`
- with a teacher, teacher_input_tokens int32 `[task, example, teacher_length]`

>>> from hyperflax.data.examples import InMemorySource
>>> from hyperflax.data.vocabularies import Bytes
>>> source = InMemorySource.from_strings({"upper": [(c, c.upper()) for c in "abcdef"]}, Bytes())
>>> episodes = Episodes(source, EpisodeConfig(tasks_per_batch=2, shots=2, examples=3), seed=0)
>>> episodes.batch(0)["encoder_input_tokens"].shape
(2, 3, 64)
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np

from hyperflax.data.draws import stream
from hyperflax.data.episode_config import EpisodeConfig
from hyperflax.data.episode_plan import EpisodePlan, fitting_scored, fitting_support, make_plan, needs, usable_info
from hyperflax.data.examples import Example, ExampleSource
from hyperflax.data.rendering import (
    empty_arrays,
    empty_others,
    episode_arrays,
    fill_episode,
    fill_support,
    finish,
)
from hyperflax.errors import DataError

__all__ = ["EpisodeConfig", "Episodes", "EvaluationEpisode", "evaluation_episode", "make_episodes"]

# Purposes of random streams: draws of one seed for different ends stay independent.
_TRAINING, _SCORED, _SUPPORT = 0x6570, 0x6571, 0x6572


class Episodes:
    """Training batches of a source: `batch(step)` is pure in (seed, step).

    Args:
      source: of the examples.
      config: of the episodes.
      seed: of all draws.

    Raises:
      DataError: see `make_plan`; the source is checked here, whole.
    """

    def __init__(self, source: ExampleSource, config: EpisodeConfig, seed: int = 0):
        self.source, self.config, self.seed = source, config, seed
        self.plan = make_plan(source, config)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        return make_episodes(self.source, self.config, self.seed, step, plan=self.plan)


def make_episodes(
    source: ExampleSource, config: EpisodeConfig, seed: int, step: int, *, plan: EpisodePlan | None = None
) -> dict[str, np.ndarray]:
    """One batch of episodes.

    Args:
      source, config: examples and shape.
      seed, step: the batch; equal ones give equal arrays on every machine and in every process layout.
      plan: `make_plan(source, config)`, if the caller has it already.

    Returns:
      The features listed in the module's docstring; the task axis has `config.tasks_per_batch` entries.

    Raises:
      DataError: see `make_plan`.
    """
    plan = plan or make_plan(source, config)
    least = config.shots if config.min_shots is None else config.min_shots
    positions, shots, requests = [], [], []
    for row in range(config.tasks_per_batch):
        draws = stream(seed, _TRAINING, step, row)
        positions.append(plan.draw(draws.uniform()))
        shots.append(draws.integer(least, config.shots))
        indices = plan.eligible[positions[-1]]
        drawn = draws.distinct(len(indices), config.supports * shots[-1] + config.examples)
        requests.append((int(plan.tasks[positions[-1]]), indices[drawn].tolist()))
    arrays = empty_arrays(config, (len(requests),))
    others = empty_others(config, (len(requests),))
    for at, examples in enumerate(source.gather(requests)):
        name, info, k = source.task_names[requests[at][0]], plan.infos[positions[at]], shots[at]
        last = k + config.examples
        fill_episode(arrays, (at,), examples[:k], examples[k:last], config, source.vocabulary, info, name)
        for number, support in enumerate(others[at]):
            start = last + number * k
            fill_support(support, examples[start : start + k], config, source.vocabulary, info, name)
    if config.supports > 1:
        arrays["other_support_tokens"] = others
    task_index = np.asarray([task for task, _ in requests], np.int32)
    return {**finish(arrays), "task_index": task_index}


class EvaluationEpisode(NamedTuple):
    """One task's episode for evaluation.

    Attributes:
      task, name: its number and name in the source.
      arrays: the features of a training batch without the task axis; `task_index` is an int32 scalar array.
      support, scored: indices of the examples in the source. Rows of `arrays` behind `len(scored)` are padding.
      references: for every scored example, its accepted answers as text.
      examples: the scored examples themselves (with their answer options).
    """

    task: int
    name: str
    arrays: dict[str, np.ndarray]
    support: tuple[int, ...]
    scored: tuple[int, ...]
    references: tuple[tuple[str, ...], ...]
    examples: tuple[Example, ...]


def evaluation_episode(
    source: ExampleSource,
    task: int,
    config: EpisodeConfig,
    seed: int,
    draw: int = 0,
    *,
    first: bool = False,
    allow_fewer: bool = False,
    apart: bool = False,
) -> EvaluationEpisode:
    """The episode of one task: scored examples fixed by (seed, task name), support drawn anew for every `draw`.

    What is drawn depends on the task's name and examples alone, not on which other tasks the source has. Examples that
    fit no support row may be scored; of the others, `shots` are kept for the support.

    Args:
      source, task: the task's number in the source.
      config: `shots` support examples (`min_shots` is not used) and `examples` scored ones.
      seed, draw: of the draws.
      first: score the first `examples` of the task (Super-NaturalInstructions' rule) instead of drawn ones.
      allow_fewer: score as many as there are besides the support, if fewer than `config.examples`.
      apart: draw the support from what draw 0 leaves, so that the two have no example in common.

    Raises:
      DataError: too few examples, or over-long ones under `too_long='error'`.
    """
    name = source.task_names[task]
    info, problem = usable_info(source.info(task), config, name)
    if problem:
        raise DataError(f"task '{name}': {problem}")
    lengths = source.lengths(task)
    can_score = fitting_scored(lengths, info, config)
    can_show = fitting_support(lengths, info, config)
    if config.too_long == "error" and not can_score.all():
        index = int(np.argmin(can_score))
        raise DataError(
            f"task '{name}', example {index}: does not fit as scored example, it takes "
            f"{needs(lengths[index], info, config)}"
        )
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    candidates = np.flatnonzero(can_score)
    if not first:
        candidates = candidates[stream(seed, _SCORED, 0, key).distinct(len(candidates), len(candidates))]
    showable = can_show[candidates]
    spare = int(can_show.sum()) - config.shots  # so many of those that can be shown may be scored
    scored = candidates[~showable | (np.cumsum(showable) <= spare)][: config.examples].tolist()
    if spare < 0 or len(scored) < (1 if allow_fewer else config.examples):
        raise DataError(
            f"task '{name}': expected {config.examples} scored examples besides {config.shots} of support, "
            f"got {len(lengths)} examples, of which {len(candidates)} are short enough to be scored and "
            f"{can_show.sum()} to be shown"
        )
    rest = np.setdiff1d(np.flatnonzero(can_show), scored)
    if apart:
        rest = np.delete(rest, stream(seed, _SUPPORT, 0, key).distinct(len(rest), config.shots))
        if len(rest) < config.shots:
            raise DataError(f"task '{name}': expected {config.shots} examples for another support, got {len(rest)}")
    support = rest[stream(seed, _SUPPORT, draw, key).distinct(len(rest), config.shots)].tolist()
    shown, examples = source.examples(task, support), source.examples(task, scored)
    arrays = episode_arrays(shown, examples, config, source.vocabulary, info, name)
    arrays["task_index"] = np.asarray(task, np.int32)
    references = tuple(e.references or (source.vocabulary.decode(e.targets.tolist()),) for e in examples)
    return EvaluationEpisode(task, name, arrays, tuple(support), tuple(scored), references, tuple(examples))
