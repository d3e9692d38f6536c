"""MetaICL: official layout and rules, on a few lines written by hand and on the reference data."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import pytest

from hyperflax.data import registry
from hyperflax.data.episode_config import EpisodeConfig
from hyperflax.data.examples import ExampleStream, InMemorySource, TaskExamples
from hyperflax.data.vocabularies import Bytes
from hyperflax.errors import ConfigError, DataError
from hyperflax.evaluate_suite import evaluate_suite
from hyperflax.evaluation.contamination import check_contamination
from hyperflax.evaluation.held_out import HeldOut
from hyperflax.evaluation.markdown import coverage
from hyperflax.hypermodel import Hypermodel
from hyperflax_tasks import metaicl, seqio_tasks
from tests.evaluation.micro import hypermodel

SETTING = "non_paraphrase_to_paraphrase"


def row(task: str, i: int, options: list[str]) -> dict[str, Any]:
    return {"task": task, "input": f" {task} {i}", "output": options[i % len(options)], "options": options}


def write(folder: pathlib.Path, part: str, *rows: dict[str, Any]) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{folder.name}_{part}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    """Two test tasks of which one is absent, two train tasks; the test task `same` classifies."""
    root = tmp_path / "metaicl"
    lists = {"train": ["learn", "much"], "test": ["same", "gone", "pick"]}
    (root / "config").mkdir(parents=True)
    (root / "config" / f"{SETTING}.json").write_text(json.dumps(lists))
    for part, count in (("train", 2), ("dev", 1), ("test", 3)):
        write(root / "learn", f"16_100_{part}", *(row("learn", i, ["a", "b"]) for i in range(count)))
        for seed in metaicl.SEEDS:
            write(root / "same", f"16_{seed}_{part}", *(row(f"same{seed}", i, ["yes", "no"]) for i in range(count)))
            write(root / "pick", f"16_{seed}_{part}", *(row("pick", i, [f"{i}x", f"{i}y"]) for i in range(count)))
    write(root / "much", "16384_100_train", *({"input": f"m{i}", "output": "free"} for i in range(7)))
    return root


def test_a_setting_lists_what_is_there_and_what_is_not(root: pathlib.Path) -> None:
    test = metaicl.read_setting(root, SETTING, "test")
    assert ([path.name for path in test.present], test.absent) == (["same", "pick"], ("gone",))
    data = root / "data"  # as the official repository has it
    data.mkdir()
    (root / "pick").rename(data / "pick")
    assert metaicl.read_setting(root, SETTING, "test") == ((data / "pick",), ("same", "gone"))


def test_a_test_split_holds_the_seeds_support_and_options(root: pathlib.Path) -> None:
    vocabulary = Bytes()
    source = metaicl.metaicl_source(root, SETTING, "test_21", vocabulary)
    assert (source.task_names, source.sizes.tolist()) == (("same", "pick"), [3, 3])
    example, info = source.example(0, 1), source.info(0)
    assert (vocabulary.decode(example.inputs), vocabulary.decode(example.targets)) == ("same21 1", "no")
    assert [vocabulary.decode(option) for option in example.options] == ["yes", "no"]
    assert [vocabulary.decode(positive.inputs) for positive in info.positives] == ["same21 0", "same21 1"]
    assert [source.info(task).category for task in (0, 1)] == ["classification", "multi-choice"]


def test_a_task_of_both_sides_is_not_trained_on(root: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    """As `sick` of the official list of non_nli_to_nli: the suite would be refused to what was trained on it."""
    (root / "config" / f"{SETTING}.json").write_text(json.dumps({"train": ["learn", "same"], "test": ["same"]}))
    assert metaicl.metaicl_source(root, SETTING, "train", Bytes()).task_names == ("learn",)
    assert "same is also a test task and not trained on" in caplog.text
    assert metaicl.metaicl_source(root, SETTING, "test_13", Bytes()).task_names == ("same",)


def test_a_task_that_is_listed_twice_is_named(root: pathlib.Path) -> None:
    """Its examples would be there twice, and count twice."""
    (root / "config" / f"{SETTING}.json").write_text(json.dumps({"train": ["much"], "test": ["same", "pick", "same"]}))
    with pytest.raises(DataError, match=rf"{SETTING}\.json: expected each task of 'test' once, got 'same' again"):
        metaicl.metaicl_source(root, SETTING, "test_21", Bytes())


def test_the_official_configuration_says_what_kind_a_task_is(root: pathlib.Path) -> None:
    """wiqa's options are always the same, and it is multi-choice."""
    (root / "config" / "tasks").mkdir()
    config = root / "config" / "tasks" / "same.json"
    config.write_text(json.dumps({"task_type": "multi-choice", "options": ["yes", "no"]}))
    source = metaicl.metaicl_source(root, SETTING, "test_21", Bytes())
    assert [source.info(task).category for task in (0, 1)] == ["multi-choice", "multi-choice"]
    config.write_text(json.dumps({"task_type": "free-form"}))
    with pytest.raises(DataError, match=r"same\.json: task_type: expected 'classification' or 'multi-choice'"):
        metaicl.metaicl_source(root, SETTING, "test_21", Bytes())


