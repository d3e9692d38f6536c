"""From examples to the rows of one episode: the single place where demonstrations become tokens.

The training sampler, the evaluation sampler and `adapt` all end here, so a hypernetwork sees a user's examples exactly
as it saw its training examples.

>>> from hyperflax.data.examples import Example
>>> from hyperflax.data.vocabularies import Bytes
>>> pair = Example(np.array([100]), np.array([68]))
>>> config = EpisodeConfig(shots=1, examples=1, support_length=6, inputs_length=3, targets_length=3)
>>> episode_arrays([pair], [pair], config, Bytes())["support_tokens"].tolist()
[[383, 100, 382, 68, 1, 0]]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hyperflax.data.batches import decoder_features
from hyperflax.data.episode_config import EpisodeConfig, in_inputs, in_support
from hyperflax.data.examples import Example, TaskInfo
from hyperflax.data.vocabularies import EOS_ID, Vocabulary
from hyperflax.errors import DataError

SENTINELS = 2  # tokens that rendering adds to a demonstration


def episode_arrays(
    support: Sequence[Example],
    scored: Sequence[Example],
    config: EpisodeConfig,
    vocabulary: Vocabulary,
    info: TaskInfo | None = None,
    name: str = "",
) -> dict[str, np.ndarray]:
    """The arrays of one episode, without a task axis.

    Args:
      support: up to `config.shots` examples.
      scored: up to `config.examples` examples; missing ones are rows of padding with weight 0.
      config, vocabulary: see there.
      info: definition and positives, if the config places them somewhere.
      name: of the task, for errors.

    Returns:
      support_tokens int32 [rows, support_length]; encoder_input_tokens int32 [examples, inputs_length];
      decoder_input_tokens, decoder_target_tokens int32 and decoder_loss_weights float32 [examples, targets_length];
      with a teacher, teacher_input_tokens int32 [examples, teacher_length].

    Raises:
      DataError: a demonstration that fits no row (whatever `config.too_long` says: a caller who wants to skip it does
        so before), more examples than rows, or, under `too_long` other than `truncate`, a scored example or definition
        that does not fit.
    """
    arrays = empty_arrays(config, ())
    fill_episode(arrays, (), support, scored, config, vocabulary, info or TaskInfo(), name)
    return finish(arrays)


def empty_arrays(config: EpisodeConfig, leading: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Zeros for `fill_episode`, with leading axes."""
    shapes = {
        "support_tokens": (config.rows, config.support_length),
        "encoder_input_tokens": (config.examples, config.inputs_length),
        "decoder_target_tokens": (config.examples, config.targets_length),
    }
    if config.teacher != "none":
        shapes["teacher_input_tokens"] = (config.examples, config.teacher_length)
    return {name: np.zeros((*leading, *shape), np.int32) for name, shape in shapes.items()}


def empty_others(config: EpisodeConfig, leading: tuple[int, ...]) -> np.ndarray:
    """Zeros for the supports of an episode behind its first, with leading axes."""
    return np.zeros((*leading, config.supports - 1, config.rows, config.support_length), np.int32)


