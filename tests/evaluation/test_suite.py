"""Suites: from scores of runs to one report, by the rules of three benchmarks; what is missing is said."""

from __future__ import annotations

import copy
import dataclasses
import pathlib
import statistics
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from hyperflax.checkpoints.model_directory import save_model_directory
from hyperflax.checkpoints.t5_directory import save_t5
from hyperflax.data.corruption import MixedPairs
from hyperflax.data.curriculum import Curriculum
from hyperflax.data.episodes import EpisodeConfig, Episodes
from hyperflax.data.examples import Example, InMemorySource, StreamedExample, TaskInfo, sources_of, tokenise, untold
from hyperflax.data.multitask import TaskPairs
from hyperflax.data.text import PackedBatches
from hyperflax.data.vocabularies import Bytes, SentencePiece
from hyperflax.errors import DataError
from hyperflax.evaluate import evaluate
from hyperflax.evaluate_suite import evaluate_suite
from hyperflax.evaluation import contamination
from hyperflax.evaluation.conditions import Conditions
from hyperflax.evaluation.contamination import (
    TRAINING_DATA_SETS,
    TRAINING_TASKS,
    UNRECORDED,
    check_contamination,
    check_names,
    name_digests,
    not_recorded,
    record,
    recorded,
    trained_elsewhere,
)
from hyperflax.evaluation.held_out import HeldOut
from hyperflax.evaluation.markdown import coverage, render_markdown
from hyperflax.evaluation.metrics import macro_f1
from hyperflax.evaluation.report import read_report
from hyperflax.evaluation.runner import EvaluationTask, ScoreTable, evaluate_conditions
from hyperflax.evaluation.schema import validate_report
from hyperflax.evaluation.suite import Suite, suite_report
from hyperflax.hypermodel import Hypermodel
from hyperflax.training.task_adapters import WithTaskAdapters
from tests.evaluation.micro import choice_source, hypermodel

RUN = {"command": "hyperflax evaluate", "config": {}, "versions": {}, "device": "cpu", "seconds": 1.0}
LABELS = ["yes", "no", "yes", "no"]


def table(answers: dict[str, tuple[str | None, list[str], list[str]]], metric: str = "accuracy") -> ScoreTable:
    """A table of {task: (category, references, answers)}; `bare` always answers no."""
    tasks = [
        EvaluationTask(
            name, tuple(f"{name} {i}" for i in range(len(right))), tuple((r,) for r in right), category=group
        )
        for name, (group, right, _) in answers.items()
    ]
    conditions = {
        "bare": lambda batch: [["no"] * len(task.inputs) for task in batch],
        "generated": lambda batch: [answers[task.name][2] for task in batch],
    }
    return evaluate_conditions(tasks, conditions, metric, progress=False)


def seeds() -> dict[str, ScoreTable]:
    """Two tasks under two seeds: a classification whose labels are unevenly hit, and multiple choice."""
    return {
        "seed 100": table(
            {"sort": ("classification", LABELS, ["yes", "no", "no", "no"]), "pick": ("multi-choice", ["a"], ["a"])}
        ),
        "seed 13": table({"sort": ("classification", LABELS, ["yes"] * 4), "pick": ("multi-choice", ["b"], ["a"])}),
    }


METAICL = Suite(
    name="metaicl/toy",
    sources={},
    unit="test tasks",
    official=26,
    metric="accuracy",
    category_metrics={"classification": "macro_f1"},
    mixed=True,
    missing=("not at hand: gone",),
)


def test_seeds_are_averaged_and_the_worst_is_shown() -> None:
    report = suite_report(METAICL, seeds(), RUN)
    assert report["metric"] == "macro_f1_or_accuracy"
    # Macro-F1 of the seeds by hand: yes 2/3 and no 4/5; yes 4/6 and no 0. Accuracy of the other task: 1 and 0.
    first, second = (2 / 3 + 4 / 5) / 2, (2 / 3 + 0) / 2
    assert first == pytest.approx(macro_f1(["yes", "no", "no", "no"], [[label] for label in LABELS]))
    row = report["per_task"][0]
    assert [run["scores"]["generated"] for run in row["runs"]] == pytest.approx([first, second], abs=1e-6)
    assert row["scores"]["generated"] == pytest.approx((first + second) / 2, abs=1e-6)
    of_seeds = {row["run"]: row["scores"]["generated"] for row in report["per_run"]}
    assert of_seeds == pytest.approx({"seed 100": (first + 1) / 2, "seed 13": (second + 0) / 2}, abs=1e-6)
    assert report["conditions"]["generated"]["mean"] == pytest.approx(statistics.mean(of_seeds.values()), abs=1e-6)
    rows = [(row["category"], row["metric"], row["n_tasks"]) for row in report["categories"]]
    assert rows == [("classification", "macro_f1", 1), ("multi-choice", "accuracy", 1)]
    page = render_markdown(report)
    worst = next(line for line in page.splitlines() if line.startswith("| worst"))
    assert f"{(second + 0) / 2:.3f}" in worst


