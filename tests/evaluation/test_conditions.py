"""Conditions: what each sees of an over-long input, which can be had of few tasks, what a journal is named by."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from hyperflax import evaluate as of_mixtures
from hyperflax import evaluate_suite as of_suites
from hyperflax.checkpoints.model_directory import save_model_directory
from hyperflax.cli.main import main
from hyperflax.data import registry
from hyperflax.data.examples import Example, InMemorySource, TaskExamples, TaskInfo
from hyperflax.data.vocabularies import Bytes
from hyperflax.errors import ConfigError, DataError
from hyperflax.evaluate import evaluate
from hyperflax.evaluation import ranking
from hyperflax.evaluation.conditions import Conditions
from hyperflax.evaluation.contamination import name_digests
from hyperflax.evaluation.held_out import HeldOut
from hyperflax.evaluation.report import read_report
from hyperflax.evaluation.suite import Suite
from hyperflax.hypermodel import Hypermodel
from tests.evaluation.micro import hypermodel

PAIRS = [(letter, letter.upper()) for letter in "abcdefgh"]


def source(*names: str, pairs: list[tuple[str, str]] = PAIRS) -> InMemorySource:
    return InMemorySource.from_strings(dict.fromkeys(names, pairs), Bytes(), definitions=dict.fromkeys(names, "say it"))


@pytest.mark.parametrize("name", ["in_context", "mtf"])
def test_supports_of_many_lengths_are_decoded_at_few(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, widths = hypermodel(), set()

    def decode(self: Hypermodel, inputs: np.ndarray, adapters: object = None) -> np.ndarray:
        widths.add(inputs.shape[-1])
        return np.ones((*inputs.shape[:2], 1), np.int32)

    monkeypatch.setattr(Hypermodel, "decode", decode)
    for length in range(3, 25):
        pairs = [(f"{number}{length * 'x'}", "y") for number in range(3)]
        held_out = HeldOut.from_source(source("a", pairs=pairs), model.config.episodes.replace(too_long="truncate"))
        Conditions(model, held_out, mtf=model).pick(name)[name](held_out.tasks)
    assert widths <= {32, 48, 64, 96, 128}
    assert len(widths) > 1


@pytest.mark.parametrize("name", ["bare", "generated"])
def test_no_slice_is_decoded_for_padding_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five examples in slices of five; a row of padding behind them adds a slice, and changes no token."""
    model, answered, real = hypermodel(), [], Hypermodel.decode

    def decode(self: Hypermodel, inputs: np.ndarray, adapters: object = None) -> np.ndarray:
        answered.append(np.asarray(real(self, inputs, adapters)))
        return answered[-1]

    monkeypatch.setattr(Hypermodel, "decode", decode)
    held_out = HeldOut.from_source(source("a", "b", "c"), model.config.episodes, examples=5)
    conditions = Conditions(model, held_out)
    monkeypatch.setattr(ranking, "TOKENS", 3 * 5 * model.config.episodes.inputs_length)
    found = conditions.pick(name)[name](held_out.tasks)
    config = conditions._config
    monkeypatch.setattr(conditions, "_config", lambda batch: config(batch).replace(examples=6))
    assert conditions.pick(name)[name](held_out.tasks) == found
    alone, beside, _ = answered
    np.testing.assert_array_equal(alone, beside)


