"""What an episode looks like: how many examples, where they stand, how long they may be."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from hyperflax.configs import check_sizes
from hyperflax.errors import ConfigError

Place = Literal["support", "inputs", "both", "none"]
_PLACES = ("support", "inputs", "both", "none")


@dataclasses.dataclass(frozen=True)
class EpisodeConfig:
    """Shape of episodes. A demonstration is rendered `<input-sentinel> input <target-sentinel> target`.

    Attributes:
      tasks_per_batch: episodes in a batch (the task axis).
      shots: K, support examples drawn for an episode. min_shots: if set, K is drawn uniformly from min_shots to shots.
      examples: Q, scored examples of an episode; disjoint from its support, of the same task.
      supports: disjoint supports of an episode, for objectives that compare what is generated from them.
      support_length: tokens of a support row. inputs_length, targets_length: tokens of a scored example's encoder
        inputs and targets. End of sequence is included in all three.
      support_layout: `separate`, one row for every demonstration (and one for the definition); `joint`, one row into
        which the definition and whole demonstrations are packed in order, leaving out those that no longer fit.
      definition, positives, demonstrations: where the task's definition, its positive examples and the K drawn examples
        stand: in the support, before the scored inputs, both, or none. Examples that stand before the inputs are
        packed whole like a joint row; an input that follows anything is itself rendered with sentinels.
      num_positives: positives used at most.
      teacher: what a teacher reads before the scored inputs, for distillation: the `definition`, or the K drawn
        `demonstrations`; `none` makes no such rows. Where they do not fit, definitions and inputs are cut and whole
        demonstrations left out, see `EpisodePlan.cut_teacher`.
      teacher_length: tokens of a teacher's row, end of sequence included: room for `inputs_length` and what the teacher
        reads before it.
      task_cap: tasks are drawn in proportion to min(size, task_cap).
      too_long: what to do about an example that does not fit: `error` names it; `skip` leaves it out, counted;
        `truncate` cuts scored inputs, scored targets and definitions, and skips demonstrations, which are never cut.
      too_few: what to do about a task with fewer than K + Q usable examples, or without the definition that a teacher
        reads: `error` names it, `skip` counts it.
      input_sentinel, target_sentinel: numbers of the vocabulary's extra ids.

    Raises:
      ConfigError: a value out of range.
    """

    tasks_per_batch: int = 16
    shots: int = 4
    min_shots: int | None = None
    examples: int = 4
    supports: int = 1
    support_length: int = 128
    inputs_length: int = 64
    targets_length: int = 64
    support_layout: Literal["separate", "joint"] = "separate"
    definition: Place = "none"
    positives: Place = "none"
    demonstrations: Place = "support"
    num_positives: int = 2
    teacher: Literal["none", "definition", "demonstrations"] = "none"
    teacher_length: int = 128
    task_cap: int = 30_000
    too_long: Literal["error", "skip", "truncate"] = "error"
    too_few: Literal["error", "skip"] = "error"
    input_sentinel: int = 0
    target_sentinel: int = 1

    def __post_init__(self) -> None:
        check_sizes(
            self,
            tasks_per_batch=1,
            shots=0,
            examples=1,
            supports=1,
            support_length=4,
            inputs_length=2,
            targets_length=2,
            teacher_length=4,
            num_positives=0,
            task_cap=1,
            input_sentinel=0,
            target_sentinel=0,
        )
        if self.min_shots is not None and (type(self.min_shots) is not int or not 0 <= self.min_shots <= self.shots):
            raise ConfigError(
                f"EpisodeConfig.min_shots: expected an int from 0 to {self.shots} (shots), got {self.min_shots!r}"
            )
        choices = {
            "support_layout": ("separate", "joint"),
            "definition": _PLACES,
            "positives": _PLACES,
            "demonstrations": _PLACES,
            "teacher": ("none", "definition", "demonstrations"),
            "too_long": ("error", "skip", "truncate"),
            "too_few": ("error", "skip"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"EpisodeConfig.{name}: expected one of {allowed}, got {getattr(self, name)!r}")
        if self.teacher != "none" and self.teacher_length <= self.inputs_length:
            raise ConfigError(
                f"EpisodeConfig.teacher_length: expected more than inputs_length={self.inputs_length}, with room for "
                f"the {self.teacher} that the teacher reads before an input, got {self.teacher_length}"
            )

    @property
    def rows(self) -> int:
        """Support rows of an episode."""
        if self.support_layout == "joint":
            return 1
        rows = self.shots if in_support(self.demonstrations) else 0
        rows += self.num_positives if in_support(self.positives) else 0
        rows += 1 if in_support(self.definition) else 0
        return max(1, rows)

    @property
    def needed(self) -> int:
        """Examples that an episode takes from its task."""
        return self.supports * self.shots + self.examples

    @property
    def inputs_have_context(self) -> bool:
        """Whether anything can stand before the scored inputs."""
        return any(in_inputs(place) for place in (self.definition, self.positives, self.demonstrations))

    def replace(self, **changes: Any) -> EpisodeConfig:
        return dataclasses.replace(self, **changes)


def in_support(place: Place) -> bool:
    return place in ("support", "both")


def in_inputs(place: Place) -> bool:
    return place in ("inputs", "both")
