"""Whether what a model was trained on holds what it is evaluated on: by tasks' names, data sets and examples.

A hypermodel's directory records its training tasks' names as hashes (`name_digests`) and their data sets (`record`), so
that both are compared whenever a suite is evaluated. Within a collection of tasks its own split says what may be
trained on, whatever tasks share a data set; a data set of another collection is as good as the task itself.

Examples are compared with training data that is at hand. An example is its normalised input and target (case and white
space do not count), compared by hash, so that training data of any size streams through. One hit is enough: a figure on
tasks that were trained on says nothing.

>>> from hyperflax.data.examples import InMemorySource
>>> from hyperflax.data.vocabularies import Bytes
>>> seen = InMemorySource.from_strings({"capitals": [("a b", "A B")]}, Bytes())
>>> tasks = [EvaluationTask("upper", ("A  b",), (("a b",),))]
>>> check_contamination("mine", seen, tasks)
Traceback (most recent call last):
hyperflax.errors.DataError: 'mine' was trained on and holds what is evaluated: 1 example of 'upper' (in 'capitals')

Training data is there as tokens, and what a vocabulary makes of a text need not be the text: evaluated examples are
taken through the training data's vocabulary first. Inputs with characters that it does not know are not compared, but
counted: it makes one and the same of all of them. So are inputs that hold what the model's vocabulary has made of such
characters.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hyperflax.data.examples import ExampleSource
from hyperflax.errors import DataError
from hyperflax.evaluation.runner import EvaluationTask

# In a model's provenance: hashes of its training tasks' names, and their data sets as `TaskInfo` has them.
TRAINING_TASKS, TRAINING_DATA_SETS = "training_tasks", "training_data_sets"
UNRECORDED = "unrecorded_batches"  # of them no tasks are known, or not by name
SOURCES = "sources"  # of a shared start: the hash of each data set that it was trained on, by name
RECORDED_TASKS = 4096  # most training tasks of a source whose names are recorded
_NAMED = 5  # offenders in the message
_AT_ONCE = 1024  # training examples in memory
_LOST = "\u2047"  # what sentencepiece writes for a token that stands for characters it does not know


def check_contamination(name: str, training: ExampleSource, tasks: Sequence[EvaluationTask]) -> int:
    """Compares training data with evaluated tasks; every accepted answer counts as a target.

    Args:
      name: of the training data, for the message.
      training: its examples, all of which are read.
      tasks: with their scored examples.

    Returns:
      how many of their inputs have, or had, characters that a vocabulary lacks, and are not compared.

    Raises:
      DataError: a task of the same name or an example of the same content; the message names them. Or no training
        example has an input: texts cannot be compared, and to pass them would say that they had been.
    """
    check_names(f"'{name}' was trained on and", task_digests(training), tasks)
    vocabulary, decode = training.vocabulary, training.vocabulary.decode
    evaluated: dict[bytes, str] = {}
    unknown: set[str] = set()
    for task in tasks:
        for source, answers in zip(task.inputs, task.references, strict=True):
            tokens = vocabulary.encode(source)
            if vocabulary.unk_id in tokens or _LOST in source:
                unknown.add(source)
            else:
                # An answer is a text, or is what the same vocabulary has made of one already.
                forms = [form for answer in answers for form in (answer, decode(vocabulary.encode(answer)))]
                seen = {_content(decode(tokens), form) for form in forms}
                evaluated.update(dict.fromkeys(seen, task.name))
    if not any(training.lengths(number)[:, 0].any() for number in range(len(training.task_names))):
        raise DataError(
            f"'{name}': expected examples of an input and a target to compare with, got texts without inputs"
        )
    hits: collections.Counter[tuple[str, str]] = collections.Counter()
    for number, trained in enumerate(training.task_names):
        indices = range(int(training.sizes[number]))
        for start in indices[::_AT_ONCE]:
            for example in training.examples(number, indices[start : start + _AT_ONCE]):
                content = _content(decode(example.inputs.tolist()), decode(example.targets.tolist()))
                if content in evaluated:
                    hits[evaluated[content], trained] += 1
    if hits:
        found = [
            f"{count} example{'s' * (count > 1)} of '{a}' (in '{b}')" for (a, b), count in hits.most_common(_NAMED)
        ]
        more = f" and of {len(hits) - _NAMED} further pairs of tasks" if len(hits) > _NAMED else ""
        raise DataError(f"'{name}' was trained on and holds what is evaluated: {', '.join(found)}{more}")
    return len(unknown)


def check_names(who: str, digests: Iterable[str], tasks: Sequence[EvaluationTask]) -> None:
    """Compares evaluated tasks with the names of training tasks.

    Raises:
      DataError: `who` holds a task of the same name; the message names them.
    """
    if same := recorded(digests, tasks):
        shown = ", ".join(f"'{name}'" for name in same[:_NAMED])
        more = f" and {len(same) - _NAMED} more" if len(same) > _NAMED else ""
        raise DataError(f"{who} holds the evaluated task{'s' * (len(same) > 1)} {shown}{more}")


def recorded(digests: Iterable[str], tasks: Sequence[EvaluationTask]) -> list[str]:
    """Names of evaluated tasks that are among the training tasks whose names have these digests."""
    trained = set(digests)
    return list(dict.fromkeys(t.name for t in tasks if trained & set(name_digests([t.name, t.own_name or t.name]))))


def trained_elsewhere(provenance: Mapping[str, Any], tasks: Sequence[EvaluationTask]) -> dict[str, str]:
    """Evaluated tasks of whose data sets another collection's were trained on: `{task: that data set}`.

    >>> seen = {"training_data_sets": ["p3/quartz", "metaicl/sick"]}
    >>> tasks = [EvaluationTask(name, (), (), data_sets=(f"metaicl/{name}",)) for name in ("quartz", "sick")]
    >>> trained_elsewhere(seen, tasks)
    {'quartz': 'p3/quartz'}
    """
    trained = collections.defaultdict(set)
    for name in provenance.get(TRAINING_DATA_SETS, ()):
        collection, _, data_set = name.partition("/")
        trained[data_set].add(collection)
    found = {}
    for task in tasks:
        for name in task.data_sets:
            collection, _, data_set = name.partition("/")
            if others := trained[data_set] - {collection}:
                found[task.name] = f"{min(others)}/{data_set}"
    return found


def record(
    sources: Iterable[ExampleSource], earlier: Iterable[Mapping[str, Any]] = (), unrecorded: Iterable[str] = ()
) -> dict[str, list[str]]:
    """What a model's provenance says of its training data, `{}` where nothing is known.

    Args:
      sources: that its batches are drawn from. Of more than `RECORDED_TASKS` tasks the data sets are kept, but not the
        names, as a generated family has tens of thousands, and that stands in the record.
      earlier: provenance of what it comes from: a second stage does not hide the tasks of the first.
      unrecorded: parts of its batches that tell no source, so that what is known is not taken for all.
    """
    found: dict[str, set[str]] = {TRAINING_TASKS: set(), TRAINING_DATA_SETS: set(), UNRECORDED: set(unrecorded)}
    for source in sources:
        size = len(source.task_names)
        found[TRAINING_DATA_SETS] |= {name for number in range(size) for name in source.info(number).data_sets}
        if size <= RECORDED_TASKS:
            found[TRAINING_TASKS] |= set(task_digests(source))
        else:
            found[UNRECORDED].add(f"{type(source).__name__} of {size} tasks")
    for provenance in earlier:
        for key, names in found.items():
            names |= set(provenance.get(key, ()))
    return {key: sorted(names) for key, names in found.items() if names}


def inherited(provenance: Mapping[str, Any], unrecorded: Iterable[str] = ()) -> dict[str, Any]:
    """What the provenance of an adapter keeps of its start's: all that says on what it was trained.

    Args:
      provenance: the start's, {} of one that has none.
      unrecorded: classes of the batches that it went on with, where those tell no source; see `record`.

    >>> inherited({"training_tasks": ["0ab1"], "sources": {"dates": "sha256:9f"}, "results": []}, ["PairBatches"])
    {'training_tasks': ['0ab1'], 'unrecorded_batches': ['PairBatches'], 'sources': {'dates': 'sha256:9f'}}
    """
    kept = {SOURCES: provenance[SOURCES]} if SOURCES in provenance else {}
    return {**record((), [provenance], unrecorded), **kept}


def not_recorded(trained_on: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Of whose training, by provenance, the tasks are not known, or not all of them."""
    return [who for who, seen in trained_on.items() if TRAINING_TASKS not in seen or UNRECORDED in seen]


def task_digests(source: ExampleSource) -> list[str]:
    """Hashes of the names of a source's tasks; of one inside a seqio Mixture (`TASK/task`) of its own name, too."""
    own = {source.info(number).own_name for number in range(len(source.task_names))} - {""}
    return name_digests([*source.task_names, *own])


def name_digests(names: Iterable[str]) -> list[str]:
    """Hashes of names, 16 hexadecimal digits each, sorted."""
    return sorted(hashlib.sha256(name.encode()).hexdigest()[:16] for name in set(names))


def _content(source: str, target: str) -> bytes:
    """A hash of the example; the separator stands in neither text, since white space is collapsed."""
    text = "\n".join(" ".join(part.lower().split()) for part in (source, target))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
