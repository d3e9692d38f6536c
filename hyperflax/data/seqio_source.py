"""Any registered seqio Task or Mixture as a stream of tokenised examples. The only file here that imports seqio.

A Task with `inputs` and `targets`, as T5 users have it, is one task. With a string feature `task` it carries as many
tasks as that feature has values; `definition` and `category` (strings), `positive_inputs`, `positive_targets` and
`data_sets` (string lists, of the task; the last as `TaskInfo` has them) and `references` and `options` (string lists,
of the example) are read where present. A Mixture is its Tasks with their rates; the tasks inside a Task with a `task`
feature are named `TASK/task` where it has several Tasks, which may share names.

>>> source = load_seqio("my_task", split="train")    # doctest: +SKIP
>>> source.task_names                                # doctest: +SKIP
('my_task',)
"""

from __future__ import annotations

import inspect
import logging
import math
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from hyperflax.data import registry
from hyperflax.data.examples import Example, ExampleStream, InMemorySource, StreamedExample, TaskInfo, tokenise
from hyperflax.data.rendering import SENTINELS
from hyperflax.data.vocabularies import EOS_ID, Bytes, SentencePiece, Vocabulary
from hyperflax.errors import DataError, MissingExtraError

_LOG = logging.getLogger("hyperflax.data")


def import_seqio() -> Any:
    """The seqio module, with TensorFlow kept off the accelerator.

    Raises:
      MissingExtraError: seqio or TensorFlow is not installed.
    """
    try:
        import seqio
        import tensorflow as tf
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "seqio", "seqio") from error
    try:
        tf.config.set_visible_devices([], "GPU")
    except RuntimeError as error:  # its devices are in use already; too late to change, harmless without a GPU
        if tf.config.get_visible_devices("GPU"):
            raise DataError(
                "TensorFlow holds the GPU already; import hyperflax.data.seqio_source before using it"
            ) from error
    return seqio


def read_seqio(
    name: str, split: str = "train", *, sequence_length: Mapping[str, int] | None = None, seed: int = 0
) -> ExampleStream:
    """Opens a registered Task or Mixture.

    Args:
      name: of the Task or Mixture.
      split: of it. Tasks of a Mixture that have none of that name are left out with a warning, as seqio does.
      sequence_length: passed to preprocessors that need one. seqio trims examples to it; without it nothing is trimmed.
      seed: for preprocessors that draw. seqio passes it to a function data source, too; a Task whose function takes
        none is read without a seed.

    Returns:
      its examples, with the vocabulary that TensorFlow is not needed for, and a Mixture's rates in the order of its
      Tasks. To iterate over it raises DataError if there are none.

    Raises:
      DataError: no such name, split or feature; a vocabulary that `convert_vocabulary` refuses; no cache of a Task
        that must be cached.
      MissingExtraError: seqio is not installed.
    """
    seqio = import_seqio()
    try:
        provider = seqio.get_mixture_or_task(name)
    except ValueError as error:
        raise registry.unknown(name) from error
    mixture = isinstance(provider, seqio.Mixture)
    tasks = list(provider.tasks) if mixture else [provider]
    if without := [task.name for task in tasks if split not in task.splits]:
        if len(without) == len(tasks):
            kind = "Mixture" if mixture else "Task"
            raise DataError(f"seqio {kind} '{name}': expected a split out of {sorted(provider.splits)}, got '{split}'")
        _LOG.warning("seqio Mixture '%s': left out, without a split '%s': %s", name, split, ", ".join(without))
        tasks = [task for task in tasks if split in task.splits]
    for task in tasks:
        for feature in ("inputs", "targets"):
            if feature not in task.output_features:
                found = sorted(task.output_features)
                raise DataError(f"seqio Task '{task.name}': expected the features inputs and targets, got {found}")
        if task.requires_caching and not task.cache_dir:
            raise DataError(
                f"seqio Task '{task.name}': expected its cache, which it requires, in one of "
                f"{seqio.utils.get_global_cache_dirs()}; seqio.add_global_cache_dirs names folders"
            )
    vocabulary = _vocabulary(tasks)
    rates = [_rate(provider, task) for task in tasks] if mixture else None

    def examples() -> Iterator[StreamedExample]:
        empty = True
        for group, task in enumerate(tasks):
            dataset = task.get_dataset(
                sequence_length=sequence_length,
                split=split,
                shuffle=False,
                use_cached=task.requires_caching,
                seed=seed if task.requires_caching or _takes_a_seed(task.source) else None,
                try_in_mem_cache=False,
            )
            prefix = f"{task.name}/" if len(tasks) > 1 else ""
            for example in _examples(dataset.as_numpy_iterator(), task, vocabulary, prefix, group):
                empty = False
                yield example
        if empty:
            raise DataError(f"'{name}', split '{split}': expected at least one example, seqio gives none")

    return ExampleStream(vocabulary, examples(), rates)