def test_training_takes_the_large_file_or_all_of_one_seed(root: pathlib.Path) -> None:
    source = metaicl.metaicl_source(root, SETTING, "train", Bytes())
    assert (source.task_names, source.sizes.tolist()) == (("learn", "much"), [6, 7])
    assert source.example(0, 0).options == ()


def test_registration_needs_a_root(root: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(metaicl.ROOT_VARIABLE, raising=False)
    with pytest.raises(
        ConfigError, match="set HYPERFLAX_METAICL to a folder with MetaICL's tasks and config/, got None"
    ):
        metaicl.register()
    monkeypatch.setenv(metaicl.ROOT_VARIABLE, str(root))
    metaicl.register()
    try:
        name = f"metaicl_{SETTING}"
        assert registry.load_source(name, "test_13", vocabulary=Bytes()).sizes.tolist() == [3, 3]
        loaded = registry.sources()[name].splits["train"](Bytes())
        assert isinstance(loaded, ExampleStream)  # a cache of it holds nothing in memory
        with pytest.raises(DataError, match=r"expected a split out of .* got 'test'"):
            registry.load_source(name, "test", vocabulary=Bytes())
        with pytest.raises(DataError, match=r"hr_to_lr\.json: expected the tasks of a MetaICL setting"):
            registry.load_source("metaicl_hr_to_lr", "train", vocabulary=Bytes())
    finally:
        for setting in metaicl.SETTINGS:
            registry.unregister_source(f"metaicl_{setting}")


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        ({"input": "x"}, r"expected the strings 'input' and 'output', got the keys \['input'\]"),
        ({"input": "x", "output": "y", "options": "yes"}, r"expected a list of strings 'options', got 'yes'"),
        ({"input": "x", "output": "y", "options": ["n", "m"]}, r"expected the output to be an option, got 'y' and"),
        ({"input": "x \ud83d", "output": "y"}, r"expected Unicode text in 'input', got '.ud83d'"),
    ],
)
def test_a_broken_line_is_named(root: pathlib.Path, broken: dict[str, Any], problem: str) -> None:
    path = write(root / "same", "16_42_test", row("same", 0, ["yes", "no"]), broken)
    with pytest.raises(DataError, match=rf"same_16_42_test\.jsonl:2: {problem}"):
        metaicl.read_file(path, scored=True)


