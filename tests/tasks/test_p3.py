"""P3: T0's split and rules, on a few lines written by hand and on the reference data."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from hyperflax.data import registry
from hyperflax.data.examples import ExampleStream
from hyperflax.data.vocabularies import Bytes, SentencePiece
from hyperflax.errors import ConfigError, DataError
from hyperflax_tasks import p3, p3_split


def write(root: pathlib.Path, file: str, *rows: dict[str, Any]) -> pathlib.Path:
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(inputs: str, target: str, *choices: str) -> dict[str, Any]:
    choice = {"answer_choices": list(choices)} if choices else {}
    return {"inputs_pretokenized": inputs, "targets_pretokenized": target, **choice}


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "p3"
    write(folder, "ag_news_classify/train.jsonl", row("Rain. Topic?", " Weather"), row("Goal. Topic?", " Sport"))
    write(folder, "super_glue_rte_must_be_true/train.jsonl", row("A, so B?", " Yes"))
    write(folder, "super_glue_rte_must_be_true/validation.jsonl", row("C, so D?\n", " No", "Yes", "No"))
    write(folder, "anli_GPT_3_style_r1/train.jsonl", row("E, so F?", " True"))
    write(folder, "rotten_tomatoes_plain/validation.jsonl", row("Fine?", "yes", "yes", "no"))
    return folder


def test_a_split_holds_its_prompt_tasks_and_no_others(root: pathlib.Path) -> None:
    assert [path.name for path in p3.prompt_tasks(root, "train")] == ["ag_news_classify"]
    assert [path.name for path in p3.prompt_tasks(root, "held_out")] == ["super_glue_rte_must_be_true"]
    with pytest.raises(DataError, match=r"expected a split out of \('train', 'held_out'\), got 'test'"):
        p3.prompt_tasks(root, "test")
    with pytest.raises(DataError, match=r"expected folders <prompt-task>/validation.jsonl .* found none"):
        p3.prompt_tasks(root / "ag_news_classify", "held_out")


def test_t0s_templates_alone_are_held_out_and_what_t0_does_not_train_on_is_left_out(tmp_path: pathlib.Path) -> None:
    for name in ("race_high_Select_the_best", "super_glue_boolq_yes_no_question", "trivia_qa_unfiltered_guess"):
        write(tmp_path, f"{name}/train.jsonl", row("x", "y"))
    write(tmp_path, "cos_e_v1.11_rationale/train.jsonl", row("x", "y"))
    assert [path.name for path in p3.prompt_tasks(tmp_path, "train")] == ["cos_e_v1.11_rationale"]
    held_out = (
        "anli_GPT_3_style_r1",
        "hellaswag_complete_first_then",
        "super_glue_copa__which_may_be_caused_by",
        "super_glue_wic_question_context_meaning",
        "super_glue_wsc.fixed_GPT_3_Style",
    )
    others = ("hellaswag_Open_ended_start", "hellaswag_complete_first_then_score_eval", "super_glue_boolq_GPT_3_Style")
    for name in (*held_out, *others):
        write(tmp_path, f"{name}/validation.jsonl", row("x", "y", "y", "n"))
    assert tuple(path.name for path in p3.prompt_tasks(tmp_path, "held_out")) == held_out
    assert [p3_split.held_out_data_set(name) for name in held_out] == [
        *("anli_dev_r1", "hellaswag", "super_glue_copa", "super_glue_wic", "super_glue_wsc_fixed")
    ]
    assert {"hellaswag: 1 of 4 templates", "super_glue_wic: 1 of 10 templates"} <= set(p3.suite(tmp_path).missing)


def test_the_source_holds_targets_choices_data_set_and_support_pool(root: pathlib.Path) -> None:
    vocabulary = Bytes()
    train = p3.p3_source(root, "train", vocabulary)
    assert (train.task_names, train.sizes.tolist()) == (("ag_news_classify",), [2])
    example = train.example(0, 1)
    assert (vocabulary.decode(example.inputs), vocabulary.decode(example.targets)) == ("Goal. Topic?", "Sport")
    assert example.options == ()
    held_out = p3.p3_source(root, "held_out", vocabulary)
    example, info = held_out.example(0, 0), held_out.info(0)
    assert (vocabulary.decode(example.inputs), vocabulary.decode(example.targets)) == ("C, so D?", "No")
    assert [vocabulary.decode(option) for option in example.options] == ["Yes", "No"]
    assert info.category == "super_glue_rte"
    assert [vocabulary.decode(positive.targets) for positive in info.positives] == ["Yes"]
    assert p3.p3_source(root, "train", vocabulary, max_examples=1).sizes.tolist() == [1]


def test_registration_needs_a_root(root: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(p3.ROOT_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match="set HYPERFLAX_P3 to a folder of prompt-tasks, got None"):
        p3.register()
    monkeypatch.setenv(p3.ROOT_VARIABLE, str(root))
    p3.register()
    try:
        assert registry.load_source("p3", vocabulary=Bytes()).sizes.tolist() == [2]
        assert registry.load_source("p3", "held_out", vocabulary=Bytes()).sizes.tolist() == [1]
        loaded = registry.sources()["p3"].splits["train"](Bytes())
        assert isinstance(loaded, ExampleStream)  # a cache of it holds nothing in memory
    finally:
        registry.unregister_source("p3")


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (row("x", "y"), r"expected at least two strings in 'answer_choices', got None"),
        (row("x", "yes", "yes"), r"expected at least two strings in 'answer_choices', got \['yes'\]"),
        (row("x", "maybe", "yes", "no"), r"expected the target to be an answer choice, got 'maybe' and \('yes',"),
        (
            {"inputs": "x", "targets": "y"},
            r"expected the strings 'inputs_pretokenized' and .*, got the keys \['inputs', 'targets'\]",
        ),
        (row("x \ud83d", "yes", "yes", "no"), r"expected Unicode text in 'inputs_pretokenized', got '.ud83d'"),
        (row("x", "yes", "yes", "\ud83d"), r"expected Unicode text in 'answer_choices', got '.ud83d'"),
    ],
)
def test_a_broken_line_is_named(tmp_path: pathlib.Path, broken: dict[str, Any], problem: str) -> None:
    path = write(tmp_path, "super_glue_cb_x/validation.jsonl", row("x", "yes", "yes", "no"), broken)
    with pytest.raises(DataError, match=rf"validation\.jsonl:2: {problem}"):
        list(p3.read_file(path, choices=True))


def test_a_file_that_is_no_json_empty_or_absent_is_named(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path, "t/train.jsonl")
    with pytest.raises(DataError, match=r"train\.jsonl: expected at least one example, got none"):
        list(p3.read_file(path, choices=False))
    path.write_text('{"inputs_pretokenized": \n')
    with pytest.raises(DataError, match=r"train\.jsonl:1: expected a JSON object"):
        list(p3.read_file(path, choices=False))
    with pytest.raises(DataError, match=r"none\.jsonl: expected a file of P3 examples"):
        list(p3.read_file(tmp_path / "none.jsonl", choices=False))


def test_nothing_is_learnt_from_an_example_without_a_target_or_an_input(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path, "trec_trec1/train.jsonl", row("Who?", " Person"), row("Why?", ""), row("", "Entity"))
    assert list(p3.read_file(path, choices=False)) == [p3.PromptExample("Who?", "Person")]
    held_out = write(tmp_path, "super_glue_cb_x/validation.jsonl", row("C, so D?", "", "Yes", ""))
    assert len(list(p3.read_file(held_out, choices=True))) == 1


def test_the_reference_data(materialised: pathlib.Path) -> None:
    """Counts as its README states them, without TREC's seven prompts, which have no targets there; templates and
    choices of the held-out data sets.
    """
    root = materialised / "p3"
    sizes: dict[str, int] = {}
    for name, _ in p3.read_split(root, "train"):
        sizes[name] = sizes.get(name, 0) + 1
    assert (len(sizes), sum(sizes.values()), max(sizes.values())) == (283 - 7, 55_185 - 7 * 200, 200)
    assert not [name for name in sizes if p3_split.held_out_data_set(name)]
    t5 = SentencePiece(materialised / "vocab" / "spiece.model")
    source = p3.p3_source(root, "held_out", t5, max_examples=2)
    templates: dict[str, int] = {}
    for task in range(len(source.task_names)):
        templates[source.info(task).category] = templates.get(source.info(task).category, 0) + 1
    assert templates == {
        name: len(p3_split.HELD_OUT[name].templates) - (name == "hellaswag")  # one of HellaSwag's four is not at hand
        for name in sorted(p3_split.HELD_OUT)
        if name not in ("anli_dev_r3", "story_cloze_2016", "super_glue_wic", "winogrande_winogrande_xl")
    }
    example = source.example(source.task_names.index("super_glue_copa_choose"), 0)
    assert [t5.decode(option) for option in example.options] == [
        "The toilet filled with water.",
        "Water flowed from the spout.",
    ]
    assert t5.decode(example.targets) == "Water flowed from the spout."


def test_the_suite_says_what_is_missing_of_it(materialised: pathlib.Path) -> None:
    found = p3.suite(materialised / "p3")
    assert (found.official, found.unit, found.support) == (11, "data sets", "examples")
    assert found.missing == (
        "the support is taken from the validation examples, which are then not scored",
        "not at hand: anli_dev_r3, story_cloze_2016, super_glue_wic, winogrande_winogrande_xl",
        "hellaswag: 3 of 4 templates",
        "hellaswag: 2,000 of 10,042 examples under Predict_ending_with_hint, too few under 2 others",
    )


def whole(root: pathlib.Path, name: str) -> None:
    """All files of a held-out data set; COPA's templates for an effect have 48 examples, those for a cause 52."""
    parts = {"As_a_result_C1_or_C2": 48, "What_could_happen_next_C1_or_C2": 48}
    parts |= {"which_may_be_caused_by": 52, "why_C1_or_C2": 52}
    for template in p3_split.HELD_OUT[name].templates:
        rows = parts.get(template, p3_split.HELD_OUT[name].examples) * [row("x", "y", "y", "n")]
        write(root, f"{name}_{template}/validation.jsonl", *rows)
        write(root, f"{name}_{template}/train.jsonl", row("x", "y"))


