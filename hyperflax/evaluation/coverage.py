"""What an evaluation has of a benchmark suite or a mixture, and what it lacks: tasks, examples, shots, whole inputs
and answers.

A figure on a part of a suite is never the suite's score; a report lists every lack that makes it a part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hyperflax.data.episode_config import EpisodeConfig, in_support
from hyperflax.data.examples import Example, ExampleSource, TaskInfo
from hyperflax.data.rendering import SENTINELS, deal, episode_arrays
from hyperflax.data.vocabularies import Vocabulary
from hyperflax.evaluation.held_out import HeldOut
from hyperflax.evaluation.suite import Suite


def lacks(
    suite: Suite,
    runs: Mapping[str, HeldOut],
    config: Mapping[str, Any],
    episodes: EpisodeConfig,
    cut: int,
    cut_supports: int,
) -> list[str]:
    """What this evaluation lacks of the suite's own, one line each; `cut` and `cut_supports` as counted below."""
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
    long, answers = count_long(runs, length := episodes.targets_length)
    if long and suite.targets_length and length < suite.targets_length:
        lines.append(
            f"{long} of {answers} answers are longer than the {length} tokens that are generated, the suite generates "
            f"{suite.targets_length}"
        )
    supports = [len(tokens.support) for held_out in runs.values() for tokens in held_out.tokens.values()]
    if short := sum(size < shots for size in supports):
        lines.append(
            f"{short} of {len(supports)} supports have fewer than {shots} shots: the others do not fit or are not there"
        )
    if cut_supports:
        lines.append(
            f"{cut_supports} of {len(supports)} supports are not read whole, a row has {episodes.support_length} tokens"
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


def not_covered(held_out: HeldOut, source: ExampleSource, episodes: EpisodeConfig, supports: int) -> dict[str, Any]:
    """What a report on a mixture says of what was not evaluated, `{}` where all was.

    Args:
      held_out: its tasks.
      source: of them.
      episodes, supports: as `count_cut_supports` has them.
    """
    told: dict[str, Any] = {}
    if reasons := list(held_out.left_out.values()):
        told["left_out"] = {"tasks": len(reasons), "reasons": reasons[:5]}
    if long := held_out.too_long:
        sizes = dict(zip(source.task_names, source.sizes, strict=True))
        of = int(sum(sizes[name] for name in long))
        told["too_long"] = {"tasks": len(long), "examples": sum(long.values()), "of": of}
    if cut := count_cut_supports(held_out, episodes, source.vocabulary, supports):
        told["supports_cut"] = {"tasks": cut, "length": episodes.support_length}
    return told


def count_cut(runs: Mapping[str, HeldOut], length: int) -> tuple[int, int]:
    """How many inputs are cut, end of sequence included, of how many."""
    sizes = [
        len(e.inputs) + 1 for held_out in runs.values() for tokens in held_out.tokens.values() for e in tokens.scored
    ]
    return sum(size > length for size in sizes), len(sizes)


def count_long(runs: Mapping[str, HeldOut], length: int) -> tuple[int, int]:
    """How many targets so many generated tokens cannot hold, of how many; end of sequence need not be one of them."""
    sizes = [len(e.targets) for held_out in runs.values() for tokens in held_out.tokens.values() for e in tokens.scored]
    return sum(size > length for size in sizes), len(sizes)


def count_cut_supports(held_out: HeldOut, episodes: EpisodeConfig, vocabulary: Vocabulary, supports: int) -> int:
    """How many tasks' supports are not read whole: a row cuts the definition, a joint one has no room for an example.

    Args:
      held_out: the tasks.
      episodes, vocabulary: what the model reads.
      supports: parts that each task's examples are dealt out to.
    """
    config = episodes.replace(min_shots=None, too_long="truncate", teacher="none")
    return sum(
        any(_is_cut(part, given.info, config, vocabulary) for part in deal(given.support, supports))
        for given in held_out.tokens.values()
    )


def _is_cut(shown: Sequence[Example], info: TaskInfo, config: EpisodeConfig, vocabulary: Vocabulary) -> bool:
    rows = episode_arrays(shown, (), config.replace(shots=len(shown)), vocabulary, info)["support_tokens"]
    positives = info.positives[: config.num_positives] if in_support(config.positives) else ()
    demonstrations = (*positives, *(shown if in_support(config.demonstrations) else ()))
    whole = len(info.definition) if in_support(config.definition) else 0
    whole += sum(len(e.inputs) + len(e.targets) + SENTINELS for e in demonstrations)
    ends = int(np.count_nonzero(rows[:, 0]))  # one in each row that has anything
    return int(np.count_nonzero(rows)) - ends < whole


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