@pytest.mark.parametrize("name", ["in_context", "instruction", "mtf"])
def test_an_over_long_input_takes_no_room_from_what_stands_before_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Definition and examples are there in full, and of the input as much as the bare model sees: 15 of 16 tokens."""
    model, asked = hypermodel(), []

    def decode(self: Hypermodel, inputs: np.ndarray, adapters: object = None) -> np.ndarray:
        asked.append(inputs.reshape(-1, inputs.shape[-1]))
        return np.ones((*inputs.shape[:2], 1), np.int32)

    monkeypatch.setattr(Hypermodel, "decode", decode)
    long = [(f"{i:02}" + 24 * "x", "y") for i in range(3)]
    config = model.config.episodes.replace(too_long="truncate")
    held_out = HeldOut.from_source(source("a", "b", pairs=long), config, examples=1)
    for condition in Conditions(model, held_out, mtf=model).pick("bare", name).values():
        condition(held_out.tasks)
    encode, given, wanted = Bytes().encode, Bytes().sentinel(0), Bytes().sentinel(1)
    for task, bare, row in zip(held_out.tasks, *asked, strict=False):
        seen = encode(task.inputs[0][:15])
        assert bare[:16].tolist() == [*seen, 1]
        before = encode("say it") if name == "instruction" else []
        for shown, target in () if name == "instruction" else task.support:
            before += [given, *encode(shown), wanted, *encode(target)]
        expected = [*before, given, *seen, wanted, 1]
        assert row[: len(expected) + 1].tolist() == [*expected, 0]


def test_the_bare_model_reads_the_input_alone_and_refining_reads_what_training_did(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a model whose base reads definition and examples before every input."""
    plain = hypermodel()
    places = {"definition": "both", "demonstrations": "both", "inputs_length": 64}
    config = dataclasses.replace(plain.config, episodes=plain.config.episodes.replace(**places))
    model = Hypermodel(config, plain.parts.base, plain.parts.hypernetwork_params)
    held_out = HeldOut.from_source(source("a", "b"), model.config.episodes, examples=1)
    asked = []

    def decode(self: Hypermodel, inputs: np.ndarray, adapters: object = None) -> np.ndarray:
        asked.append(inputs.reshape(-1, inputs.shape[-1])[0])
        return np.ones((*inputs.shape[:2], 1), np.int32)

    monkeypatch.setattr(Hypermodel, "decode", decode)
    for condition in Conditions(model, held_out).pick("bare", "generated").values():
        condition(held_out.tasks)
    bare, generated = (Bytes().decode(row.tolist()) for row in asked)
    (task, *_), say = held_out.tasks, "say it"
    assert bare == task.inputs[0]
    assert generated.startswith(say)
    given = held_out.tokens[task.name]
    rows = model.own_examples([given.support], [given.info])["encoder_input_tokens"][0]
    for row, (shown, _) in zip(rows, task.support, strict=False):
        assert Bytes().decode(row.tolist()) == say + shown  # not behind the support, its own target among it
    for use in (lambda: model.predict(["a"]), lambda: model.adapt([("a", "A")])):
        with pytest.raises(
            ConfigError, match="expected episodes with nothing before the inputs, got definition='both'"
        ):
            use()


def test_one_task_is_evaluated_without_the_control(tmp_path: pathlib.Path) -> None:
    options = {"model": hypermodel(), "source": source("alone"), "examples": 2, "refine_steps": 1, "progress": False}
    evaluate(out=str(tmp_path), **options)
    report = read_report(tmp_path)
    assert list(report["conditions"]) == ["bare", "instruction", "in_context", "generated", "refined"]
    page = (tmp_path / "report.md").read_text()
    assert "no other one whose support the control `shuffled_support` could show" in page
    with pytest.raises(DataError, match=r"conditions shuffled_support: expected at least 2 tasks, .* got \['alone'\]"):
        evaluate(out=str(tmp_path), conditions=["bare", "shuffled_support"], **options)


def test_the_control_reads_another_task_s_support_and_asks_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    read, asked = [], []
    monkeypatch.setattr(Hypermodel, "generate", lambda _, episodes: read.append(episodes["support_tokens"]))

    def decode(self: Hypermodel, inputs: np.ndarray, adapters: object) -> np.ndarray:
        asked.append(inputs)
        return np.ones((*inputs.shape[:2], 1), np.int32)

    monkeypatch.setattr(Hypermodel, "decode", decode)
    rows = {name: [(name + text, target) for text, target in PAIRS] for name in "uvwxyz"}
    held_out = HeldOut.from_source(InMemorySource.from_strings(rows, Bytes()), hypermodel().config.episodes)
    conditions = Conditions(hypermodel(), held_out, seed=1)
    for condition in conditions.pick("generated", "shuffled_support").values():
        condition(held_out.tasks)
    own, shuffled = ([support.tolist() for support in batch[: len(rows)]] for batch in read)
    assert sorted(shuffled) == sorted(own)
    assert all(one != other for one, other in zip(shuffled, own, strict=True))
    np.testing.assert_array_equal(*asked)


