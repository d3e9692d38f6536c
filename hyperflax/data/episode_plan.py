"""Which tasks and examples of a source can become episodes: checked once, before the first batch.

Over-long examples and tasks that are too small are found here, so that a run fails, or says what it leaves out, at its
start and not at step 40,000.
"""

from __future__ import annotations

import dataclasses
import logging

import numpy as np

from hyperflax.data.episode_config import EpisodeConfig, in_inputs, in_support
from hyperflax.data.examples import ExampleSource, TaskInfo, cumulated
from hyperflax.data.rendering import SENTINELS, support_definition
from hyperflax.errors import DataError

_LOG = logging.getLogger("hyperflax.data")


@dataclasses.dataclass(frozen=True)
class EpisodePlan:
    """The usable part of a source under a config.

    Attributes:
      tasks: int64 `[usable tasks]`, their numbers in the source.
      eligible: for each of them, int64 indices of the examples that fit.
      infos: for each of them, definition and positives, without positives that do not fit.
      cumulative: float64 `[usable tasks]`, cumulated drawing probabilities; the last is 1.
      skipped_examples: `{task name: count}` of examples left out as over-long.
      skipped_tasks: `{task name: reason}`.
      cut_teacher: usable examples before which a teacher reads less than it should, because `teacher_length` has no
        room for the definition, or for K demonstrations of the task's mean length.
    """

    tasks: np.ndarray
    eligible: tuple[np.ndarray, ...]
    infos: tuple[TaskInfo, ...]
    cumulative: np.ndarray
    skipped_examples: dict[str, int]
    skipped_tasks: dict[str, str]
    cut_teacher: int = 0

    def draw(self, uniform: float) -> int:
        """Position of the task drawn by a uniform number of [0, 1)."""
        return min(int(np.searchsorted(self.cumulative, uniform, side="right")), len(self.tasks) - 1)

    def summary(self) -> str:
        """One line: what is used and what is left out."""
        used = sum(map(len, self.eligible))
        line = f"{len(self.tasks)} tasks, {used} examples"
        if self.skipped_examples:
            skipped = sum(self.skipped_examples.values())
            line += f"; {skipped} over-long examples of {len(self.skipped_examples)} tasks left out"
        if self.skipped_tasks:
            name, reason = next(iter(self.skipped_tasks.items()))
            line += f"; {len(self.skipped_tasks)} tasks left out (first: '{name}': {reason})"
        if self.cut_teacher:
            line += f"; teacher_length has no room for all that the teacher reads before {self.cut_teacher} of them"
        return line


def make_plan(source: ExampleSource, config: EpisodeConfig) -> EpisodePlan:
    """Finds the examples that fit and the tasks that have enough of them.

    Raises:
      DataError: under `too_long='error'` the first over-long example, with its task and index; under
        `too_few='error'` the first task with fewer than K + Q usable examples; or no usable task at all.
    """
    tasks, eligible, infos = [], [], []
    skipped_examples: dict[str, int] = {}
    skipped_tasks: dict[str, str] = {}
    cut_teacher = 0
    for task, name in enumerate(source.task_names):
        info, reason = usable_info(source.info(task), config, name)
        indices = np.zeros(0, np.int64)
        if not reason:
            lengths = source.lengths(task)
            fits = fitting(lengths, info, config, name)
            indices = np.flatnonzero(fits)
            if missing := len(fits) - len(indices):
                skipped_examples[name] = missing
            reason = _shortage(len(indices), missing, config, name)
            if not reason:
                cut = _teacher_size(lengths[indices], info, config) > config.teacher_length
                cut_teacher += int(np.count_nonzero(cut))
        if reason:
            skipped_tasks[name] = reason
            continue
        tasks.append(task)
        eligible.append(indices)
        infos.append(info)
    if not tasks:
        reasons = [f"'{name}': {reason}" for name, reason in list(skipped_tasks.items())[:3]]
        raise DataError(
            f"expected at least one usable task out of {len(source.task_names)}, got none ({'; '.join(reasons)})"
        )
    counts = np.minimum([len(indices) for indices in eligible], config.task_cap).astype(np.float64)
    cumulative = cumulated(source, tasks, counts)
    plan = EpisodePlan(
        np.asarray(tasks), tuple(eligible), tuple(infos), cumulative, skipped_examples, skipped_tasks, cut_teacher
    )
    if skipped_examples or skipped_tasks or cut_teacher:
        _LOG.warning("%s", plan.summary())
    return plan