def test_the_options_of_what_is_not_ranked_need_not_hold_its_output(root: pathlib.Path) -> None:
    """As in the official code, which asks for that where it infers: what is learnt from and shown has no options."""
    odd = {"input": "x", "output": "y", "options": ["n", "m"]}
    write(root / "much", "16384_100_train", odd)
    assert metaicl.metaicl_source(root, SETTING, "train", Bytes()).sizes.tolist() == [6, 1]
    write(root / "same", "16_42_train", odd)
    shown = metaicl.metaicl_source(root, SETTING, "test_42", Bytes()).info(0).positives
    assert [Bytes().decode(example.targets) for example in shown] == ["y"]
    write(root / "same", "16_42_test", row("same", 0, ["yes", "no"]), odd)
    with pytest.raises(DataError, match=r"same_16_42_test\.jsonl:2: expected the output to be an option, got 'y' and"):
        metaicl.metaicl_source(root, SETTING, "test_42", Bytes())


def test_what_is_missing_is_named(root: pathlib.Path) -> None:
    write(root / "same", "16_42_test", {"input": "x", "output": "y"})
    with pytest.raises(DataError, match=r"same_16_42_test\.jsonl: expected at least two options in every line"):
        metaicl.metaicl_source(root, SETTING, "test_42", Bytes())
    (root / "same" / "same_16_42_test.jsonl").unlink()
    with pytest.raises(DataError, match=r"same_16_42_test\.jsonl: expected a file of MetaICL examples"):
        metaicl.metaicl_source(root, SETTING, "test_42", Bytes())
    with pytest.raises(DataError, match=r"expected a setting out of .*, got 'all_to_all', 'test'"):
        metaicl.read_setting(root, "all_to_all", "test")
    path = root / "config" / f"{SETTING}.json"
    path.write_text('{"train": [\n')
    with pytest.raises(DataError, match=rf"{SETTING}\.json:2: expected JSON"):
        metaicl.read_setting(root, SETTING, "train")
    path.write_bytes(b'{"train": ["caf\xe9"]}')
    with pytest.raises(DataError, match=rf"{SETTING}\.json: expected the tasks of a MetaICL setting, .*utf-8"):
        metaicl.read_setting(root, SETTING, "train")
    path.write_text('{"train": ["nowhere"], "test": 3}')
    with pytest.raises(DataError, match=r"expected the folder of at least one of the 1 train tasks"):
        metaicl.read_setting(root, SETTING, "train")
    with pytest.raises(DataError, match=r"expected a list of task names 'test', got 3"):
        metaicl.read_setting(root, SETTING, "test")


def test_the_reference_data(materialised: pathlib.Path, data_dir: pathlib.Path) -> None:
    """Tasks at hand as the README counts them, sizes of the official lists, the kinds that the tasks' makers state."""
    lists = json.loads((data_dir / "metaicl" / "settings.json").read_text())
    assert {name: len(lists[name]["test"]) for name in metaicl.SETTINGS} == metaicl.SETTINGS
    root = materialised / "metaicl"
    sides = [metaicl.read_setting(root, "hr_to_lr", side) for side in ("train", "test")]
    assert [len(side.present) for side in sides] == [15, 7]
    stated = json.loads((data_dir / "metaicl" / "tasks_meta.json").read_text())
    found = {}
    for folder in sorted(path for path in root.iterdir() if path.name != "config"):
        paths = [metaicl.task_file(folder, f"16_87_{part}") for part in ("train", "dev", "test")]
        parts = [metaicl.read_file(path, scored=True) for path in paths]
        assert [len(part) for part in parts[:2]] == [metaicl.K, metaicl.K]
        found[folder.name] = metaicl.kind(root, folder.name, [*parts[0], *parts[2]])
    assert found == {name: task["task_type"] for name, task in stated.items()}


def test_the_suite_has_five_seeds_and_names_what_is_absent(root: pathlib.Path) -> None:
    suite = metaicl.suite(SETTING, root)
    assert suite.missing == (f"config/{SETTING}.json lists 3 of 4 test tasks", "not at hand: gone")
    assert (suite.name, suite.official, suite.shots, suite.ranked) == (f"metaicl/{SETTING}", 4, 16, "mean")
    assert list(suite.sources) == ["seed 100", "seed 13", "seed 21", "seed 42", "seed 87"]
    supports = set()
    for load in suite.sources.values():
        source = load(Bytes())
        supports.add(tuple(Bytes().decode(positive.inputs) for positive in source.info(0).positives))
    assert len(supports) == 5


