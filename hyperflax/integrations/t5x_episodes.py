"""Episodes from any seqio Task, as a `seqio.FeatureConverter`: what T5X reads its batches through.

    examples in the Task's order, [tokens]      inputs, targets, task [, definition, positive_inputs, positive_targets]
      -> those that fit -> windows of K + Q examples of one task -> episodes, the features of `data.episodes` without
         the task axis, which is T5X's batch axis

The Task needs a string feature `task`, by which its examples are grouped; a window is complete as soon as the stream
has brought its last example. So tasks come in proportion to their examples, in the Task's own shuffled order: the draws
of `data.episodes` need to know the whole source, which a stream does not. A window's first examples are the support.
A window in which an example comes twice, as it does where one epoch ends and the next begins, is left out: the support
would hold what is scored. Tokens become rows in the same numpy function as everywhere, `data.rendering.episode_arrays`.

>>> converter = EpisodeFeatureConverter(config=EpisodeConfig(shots=2, examples=2), vocabulary=Bytes())
>>> converter(dataset, {"inputs": 1024, "targets": 512}).element_spec["support_tokens"].shape
TensorShape([2, 128])
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hyperflax.data.episode_config import EpisodeConfig, in_support
from hyperflax.data.episode_plan import fitting, needs, usable_info
from hyperflax.data.examples import Example, TaskInfo
from hyperflax.data.rendering import empty_arrays, episode_arrays, finish
from hyperflax.data.seqio_source import import_seqio, task_info
from hyperflax.data.vocabularies import EOS_ID, Vocabulary
from hyperflax.errors import ConfigError, DataError

seqio = import_seqio()  # keeps TensorFlow off the accelerator

TOKENS = ("inputs", "targets")
OF_TASK = ("definition", "category", "positive_inputs", "positive_targets")
_TRIED = 4  # windows of a task that repeat an example before it may count as too small
# Examples that do not fit, or windows that repeat one, and no other, before the stream is given up.
_PATIENCE = 100_000


class EpisodeFeatureConverter(seqio.FeatureConverter):
    """Groups a Task's examples into episodes.

    Args:
      pack, use_custom_packing_ops: as T5X passes them; episodes are not packed.
      config: of the episodes; `tasks_per_batch` and `task_cap` are not used, T5X's batch size is.
      vocabulary: the Task's, as ours.

    Raises:
      ConfigError: packing, or a setting that needs more than a window of examples.
    """

    TASK_FEATURES = seqio.EncDecFeatureConverter.TASK_FEATURES  # inputs and targets; `task` is looked for below
    MODEL_FEATURES: Mapping[str, Any] = types.MappingProxyType({})
    PACKING_FEATURE_DTYPES: Mapping[str, Any] = types.MappingProxyType({})

    def __init__(
        self,
        pack: bool = False,
        use_custom_packing_ops: bool = False,
        *,
        config: EpisodeConfig,
        vocabulary: Vocabulary,
    ):
        import tensorflow as tf

        if pack or use_custom_packing_ops:
            raise ConfigError("EpisodeFeatureConverter: expected pack=False (utils.DatasetConfig.pack), got packing")
        for name, plain in (("supports", 1), ("min_shots", None), ("teacher", "none")):
            if getattr(config, name) != plain:
                found = getattr(config, name)
                raise ConfigError(f"EpisodeConfig.{name}: expected {plain!r} for episodes of a stream, got {found!r}")
        self._config, self._vocabulary = config, vocabulary
        self._infos: dict[str, tuple[TaskInfo, str]] = {}
        self._unfit = 0  # examples that do not fit, and none did yet
        self._left_out = 0  # windows that repeat an example, and no episode was made yet
        self._seen: dict[str, tuple[int, set[int]]] = {}  # of a task: such windows, and different examples in them
        self._empty = finish(empty_arrays(config, ()))
        spec = seqio.FeatureConverter.FeatureSpec
        self.MODEL_FEATURES = {
            name: spec(dtype=tf.as_dtype(array.dtype), rank=array.ndim) for name, array in self._empty.items()
        }
        super().__init__(pack=False)

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> dict[str, int]:
        """Rows of every feature; its other axis is checked by `EpisodeConfig`."""
        return {name: len(array) for name, array in self._empty.items()}

    def _convert_features(self, ds: Any, task_feature_lengths: Mapping[str, int]) -> Any:
        """Turns a `tf.data.Dataset` of examples into one of episodes."""
        import tensorflow as tf

        config, spec = self._config, ds.element_spec
        # Where scored examples are cut, `support_length` alone decides whether one fits.
        shows = config.too_long == "truncate" and config.shots and in_support(config.demonstrations)
        shown = config.support_length if shows else 0
        for name, scored in zip(TOKENS, (config.inputs_length, config.targets_length), strict=True):
            most = max(scored, shown)
            # T5X cuts examples at these lengths before anybody sees them: one cut short must not look as if it fitted.
            if task_feature_lengths[name] <= most:
                raise ConfigError(
                    f"TASK_FEATURE_LENGTHS['{name}']: expected more than EpisodeConfig's {most}, which decides what is "
                    f"too long, got {task_feature_lengths[name]}"
                )
        if "task" not in spec or spec["task"].dtype != tf.string:
            raise DataError(
                f"seqio Task: expected a string feature 'task' that names each example's task, got {sorted(spec)}; a "
                "seqio Mixture hands on the output features of its Tasks alone, so 'task' has to be one there"
            )
        names = ["task", *TOKENS, *(name for name in OF_TASK if name in spec)]

        def named(function: Callable[[dict[str, Any]], Any]) -> Callable[..., Any]:
            return lambda *values: function(dict(zip(names, values, strict=True)))

        def fits(row: Mapping[str, Any]) -> Any:
            given = [row[name] for name in names]
            return tf.ensure_shape(tf.numpy_function(named(self._fits), given, tf.bool), ())

        def distinct(rows: Mapping[str, Any]) -> Any:
            given = [rows[name] for name in names]
            return tf.ensure_shape(tf.numpy_function(named(self._distinct), given, tf.bool), ())

        def episode(rows: Mapping[str, Any]) -> dict[str, Any]:
            given = [rows[name] for name in names]
            dtypes = [tf.as_dtype(array.dtype) for array in self._empty.values()]
            made = tf.numpy_function(named(self._episode), given, dtypes, stateful=False)
            return {
                name: tf.ensure_shape(tensor, array.shape)
                for (name, array), tensor in zip(self._empty.items(), made, strict=True)
            }

        window = config.needed
        return (
            ds.map(lambda row: {name: row[name] for name in names})
            .filter(fits)
            .group_by_window(
                lambda row: tf.strings.to_hash_bucket_fast(row["task"], 2**62),
                lambda _, rows: rows.padded_batch(window, drop_remainder=True),
                window_size=window,
            )
            .filter(distinct)
            .map(episode)
        )

    def _fits(self, row: dict[str, Any]) -> np.bool_:
        """Whether an example can be support and scored alike; DataError where `too_long` says so, or none ever can."""
        info, problem = self._info(row)
        lengths = np.asarray([[len(_ids(row[name])) for name in TOKENS]])
        if not problem and fitting(lengths, info, self._config, _name(row))[0]:
            self._unfit = -1
            return np.bool_(True)
        if self._unfit >= 0:
            self._unfit += 1
            if self._unfit == _PATIENCE:
                told = problem or f"takes {needs(lengths[0], info, self._config)}"
                raise DataError(
                    f"expected an example that fits, got none in {_PATIENCE}; the last, of task '{_name(row)}': {told}"
                )
        return np.bool_(False)

    def _distinct(self, rows: dict[str, np.ndarray]) -> np.bool_:
        """Whether no example of a window comes twice; DataError where the task has too few for any such window."""
        name, needed = rows["task"][0].decode("utf-8"), self._config.needed
        pairs = zip(*(rows[key] for key in TOKENS), strict=True)
        contents = {hash(tuple(_ids(tokens).tobytes() for tokens in pair)) for pair in pairs}
        if len(contents) == needed:
            self._left_out = -1
            return np.bool_(True)
        windows, seen = self._seen.get(name, (0, set()))
        self._seen[name] = windows + 1, seen | contents if len(seen) < needed else seen
        sizes = f"K={self._config.shots} + Q={self._config.examples}"
        told = f"expected at least {needed} different examples of a task ({sizes})"
        if self._config.too_few == "error" and windows + 1 >= _TRIED and len(self._seen[name][1]) < needed:
            raise DataError(
                f"task '{name}': {told}, got {len(self._seen[name][1])} again and again, of those that this host reads "
                "(too_few='skip' leaves such tasks out)"
            )
        if self._left_out >= 0:
            self._left_out += 1
            if self._left_out == _PATIENCE:
                raise DataError(f"{told}, got none in {_PATIENCE} times {needed} examples of {len(self._seen)} tasks")
        return np.bool_(False)

    def _episode(self, rows: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The arrays of one window."""
        first = {name: values[0] for name, values in rows.items()}
        examples = [Example(_ids(a), _ids(b)) for a, b in zip(rows["inputs"], rows["targets"], strict=True)]
        support, scored = examples[: self._config.shots], examples[self._config.shots :]
        info, _ = self._info(first)
        return list(episode_arrays(support, scored, self._config, self._vocabulary, info, _name(first)).values())

    def _info(self, row: dict[str, Any]) -> tuple[TaskInfo, str]:
        """What the task's first example said of it, and why the task cannot be used ('' if it can)."""
        name = _name(row)
        if name not in self._infos:
            # Rows of a window are padded to the longest. One of the two texts of a positive example may be empty.
            positives = {key: value for key, value in row.items() if key.startswith("positive_")}
            filled = [number for value in positives.values() for number in np.flatnonzero(value != b"")]
            row = row | {key: value[: max(filled, default=-1) + 1] for key, value in positives.items()}
            info = task_info(row, self._vocabulary, f"task '{name}'")
            self._infos[name] = usable_info(info, self._config, name)
        return self._infos[name]


def _name(row: Mapping[str, Any]) -> str:
    return row["task"].decode("utf-8")


def _ids(tokens: np.ndarray) -> np.ndarray:
    """Tokens without a window's padding and without the end of sequence."""
    tokens = np.trim_zeros(tokens, "b")
    return (tokens[:-1] if len(tokens) and tokens[-1] == EOS_ID else tokens).astype(np.int32)