def test_a_part_of_a_suite_is_never_called_its_score() -> None:
    report = suite_report(METAICL, seeds(), RUN, missing=["4 shots, the suite shows 16"])
    assert report["suite"]["complete"] is False
    assert "2 of 26 test tasks" in coverage(report)
    assert "not the suite's score" in coverage(report)
    page = render_markdown(report)
    for said in ("2 of 26 test tasks", "not at hand: gone", "4 shots, the suite shows 16", "Not compared with any"):
        assert said in page
    whole = dataclasses.replace(METAICL, official=2, missing=())
    report = suite_report(whole, seeds(), RUN, checked_against=["mine"])
    assert report["suite"]["complete"] is True
    assert coverage(report) == "Suite metaicl/toy: all 2 test tasks."
    assert "what was named as trained on: mine" in render_markdown(report)
    assert coverage({}) == ""


def test_prompts_are_runs_of_their_data_set() -> None:
    """P3: a data set's score is the mean over its prompts, which count alike however many data sets have more."""
    hits = {"rte_a": 4, "rte_b": 1, "rte_c": 3, "cb_a": 2}
    rows = {n: (n.split("_")[0], ["yes"] * 4, ["yes"] * k + ["no"] * (4 - k)) for n, k in hits.items()}
    suite = Suite("p3", {}, "data sets", 11, "accuracy", ranked="sum", grouped=True)
    report = suite_report(suite, {"held_out": table(rows)}, RUN)
    assert [(row["task"], row["scores"]["generated"]) for row in report["per_task"]] == [
        ("rte", pytest.approx((1 + 0.25 + 0.75) / 3, abs=1e-6)),
        ("cb", 0.5),
    ]
    assert report["per_task"][0]["medians"]["generated"] == 0.75
    assert [run["run"] for run in report["per_task"][0]["runs"]] == ["a", "b", "c"]
    assert report["conditions"]["generated"]["mean"] == pytest.approx((2 / 3 + 0.5) / 2, abs=1e-6)
    assert report["per_task"][0]["n_examples"] == 4
    assert "## Medians over runs" in render_markdown(report)


def test_categories_are_reported_by_their_own_metric() -> None:
    """Super-NaturalInstructions: the score is ROUGE-L throughout, the table has exact match where it is official."""
    rows = {
        "t1": ("Textual Entailment", ["it is so", "no"], ["it is not", "no"]),
        "t2": ("Title Generation", ["a b c d"], ["a b"]),
    }
    suite = Suite(
        "ni", {}, "test tasks", 2, "rouge_l", category_metrics={"Textual Entailment": "exact_match_normalised"}
    )
    report = suite_report(suite, {"test": table(rows, "rouge_l")}, RUN)
    # ROUGE-L by hand: two of three words in common, 2/3; two of four against two, F = 2/3.
    assert [row["scores"]["generated"] for row in report["per_task"]] == pytest.approx([5 / 6, 2 / 3], abs=1e-6)
    assert report["conditions"]["generated"]["mean"] == pytest.approx(0.75, abs=1e-6)
    found = {row["category"]: (row["metric"], row["scores"]["generated"]) for row in report["categories"]}
    assert found == {"Textual Entailment": ("exact_match_normalised", 0.5), "Title Generation": ("rouge_l", 0.666667)}
    assert "runs" not in report["per_task"][0]
    assert report["suite"]["complete"] is True


def _set(*path: Any, value: Any) -> Callable[[Any], None]:
    def change(report: Any) -> None:
        for key in path[:-1]:
            report = report[key]
        report[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (_set("suite", "complete", value=True), "suite/complete"),
        (_set("suite", "evaluated", value=26), "suite/evaluated"),
        (_set("suite", "official", value=1), "suite/official"),
        (_set("suite", "missing", value="x"), "suite/missing"),
        (_set("suite", "note", value="x"), "suite"),
        (_set("per_task", 0, "runs", 0, "scores", "bare", value=0.9), "per_task/0/scores/bare"),
        (_set("per_task", 0, "runs", value=[]), "per_task/0/runs"),
        (_set("per_task", 0, "runs", 1, "run", value="seed 100"), "per_task/0/runs"),
        (_set("per_task", 0, "medians", value={"bare": 1.0, "generated": 0.0}), "per_task/0/medians/bare"),
        (_set("per_run", 1, "scores", "generated", value=0.5), "per_run/1/scores/generated"),
        (_set("per_run", 1, "run", value="seed 7"), "per_run/1/run"),
        (_set("categories", 0, "n_tasks", value=2), "categories/0/n_tasks"),
        (_set("categories", 0, "metric", value="rouge_l"), "categories/0/metric"),
        (_set("categories", 0, "scores", "generated", value=0.1), "categories/0/scores/generated"),
        # Of another type than everything else looks for.
        (_set("adapters", value=None), "adapters"),
        (_set("per_task", 0, "other_metrics", value=[0.5]), "per_task/0/other_metrics"),
        (_set("per_task", 0, "runs", value=None), "per_task/0/runs"),
        (_set("categories", 0, "metric", value=["macro_f1"]), "categories/0/metric"),
    ],
)
def test_the_parts_of_a_report_agree(change: Callable[[Any], None], place: str) -> None:
    report = copy.deepcopy(suite_report(METAICL, seeds(), RUN))
    validate_report(report)
    change(report)
    with pytest.raises(DataError, match=f"^{place}: expected"):
        validate_report(report)


