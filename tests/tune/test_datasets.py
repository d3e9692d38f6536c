"""Data sets for the tuner: every task's examples in three parts, within lengths, the same for the same seed."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from hyperflax.cli.main import main
from hyperflax.data.examples import Example, InMemorySource, TaskExamples, TaskInfo, tokenise
from hyperflax.data.vocabularies import Bytes
from hyperflax.errors import ConfigError, DataError
from hyperflax.tune.datasets import write_datasets
from hyperflax.tuner.datasets import SPLITS, read

COUNTS = {"train": 6, "validation": 2, "test": 2}


def source(*tasks: tuple[str, list[tuple[str, str]]]) -> InMemorySource:
    def examples(pairs):
        return [Example(tokenise(x, Bytes()), tokenise(y, Bytes())) for x, y in pairs]

    return InMemorySource([TaskExamples(name, examples(pairs)) for name, pairs in tasks], Bytes())


def pairs(count: int, length: int = 3) -> list[tuple[str, str]]:
    return [(chr(97 + number) * length, "y") for number in range(count)]


def texts(data) -> dict[str, set[tuple[str, str]]]:
    return {split: {(line.input, line.target) for line in getattr(data, split)} for split in SPLITS}


def test_parts_are_disjoint_and_hold_the_tasks_own_examples(tmp_path):
    made = source(("mail | upper", pairs(12)), ("too few", pairs(9)))
    (folder,) = write_datasets(made, tmp_path, corpus="letters", **COUNTS)
    data = read(folder)
    assert (data.corpus, data.category, data.task) == ("letters", "mail", "mail | upper")
    parts = texts(data)
    assert {split: len(found) for split, found in parts.items()} == COUNTS
    assert len(set.union(*parts.values())) == 10
    assert set.union(*parts.values()) <= set(pairs(12))


def test_what_the_source_says_of_a_task_goes_with_it(tmp_path):
    """Its category, which a name such as task001_quoref does not tell, and what its examples are made of."""
    info = TaskInfo(category="Question Answering", data_sets=("ni/quoref",))
    examples = [Example(tokenise(x, Bytes()), tokenise(y, Bytes())) for x, y in pairs(10)]
    made = InMemorySource([TaskExamples("task001_quoref", examples, info)], Bytes())
    (folder,) = write_datasets(made, tmp_path, corpus="ni", **COUNTS)
    assert (read(folder).category, read(folder).data_sets) == ("Question Answering", ("ni/quoref",))


def test_an_input_that_stands_twice_is_taken_once(tmp_path):
    made = source(("twice", pairs(9) + pairs(9)), ("once", pairs(10)))
    assert [read(folder).task for folder in write_datasets(made, tmp_path, corpus="c", **COUNTS)] == ["once"]


def test_longer_examples_are_left_out(tmp_path):
    made = source(("some", [*pairs(10), ("long one", "y"), ("abc", "long one")]), ("all", pairs(12, length=9)))
    (folder,) = write_datasets(made, tmp_path, corpus="c", longest=(4, 4), **COUNTS)
    assert read(folder).task == "some"
    assert max(len(text) for part in texts(read(folder)).values() for pair in part for text in pair) == 3
    with pytest.raises(DataError, match="expected a task with 10 different examples, found none"):
        write_datasets(made, tmp_path / "none", corpus="c", longest=(2, 4), **COUNTS)


@pytest.mark.parametrize("given", [{"train": 0}, {"test": 0}, {"validation": -1}, {"tasks": 0}])
def test_a_part_without_examples_is_written_by_nobody(given, tmp_path):
    ((name, number),), made = given.items(), source(("letters", pairs(12)))
    with pytest.raises(ConfigError, match=f"data sets: {name}: expected at least 1, got {number}"):
        write_datasets(made, tmp_path, corpus="c", **{**COUNTS, **given})
    assert not any(tmp_path.iterdir())


def test_a_seed_draws_tasks_and_examples_and_what_is_there_is_kept(tmp_path):
    made = source(*[(f"task {number}", pairs(14)) for number in range(6)])

    def written(name: str, seed: int, tasks: int) -> dict[str, dict]:
        folders = write_datasets(made, tmp_path / name, corpus="c", tasks=tasks, seed=seed, **COUNTS)
        return {folder.name: texts(read(folder)) for folder in folders}

    first = written("a", 0, 2)
    assert len(first) == 2
    assert first.items() <= written("b", 0, 4).items()
    assert written("c", 1, 4) != written("b", 0, 4)
    (tmp_path / "a" / next(iter(first)) / "test.jsonl").write_text('{"input": "q", "target": "mine"}\n')
    assert {("q", "mine")} in [parts["test"] for parts in written("a", 0, 2).values()]


def written(path: pathlib.Path, *pairs: tuple[str, str]) -> pathlib.Path:
    path.write_text("".join(json.dumps({"input": text, "target": target}) + "\n" for text, target in pairs))
    return path


def test_a_file_needs_ten_different_inputs(tmp_path):
    file = written(tmp_path / "few.jsonl", *pairs(9), pairs(1)[0])
    with pytest.raises(
        DataError, match=r"few.jsonl: expected at least 10 different inputs.* got 9; give more, or a folder"
    ):
        read(file)
    assert [len(getattr(read(written(file, *pairs(10))), split)) for split in SPLITS] == [6, 2, 2]


def test_an_input_that_stands_twice_in_a_file_is_in_one_part(tmp_path):
    file = written(tmp_path / "twice.jsonl", *pairs(20), *[(text, "other") for text, _ in pairs(20)])
    for seed in range(8):
        assert set.union(*texts(read(file, seed)).values()) == set(pairs(20))


def test_an_input_of_two_parts_is_refused_whatever_its_targets(tmp_path):
    for split, pair in (("train", ("a", "x")), ("validation", ("b", "x")), ("test", ("a", "y"))):
        written(tmp_path / f"{split}.jsonl", pair)
    with pytest.raises(DataError, match=r"test.jsonl:1: this input of 'test' also stands in 'train'"):
        read(tmp_path)


@pytest.mark.parametrize(("here", "given"), [(".", "letters/mine"), ("letters", "mine"), ("letters/mine", ".")])
def test_a_folder_is_named_alike_from_wherever_it_is_read(here, given, tmp_path, monkeypatch):
    folder = tmp_path / "letters" / "mine"
    folder.mkdir(parents=True)
    for split, pair in zip(SPLITS, pairs(3), strict=True):
        written(folder / f"{split}.jsonl", pair)
    monkeypatch.chdir(tmp_path / here)
    data = read(given)
    assert (data.name, data.corpus, data.task) == ("mine", "letters", "mine")


def test_the_command_cuts_at_what_the_model_reads(tmp_path, capsys):
    out = tmp_path / "short"
    arguments = ["tune", "datasets", "--model", "strings", "--mixture", "strings", "--split", "fine_tuning"]
    assert main([*arguments, "--tasks", "3", "--longest", "20", "999", "--out", str(out)]) == 0
    assert "3 data sets" in capsys.readouterr().out
    for folder in out.iterdir():
        lines = [json.loads(line) for split in SPLITS for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        lengths = np.array([[len(line["input"]), len(line["target"])] for line in lines])
        assert len(lines) == 64 + 32 + 32
        assert tuple(lengths.max(axis=0) < (20, 68)) == (True, True)
