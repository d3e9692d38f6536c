"""A user's files: what is read, and every problem named by file and line."""

from __future__ import annotations

import io
import json
import pathlib

import pytest

from hyperflax.data.jsonl import jsonl_source, read_inputs, read_lines
from hyperflax.data.vocabularies import Bytes, SentencePiece
from hyperflax.errors import DataError


def write(path: pathlib.Path, *rows: object) -> pathlib.Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_examples_and_inputs(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "a.jsonl", {"input": "é", "target": "E"}, "", {"input": "b", "target": "", "note": 1})
    assert read_lines(path) == [(f"{path}:1", "é", "E"), (f"{path}:3", "b", "")]
    assert read_inputs(path) == [(f"{path}:1", "é"), (f"{path}:3", "b")]


def test_a_mark_before_the_first_line_is_none_of_it(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        b'\xef\xbb\xbf{"input": "a", "target": "b"}\r\n{"input": "c", "target": "d"}\r\n'
    )
    assert [line[1:] for line in read_lines(tmp_path / "a.jsonl")] == [("a", "b"), ("c", "d")]


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"input": "a"}\n{"input": 3}\n')))
    with pytest.raises(DataError, match=r"^standard input:2: expected a string 'input', got int 3"):
        read_inputs("-")


def test_a_file_of_several_tasks(tmp_path: pathlib.Path) -> None:
    path = write(
        tmp_path / "mine.jsonl",
        {"task": "up", "input": "a", "target": "A", "definition": "capitals"},
        {"input": "x", "target": "y", "references": ["z"], "options": ["y", "z"]},
        {"task": "up", "input": "b", "target": "B"},
    )
    vocabulary = Bytes()
    source = jsonl_source(path, vocabulary=vocabulary)
    assert source.task_names == ("up", "mine")
    assert source.sizes.tolist() == [2, 1]
    assert vocabulary.decode(source.info(0).definition) == "capitals"
    example = source.example(1, 0)
    assert example.references == ("y", "z")
    assert [vocabulary.decode(option) for option in example.options] == ["y", "z"]
    assert vocabulary.decode(source.example(0, 1).targets) == "B"


def test_references_are_what_a_model_can_write(tmp_path: pathlib.Path, data_dir: pathlib.Path) -> None:
    """T5's vocabulary has no line ends, no double spaces, no fractions and no braces."""
    vocabulary = SentencePiece(data_dir / "vocab" / "spiece.model")
    path = write(tmp_path / "a.jsonl", {"input": "x", "target": "½ cup\nof  tea", "references": ["a {b}", "a  cup"]})
    example = jsonl_source(path, vocabulary=vocabulary).example(0, 0)
    assert example.references == (vocabulary.decode(example.targets.tolist()), "a  ⁇ b ⁇ ", "a cup")
    path = write(tmp_path / "b.jsonl", {"input": "x", "target": "y", "references": ["z", "y"]})
    assert jsonl_source(path, vocabulary=vocabulary).example(0, 0).references == ("y", "z")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'input': 1}", r"bad\.jsonl:2: expected a JSON object, one a line, got \"\{'input'"),
        ("[1]", r"bad\.jsonl:2: expected a JSON object, got list"),
        ({"input": "a"}, r"bad\.jsonl:2: expected a string 'target', got the keys \['input'\]"),
        ({"input": "a", "target": ["b"]}, r"bad\.jsonl:2: expected a string 'target', got list \['b'\]"),
        ({"input": "a", "target": "b", "references": "c"}, r"bad\.jsonl:2: expected a list of strings 'references'"),
        ('{"input": "a\\ud800", "target": "b"}', r"bad\.jsonl:2: expected Unicode text in 'input', got '\\ud800'"),
        ('{"input": "a", "target": "\\udfff"}', r"bad\.jsonl:2: expected Unicode text in 'target', got '\\udfff'"),
        ('{"input": "a", "target": "b", "options": ["\\ud800x"]}', r"bad\.jsonl:2: expected Unicode text in 'options'"),
        ('{"input": ' + "[" * 100_000, r"bad\.jsonl:2: expected a JSON object, one a line, got '\{\"input\": \[\["),
    ],
)
def test_broken_lines_are_named(tmp_path: pathlib.Path, line: object, message: str) -> None:
    path = write(tmp_path / "bad.jsonl", {"input": "a", "target": "b"}, line)
    with pytest.raises(DataError, match=message):
        jsonl_source(path, vocabulary=Bytes())


def test_whole_surrogate_pairs_are_text(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"input": "\\ud83d\\ude00"}')
    assert read_inputs(path) == [(f"{path}:1", "\U0001f600")]


def test_bad_files_are_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl: expected a file of JSON lines, cannot read it \(No such file"):
        read_lines(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match=r"empty\.jsonl: expected at least one example, got none"):
        read_lines(write(tmp_path / "empty.jsonl", ""))
    with pytest.raises(DataError, match=r"empty\.jsonl: expected at least one example, got none"):
        jsonl_source(tmp_path / "empty.jsonl", vocabulary=Bytes())
    for before in (0, 1, 2000):
        (tmp_path / "latin.jsonl").write_bytes((before * '{"input": "a"}\n' + '{"input": "é"}\n').encode("latin-1"))
        with pytest.raises(DataError, match=rf"latin\.jsonl:{before + 1}: expected UTF-8 text"):
            read_inputs(tmp_path / "latin.jsonl")


def test_a_definition_on_every_line_is_tokenised_once(tmp_path: pathlib.Path) -> None:
    encoded = []

    class Counted(Bytes):
        def encode(self, text: str) -> list[int]:
            encoded.append(text)
            return super().encode(text)

    rows = [{"task": f"t{i % 2}", "input": f"{i}", "target": "x", "definition": f"do {i % 2}"} for i in range(6)]
    source = jsonl_source(write(tmp_path / "mine.jsonl", *rows), vocabulary=Counted())
    assert [Bytes().decode(source.info(task).definition) for task in (0, 1)] == ["do 0", "do 1"]
    assert sorted(text for text in encoded if text.startswith("do")) == ["do 0", "do 1"]


def test_a_definition_stands_on_the_first_line_of_its_task(tmp_path: pathlib.Path) -> None:
    told, plain = ({"task": "up", "input": "a", "target": "A", **more} for more in ({"definition": "capitals"}, {}))
    path = write(tmp_path / "mine.jsonl", told, plain, told)
    assert Bytes().decode(jsonl_source(path, vocabulary=Bytes()).info(0).definition) == "capitals"
    for lines, first in (((plain, told), "''"), (({**told, "definition": "large"}, told), "'large'")):
        path = write(tmp_path / "mine.jsonl", *lines)
        with pytest.raises(
            DataError, match=rf"mine\.jsonl:2: .* task 'up' as on its first line, {first}, got 'capitals'"
        ):
            jsonl_source(path, vocabulary=Bytes())