def test_contamination_is_found_by_name_and_by_content() -> None:
    tasks = [
        EvaluationTask("upper", ("Ab  c", "d"), (("ABC", "abc"), ("D",))),
        EvaluationTask("last", ("q",), (("q",),)),
    ]

    def trained(**examples: list[tuple[str, str]]) -> InMemorySource:
        return InMemorySource.from_strings(examples, Bytes())

    check_contamination("mine", trained(first=[("ab c", "abd"), ("abc", "ABC"), ("D", "e")]), tasks)
    with pytest.raises(DataError, match="'mine' was trained on and holds the evaluated task 'last'"):
        check_contamination("mine", trained(last=[("x", "y")]), tasks)
    with pytest.raises(DataError, match="holds the evaluated tasks 'upper', 'last'"):
        check_contamination("mine", trained(upper=[("x", "y")], last=[("x", "y")]), tasks)
    with pytest.raises(
        DataError, match=r"evaluated: 2 examples of 'upper' \(in 'caps'\), 1 example of 'last' \(in 'id'\)"
    ):
        check_contamination("mine", trained(caps=[("AB C", " abc"), ("d", "d")], id=[("Q", "q")]), tasks)


def test_a_task_inside_a_seqio_mixture_is_found_by_its_own_name() -> None:
    """Whichever side it is on, and in the records of earlier versions, which hold what follows a name's last slash."""
    example = Example.from_text("x", "y", Bytes())
    inside = InMemorySource.from_stream([StreamedExample("first/last", example, TaskInfo(own_name="last"))], Bytes())
    plain = InMemorySource.from_strings({"last": [("x", "y")]}, Bytes())
    alone, mixed = (
        EvaluationTask("last", ("q",), (("q",),)),
        EvaluationTask("b/last", ("q",), (("q",),), own_name="last"),
    )
    earlier = {TRAINING_TASKS: name_digests(["first/last", "last"])}
    for seen in (record([inside]), record([plain]), earlier):
        assert recorded(seen[TRAINING_TASKS], [alone, mixed]) == ["last", "b/last"]
    for source in (inside, plain):
        with pytest.raises(DataError, match="'mine' was trained on and holds the evaluated tasks 'last', 'b/last'"):
            check_contamination("mine", source, [alone, mixed])


def test_a_slash_in_a_name_is_a_part_of_it() -> None:
    """Two data sets have an English part each, and many programs end in the same word."""
    tasks = [EvaluationTask(name, ("q",), (("q",),)) for name in ("paws-x/en", 'card | prefix "E/"')]
    seen = InMemorySource.from_strings({name: [("x", "y")] for name in ("xnli/en", 'card | suffix "F/"')}, Bytes())
    check_contamination("mine", seen, tasks)
    assert recorded(record([seen])[TRAINING_TASKS], tasks) == []
    assert recorded(record([seen])[TRAINING_TASKS], [EvaluationTask("xnli/en", (), ())]) == ["xnli/en"]


def test_what_a_vocabulary_loses_hides_no_example(data_dir: pathlib.Path) -> None:
    """T5's has no braces and no fractions: as it writes them, training data is not the text that is evaluated."""
    vocabulary = SentencePiece(data_dir / "vocab" / "spiece.model")

    def trained(*examples: tuple[str, str]) -> InMemorySource:
        return InMemorySource.from_strings({"mine": list(examples)}, vocabulary)

    for answer in ("{x}", "½ cup"):
        tasks = [EvaluationTask("asked", ("what is it?",), ((answer,),))]
        with pytest.raises(DataError, match=r"1 example of 'asked' \(in 'mine'\)"):
            check_contamination("seen", trained(("what is it?", answer)), tasks)
    # Of inputs in letters that it does not know nothing is left to compare, which is said.
    other = [EvaluationTask("other", ("你好吗", "how are you?"), (("yes",), ("yes",)))]
    assert check_contamination("seen", trained(("元気ですか", "yes")), other) == 1
    assert check_contamination("seen", trained(("元気ですか", "yes")), other[:0]) == 0


