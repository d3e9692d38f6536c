"""What an evaluation on a benchmark suite has of it, and what it lacks: tasks, examples, shots, whole inputs.

A figure on a part of a suite is never the suite's score; a report lists every lack that makes it a part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hyperflax.data.episode_config import EpisodeConfig
from hyperflax.evaluation.held_out import HeldOut
from hyperflax.evaluation.suite import Suite


def lacks(
    suite: Suite, runs: Mapping[str, HeldOut], config: Mapping[str, Any], episodes: EpisodeConfig, cut: int
) -> list[str]:
    """What this evaluation lacks of the suite's own, one line each."""
    shots = episodes.shots
    lines = [f"only {config[name]} {name} were asked for" for name in ("tasks", "examples") if config[name] is not None]
    if suite.shots not in (None, shots):
        lines.append(f"{shots} shots, the suite shows {suite.shots}")
    if config["support"] != suite.support:
        lines.append(f"the support is taken from {config['support']}, the suite's from {suite.support}")
    if cut and episodes.inputs_length < suite.inputs_length:
        lines.append(
            f"{config['inputs_cut']} inputs are cut to {episodes.inputs_length} tokens, the suite has "
            f"{suite.inputs_length}"
        )
    supports = [len(tokens.support) for held_out in runs.values() for tokens in held_out.tokens.values()]
    if short := sum(size < shots for size in supports):
        lines.append(
            f"{short} of {len(supports)} supports have fewer than {shots} shots: the others do not fit or are not there"
        )
    shown = [
        (task, tuple((shot.inputs.tobytes(), shot.targets.tobytes()) for shot in tokens.support))
        for held_out in runs.values()
        for task, tokens in held_out.tokens.items()
        if tokens.support
    ]
    if repeated := len(shown) - len(set(shown)):
        lines.append(f"{repeated} of {len(shown)} supports are one of the same task's before: they vary nothing")
    left_out = {task: reason for held_out in runs.values() for task, reason in held_out.left_out.items()}
    return [*lines, *(f"left out: {reason}" for reason in left_out.values())]


def count_cut(runs: Mapping[str, HeldOut], length: int) -> tuple[int, int]:
    """How many inputs are cut, end of sequence included, of how many."""
    sizes = [
        len(e.inputs) + 1 for held_out in runs.values() for tokens in held_out.tokens.values() for e in tokens.scored
    ]
    return sum(size > length for size in sizes), len(sizes)


def common_tasks(runs: Mapping[str, HeldOut]) -> dict[str, HeldOut]:
    """The runs with the tasks that all of them have."""
    names = set.intersection(*({task.name for task in held_out.tasks} for held_out in runs.values()))
    return {
        label: dataclasses.replace(
            held_out,
            tasks=tuple(task for task in held_out.tasks if task.name in names),
            tokens={name: given for name, given in held_out.tokens.items() if name in names},
        )
        for label, held_out in runs.items()
    }
