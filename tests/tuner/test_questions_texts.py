"""The eight texts that ship: all of them are read, and short enough for models that read bytes."""

from __future__ import annotations

import pathlib
from collections import Counter

import pytest

from hyperflax.errors import DataError
from hyperflax.tuner.questions import Rules, generate
from hyperflax_tasks import question_answer

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs/questions.md"
NAMES = ("animals", "elements", "materials", "music", "places", "planets", "programming", "units")
RULES = Rules()
# From the periodic table, an atlas and a dictionary: one a text that a slip of the grammar would change.
KNOWN = {
    "animals": ("What is a young swan called?", "cygnet"),
    "elements": ("What is the symbol of tungsten?", "W"),
    "materials": ("What is the chemical formula of glucose?", "C6H12O6"),
    "music": ("What does andante mean?", "at a walking pace"),
    "places": ("What is the capital of Australia?", "Canberra"),
    "planets": ("How long does Mars take to orbit the Sun?", "687 days"),
    "programming": ("What is the file ending of C#?", ".cs"),
    "units": ("How many yards does a mile have?", "1,760"),
}


def test_names() -> None:
    assert question_answer.names() == NAMES
    assert [text.name for text in question_answer.texts()] == list(NAMES)
    with pytest.raises(DataError, match=r"expected a text out of animals, .* got '\.\./secret'"):
        question_answer.read("../secret")


@pytest.mark.parametrize("name", NAMES)
def test_every_sentence_is_read_and_asked_for(name: str, tmp_path: pathlib.Path) -> None:
    text = question_answer.read(name)
    report = generate([text], RULES, tmp_path / name)
    assert report["texts"][0]["unread"] == report["left_out"] == []
    count = len(report["facts"])
    assert count == report["texts"][0]["facts"] >= 70  # no fact is stated twice
    assert report["pairs"] == {"train": 10 * count, "validation": count, "test": count}
    relations = Counter(RULES.read(fact.statement)[0].name for fact in RULES.facts(text).facts)
    assert len(relations) >= 5
    pairs = [pair for fact in RULES.facts(text).facts for pair in RULES.pairs(fact)]
    assert KNOWN[name] in [pair[:2] for pair in pairs]
    assert max(len(part.encode()) for pair in pairs for part in pair[:2]) <= 64
    row = f"| {name} | {count} | {10 * count} | {count} | {count} | {', '.join(relations)} |"
    assert row in PAGE.read_text("utf-8").splitlines()


def test_all_eight_make_one_data_set_without_a_clash(tmp_path: pathlib.Path) -> None:
    report = generate(question_answer.texts(), RULES, tmp_path / "all")
    assert report["left_out"] == []
    assert len(report["facts"]) == sum(row["facts"] for row in report["texts"])
