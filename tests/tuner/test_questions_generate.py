"""The data set on the disk: the split, no question twice, whole or not at all."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import json
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyperflax.data.jsonl import read_lines
from hyperflax.errors import CheckpointError, DataError
from hyperflax.tuner.questions import Extraction, Fact, Pair, Rules, Text, generate, read_text
from hyperflax.tuner.questions.facts import digest, normalise
from hyperflax.tuner.questions.generate import SPLITS, assign, require_disjoint

TEXT = Text(
    "sky", "Io orbits Jupiter. Pluto was discovered in 1930. The sky was dark. Mars is the fourth planet from the Sun."
)


@dataclasses.dataclass(frozen=True)
class Numbered:
    """An extractor whose facts are the lines of a text, and whose questions follow a rule that a test chooses."""

    questions: Any = lambda fact: [f"{fact.statement} {number}?" for number in range(12)]

    def describe(self) -> dict[str, Any]:
        return {"name": "numbered"}

    def facts(self, text: Text) -> Extraction:
        return Extraction([Fact(line, text.name) for line in text.content.splitlines()])

    def pairs(self, fact: Fact) -> Sequence[Pair]:
        return [Pair(question, "answer", fact.id) for question in self.questions(fact)]


def rows(folder: pathlib.Path, split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text("utf-8").splitlines()]


def test_files_and_what_they_say(tmp_path: pathlib.Path) -> None:
    told: list[str] = []
    report = generate([TEXT], Rules(), tmp_path / "out", seed=3, say=told.append)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "questions.json",
        "test.jsonl",
        "train.jsonl",
        "validation.jsonl",
    ]
    assert json.loads((tmp_path / "out/questions.json").read_text("utf-8")) == report
    assert report["pairs"] == {"train": 30, "validation": 3, "test": 3}
    assert report["texts"] == [
        {"name": "sky", "sha256": digest(TEXT.content), "facts": 3, "unread": ["The sky was dark."]}
    ]
    assert told == ["sky: 3 facts, 1 sentences not read", "  not read: The sky was dark."]
    for split in SPLITS:
        data = (tmp_path / f"out/{split}.jsonl").read_text("utf-8")
        assert report["sha256"][split] == digest(data)
        found = rows(tmp_path / "out", split)
        assert {row["fact"] for row in found} == set(report["facts"])
        # The files are what `hyperflax finetune` reads.
        lines = read_lines(tmp_path / f"out/{split}.jsonl")
        assert [line[1:] for line in lines] == [(row["input"], row["target"]) for row in found]
    by_fact = {row["fact"]: row["target"] for row in rows(tmp_path / "out", "test")}
    assert by_fact[Fact("Pluto was discovered in 1930.", "sky").id] == "1930"


@given(st.lists(st.text("abcdef", min_size=1), min_size=1, max_size=8, unique=True), st.integers(0, 2**40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
def test_ten_one_and_one_of_each_fact_and_no_question_twice(
    tmp_path: pathlib.Path, names: list[str], seed: int
) -> None:
    out = tmp_path / f"{digest(repr((names, seed)))[:16]}"
    generate([Text("a", "\n".join(names))], Numbered(), out, seed=seed)
    counts = {split: Counter(row["fact"] for row in rows(out, split)) for split in SPLITS}
    facts = {Fact(name, "a").id for name in names}
    assert counts == {split: dict.fromkeys(facts, 10 if split == "train" else 1) for split in SPLITS}
    asked = [normalise(row["input"]) for split in SPLITS for row in rows(out, split)]
    assert len(set(asked)) == len(asked) == 12 * len(names)


@settings(deadline=None)
@given(st.from_regex(r"[0-9a-f]{12}", fullmatch=True), st.integers(0, 2**63))
def test_the_split_of_a_fact(fact_id: str, seed: int) -> None:
    splits = assign(fact_id, seed)
    assert Counter(splits) == {"train": 10, "validation": 1, "test": 1}
    assert splits == assign(fact_id, seed)


def test_every_wording_is_the_tested_one_about_equally_often() -> None:
    """Chi-square of 12,000 draws over the 132 ordered pairs of wordings; 131 degrees, p = 1e-6 at 219."""
    drawn = Counter(
        (splits.index("validation"), splits.index("test")) for splits in (assign(f"{n:x}", 0) for n in range(12000))
    )
    assert len(drawn) == 132
    expected = 12000 / 132
    assert sum((count - expected) ** 2 / expected for count in drawn.values()) < 219


def test_equal_arguments_give_equal_bytes_and_another_seed_another_split(tmp_path: pathlib.Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        generate([TEXT], Rules(), tmp_path / name, seed=seed)
    for file in ("train.jsonl", "validation.jsonl", "test.jsonl", "questions.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert (tmp_path / "a/test.jsonl").read_bytes() != (tmp_path / "c/test.jsonl").read_bytes()


def test_a_further_text_changes_nothing_about_the_first(tmp_path: pathlib.Path) -> None:
    generate([TEXT], Rules(), tmp_path / "one")
    generate([Text("more", "Oslo is the capital of Norway."), TEXT], Rules(), tmp_path / "two")
    for split in SPLITS:
        one, two = rows(tmp_path / "one", split), rows(tmp_path / "two", split)
        assert two[len(two) - len(one) :] == one


def test_a_limit_draws_facts_whose_questions_are_those_of_the_whole(tmp_path: pathlib.Path) -> None:
    text = Text("a", "\n".join(f"fact {number}" for number in range(9)))
    whole = generate([text], Numbered(), tmp_path / "whole")
    drawn = [generate([text], Numbered(), tmp_path / f"{seed}", seed=seed, limit=3)["facts"] for seed in (0, 1)]
    assert [len(facts) for facts in drawn] == [3, 3]
    assert drawn[0] != drawn[1]
    assert all(facts.items() <= whole["facts"].items() for facts in drawn)
    told = {split: (tmp_path / "whole" / f"{split}.jsonl").read_text().splitlines() for split in SPLITS}
    for split in SPLITS:
        assert set((tmp_path / "0" / f"{split}.jsonl").read_text().splitlines()) <= set(told[split])
    assert generate([text], Numbered(), tmp_path / "all", limit=100)["facts"] == whole["facts"]
    with pytest.raises(DataError, match="a limit of at least one fact, got 0"):
        generate([text], Numbered(), tmp_path / "none", limit=0)


def test_a_fact_of_two_texts_is_asked_for_once(tmp_path: pathlib.Path) -> None:
    texts = [Text("a", "Io orbits Jupiter."), Text("b", "Rhea orbits Saturn. Io  orbits\nJupiter. Io orbits Jupiter.")]
    report = generate(texts, Rules(), tmp_path / "out")
    assert [(fact["statement"], fact["sources"]) for fact in report["facts"].values()] == [
        ("Io orbits Jupiter.", ["a", "b"]),
        ("Rhea orbits Saturn.", ["b"]),
    ]
    assert report["pairs"] == {"train": 20, "validation": 2, "test": 2}


def test_a_fact_that_asks_as_an_earlier_one_is_left_out_and_told(tmp_path: pathlib.Path) -> None:
    told: list[str] = []
    text = Text("a", "The Danube flows into the Black Sea. The Danube flows into Romania.")
    report = generate([text], Rules(), tmp_path / "out", say=told.append)
    assert report["left_out"] == ["The Danube flows into Romania."]
    assert report["pairs"] == {"train": 10, "validation": 1, "test": 1}
    assert "left out, asks as an earlier fact does (What does the Danube flow into?): The Danube" in told[-1]


def test_one_shared_question_is_enough_to_be_left_out(tmp_path: pathlib.Path) -> None:
    shared = Numbered(lambda fact: [f"{fact.statement} {number}" for number in range(11)] + ["What is the SAME?"])
    report = generate([Text("a", "one\ntwo")], shared, tmp_path / "out")
    assert report["left_out"] == ["two"]


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        (lambda fact: ["Who?"] * 12, r"expected 12 different questions, got 'Who\?' twice"),
        (lambda fact: [f"{n}" for n in range(11)], "expected 12 pairs, got 11"),
        (lambda fact: [f"{n}" for n in range(11)] + ["  10!"], "got '  10!' twice"),
        (lambda fact: [f"{n}" for n in range(11)] + ["?!"], "expected a question and an answer about it"),
    ],
)
def test_an_extractor_that_breaks_its_promise(tmp_path: pathlib.Path, questions: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"^fact 'one': .*{message}"):
        generate([Text("a", "one")], Numbered(questions), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_occupied_folder_is_refused_before_anything_is_asked(tmp_path: pathlib.Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")

    class Unasked(Numbered):
        def facts(self, text: Text) -> Extraction:
            raise AssertionError("asked")

    with pytest.raises(CheckpointError, match="already exists"):
        generate([TEXT], Unasked(), tmp_path / "out")


def test_nothing_to_ask_about(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match="expected at least one text"):
        generate([], Rules(), tmp_path / "out")
    with pytest.raises(DataError, match=r"^a, b: no fact was read \(2 sentences were not\)"):
        generate([Text("a", "Hello. Goodbye."), Text("b", "")], Rules(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_contamination_is_found() -> None:
    one, other = Pair("Who is it?", "a", "1"), Pair("who is it", "b", "2")
    require_disjoint({"train": [one], "test": []})
    with pytest.raises(DataError, match=r"^test: the question 'who is it' stands in train, too"):
        require_disjoint({"train": [one], "test": [other]})
    with pytest.raises(DataError, match="stands in train, too"):
        require_disjoint({"train": [one, one], "test": []})


def test_what_makes_two_wordings_one() -> None:
    assert normalise("What's the “unit”  of force?") == normalise("what s the unit of Force")
    assert normalise("A well-known star?") == normalise("a well known STAR")
    assert len({normalise(name) for name in ("C", "C++", "C#", "-1", "1", "1.5", "15")}) == 7


def test_texts_are_read_from_files(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffIo orbits Jupiter.\r\n".encode())
    assert read_text(tmp_path / "a.txt") == Text("a", "Io orbits Jupiter.\r\n")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"b\.txt: expected UTF-8 text"):
        read_text(tmp_path / "b.txt")
    with pytest.raises(DataError, match=r"c\.txt: expected a file, found nothing"):
        read_text(tmp_path / "c.txt")


@pytest.mark.parametrize("module", ["facts", "replies", "generate", "rules"])
def test_examples_in_docstrings(module: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"Rules": Rules, "Text": Text, "Fact": Fact}
    found = importlib.import_module(f"hyperflax.tuner.questions.{module}")
    result = doctest.testmod(found, extraglobs=names)
    assert result.attempted > 0
    assert result.failed == 0