def test_one_group_has_no_control_either() -> None:
    pairs = [Example.from_text(*pair, Bytes()) for pair in PAIRS]
    tasks = [TaskExamples(name, pairs, TaskInfo(category="rte")) for name in ("rte_a", "rte_b")]
    held_out = HeldOut.from_source(InMemorySource(tasks, Bytes()), hypermodel().config.episodes)
    assert "shuffled_support" in Conditions(hypermodel(), held_out).pick()
    conditions = Conditions(hypermodel(), held_out, unlike=True)
    assert not {"shuffled_support", "shuffled_support_refined"} & set(conditions.pick())
    with pytest.raises(DataError, match=r"expected at least 2 groups of tasks, .* got \['rte'\]"):
        conditions.pick("shuffled_support_refined")


def test_no_part_of_a_data_set_gives_another_part_its_support() -> None:
    """ANLI's rounds are three categories of one data set."""
    sets = {"anli_r1": "p3/anli", "anli_r2": "p3/anli", "anli_r3": "p3/anli", "cb": "p3/cb"}
    pairs = [Example.from_text(*pair, Bytes()) for pair in PAIRS]
    tasks = [TaskExamples(name, pairs, TaskInfo(category=name, data_sets=(of,))) for name, of in sets.items()]
    held_out = HeldOut.from_source(InMemorySource(tasks, Bytes()), hypermodel().config.episodes)
    for seed in range(20):
        donors = Conditions(hypermodel(), held_out, seed=seed, unlike=True)._donors
        assert all(sets[donor] != sets[task] for task, donor in donors.items())
    assert len({Conditions(hypermodel(), held_out, seed=seed)._donors["cb"] for seed in range(20)}) == 3


def test_tasks_without_an_instruction_are_not_reported_under_one() -> None:
    """By default; of the tasks of one's own data many have none."""
    without = InMemorySource.from_strings({"a": PAIRS, "b": PAIRS}, Bytes())
    for given, there in ((without, False), (source("a", "b"), True)):
        conditions = Conditions(hypermodel(), HeldOut.from_source(given, hypermodel().config.episodes))
        assert ("instruction" in conditions.pick()) is there
        assert list(conditions.pick("instruction")) == ["instruction"]