def test_what_the_model_s_own_vocabulary_lost_hides_no_example(data_dir: pathlib.Path) -> None:
    """Tasks of a source are texts that its vocabulary wrote; read again, its mark is no longer one of the unknown."""
    vocabulary = SentencePiece(data_dir / "vocab" / "spiece.model")

    def source(name: str, pair: tuple[str, str]) -> InMemorySource:
        return InMemorySource.from_strings({name: [pair, ("one", "1"), ("two", "2")]}, vocabulary)

    def tasks(pair: tuple[str, str]) -> tuple[EvaluationTask, ...]:
        config = EpisodeConfig(shots=2, examples=1)
        return HeldOut.from_source(source("asked", pair), config, examples=1, first=True).tasks

    first, second = ("f{x} = 2", "yes"), ("what?", "{x}")
    seen = InMemorySource.from_strings({"mine": [first, second]}, vocabulary)
    assert tasks(first)[0].inputs == ("f ⁇ x ⁇  = 2",)
    assert check_contamination("seen", seen, tasks(first)) == 1
    with pytest.raises(DataError, match=r"1 example of 'asked' \(in 'mine'\)"):
        check_contamination("seen", seen, tasks(second))
    assert check_contamination("seen", seen, tasks(("what?", "x"))) == 0


def test_a_report_says_how_many_inputs_were_not_compared_with_training_data(
    tmp_path: pathlib.Path, data_dir: pathlib.Path
) -> None:
    seen = InMemorySource.from_strings(
        {"mine": [("what is it?", "a cup")]}, SentencePiece(data_dir / "vocab" / "spiece.model")
    )
    rows = {"one": [(f"{{{i}}}", "0", ["0", "1"]) for i in range(4)]}
    suite = Suite("toy", {"all": lambda vocabulary: choice_source(rows)}, "tasks", 1, "accuracy", ranked="sum")
    options: dict[str, Any] = {"conditions": ["bare"], "shots": 1, "examples": 2, "progress": False}
    report = evaluate_suite(model=hypermodel(), suite=suite, out=str(tmp_path), trained_on={"mine": seen}, **options)
    told = "mine (but 2 inputs with characters that a vocabulary lacks were not compared)"
    assert report["suite"]["checked_against"] == [told]
    assert f"named as trained on: {told}." in (tmp_path / "report.md").read_text()


class Read(InMemorySource):
    """A source that tells how many examples were asked for at once."""

    def examples(self, task: int, indices: Sequence[int]) -> list[Example]:
        self.asked = [*getattr(self, "asked", []), len(indices)]
        return super().examples(task, indices)


def test_texts_are_not_called_compared() -> None:
    """Nor read: a corpus takes long."""
    texts = Read.from_strings({"text": [("", "a long text")]}, Bytes())
    with pytest.raises(DataError, match=r"^'mine': expected examples .* got texts without inputs"):
        check_contamination("mine", texts, [EvaluationTask("upper", ("a",), (("A",),))])
    assert not hasattr(texts, "asked")


def test_training_data_is_not_read_all_at_once() -> None:
    seen = Read.from_strings({"few": [("x", "y")], "many": [(f"{i}", f"{-i}") for i in range(2049)]}, Bytes())
    with pytest.raises(DataError, match=r"evaluated: 2 examples of 'minus' \(in 'many'\)"):
        check_contamination("mine", seen, [EvaluationTask("minus", ("1023", "2048"), (("-1023",), ("-2048",)))])
    assert seen.asked == [1, 1024, 1024, 1]


def test_training_batches_tell_their_tasks_through_stages_and_mixtures() -> None:
    def source(*names: str) -> InMemorySource:
        return InMemorySource.from_strings({name: [(f"{name}{i}", "y") for i in range(9)] for name in names}, Bytes())

    first, second = (Episodes(source(*names), EpisodeConfig()) for names in (("a", "b"), ("c",)))
    in_inputs = EpisodeConfig(demonstrations="inputs")
    mixed = MixedPairs([TaskPairs(source("d"), in_inputs), TaskPairs(source("e"), in_inputs)], [1, 1])
    packed = PackedBatches(mixed, batch_size=1, inputs_length=64, targets_length=64)
    stages = Curriculum([WithTaskAdapters(first, "unread"), second, packed], boundaries=[3, 6])
    assert record(sources_of(stages)) == {TRAINING_TASKS: name_digests("abcde")}
    assert record(sources_of(object())) == {}
    tasks = [EvaluationTask("f", ("x",), (("y",),)), EvaluationTask("e", ("x",), (("y",),))]
    check_names("the model", record(sources_of(first))[TRAINING_TASKS], tasks)
    with pytest.raises(DataError, match="the model holds the evaluated task 'e'"):
        check_names("the model", record(sources_of(stages))[TRAINING_TASKS], tasks)


