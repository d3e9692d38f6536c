"""Natural Instructions: official layout and rules, on a small checkout and on the reference data."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from hyperflax.data import registry
from hyperflax.data.episodes import EpisodeConfig, Episodes, evaluation_episode
from hyperflax.data.examples import ExampleStream
from hyperflax.data.vocabularies import Bytes, SentencePiece
from hyperflax.errors import ConfigError, DataError
from hyperflax_tasks import natural_instructions as ni


def task(instances: int, **changes: Any) -> dict[str, Any]:
    return {
        "Definition": ["Write it in capitals. "],
        "Categories": ["Program Execution", "Other"],
        "Positive Examples": [{"input": "p ", "output": "P", "explanation": "e"}, {"input": "q", "output": ["Q"]}],
        "Negative Examples": [],
        "Instances": [
            {"id": f"t-{i}", "input": f" in {i}", "output": [f"OUT {i}", f"Out {i}"]} for i in range(instances)
        ],
        **changes,
    }


def checkout(root: pathlib.Path, train: dict[str, Any], test: dict[str, Any]) -> pathlib.Path:
    (root / "tasks").mkdir(parents=True)
    (root / "splits" / "default").mkdir(parents=True)
    for split, tasks in (("train", train), ("test", test)):
        (root / f"splits/default/{split}_tasks.txt").write_text("".join(f"{name}\n" for name in tasks))
        for name, content in tasks.items():
            (root / "tasks" / f"{name}.json").write_text(json.dumps(content, indent=1))
    return root


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    return checkout(tmp_path / "ni", {"task1_a": task(150), "task2_b": task(3)}, {"task3_c": task(150)})


def test_a_task_file_is_read(root: pathlib.Path) -> None:
    found = ni.read_task_file(root / "tasks" / "task2_b.json")
    assert found == ni.TaskFile(
        name="task2_b",
        definition="Write it in capitals.",
        category="Program Execution",
        sources=(),
        positives=(("p", "P"), ("q", "Q")),
        instances=tuple((f"in {i}", (f"OUT {i}", f"Out {i}")) for i in range(3)),
    )


def test_only_the_first_hundred_instances_of_test_tasks_count(root: pathlib.Path) -> None:
    assert [len(t.instances) for t in ni.read_split(root, "train")] == [150, 3]
    assert [len(t.instances) for t in ni.read_split(root, "train", max_instances=20)] == [20, 3]
    assert [len(t.instances) for t in ni.read_split(root, "test")] == [100]
    assert [len(t.instances) for t in ni.read_split(root, "test", max_instances=500)] == [100]
    assert next(ni.read_split(root, "test")).instances[99] == ("in 99", ("OUT 99", "Out 99"))


def test_the_source_holds_targets_references_definition_and_positives(root: pathlib.Path) -> None:
    vocabulary = Bytes()
    source = ni.natural_instructions_source(root, "train", vocabulary)
    assert source.task_names == ("task1_a", "task2_b")
    example, info = source.example(1, 2), source.info(1)
    assert (vocabulary.decode(example.inputs), vocabulary.decode(example.targets)) == ("in 2", "OUT 2")
    assert example.references == ("OUT 2", "Out 2")
    assert vocabulary.decode(info.definition) == "Write it in capitals."
    assert [vocabulary.decode(p.targets) for p in info.positives] == ["P", "Q"]
    assert info.category == "Program Execution"


def test_registration_needs_a_root(root: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ni.ROOT_VARIABLE, raising=False)
    monkeypatch.delenv(ni.VOCABULARY_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match="set HYPERFLAX_NATURAL_INSTRUCTIONS to a checkout"):
        ni.register()
    with pytest.raises(ConfigError, match="expected a checkout at /nowhere, there is no such folder"):
        ni.register("/nowhere")
    monkeypatch.setenv(ni.ROOT_VARIABLE, str(root))
    ni.register()
    try:
        assert registry.load_source("natural_instructions_train", vocabulary=Bytes()).sizes.tolist() == [150, 3]
        assert registry.load_source("natural_instructions_test", "test", vocabulary=Bytes()).sizes.tolist() == [100]
        with pytest.raises(ConfigError, match=r"set HYPERFLAX_VOCABULARY to T5's spiece.model"):
            registry.load_source("natural_instructions_train")
        loaded = registry.sources()["natural_instructions_train"].splits["train"](Bytes())
        assert isinstance(loaded, ExampleStream)  # a cache of it holds nothing in memory
        sizes = registry.sources()["natural_instructions_train"].sizes
        assert sizes is not None
        monkeypatch.setattr(ni, "read_task_file", lambda path: pytest.fail("a listing reads no task"))
        assert sizes() == {"train": (2, None)}
    finally:
        for split in ni.SPLITS:
            registry.unregister_source(f"natural_instructions_{split}")


def test_the_suite_reads_every_test_task_once_and_counts_its_instances(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = checkout(tmp_path / "ni", {"task1_a": task(1)}, {"task2_b": task(150), "task3_c": task(2)})
    read, files = ni.read_task_file, []
    monkeypatch.setattr(ni, "read_task_file", lambda path: files.append(path.name) or read(path))
    suite = ni.suite(root)
    source = suite.sources["test"](Bytes())
    assert files == ["task2_b.json", "task3_c.json"]
    assert suite.missing == (
        "splits/default/test_tasks.txt lists 2 of 119 test tasks",
        "task3_c: 2 of 100 instances",
    )
    assert (suite.shots, suite.inputs_length, suite.targets_length) == (2, 1024, 128)
    expected = ni.natural_instructions_source(root, "test", Bytes())
    assert source.task_names == expected.task_names
    for index, size in enumerate((100, 2)):
        np.testing.assert_equal(source.info(index), expected.info(index))
        for number in range(size):
            np.testing.assert_equal(source.example(index, number), expected.example(index, number))


def test_a_task_that_is_too_small_or_an_example_that_is_too_long_is_named(root: pathlib.Path) -> None:
    source = ni.natural_instructions_source(root, "train", Bytes())
    with pytest.raises(DataError, match=r"task 'task2_b': expected at least 8 examples \(K=4 \+ Q=4\), got 3"):
        Episodes(source, EpisodeConfig(shots=4, examples=4))
    with pytest.raises(DataError, match=r"task 'task1_a', example 0: does not fit, it takes .*5 of inputs_length=4"):
        Episodes(source, EpisodeConfig(shots=1, examples=1, inputs_length=4))


def test_broken_files_are_named_with_their_line(root: pathlib.Path) -> None:
    path = root / "tasks" / "task2_b.json"
    whole = path.read_text()
    path.write_text(whole.replace('"Instances": [', '"Instances": [,', 1))
    line = 1 + whole[: whole.index('"Instances"')].count("\n")
    with pytest.raises(DataError, match=rf"task2_b\.json:{line}: expected JSON, "):
        ni.read_task_file(path)
    path.write_text(json.dumps(task(3, Instances=[]), indent=1))
    with pytest.raises(DataError, match=r"task2_b\.json: expected at least one instance, got none"):
        ni.read_task_file(path)
    content = task(3)
    content["Instances"][1]["output"] = []
    path.write_text(json.dumps(content, indent=1))
    line = 1 + path.read_text().split('"t-1"')[0].count("\n")
    with pytest.raises(
        DataError, match=rf"task2_b\.json:{line}: instance 1: expected an input and at least one output"
    ):
        ni.read_task_file(path)
    content["Instances"][1]["output"] = ["y", "\ud83d"]  # half of a surrogate pair
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"task2_b\.json: instance 1: expected Unicode text in 'output', got '.ud83d'"):
        ni.read_task_file(path)
    content = task(3)
    del content["Definition"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"task2_b\.json: expected the keys .* 'Definition' is missing"):
        ni.read_task_file(path)
    for key in ("Definition", "Categories"):
        path.write_text(json.dumps(task(3, **{key: [7]})))
        with pytest.raises(DataError, match=rf"task2_b\.json: expected a text or a list .* as '{key}', got \[7\]"):
            ni.read_task_file(path)
        path.write_text(json.dumps(task(3, **{key: "\ud83d"})))
        with pytest.raises(DataError, match=rf"task2_b\.json: expected Unicode text in '{key}'"):
            ni.read_task_file(path)
    path.write_text("[]")
    with pytest.raises(DataError, match=r"task2_b\.json:1: expected a JSON object, got list"):
        ni.read_task_file(path)


def test_missing_files_are_named(root: pathlib.Path) -> None:
    (root / "tasks" / "task2_b.json").unlink()
    with pytest.raises(DataError, match=r"train_tasks\.txt:2: expected the task file .*task2_b\.json, there is none"):
        ni.task_files(root, "train")
    listing = root / "splits/default/train_tasks.txt"
    listing.write_bytes(b"task1_\xff\n")
    with pytest.raises(DataError, match=r"train_tasks\.txt: expected the official list of train tasks.*utf-8"):
        ni.task_files(root, "train")
    listing.unlink()
    with pytest.raises(DataError, match=r"train_tasks\.txt: expected the official list of train tasks"):
        ni.task_files(root, "train")
    with pytest.raises(DataError, match="expected a split out of"):
        ni.task_files(root, "validation")


def test_a_task_that_is_listed_twice_is_named(root: pathlib.Path) -> None:
    """Its examples would be there twice, in the support and among those that are scored."""
    with open(root / "splits/default/train_tasks.txt", "a") as listing:
        listing.write("task1_a\n")
    with pytest.raises(DataError, match=r"train_tasks\.txt:3: expected each task once, got 'task1_a' again"):
        ni.natural_instructions_source(root, "train", Bytes())


def test_an_empty_output_is_an_answer(root: pathlib.Path) -> None:
    content = task(3)
    content["Instances"][0]["output"] = [""]  # "remove the vowels of aie"
    path = root / "tasks" / "task2_b.json"
    path.write_text(json.dumps(content))
    assert ni.read_task_file(path).instances[0] == ("in 0", ("",))


def test_the_reference_data(materialised: pathlib.Path) -> None:
    """Counts as its README states them, and one evaluation episode by the official rules."""
    root = materialised / "natural-instructions"
    t5 = SentencePiece(materialised / "vocab" / "spiece.model")
    sizes = [len(t.instances) for t in ni.read_split(root, "train")]
    assert (len(sizes), sum(sizes), max(sizes)) == (553, 104_348, 200)
    source = ni.natural_instructions_source(root, "test", t5)
    assert len(source.task_names) == 54
    assert source.sizes.max() == 100
    config = EpisodeConfig(
        shots=0,
        examples=100,
        support_length=1024,
        inputs_length=1024,
        targets_length=128,
        support_layout="joint",
        definition="support",
        positives="support",
        too_long="truncate",
    )
    name = "task1344_glue_entailment_classification"
    episode = evaluation_episode(source, source.task_names.index(name), config, seed=0, first=True)
    assert episode.scored == tuple(range(100))
    support = episode.arrays["support_tokens"][0].tolist()
    file = ni.read_task_file(root / "tasks" / f"{name}.json")
    expected = t5.encode(file.definition)
    for text, answer in file.positives[:2]:
        expected += [32_099, *t5.encode(text), 32_098, *t5.encode(answer)]
    assert support[: len(expected) + 1] == [*expected, 1]
    assert not any(support[len(expected) + 1 :])
    assert episode.references[7] == file.instances[7][1]