def usable_info(info: TaskInfo, config: EpisodeConfig, name: str) -> tuple[TaskInfo, str]:
    """The info without what is placed nowhere or does not fit, and why the task cannot be used ('' if it can)."""
    if config.positives == "none":
        info = info._replace(positives=())
    if config.teacher == "definition" and not len(info.definition):
        problem = "expected a definition, which the teacher is to read, there is none"
        if config.too_few == "error":
            raise DataError(f"task '{name}': {problem}")
        return info, problem
    if config.definition == "none" and config.teacher != "definition":
        info = info._replace(definition=info.definition[:0])
    if in_support(config.definition) and (size := len(info.definition) + 1) > config.support_length:
        problem = f"definition of {size} tokens, expected at most {config.support_length} in a support row"
        if config.too_long == "error":
            raise DataError(f"task '{name}': {problem}")
        if config.too_long == "skip":
            return info, problem
    if in_support(config.positives):
        kept = []
        for number, positive in enumerate(info.positives):
            size = len(positive.inputs) + len(positive.targets) + support_overhead(info, config)
            if size <= config.support_length:
                kept.append(positive)
            elif config.too_long == "error" and number < config.num_positives:  # the others are not shown
                raise DataError(
                    f"task '{name}', positive example {number}: expected at most {config.support_length} tokens, "
                    f"got {size}"
                )
        info = info._replace(positives=tuple(kept))
    return info, ""


def fitting(lengths: np.ndarray, info: TaskInfo, config: EpisodeConfig, name: str) -> np.ndarray:
    """bool `[examples]`: which of a task's examples fit as demonstration and as scored example alike."""
    fits = fitting_support(lengths, info, config) & fitting_scored(lengths, info, config)
    if config.too_long == "error" and not fits.all():
        index = int(np.argmin(fits))
        raise DataError(
            f"task '{name}', example {index}: does not fit, it takes {needs(lengths[index], info, config)} "
            "(sentinels, end of sequence, and a definition in the same row included; too_long='skip' leaves such "
            "examples out)"
        )
    return fits


def needs(lengths: np.ndarray, info: TaskInfo, config: EpisodeConfig) -> str:
    """The tokens that an example of lengths [2] takes of each row it stands in, for errors."""
    rows = {"inputs_length": lengths[0] + _inputs_overhead(info, config), "targets_length": lengths[1] + 1}
    if config.shots and in_support(config.demonstrations):
        rows = {"support_length": lengths.sum() + support_overhead(info, config), **rows}
    return ", ".join(f"{size} of {name}={getattr(config, name)}" for name, size in rows.items())


def support_overhead(info: TaskInfo, config: EpisodeConfig) -> int:
    """Tokens of a support row beside a demonstration's own: sentinels, end, and a definition in the same row."""
    definition = support_definition(info, config) if config.support_layout == "joint" else None
    return SENTINELS + 1 + (0 if definition is None else len(definition))


def fitting_support(lengths: np.ndarray, info: TaskInfo, config: EpisodeConfig) -> np.ndarray:
    """bool `[examples]`: which fit a support row, with no other demonstration in it."""
    if config.shots == 0 or not in_support(config.demonstrations):
        return np.ones(len(lengths), bool)
    return lengths.sum(axis=1) + support_overhead(info, config) <= config.support_length


def fitting_scored(lengths: np.ndarray, info: TaskInfo, config: EpisodeConfig) -> np.ndarray:
    """bool `[examples]`: which fit as scored examples; all of them where those are truncated."""
    if config.too_long == "truncate":
        return np.ones(len(lengths), bool)
    inputs = lengths[:, 0] + _inputs_overhead(info, config)
    return (inputs <= config.inputs_length) & (lengths[:, 1] + 1 <= config.targets_length)


def _inputs_overhead(info: TaskInfo, config: EpisodeConfig) -> int:
    """Tokens of a scored example's inputs beside its own: end, and a definition with the sentinels behind it."""
    definition = len(info.definition) if in_inputs(config.definition) else 0
    return 1 + (SENTINELS if config.inputs_have_context else 0) + definition


def _teacher_size(lengths: np.ndarray, info: TaskInfo, config: EpisodeConfig) -> np.ndarray:
    """int `[examples]`: tokens of the teacher's row for each of a task's examples; 0 without a teacher."""
    if config.teacher == "none":
        return np.zeros(len(lengths), np.int64)
    told = len(info.definition)
    if config.teacher == "demonstrations":
        told = config.shots * (lengths.sum(axis=1).mean() + SENTINELS)
    return told + np.minimum(lengths[:, 0], config.inputs_length - 1) + SENTINELS + 1


def _shortage(usable: int, skipped: int, config: EpisodeConfig, name: str) -> str:
    """Why a task has too few examples, '' if it has enough."""
    if usable >= config.needed:
        return ""
    support = f"K={config.shots}" if config.supports == 1 else f"{config.supports} x K={config.shots}"
    problem = f"expected at least {config.needed} examples ({support} + Q={config.examples}), got {usable}"
    if skipped:
        problem += f" and {skipped} over-long"
    if config.too_few == "error":
        raise DataError(f"task '{name}': {problem}")
    return problem
