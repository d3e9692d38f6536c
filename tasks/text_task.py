"""A seqio Task over an iterator of texts: what `hyperflax_tasks.seqio_tasks` makes its Tasks with.

With `shuffle=True` their examples come in one random order over all tasks, which the seed decides: a shuffle buffer
alone would see the few tasks that happen to be next to each other in the files. They are written to a temporary file
for that (in `TMPDIR`), definitions and positives with every example. Hosts that share a Task want one seed.

>>> rows = [{"inputs": "ann lee", "targets": "A. L."}]
>>> add_text_task("initials", "train", lambda: iter(rows), lambda: 1, Bytes())    # doctest: +SKIP
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hyperflax.data.examples import tokenise
from hyperflax.data.seqio_source import import_seqio
from hyperflax.data.vocabularies import Bytes, SentencePiece, Vocabulary
from hyperflax.errors import ConfigError


def seqio_vocabulary(vocabulary: Vocabulary) -> Any:
    """The seqio vocabulary with the same ids.

    Raises:
      ConfigError: neither `SentencePiece` nor `Bytes`.
    """
    seqio = import_seqio()
    if isinstance(vocabulary, SentencePiece):
        return seqio.SentencePieceVocabulary(str(vocabulary.file), extra_ids=vocabulary.extra_ids)
    if isinstance(vocabulary, Bytes):
        return seqio.ByteVocabulary(extra_ids=vocabulary.extra_ids)
    raise ConfigError(f"expected a SentencePiece or Bytes vocabulary, got {vocabulary!r}")


def add_text_task(
    name: str,
    split: str,
    rows: Callable[[], Iterator[Mapping[str, Any]]],
    count: Callable[[], int] | None,
    vocabulary: Vocabulary,
    text_features: Sequence[str] = (),
    list_features: Sequence[str] = (),
    handed_on: Sequence[str] = (),
) -> None:
    """Adds a seqio Task over an iterator of texts; `inputs` and `targets` end with end of sequence, as T5X expects.

    The texts are tokenised here, not by TensorFlow's ops: those bring an older sentencepiece, which breaks ties another
    way ("###" is `#`, `##` here and `##`, `#` there), and a run must see the same ids with and without seqio. The texts
    stay in the features as `inputs_pretokenized` and `targets_pretokenized`.

    Args:
      name: of the Task; one that is registered already is replaced.
      split: its only split.
      rows: `() -> iterator` of dicts with the strings inputs and targets and the other features. To be shuffled, they
        are written to a temporary file first.
      count: `() -> examples`, called when seqio asks, as for a rate by size, and not to list the Task; None where it
        would take reading all of it.
      vocabulary: of inputs and targets.
      text_features: further string features. list_features: string lists.
      handed_on: those of `text_features` that a Mixture keeps. All Tasks of a Mixture must have the same ones.

    Raises:
      MissingExtraError: seqio is not installed.
    """
    seqio = import_seqio()
    import tensorflow as tf

    names = ("inputs", "targets")
    signature = {key: tf.TensorSpec((None,), tf.int32) for key in names}
    signature |= {key: tf.TensorSpec((), tf.string) for key in (*(f"{n}_pretokenized" for n in names), *text_features)}
    signature |= {key: tf.TensorSpec((None,), tf.string) for key in list_features}

    def tokenised(row: Mapping[str, Any]) -> dict[str, Any]:
        texts = {f"{key}_pretokenized": row[key] for key in names}
        return {**row, **texts, **{key: tokenise(row[key], vocabulary) for key in names}}

    def dataset_fn(split: str, shuffle_files: bool, seed: int | None = None) -> Any:
        del split  # there is one
        if shuffle_files:
            spooled, rng = spool(), np.random.default_rng(seed)
            order = lambda: spooled.shuffled(rng)  # noqa: E731
        else:
            order = rows
        return tf.data.Dataset.from_generator(lambda: map(tokenised, order()), output_signature=signature)

    class Counted(seqio.FunctionDataSource):
        def num_input_examples(self, split: str) -> int | None:
            return counted()

    counted, spool = functools.cache(count or (lambda: None)), functools.cache(lambda: _Spool(rows()))
    feature = seqio.Feature(vocabulary=seqio_vocabulary(vocabulary), add_eos=True)
    text = seqio.Feature(vocabulary=seqio.PassThroughVocabulary(0), add_eos=False, dtype=tf.string, rank=0)
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add(
        name,
        source=Counted(dataset_fn, splits=[split]),
        preprocessors=[seqio.CacheDatasetPlaceholder(), seqio.preprocessors.append_eos_after_trim],
        output_features={"inputs": feature, "targets": feature, **dict.fromkeys(handed_on, text)},
    )


class _Spool:
    """Rows in a temporary file, to be read in any order: the whole of P3 is more than a host's memory."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]):
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as this object
        self._ends = array("Q", [0])
        for row in rows:
            self._ends.append(self._ends[-1] + self._file.write(json.dumps(row).encode()))
        self._file.flush()

    def shuffled(self, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
        """All rows, each once, in an order that `rng` draws."""
        for number in rng.permutation(len(self._ends) - 1):
            start = self._ends[number]
            yield json.loads(os.pread(self._file.fileno(), self._ends[number + 1] - start, start))