@pytest.mark.parametrize(
    ("name", "template", "lines", "told"),
    [
        ("super_glue_rte", "must_be_true", 20, "20 of 277 examples under must_be_true"),
        ("super_glue_copa", "choose", 60, "60 of 100 examples under choose"),
        ("super_glue_copa", "why_C1_or_C2", 51, "51 of 52 examples under why_C1_or_C2"),
    ],
)
def test_a_file_that_lacks_lines_is_told_beside_whole_ones(
    tmp_path: pathlib.Path, name: str, template: str, lines: int, told: str
) -> None:
    for one in ("super_glue_rte", "super_glue_copa"):
        whole(tmp_path, one)
    others = [one for one in p3_split.HELD_OUT if one not in ("super_glue_rte", "super_glue_copa")]
    absent = f"not at hand: {', '.join(others)}"
    assert p3.suite(tmp_path).missing == (absent,)
    write(tmp_path, f"{name}_{template}/validation.jsonl", *(lines * [row("x", "y", "y", "n")]))
    assert p3.suite(tmp_path).missing == (absent, f"{name}: {told}")


def test_support_comes_from_training_examples_where_all_have_them(root: pathlib.Path) -> None:
    found = p3.suite(root)
    assert found.support == "positives"
    assert found.missing[1:] == (
        "super_glue_rte: 1 of 10 templates",
        "super_glue_rte: 1 of 277 examples under must_be_true",
    )
    source = found.sources["held_out"](Bytes())
    assert source.task_names == ("super_glue_rte_must_be_true",)