def test_other_neighbours_are_other_results(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal of finished tasks is named by them: what one set of training tasks gave is no other's."""
    configs = []

    def stop(tasks, conditions, metric, *, config, **options) -> None:
        configs.append(config)
        raise InterruptedError

    for jobs in (of_mixtures, of_suites):
        monkeypatch.setattr(jobs, "evaluate_conditions", stop)
    swapped = [(letter, PAIRS[number - 1][1]) for number, (letter, _) in enumerate(PAIRS)]
    given = (source("x"), source("y"), source("x", pairs=PAIRS[:4]), source("x", pairs=swapped), source("x"), None)
    for neighbours in given:
        with pytest.raises(InterruptedError):
            evaluate(model=hypermodel(), source=source("a", "b"), out=str(tmp_path), neighbours=neighbours)
    first, second, third, fourth, again, none = configs
    assert len({config["neighbours"] for config in (first, second, third, fourth)}) == 4
    assert first == again
    assert first["num_neighbours"] == 256
    assert "neighbours" not in none


def test_a_file_in_the_report_s_place_is_refused_before_the_work(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.csv").write_text("mine")
    monkeypatch.setattr(HeldOut, "from_source", pytest.fail)
    with pytest.raises(ConfigError, match=r"mine\.csv: expected a folder or nothing there, found a file"):
        evaluate(model=hypermodel(), source=source("a", "b"), out=str(tmp_path / "mine.csv"))
    assert (tmp_path / "mine.csv").read_text() == "mine"
    with pytest.raises(ConfigError, match="20241130: expected a path, which is a string"):
        evaluate(model=hypermodel(), source=source("a", "b"), out=20241130)


def test_a_source_in_another_vocabulary_is_refused(tmp_path: pathlib.Path) -> None:
    """Its tokens mean something else to the model, whose scores would be those of noise."""
    own, other = source("a", "b"), InMemorySource.from_strings({"a": PAIRS, "b": PAIRS}, Bytes(extra_ids=7))
    for name, given in (("source", {"source": other}), ("neighbours", {"source": own, "neighbours": other})):
        with pytest.raises(
            ConfigError,
            match=rf"evaluate.{name}: expected tokens of the model's Bytes\(extra_ids=125\), got Bytes\(extra_ids=7\); "
            "registry.load_source.vocabulary is",
        ):
            evaluate(model=hypermodel(), out=str(tmp_path / "report"), **given)
    assert not any(tmp_path.iterdir())


def test_other_positives_are_other_results(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read beside the support and stand in no text of the tasks, by which the journal is named as well."""
    configs = []

    def stop(tasks, conditions, metric, *, config, **options) -> None:
        configs.append(config)
        raise InterruptedError

    for jobs in (of_mixtures, of_suites):
        monkeypatch.setattr(jobs, "evaluate_conditions", stop)
    made = hypermodel()
    reading = dataclasses.replace(made.config, episodes=made.config.episodes.replace(positives="support"))
    examples = [Example.from_text(*pair, Bytes()) for pair in PAIRS]
    for config, positives in ((reading, 1), (reading, 2), (reading, 1), (made.config, 1), (made.config, 2)):
        infos = TaskInfo(positives=tuple(examples[:positives]))
        given = InMemorySource([TaskExamples(name, examples, infos) for name in ("a", "b")], Bytes())
        suite = Suite("toy", {"all": lambda vocabulary, given=given: given}, "tasks", 2, "exact_match")
        model = Hypermodel(config, made.base_params, made.parts.hypernetwork_params)
        with pytest.raises(InterruptedError):
            evaluate(model=model, source=given, out=str(tmp_path))
        with pytest.raises(InterruptedError):
            of_suites.evaluate_suite(model=model, suite=suite, out=str(tmp_path))
    for first, second, again, unread, same in (configs[::2], configs[1::2]):
        assert first == again != second
        assert unread == same


def test_other_donors_of_the_shuffled_support_are_other_results(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a condition reads it: all that decides otherwise is the same."""
    configs = []

    def stop(tasks, conditions, metric, *, config, **options) -> None:
        configs.append(config)
        raise InterruptedError

    monkeypatch.setattr(of_suites, "evaluate_conditions", stop)
    examples = [Example.from_text(*pair, Bytes()) for pair in PAIRS]
    tasks = [TaskExamples(name, examples, TaskInfo(category=name[0])) for name in ("a1", "a2", "b1", "b2")]
    suite = Suite("toy", {"all": lambda _: InMemorySource(tasks, Bytes())}, "tasks", 4, "exact_match")
    for names in (["bare", "shuffled_support"], ["bare", "generated"]):
        for grouped in (True, False):
            with pytest.raises(InterruptedError):
                of_suites.evaluate_suite(
                    model=hypermodel(),
                    suite=dataclasses.replace(suite, grouped=grouped),
                    out=str(tmp_path),
                    conditions=names,
                )
    shuffled, ungrouped, without, same = configs
    assert shuffled != ungrouped
    assert {**shuffled, "donors": None} == {**ungrouped, "donors": None}
    assert without == same
    assert "donors" not in without


def test_a_task_too_small_for_another_support_is_not_in_the_distance_within_tasks(tmp_path: pathlib.Path) -> None:
    """Whose second draw would be the first again, at distance zero."""
    small, large = source("small", pairs=PAIRS[:3]), source("large")
    both = InMemorySource.from_strings({"small": PAIRS[:3], "large": PAIRS}, Bytes())
    options = {"model": hypermodel(), "examples": 1, "conditions": ["generated"], "progress": False}
    figures = [
        evaluate(source=given, out=str(tmp_path / str(number)), **options)["adapters"]
        for number, given in enumerate((small, large, both))
    ]
    assert "within_task_distance" not in figures[0]
    assert figures[1]["within_task_distance"] > 0
    assert figures[2]["within_task_distance"] == pytest.approx(figures[1]["within_task_distance"], rel=1e-3)


def test_tasks_that_were_trained_on_are_not_called_new(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the hypermodel's own record and of the shared adapter's; of a model without one, that it has none."""
    registry.register_source("seen", {"held_out": lambda _: source("a", "b", "c")}, description="", replace=True)
    model = hypermodel()
    adapter = model.adapt(PAIRS[:2])
    seen = dataclasses.replace(adapter.metadata, provenance={"training_tasks": name_digests(["b"])})
    dataclasses.replace(adapter, metadata=seen).save(tmp_path / "shared")
    record = {"training_tasks": name_digests(["a", "b", "z"])}
    save_model_directory(tmp_path / "model", dataclasses.replace(model.parts, provenance=record))
    model.save(tmp_path / "none")
    arguments = ["evaluate", "--mixture", "seen", "--conditions", "bare"]
    try:
        for name in ("model", "none"):
            directories = ["--model", str(tmp_path / name), "--out", str(tmp_path / f"of_{name}")]
            assert main([*arguments, *directories, "--shared", str(tmp_path / "shared")]) == 0
    finally:
        registry.unregister_source("seen")
    shared = f"1 of 3 in what the shared adapter '{tmp_path / 'shared'}' was trained on"
    counts = (f"2 of 3 in what 'micro' was trained on, {shared}", shared)
    lines = [f"Tasks that are not new: {told}." for told in counts]
    printed = capsys.readouterr().out
    for line, name in zip(lines, ("model", "none"), strict=True):
        assert line in printed
        assert line in (tmp_path / f"of_{name}" / "report.md").read_text()
    unknown = "No tasks are recorded, or not all, of what 'micro' was trained on: these may be among them."
    assert unknown in (tmp_path / "of_none" / "report.md").read_text()
    assert "No tasks are recorded" not in (tmp_path / "of_model" / "report.md").read_text()


def test_tasks_that_are_their_own_neighbours_are_not_called_new(tmp_path: pathlib.Path) -> None:
    """The adapter that fits a task's support best is then one of that task."""
    options = {"model": hypermodel(), "source": source("a", "b"), "conditions": ["nearest_task"], "examples": 2}
    for names, told in ((("b", "c"), {"the neighbours": 1}), (("c", "d"), None)):
        out = tmp_path / "_".join(names)
        report = evaluate(neighbours=source(*names), out=str(out), progress=False, **options)
        assert report["run"]["config"].get("trained_on") == told
    assert "Tasks that are not new: 1 of 2 in the neighbours." in (tmp_path / "b_c" / "report.md").read_text()


def test_a_report_counts_the_seconds_of_earlier_starts(tmp_path: pathlib.Path) -> None:
    """As the files of finished tasks have them; the last start may have found all done."""
    options = {"model": hypermodel(), "source": source("a", "b"), "conditions": ["bare"], "progress": False}
    evaluate(out=str(tmp_path), **options)
    (kept,) = tmp_path.glob("scores-*.jsonl")
    rows = [{**json.loads(line), "seconds": 50.0} for line in kept.read_text().splitlines()]
    kept.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert evaluate(out=str(tmp_path), **options)["run"]["seconds"] == 100.0


def test_examples_that_are_too_long_to_be_scored_are_told(tmp_path: pathlib.Path) -> None:
    """Of an input 15 bytes fit the micro model, of a target 7."""
    long = [("a" * 15, "y"), ("b" * 16, "y"), ("c", "y" * 7), ("d", "y" * 8)]
    given = InMemorySource.from_strings({"some": PAIRS + long, "none": PAIRS}, Bytes())
    options = {"model": hypermodel(), "conditions": ["bare"], "progress": False}
    report = evaluate(source=given, out=str(tmp_path), **options)
    assert report["run"]["config"]["too_long"] == {"tasks": 1, "examples": 2, "of": 12}
    line = "Too long for the model and not scored: 2 of the 12 examples of 1 task."
    assert line in (tmp_path / "report.md").read_text()
    whole = evaluate(source=source("a", "b"), out=str(tmp_path), **options)
    assert "too_long" not in whole["run"]["config"]


def test_tasks_that_are_left_out_are_told(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = InMemorySource.from_strings({"few": PAIRS[:2], "fine": PAIRS}, Bytes())
    registry.register_source("two_sizes", {"held_out": lambda _: few}, description="", replace=True)
    hypermodel().save(tmp_path / "model")
    arguments = ["evaluate", "--model", str(tmp_path / "model"), "--mixture", "two_sizes"]
    try:
        assert main([*arguments, "--out", str(tmp_path / "report"), "--conditions", "bare"]) == 0
    finally:
        registry.unregister_source("two_sizes")
    told = read_report(tmp_path / "report")["run"]["config"]["left_out"]
    assert told["tasks"] == 1
    line = f"Left out, 1 task: {told['reasons'][0]}"
    assert "task 'few': expected 1 scored examples besides 2 of support, got 2 examples" in line
    assert line in capsys.readouterr().out
    assert line in (tmp_path / "report" / "report.md").read_text()