def test_parts_of_training_batches_that_tell_no_source_are_found_beside_those_that_do() -> None:
    source = InMemorySource.from_strings({"a": [(f"{i}", "y") for i in range(9)]}, Bytes())
    config, lengths = EpisodeConfig(demonstrations="inputs"), {"inputs_length": 64, "targets_length": 64}
    told, hidden = Episodes(source, EpisodeConfig()), types.SimpleNamespace(batch=print, source=None)
    mixed = MixedPairs([TaskPairs(source, config), print], [1, 1])
    for batches, silent in (
        (told, []),
        (hidden, [hidden]),
        (Curriculum([told, hidden], boundaries=[3]), [hidden]),
        (PackedBatches(mixed, batch_size=1, **lengths), [print]),
        (PackedBatches(print, batch_size=1, **lengths), [print]),
        (types.SimpleNamespace(batch=print, source=source, batches=8), []),
    ):
        assert untold(batches) == silent


def test_of_a_large_source_the_data_sets_are_recorded_and_that_its_names_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also behind a base of which all is known."""
    monkeypatch.setattr(contamination, "RECORDED_TASKS", 1)
    example = Example.from_text("x", "y", Bytes())
    rows = [StreamedExample(name, example, TaskInfo(data_sets=(f"p3/{name}",))) for name in ("rte", "cb")]
    seen = record([InMemorySource.from_stream(rows, Bytes())], [{TRAINING_TASKS: name_digests(["earlier"])}])
    assert seen == {
        TRAINING_TASKS: name_digests(["earlier"]),
        TRAINING_DATA_SETS: ["p3/cb", "p3/rte"],
        UNRECORDED: ["InMemorySource of 2 tasks"],
    }
    assert not_recorded({"it": seen}) == ["it"]
    assert trained_elsewhere(seen, [EvaluationTask("b", (), (), data_sets=("metaicl/rte",))]) == {"b": "p3/rte"}


SETS = ("rte_a", "rte_b", "cb_a", "copa_a")


def toy_suite(**changes: Any) -> Suite:
    """Four prompt-tasks of three data sets, 10 examples each."""
    rows = {name: [(f"{name[0]}{i}", str(i % 2), ["0", "1"]) for i in range(10)] for name in SETS}
    shown = [Example(tokenise(f"p{i}", Bytes()), tokenise(str(i % 2), Bytes())) for i in range(3)]
    infos = {name: TaskInfo(positives=tuple(shown), category=name.split("_")[0]) for name in SETS}
    source = choice_source(rows, **infos)
    base = Suite("toy", {"held_out": lambda vocabulary: source}, "data sets", 4, "accuracy", ranked="sum", grouped=True)
    return dataclasses.replace(base, **changes)


def test_a_suite_is_evaluated_whole(tmp_path: pathlib.Path) -> None:
    """Draws of the support, conditions, one report that says what it covers; twice the same."""
    options: dict[str, Any] = {"model": hypermodel(), "conditions": ["bare", "generated", "shuffled_support"]}
    options |= {"out": str(tmp_path), "draws": 2, "progress": False}
    report = evaluate_suite(suite=toy_suite(), **options)
    assert report == read_report(tmp_path)
    assert {row["task"]: len(row["runs"]) for row in report["per_task"]} == {"rte": 2, "cb": 1, "copa": 1}
    assert {row["n_examples"] for row in report["per_task"]} == {10 - 2 * 2}
    assert report["suite"]["evaluated"] == 3
    assert "3 of 4 data sets" in coverage(report)
    assert len(list(tmp_path.glob("scores-*.jsonl"))) == 2  # one for each draw
    assert {"between_task_distance", "within_task_distance", "norm/encoder_0"} <= report["adapters"].keys()
    assert (tmp_path / "adapters.png").is_file()
    again = evaluate_suite(suite=toy_suite(), **options)
    assert again["per_task"] == report["per_task"]
    assert again["run"]["seconds"] == report["run"]["seconds"]  # all was done already
    trained = InMemorySource.from_strings({"cb_a": [("x", "y")]}, Bytes())
    with pytest.raises(DataError, match="'mine' was trained on and holds the evaluated task 'cb_a'"):
        evaluate_suite(suite=toy_suite(), trained_on={"mine": trained}, **options)
    parts, record = hypermodel().parts, {"training_tasks": name_digests(["imdb_x"])}
    options["model"] = Hypermodel(hypermodel().config, parts.base, parts.hypernetwork_params, provenance=record)
    assert "not_recorded" not in evaluate_suite(suite=toy_suite(), **options)["run"]["config"]
    record = {"training_tasks": name_digests(["copa_a", "imdb_x"])}
    options["model"] = Hypermodel(
        hypermodel().config, parts.base, parts.hypernetwork_params, name="seen", provenance=record
    )
    with pytest.raises(DataError, match="what 'seen' was trained on holds the evaluated task 'copa_a'"):
        evaluate_suite(suite=toy_suite(), **options)


@pytest.mark.parametrize("support", ["examples", "positives"])
@pytest.mark.parametrize(("examples", "told"), [(2, True), (1, False)])
def test_one_run_tells_how_far_two_supports_of_a_task_are_apart(
    tmp_path: pathlib.Path, support: Any, examples: int, told: bool
) -> None:
    """Where as many examples are scored as a support has, which is 2."""
    options: dict[str, Any] = {"model": hypermodel(), "conditions": ["generated"], "progress": False}
    report = evaluate_suite(suite=toy_suite(support=support), examples=examples, out=str(tmp_path), **options)
    assert ("within_task_distance" in report["adapters"]) is told
    assert "between_task_distance" in report["adapters"]
    assert not told or report["adapters"]["within_task_distance"] > 0


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"official": 2}, "suite 'toy': expected at most 2 data sets, got 3"),
        ({"sources": {"all": lambda vocabulary: choice_source({"a": 5 * [("x", "0", ["0", "1"])]})}}, "of task 'a'"),
    ],
)
def test_what_no_report_can_be_made_of_is_not_run(tmp_path: pathlib.Path, changes: Any, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        evaluate_suite(model=hypermodel(), suite=toy_suite(**changes), out=str(tmp_path), progress=False)
    assert not list(tmp_path.iterdir())


def test_tasks_whose_data_set_was_trained_on_in_another_collection_are_left_out(tmp_path: pathlib.Path) -> None:
    """Under other names and in other words; a data set of the suite's own collection is its split's affair."""
    source = toy_suite().sources["held_out"](Bytes())
    infos = {name: source.info(n)._replace(data_sets=(f"p3/{name[:-2]}",)) for n, name in enumerate(SETS)}
    rows = {name: [(f"{name[0]}{i}", str(i % 2), ["0", "1"]) for i in range(10)] for name in SETS}
    suite = toy_suite(sources={"held_out": lambda vocabulary: choice_source(rows, **infos)})
    parts, seen = hypermodel().parts, {TRAINING_DATA_SETS: ["metaicl/rte", "p3/cb"]}
    model = Hypermodel(hypermodel().config, parts.base, parts.hypernetwork_params, name="seen", provenance=seen)
    options: dict[str, Any] = {"model": model, "conditions": ["bare"], "progress": False}
    report = evaluate_suite(suite=suite, out=str(tmp_path / "record"), **options)
    assert [row["task"] for row in report["per_task"]] == ["cb", "copa"]
    # Of its tasks' names it has no record.
    assert report["run"]["config"]["not_recorded"] == ["what 'seen' was trained on"]
    unknown = "No tasks are recorded, or not all, of what 'seen' was trained on: these may be among them."
    assert unknown in (tmp_path / "record" / "report.md").read_text()
    assert report["suite"]["missing"] == [
        f"left out: task '{name}': what 'seen' was trained on has its data set as metaicl/rte" for name in SETS[:2]
    ]
    assert not report["suite"]["complete"]
    words = InMemorySource.from_stream(
        [StreamedExample("any", Example.from_text("u", "v", Bytes()), TaskInfo(data_sets=("metaicl/copa",)))], Bytes()
    )
    report = evaluate_suite(suite=suite, out=str(tmp_path / "named"), trained_on={"words": words}, **options)
    assert [row["task"] for row in report["per_task"]] == ["cb"]
    model.parts.provenance[TRAINING_DATA_SETS] += ["metaicl/copa", "natural_instructions/cb"]
    with pytest.raises(DataError, match=r"got none of 4 \(task 'rte_a': what 'seen' was trained on"):
        evaluate_suite(suite=suite, out=str(tmp_path / "none"), **options)


def test_a_task_that_one_seed_cannot_show_is_in_none(tmp_path: pathlib.Path) -> None:
    """Its figures of adapters, which compare two seeds, included."""

    def seed(*texts: str) -> InMemorySource:
        shown = [(Example(tokenise(text, Bytes()), tokenise("0", Bytes())),) for text in texts]
        infos = {name: TaskInfo(positives=positives) for name, positives in zip("abc", shown, strict=True)}
        return choice_source({name: [(f"{name}{i}", "0", ["0", "1"]) for i in range(3)] for name in infos}, **infos)

    first, second = seed("p" * 60, "q", "r"), seed("s", "t", "u")
    sources = {"seed 1": lambda vocabulary: first, "seed 2": lambda vocabulary: second}
    suite = Suite("toy", sources, "tasks", 3, "accuracy", "positives", ranked="sum")
    report = evaluate_suite(
        model=hypermodel(), suite=suite, out=str(tmp_path), shots=1, conditions=["generated"], progress=False
    )
    assert [row["task"] for row in report["per_task"]] == ["b", "c"]
    assert report["suite"]["missing"] == ["left out: task 'a' has no positive example that fits 32 tokens"]
    assert report["adapters"]["within_task_distance"] > 0


def test_supports_that_repeat_are_told(tmp_path: pathlib.Path) -> None:
    """Three positives are one support of three, whatever the draw."""
    options: dict[str, Any] = {"model": hypermodel(), "conditions": ["bare"], "support": "positives", "progress": False}
    for shots, draws, told in ((3, 3, "8 of 12 supports are one of the same task's before"), (3, 1, None)):
        report = evaluate_suite(
            suite=toy_suite(support="positives"), shots=shots, draws=draws, out=str(tmp_path / str(draws)), **options
        )
        found = [line.partition(":")[0] for line in report["suite"]["missing"] if "before" in line]
        assert found == ([told] if told else [])


@pytest.mark.parametrize(
    ("official", "told"), [(64, ["1 of 4 inputs are cut to 16 tokens, the suite has 64"]), (16, [])]
)
def test_inputs_that_are_cut_shorter_than_the_suite_cuts_them_are_told(
    tmp_path: pathlib.Path, official: int, told: list[str]
) -> None:
    """With their end of sequence, 16 tokens fit."""
    shown = [Example(tokenise(f"p{i}", Bytes()), tokenise(str(i), Bytes())) for i in range(2)]
    rows = {"one": [(text, "0", ["0", "1"]) for text in ("a" * 15, "b" * 16, "c", "d")]}
    source = choice_source(rows, one=TaskInfo(positives=tuple(shown)))
    sources = {"held_out": lambda vocabulary: source}
    suite = Suite("toy", sources, "tasks", 1, "accuracy", "positives", ranked="sum", inputs_length=official)
    report = evaluate_suite(model=hypermodel(), suite=suite, out=str(tmp_path), conditions=["bare"], progress=False)
    assert report["suite"]["missing"] == told
    assert report["suite"]["complete"] is not bool(told)


@pytest.mark.parametrize(
    ("official", "told"),
    [(16, ["1 of 3 answers are longer than the 8 tokens that are generated, the suite generates 16"]), (8, [])],
)
def test_answers_longer_than_what_is_generated_are_told(tmp_path: pathlib.Path, official: int, told: list[str]) -> None:
    """8 tokens are, which need not end in one of end of sequence."""
    shown = [Example(tokenise(f"p{i}", Bytes()), tokenise(str(i), Bytes())) for i in range(2)]
    rows = {"one": [("a", "a" * 8, []), ("b", "b" * 9, []), ("c", "", [])]}
    source = choice_source(rows, one=TaskInfo(positives=tuple(shown)))
    sources = {"test": lambda vocabulary: source}
    suite = Suite("toy", sources, "tasks", 1, "exact_match", "positives", targets_length=official)
    report = evaluate_suite(model=hypermodel(), suite=suite, out=str(tmp_path), conditions=["bare"], progress=False)
    assert report["suite"]["missing"] == told
    assert report["suite"]["complete"] is not bool(told)


def test_definitions_that_are_cut_are_told(tmp_path: pathlib.Path) -> None:
    """In a suite and, where the model's own rule is to cut them, in a mixture; 31 tokens and their end fill a row."""
    made = hypermodel()
    episodes = made.config.episodes.replace(definition="support", too_long="truncate")
    model = Hypermodel(
        dataclasses.replace(made.config, episodes=episodes), made.base_params, made.parts.hypernetwork_params
    )
    rows = {name: [(f"{name}{i}", "0", ["0", "1"]) for i in range(4)] for name in "ab"}
    source = choice_source(rows, a=TaskInfo(tokenise("a" * 31, Bytes())), b=TaskInfo(tokenise("b" * 32, Bytes())))
    suite = Suite("toy", {"all": lambda vocabulary: source}, "tasks", 2, "accuracy", ranked="sum")
    options: dict[str, Any] = {"model": model, "conditions": ["bare"], "progress": False}
    report = evaluate_suite(suite=suite, out=str(tmp_path / "suite"), **options)
    assert report["suite"]["missing"] == ["1 of 2 supports are not read whole, a row has 32 tokens"]
    evaluate(source=source, out=str(tmp_path / "mixture"), **options)
    page = (tmp_path / "mixture" / "report.md").read_text()
    assert "Not read whole: the supports of 1 of 2 tasks, a row has 32 tokens." in page