def _rate(mixture: Any, task: Any) -> float:
    try:
        return float(mixture.get_rate(task))
    except (TypeError, ValueError) as error:  # seqio's own rates by size multiply None where a source tells no size
        raise DataError(
            f"seqio Mixture '{mixture.name}': expected the rate of Task '{task.name}' to be a number ({error}); a rate "
            f"by size needs num_input_examples of the Task's source"
        ) from error


def load_seqio(name: str, split: str = "train", **options: Any) -> InMemorySource:
    """A registered Task or Mixture in memory; options and errors as `read_seqio`."""
    return read_seqio(name, split, **options).in_memory()


def list_seqio() -> list[tuple[str, str, str, int | None, int | None, str]]:
    """(name, split, kind, tasks, examples, description) of every registered Task and Mixture, without reading data."""
    seqio = import_seqio()
    rows: list[tuple[str, str, str, int | None, int | None, str]] = []
    for name in sorted(seqio.TaskRegistry.names()):
        task = seqio.TaskRegistry.get(name)
        for split in sorted(task.splits):
            rows.append((name, split, "seqio task", None, _num_examples(task, split), ""))
    for name in sorted(seqio.MixtureRegistry.names()):
        mixture = seqio.MixtureRegistry.get(name)
        for split in sorted(mixture.splits):
            counts = [_num_examples(task, split) for task in mixture.tasks if split in task.splits]
            total = None if None in counts else sum(filter(None, counts))
            rows.append((name, split, "seqio mixture", None, total, f"{len(mixture.tasks)} seqio Tasks"))
    return rows


def _num_examples(task: Any, split: str) -> int | None:
    """How many examples a seqio Task says that it has; None where it cannot tell, or might read to count.

    Numbers that a source was given and those of TFDS are free; what a class of somebody's own does, nobody knows.
    """
    if not task.source.num_input_examples.__module__.startswith("seqio."):
        return None
    try:
        count = task.num_input_examples(split)
    except Exception:  # of many classes: TFDS asks for data that need not be here yet
        return None
    return None if count is None or not math.isfinite(count) else int(count)  # of very many TFDS says infinity


def _takes_a_seed(source: Any) -> bool:
    """Whether seqio may be given a seed: it hands that to a data source's function, which may not expect one."""
    function = getattr(source, "_dataset_fn", None)
    return function is None or "seed" in inspect.signature(function).parameters


def _examples(
    rows: Iterable[Mapping[str, Any]], task: Any, vocabulary: Vocabulary, prefix: str, group: int
) -> Iterator[StreamedExample]:
    """Converts the rows of one seqio Task."""
    infos: dict[str, TaskInfo] = {}
    strip = {name: bool(task.output_features[name].add_eos) for name in ("inputs", "targets")}
    for index, row in enumerate(rows):
        inputs, targets = (_ids(row[name], strip[name], task.name, index, name) for name in ("inputs", "targets"))
        where = f"seqio Task '{task.name}', example {index}"
        inside = _text(row, "task", where) if "task" in row else ""
        name = prefix + inside if "task" in row else task.name
        if name not in infos:
            infos[name] = task_info(row, vocabulary, where)._replace(own_name=inside if prefix else "")
        options = tuple(tokenise(text, vocabulary) for text in _texts(row, "options", where))
        references = _references(row, targets, vocabulary, where)
        yield StreamedExample(name, Example(inputs, targets, options, references), infos[name], group)


def _references(row: Mapping[str, Any], targets: np.ndarray, vocabulary: Vocabulary, where: str) -> tuple[str, ...]:
    """The accepted answers of a row that lists some, the target among them."""
    listed = tuple(_texts(row, "references", where))
    if not listed:
        return ()
    told = "targets_pretokenized"  # what seqio keeps of a target that it has tokenised
    target = _text(row, told, where) if told in row else vocabulary.decode(targets.tolist())
    return listed if target in listed else (target, *listed)