def test_the_settings_of_the_reference_data_are_clean(materialised: pathlib.Path) -> None:
    """No test task or test example stands in the training tasks of its setting; one that is put there is found."""
    root, seed = materialised / "metaicl", metaicl.SEEDS[1]
    test = metaicl.metaicl_source(root, SETTING, f"test_{seed}", Bytes())
    episodes = EpisodeConfig(shots=16, too_long="truncate", support_length=4096)
    held_out = HeldOut.from_source(test, episodes, examples=None, support="positives", ranked="mean")
    assert [len(task.support) for task in held_out.tasks] == [16, 16]
    assert [len(task.inputs) for task in held_out.tasks] == [376, 968]
    train = metaicl.metaicl_source(root, SETTING, "train", Bytes())
    check_contamination("train", train, held_out.tasks)
    leaked = TaskExamples("leaked", [test.example(1, 7)])
    with pytest.raises(DataError, match=r"'train' was trained on .*: 1 example of 'glue-qqp' \(in 'leaked'\)"):
        check_contamination("train", InMemorySource([leaked], Bytes()), held_out.tasks)


def test_a_setting_is_evaluated(materialised: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The way from the files to the report, with a model that knows nothing."""
    small = hypermodel()
    config = dataclasses.replace(small.config, episodes=EpisodeConfig(shots=2, support_length=1024, inputs_length=32))
    report = evaluate_suite(
        model=Hypermodel(config, small.parts.base, small.parts.hypernetwork_params),
        suite=metaicl.suite(SETTING, materialised / "metaicl"),
        out=str(tmp_path),
        conditions=["bare"],
        examples=8,
        progress=False,
    )
    assert [row["task"] for row in report["per_task"]] == ["glue-mrpc", "glue-qqp"]
    assert [row["run"] for row in report["per_run"]] == [f"seed {seed}" for seed in metaicl.SEEDS]
    assert coverage(report).startswith(f"A part of the suite metaicl/{SETTING}, 2 of 4 test tasks")
    assert report["metric"] == "macro_f1_or_accuracy"
    assert {row["n_examples"] for row in report["per_task"]} == {8}


@pytest.mark.usefixtures("seqio_registries")
def test_the_seqio_tasks_hold_the_same(root: pathlib.Path) -> None:
    seqio = pytest.importorskip("seqio", reason="seqio is not installed: pip install 'hyperflax[seqio]'")
    from hyperflax.data.seqio_source import load_seqio

    before = set(seqio.TaskRegistry.names())
    seqio_tasks.register_metaicl(root, Bytes())
    names = set(seqio.TaskRegistry.names()) - before
    assert names == {f"metaicl_{SETTING}_{split}" for split in metaicl.splits()}  # of the one setting that is there
    for split in ("train", "test_13"):
        ours = metaicl.metaicl_source(root, SETTING, split, Bytes())
        theirs = load_seqio(f"metaicl_{SETTING}_{split}", split)
        assert theirs.task_names == ours.task_names
        assert theirs.sizes.tolist() == ours.sizes.tolist()
        for task in range(len(ours.task_names)):
            for number in range(int(ours.sizes[task])):
                one, other = ours.example(task, number), theirs.example(task, number)
                for name in ("inputs", "targets"):
                    assert getattr(one, name).tolist() == getattr(other, name).tolist()
                assert [option.tolist() for option in one.options] == [option.tolist() for option in other.options]
            info, same = ours.info(task), theirs.info(task)
            assert info.category == same.category
            assert info.data_sets == same.data_sets != ()
            assert [p.targets.tolist() for p in info.positives] == [p.targets.tolist() for p in same.positives]
        count = seqio.TaskRegistry.get(f"metaicl_{SETTING}_{split}").num_input_examples(split)
        assert count == int(ours.sizes.sum())