def test_a_shared_adapter_that_saw_a_test_task_is_refused(tmp_path: pathlib.Path) -> None:
    model = hypermodel()
    adapter = model.adapt([("a", "0"), ("b", "1")])
    seen = dataclasses.replace(adapter.metadata, provenance={"training_tasks": name_digests(["copa_a"])})
    dataclasses.replace(adapter, metadata=seen).save(tmp_path / "shared")
    with pytest.raises(
        DataError, match=r"the shared adapter '.*shared' was trained on holds the evaluated task 'copa_a'"
    ):
        evaluate_suite(
            model=model, suite=toy_suite(), out=str(tmp_path / "out"), shared=str(tmp_path / "shared"), progress=False
        )


@pytest.mark.parametrize(("place", "runs"), [("support", 1), ("both", 2)])
def test_a_shared_adapter_is_asked_again_where_its_inputs_show_another_support(
    place: Any, runs: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the second draw has nothing new for it, and its answers are repeated."""
    made = hypermodel()
    episodes = made.config.episodes.replace(demonstrations=place, inputs_length=48)
    config = dataclasses.replace(made.config, episodes=episodes)
    model = Hypermodel(config, made.base_params, made.parts.hypernetwork_params)
    adapter = made.adapt([("a", "0"), ("b", "1")])
    adapter.save(tmp_path / "shared")
    asked, original = [], Conditions.shared
    monkeypatch.setattr(Conditions, "shared", lambda *args: [asked.append(1), original(*args)][1])
    options: dict[str, Any] = {"shared": str(tmp_path / "shared"), "conditions": ["shared"], "progress": False}
    evaluate_suite(model=model, suite=toy_suite(), draws=2, out=str(tmp_path / "out"), **options)
    assert len(asked) == runs


@pytest.mark.parametrize(("definitions", "runs"), [(("say it", "say it"), 1), (("say it", "do not say it"), 2)])
def test_an_instruction_is_asked_again_where_runs_word_it_differently(
    definitions: tuple[str, str], runs: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same inputs; else the first wording's answers stood for every wording."""
    rows = {"one": [(f"{i}", "0", ["0", "1"]) for i in range(4)]}
    given = [choice_source(rows, one=TaskInfo(tokenise(definition, Bytes()))) for definition in definitions]
    sources = {f"wording {n}": lambda vocabulary, source=source: source for n, source in enumerate(given)}
    asked, original = [], Conditions.instruction
    monkeypatch.setattr(Conditions, "instruction", lambda *args: [asked.append(1), original(*args)][1])
    suite = Suite("toy", sources, "tasks", 1, "accuracy", ranked="sum")
    evaluate_suite(
        model=hypermodel(), suite=suite, out=str(tmp_path), shots=1, conditions=["instruction"], progress=False
    )
    assert len(asked) == runs


@pytest.mark.parametrize("name", ["mtf", "mtf_zero_shot"])
@pytest.mark.parametrize("form", ["t5", "hypermodel"])
def test_a_fine_tuned_t5_that_saw_a_test_task_is_refused(name: str, form: str, tmp_path: pathlib.Path) -> None:
    model = hypermodel()
    config, seen = model.config, {"training_tasks": name_digests(["copa_a"])}
    if form == "t5":
        save_t5(tmp_path / "mtf", model.base_params, config.base, config.vocabulary, provenance=seen)
    else:
        save_model_directory(tmp_path / "mtf", dataclasses.replace(model.parts, provenance=seen))
    with pytest.raises(DataError, match=r"the fine-tuned T5 '.*mtf' was trained on holds the evaluated task 'copa_a'"):
        evaluate_suite(
            model=model, suite=toy_suite(), out=str(tmp_path / "out"), **{name: str(tmp_path / "mtf")}, progress=False
        )


def test_as_many_as_there_are_is_no_part(tmp_path: pathlib.Path) -> None:
    options = {"model": hypermodel(), "suite": toy_suite(), "conditions": ["bare"], "progress": False}
    whole, all_named = (
        evaluate_suite(out=str(tmp_path / name), **options, **asked)
        for name, asked in (("whole", {}), ("named", {"tasks": 10**6, "examples": 10**6}))
    )
    assert all_named["suite"] == whole["suite"]


def test_what_was_asked_for_is_said(tmp_path: pathlib.Path) -> None:
    suite = toy_suite(support="positives", shots=3, grouped=False, official=4)
    report = evaluate_suite(
        model=hypermodel(), suite=suite, out=str(tmp_path), conditions=["bare"], examples=3, shots=4, progress=False
    )
    assert report["suite"]["missing"] == [
        "only 3 examples were asked for",
        "4 shots, the suite shows 3",
        "4 of 4 supports have fewer than 4 shots: the others do not fit or are not there",
    ]
    assert report["run"]["config"]["inputs_cut"] == "0 of 12"
    assert {row["n_examples"] for row in report["per_task"]} == {3}
    assert {row["category"]: row["n_tasks"] for row in report["categories"]} == {"cb": 1, "copa": 1, "rte": 2}
    assert np.isclose(report["conditions"]["bare"]["mean"], np.mean([r["scores"]["bare"] for r in report["per_task"]]))