def _ids(tokens: Any, strip: bool, task: str, index: int, feature: str) -> np.ndarray:
    """int32 tokens without the end of sequence that seqio put there."""
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or tokens.dtype.kind != "i":
        raise DataError(
            f"seqio Task '{task}', example {index}: expected '{feature}' to be a row of token ids, "
            f"got {tokens.dtype} {tokens.shape}"
        )
    if strip and len(tokens) and tokens[-1] == EOS_ID:
        tokens = tokens[:-1]
    return tokens.astype(np.int32)


def task_info(row: Mapping[str, Any], vocabulary: Vocabulary, where: str) -> TaskInfo:
    """What a row says of its task: definition, positives, category and data sets, where it has such features.

    Raises:
      DataError: as many positive inputs as targets were expected, or a string where a list was and the other way round;
        says `where` the row stands.
    """
    inputs, targets = (_texts(row, feature, where) for feature in ("positive_inputs", "positive_targets"))
    if len(inputs) != len(targets):
        raise DataError(
            f"{where}: expected as many positive_targets as positive_inputs, {len(inputs)}, got {len(targets)}"
        )
    return TaskInfo(
        definition=tokenise(_text(row, "definition", where), vocabulary),
        positives=tuple(Example.from_text(a, b, vocabulary) for a, b in zip(inputs, targets, strict=True)),
        category=_text(row, "category", where),
        data_sets=tuple(_texts(row, "data_sets", where)),
    )


def _text(row: Mapping[str, Any], feature: str, where: str) -> str:
    """The string of a feature, "" where there is none."""
    value = row.get(feature, b"")
    if np.ndim(value):
        raise DataError(f"{where}: expected '{feature}' to be a string, got an array of shape {np.shape(value)}")
    return _decoded(value)


def _texts(row: Mapping[str, Any], feature: str, where: str) -> list[str]:
    """The strings of a feature, [] where there is none."""
    values = row.get(feature, ())
    if np.ndim(values) != 1:
        raise DataError(f"{where}: expected '{feature}' to be a list of strings, got {values!r:.60}")
    return [_decoded(value) for value in np.asarray(values, object).tolist()]


def _decoded(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _vocabulary(tasks: list[Any]) -> Vocabulary:
    """The one vocabulary of all inputs and targets."""
    found = [task.output_features[feature].vocabulary for task in tasks for feature in ("inputs", "targets")]
    if any(other != found[0] for other in found):
        names = [task.name for task in tasks]
        raise DataError(f"seqio Tasks {names[:5]}: expected one vocabulary for inputs and targets, got several")
    return convert_vocabulary(found[0], f"seqio Task '{tasks[0].name}'")


def convert_vocabulary(vocabulary: Any, where: str = "vocabulary") -> Vocabulary:
    """Our vocabulary with the ids of a `seqio.SentencePieceVocabulary` or `seqio.ByteVocabulary`.

    Args:
      vocabulary: of seqio.
      where: whose it is, for errors.

    Raises:
      DataError: another class, too few extra ids, overridden normalisation, or sentinels in another order than T5's.
    """
    seqio = import_seqio()
    if not isinstance(vocabulary, seqio.SentencePieceVocabulary | seqio.ByteVocabulary):
        raise DataError(
            f"{where}: expected a SentencePieceVocabulary or ByteVocabulary, got {type(vocabulary).__name__}"
        )
    if vocabulary.extra_ids < SENTINELS:
        raise DataError(
            f"{where}: expected at least {SENTINELS} extra ids, with which demonstrations are marked, got "
            f"{vocabulary.extra_ids}; make its features with {type(vocabulary).__name__}(..., extra_ids=100)"
        )
    if isinstance(vocabulary, seqio.ByteVocabulary):
        return Bytes(extra_ids=vocabulary.extra_ids)
    file = vocabulary.sentencepiece_model_file
    if pathlib.Path(file).is_file():
        ours = SentencePiece(file, extra_ids=vocabulary.extra_ids)
    else:
        import tensorflow as tf

        with tempfile.TemporaryDirectory() as folder:  # a bucket's file: read once, kept in memory
            copy = pathlib.Path(folder) / pathlib.PurePosixPath(file).name
            copy.write_bytes(tf.io.gfile.GFile(file, "rb").read())
            ours = SentencePiece(copy, extra_ids=vocabulary.extra_ids)
    for probe in ("The house is wonderful.", "<extra_id_0> Ünïcode  ﬁ", "a\tb\n1,234"):
        if (expected := list(vocabulary.encode(probe))) != ours.encode(probe):
            raise DataError(
                f"{file}: expected T5's normalisation and order of sentinels; seqio encodes {probe!r} as {expected}, "
                f"the model alone as {ours.encode(probe)}"
            )
    return ours