def finish(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Adds the decoder's inputs and weights, which follow from its targets."""
    return {**arrays, **decoder_features(arrays["decoder_target_tokens"])}


def fill_episode(
    arrays: dict[str, np.ndarray],
    at: tuple[int, ...],
    support: Sequence[Example],
    scored: Sequence[Example],
    config: EpisodeConfig,
    vocabulary: Vocabulary,
    info: TaskInfo,
    name: str,
) -> None:
    """Writes one episode into `arrays[...][at]`; see `episode_arrays`."""
    for what, given, most in (("support", support, config.shots), ("scored", scored, config.examples)):
        if len(given) > most:
            raise DataError(f"task '{name}': expected at most {most} {what} examples, got {len(given)}")
    sentinels, positives, shots = _rendered(support, config, vocabulary, info)
    shown = _demonstrations(positives, shots, config, in_support)
    _fill_support(arrays["support_tokens"][at], support_definition(info, config, shown), shown, config, name)
    context = _demonstrations(positives, shots, config, in_inputs)
    definition = info.definition if in_inputs(config.definition) else None
    for row, example in enumerate(scored):
        _fill_inputs(arrays["encoder_input_tokens"][at][row], example, definition, context, sentinels, config, name)
        _fill_row(arrays["decoder_target_tokens"][at][row], example.targets, config, f"task '{name}': targets")
    if config.teacher != "none":
        told = info.definition if config.teacher == "definition" else None
        seen = shots if config.teacher == "demonstrations" else []
        cut = config.replace(too_long="truncate")
        for row, example in zip(arrays["teacher_input_tokens"][at], scored, strict=False):
            _fill_inputs(row, example, told, seen, sentinels, cut, name)


def fill_support(
    rows: np.ndarray,
    support: Sequence[Example],
    config: EpisodeConfig,
    vocabulary: Vocabulary,
    info: TaskInfo,
    name: str,
) -> None:
    """Writes what a hypernetwork reads into `rows` [rows, support_length]; see `episode_arrays`."""
    _, positives, shots = _rendered(support, config, vocabulary, info)
    shown = _demonstrations(positives, shots, config, in_support)
    _fill_support(rows, support_definition(info, config, shown), shown, config, name)


def _rendered(support: Sequence[Example], config: EpisodeConfig, vocabulary: Vocabulary, info: TaskInfo):
    """The sentinels, and positives and support rendered with them."""
    sentinels = (vocabulary.sentinel(config.input_sentinel), vocabulary.sentinel(config.target_sentinel))
    positives = [render(example, sentinels) for example in info.positives[: config.num_positives]]
    return sentinels, positives, [render(example, sentinels) for example in support]


def support_definition(
    info: TaskInfo, config: EpisodeConfig, shown: Sequence[np.ndarray] | None = None
) -> np.ndarray | None:
    """The definition as it stands in the support; None if it does not.

    Where definitions may be cut, one that shares its row with demonstrations gets half of it, and what those that are
    `shown` leave if that is more; None plans for as many as there can be.
    """
    if not in_support(config.definition):
        return None
    shared = config.support_layout == "joint" and (in_support(config.demonstrations) or in_support(config.positives))
    if config.too_long != "truncate" or not shared:
        return info.definition
    left = 0 if shown is None else config.support_length - 1 - sum(map(len, shown))
    return info.definition[: max(config.support_length // 2, left)]


def deal(examples: Sequence[Any], supports: int) -> list[Sequence[Any]]:
    """Deals a task's examples out to several supports in turn; where there are too few, some are dealt twice.

    >>> deal("abcde", 2), deal("ab", 3)
    (['ace', 'bd'], ['a', 'b', 'a'])
    """
    return [examples[number % max(len(examples), 1) :: supports] for number in range(supports)]


def render(example: Example, sentinels: tuple[int, int]) -> np.ndarray:
    """`<input-sentinel> input <target-sentinel> target`, int32."""
    middle = 1 + len(example.inputs)
    out = np.empty(middle + 1 + len(example.targets), np.int32)
    out[0], out[middle] = sentinels
    out[1:middle] = example.inputs
    out[middle + 1 :] = example.targets
    return out


def _demonstrations(positives: list, shots: list, config: EpisodeConfig, stands) -> list[np.ndarray]:
    """The rendered demonstrations that stand there, positives first."""
    return (positives if stands(config.positives) else []) + (shots if stands(config.demonstrations) else [])


def _fill_support(rows: np.ndarray, definition, demonstrations: list, config: EpisodeConfig, name: str) -> None:
    """Writes the support `[rows, length]`."""
    if config.support_layout == "separate":
        if definition is not None:
            _fill_row(rows[0], definition, config, f"task '{name}': definition")
            rows = rows[1:]
        for number, (row, tokens) in enumerate(zip(rows, demonstrations, strict=False)):
            if len(tokens) >= len(row):
                raise _too_long(name, number, len(tokens) + 1, len(row))
            _fill_row(row, tokens, config, name)
        return
    pieces = [] if definition is None else [definition]
    used = alone = sum(map(len, pieces)) + 1
    for number, tokens in enumerate(demonstrations):
        if alone + len(tokens) > rows.shape[1]:
            raise _too_long(name, number, alone + len(tokens), rows.shape[1])
        if used + len(tokens) <= rows.shape[1]:
            pieces.append(tokens)
            used += len(tokens)
    if pieces:
        _fill_row(rows[0], np.concatenate(pieces), config, f"task '{name}': definition")


def _fill_inputs(row, example: Example, definition, context: list, sentinels, config: EpisodeConfig, name: str) -> None:
    """Writes the encoder inputs of one scored example: `[definition] [demonstrations] input`."""
    if definition is None and not context:
        _fill_row(row, example.inputs, config, f"task '{name}': inputs")
        return
    inputs, room = example.inputs, len(row) - SENTINELS - 1
    definition = inputs[:0] if definition is None else definition
    if config.too_long == "truncate" and len(definition) + len(inputs) > room:
        # Both are cut at their end, so that the input, and the sentinel that asks for its target, stay visible.
        definition = definition[: max(room - len(inputs), room // 2)]
        inputs = inputs[: room - len(definition)]
    last = np.concatenate([sentinels[:1], inputs, sentinels[1:]]).astype(np.int32)
    pieces, used = [definition], len(definition) + len(last) + 1
    for tokens in context:
        if used + len(tokens) <= len(row):
            pieces.append(tokens)
            used += len(tokens)
    _fill_row(row, np.concatenate([*pieces, last]), config, f"task '{name}': definition and inputs")


def _fill_row(row: np.ndarray, tokens: np.ndarray, config: EpisodeConfig, name: str) -> None:
    size = len(tokens) + 1
    if size > len(row):
        if config.too_long != "truncate":
            raise DataError(f"{name}: expected at most {len(row)} tokens, end of sequence included, got {size}")
        tokens, size = tokens[: len(row) - 1], len(row)
    row[: size - 1] = tokens
    row[size - 1] = EOS_ID


def _too_long(name: str, number: int, size: int, room: int) -> DataError:
    return DataError(
        f"task '{name}', demonstration {number}: expected at most {room} tokens, sentinels, end of sequence and a "
        f"definition in the same row included, got {size}; demonstrations are never truncated"
    )
