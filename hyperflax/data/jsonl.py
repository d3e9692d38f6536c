"""A user's own examples: one JSON object a line, every problem named by file and line.

```
{"input": "ann lee", "target": "A. Lee"}
{"task": "initials", "input": "bo ray", "target": "B. Ray", "definition": "...", "references": ["B. Ray", "B Ray"]}
```

`input` and `target` are required in examples, `input` alone in inputs for prediction. `task` (several tasks in one
file), `definition` (on the task's first line, the others may repeat it), `references` (further accepted answers) and
`options` (answer choices) are optional; other keys are left alone.

>>> import io
>>> list(read_rows(io.BytesIO(b'{"input": "a", "target": "b"}'), name="mine.jsonl"))
[(1, {'input': 'a', 'target': 'b'})]
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from hyperflax.data.examples import Example, ExampleStream, InMemorySource, StreamedExample, TaskInfo, tokenise
from hyperflax.data.vocabularies import Vocabulary
from hyperflax.errors import DataError


class Line(NamedTuple):
    """One example and where it stands, `file:line`."""

    at: str
    input: str
    target: str


class Input(NamedTuple):
    """One input and where it stands, `file:line`."""

    at: str
    input: str


TextPair = tuple[str, str] | Mapping[str, str] | Line


def read_rows(lines: Iterable[bytes], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number from 1, object) of every line that is not blank.

    Raises:
      DataError: a line that is no JSON object, or no UTF-8, named `file:line`.
    """
    number = 0
    try:
        for number, raw in enumerate(lines, start=1):  # bytes: text would be decoded ahead, many lines at once
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")  # Windows may put a mark before the first
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # brackets nested too deep
                raise DataError(
                    f"{name}:{number}: expected a JSON object, one a line, got {line.strip()[:60]!r} ({error})"
                ) from error
            if not isinstance(row, dict):
                raise DataError(f"{name}:{number}: expected a JSON object, got {type(row).__name__}")
            yield number, row
    except UnicodeDecodeError as error:
        raise DataError(f"{name}:{number}: expected UTF-8 text ({error})") from error


def read_lines(path: str | os.PathLike[str]) -> list[Line]:
    """The examples of a file with their places, `-` for standard input.

    Raises:
      DataError: no such file, no line, or a line without the strings `input` and `target`.
    """
    rows = [Line(at, _text(row, "input", at), _text(row, "target", at)) for at, row in _rows_of(path)]
    if not rows:
        raise DataError(f"{path}: expected at least one example, got none")
    return rows


def read_inputs(path: pathlib.Path | str) -> list[Input]:
    """The inputs of a file with their places, `-` for standard input; other keys are left alone.

    Raises:
      DataError: no such file, no line, or a line without the string `input`.
    """
    rows = [Input(at, _text(row, "input", at)) for at, row in _rows_of(path)]
    if not rows:
        raise DataError(f"{path}: expected at least one input, got none")
    return rows


def as_lines(examples: Iterable[TextPair]) -> list[Line]:
    """Examples in memory, (input, target) pairs and mappings, as those of a file; lines stay as they are.

    Raises:
      DataError: one that is no pair of strings, named `example N`, counted from 0.

    >>> as_lines([("a", "A"), {"input": "b", "target": "B"}])[1]
    Line(at='example 1', input='b', target='B')
    """
    return [one if isinstance(one, Line) else _as_line(one, f"example {number}") for number, one in enumerate(examples)]


def jsonl_stream(*paths: pathlib.Path | str, vocabulary: Vocabulary) -> ExampleStream:
    """The examples of one or several files, line by line; one without `task` belongs to the task named as its file
    (without suffix).

    Raises:
      DataError: when it is read: an absent file, a broken line, or no line at all; file and line are named.
    """
    return ExampleStream(vocabulary, _examples(paths, vocabulary))


def _examples(paths: Sequence[pathlib.Path | str], vocabulary: Vocabulary) -> Iterator[StreamedExample]:
    known: dict[str, tuple[str, TaskInfo]] = {}  # a definition that stands on every line is tokenised once
    for path in paths:
        for at, row in _rows_of(path):
            task = _text(row, "task", at) if "task" in row else pathlib.Path(path).stem
            target = _text(row, "target", at)
            accepted = (target, *further) if (further := _texts(row, "references", at)) else ()
            example = Example(
                tokenise(_text(row, "input", at), vocabulary),
                tokenise(target, vocabulary),
                tuple(tokenise(option, vocabulary) for option in _texts(row, "options", at)),
                # As the vocabulary writes them: a model's answer can be nothing else.
                tuple(dict.fromkeys(vocabulary.decode(vocabulary.encode(text)) for text in accepted)),
            )
            definition = _text(row, "definition", at) if "definition" in row else ""
            if task not in known:
                known[task] = definition, TaskInfo(definition=tokenise(definition, vocabulary))
            first, info = known[task]
            if definition not in ("", first):
                raise DataError(
                    f"{at}: expected the 'definition' of task '{task}' as on its first line, {first!r:.60}, got "
                    f"{definition!r:.60}"
                )
            yield StreamedExample(task, example, info)
    if not known:
        raise DataError(f"{', '.join(map(str, paths))}: expected at least one example, got none")


def jsonl_source(*paths: pathlib.Path | str, vocabulary: Vocabulary) -> InMemorySource:
    """The examples of one or several files in memory; errors as `jsonl_stream`."""
    return jsonl_stream(*paths, vocabulary=vocabulary).in_memory()


def _rows_of(path: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (`file:line`, object)."""
    if str(path) == "-":
        for number, row in read_rows(sys.stdin.buffer, "standard input"):
            yield f"standard input:{number}", row
        return
    try:
        with pathlib.Path(path).open("rb") as file:
            for number, row in read_rows(file, str(path)):
                yield f"{path}:{number}", row
    except OSError as error:
        raise DataError(f"{path}: expected a file of JSON lines, cannot read it ({error.strerror})") from error


def _as_line(example: TextPair, at: str) -> Line:
    if isinstance(example, Mapping):
        if not {"input", "target"} <= set(example):
            raise DataError(f"{at}: expected keys 'input' and 'target', got {sorted(example)}")
        example = (example["input"], example["target"])
    # A string of two characters is a sequence of two strings, too.
    pair = () if isinstance(example, str) or not isinstance(example, Sequence) else tuple(example)
    if len(pair) != 2 or not all(isinstance(text, str) for text in pair):
        raise DataError(f"{at}: expected an (input, target) pair of strings, got {example!r:.80}")
    return Line(at, encodable(pair[0], "input", at), encodable(pair[1], "target", at))


def _text(row: dict[str, Any], key: str, at: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        got = f"{type(value).__name__} {value!r:.40}" if key in row else f"the keys {sorted(row)[:8]}"
        raise DataError(f"{at}: expected a string {key!r}, got {got}")
    return encodable(value, key, at)


def _texts(row: dict[str, Any], key: str, at: str) -> tuple[str, ...]:
    value = row.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise DataError(f"{at}: expected a list of strings {key!r}, got {value!r:.60}")
    return tuple(encodable(item, key, at) for item in value)


def encodable(text: str, key: str, at: str) -> str:
    """Returns the text. Raises DataError for half a surrogate pair, which JSON can write and UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{at}: expected Unicode text in {key!r}, got {text[error.start]!a}") from error
    return text
