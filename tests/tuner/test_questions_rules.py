"""The grammar: what is read, what is not, and that twelve questions are twelve."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperflax.errors import ConfigError, DataError
from hyperflax.tuner.questions import Fact, Rules, Text
from hyperflax.tuner.questions.facts import normalise, require_pairs, sentences
from hyperflax.tuner.questions.relation import Relation
from hyperflax.tuner.questions.relations import RELATIONS

RULES = Rules()
TWELVE = tuple(f"Question {number} about {{subject}}?" for number in range(12))


def fill(template: str, **slots: str) -> str:
    return re.sub(r"\{(\w+)(?::\w+)?\}", lambda slot: slots[slot[1]], template)


@pytest.mark.parametrize(
    ("sentence", "relation", "question", "answer"),
    [
        ("Paris is the capital of France.", "capital", "What is the capital of France?", "Paris"),
        ("The capital of France is Paris.", "capital", "What is the capital of France?", "Paris"),
        ("The Danube flows into the Black Sea.", "mouth", "What does the Danube flow into?", "Black Sea"),
        ("The Red Cross was founded in 1863.", "founded_in", "When was the Red Cross founded?", "1863"),
        (
            "Mercury orbits the Sun every 88 days.",
            "period",
            "How long does Mercury take to orbit the Sun?",
            "88 days",
        ),
        ("Io orbits Jupiter.", "orbits", "What does Io orbit?", "Jupiter"),
        (
            "The melting point of copper is 1,085 degrees.",
            "melting_point",
            "What is the melting point of copper?",
            "1,085 degrees",
        ),
        ("Mercury melts at minus 39 degrees.", "melting_point", "When does mercury turn liquid?", "minus 39 degrees"),
        (
            "Mortar consists of sand, water and cement.",
            "consists_of",
            "What is in mortar?",
            "sand, water and cement",
        ),
        ("DNA consists of nucleotides.", "consists_of", "What is in DNA?", "nucleotides"),
        ("May has 31 days.", "number_of", "How many days does May have?", "31"),
        ("A spider has 8 legs.", "number_of", "How many legs does a spider have?", "8"),
        ("Perl files end in .pl.", "file_ending", "In what do Perl files end?", ".pl"),
        ("A comment in Lisp starts with ;.", "comment", "What starts a comment in Lisp?", ";"),
        ("Emma was written by Jane Austen.", "written_by", "Who wrote Emma?", "Jane Austen"),
        ("The patron saint of Wales is David.", "attribute", "What is the patron saint of Wales?", "David"),
        ("A newt is an amphibian.", "kind", "What kind of thing is a newt?", "amphibian"),
    ],
)
def test_sentences_and_what_is_asked(sentence: str, relation: str, question: str, answer: str) -> None:
    read = RULES.read(sentence)
    assert read is not None
    assert read[0].name == relation
    pairs = RULES.pairs(Fact(sentence, "a"))
    assert {pair.answer for pair in pairs} == {answer}
    assert question in [pair.question for pair in pairs]


@pytest.mark.parametrize(
    "sentence",
    [
        "It is the capital of France.",  # what is?
        "Paris is not the capital of Spain.",
        "Paris, which is the capital of France, is old.",
        "Bonn was the capital of Germany.",
        "Paris is the capital of France and has 2 airports.",
        "Is Paris the capital of France?",
        "Chemical elements",
        "The weather was fine.",
    ],
)
def test_what_says_more_or_less_is_not_read(sentence: str) -> None:
    extraction = RULES.facts(Text("a", f"{sentence}\n\nIo orbits Jupiter."))
    assert list(extraction.unread) == [sentence]
    assert [fact.statement for fact in extraction.facts] == ["Io orbits Jupiter."]
    with pytest.raises(DataError, match="no rule reads it"):
        RULES.pairs(Fact(sentence, "a"))


def test_no_two_questions_of_the_grammar_are_equal() -> None:
    """Not within a relation, nor between two: else facts about one subject would share questions."""
    asked = [normalise(ask) for relation in RELATIONS for ask in relation.asks]
    assert len(asked) == 12 * len(RELATIONS)
    assert len(set(asked)) == len(asked)


NAMES = st.from_regex(r"[A-Z][a-z]{2,9}", fullmatch=True).filter(lambda name: name not in ("The", "Are", "Has", "Was"))
SLOTS = {
    "": "Anywhere",
    "common": "anything",
    "year": "1912",
    "number": "1,234",
    "quantity": "12 days",
    "list": "sand and water",
    "token": ".x",
}


@settings(deadline=None)
@given(st.sampled_from(RELATIONS), NAMES, st.data())
def test_every_shape_is_read_as_its_relation(relation: Relation, name: str, data: st.DataObject) -> None:
    """A sentence made of a shape gives back its value, and twelve pairs that keep the promise."""
    shape = data.draw(st.sampled_from(relation.says))
    kinds = dict(re.findall(r"\{(\w+)(?::(\w+))?\}", shape))
    slots = {slot: SLOTS[kind] for slot, kind in kinds.items()} | {"subject": name, "thing": "Parts"}
    sentence = fill(shape, **slots)
    read = RULES.read(f"{sentence}.")
    assert read is not None
    assert read[0] is relation
    assert read[1]["value"] == slots["value"]
    fact = Fact(f"{sentence}.", "a")
    pairs = require_pairs(RULES.pairs(fact), fact)
    assert all(pair.question[0].isupper() and name.casefold() in pair.question.casefold() for pair in pairs)


@settings(deadline=None)
@given(st.text())
def test_any_text_is_split_and_read_without_loss(content: str) -> None:
    """Every sentence is a fact or unread, and all words are in one of them, in order."""
    found = list(sentences(content))
    assert " ".join(found).split() == content.split()
    extraction = RULES.facts(Text("a", content))
    assert len(extraction.facts) + len(extraction.unread) == len(found)
    for fact in extraction.facts:
        require_pairs(RULES.pairs(fact), fact)


@pytest.mark.parametrize(
    ("says", "asks", "message"),
    [
        (("{value} is in {subject}",), TWELVE[:11], "expected 12 different questions, got 11"),
        (("{value} is in {subject}",), (*TWELVE[:11], "question 0, about {subject}"), "expected 12 different"),
        (("{value} is in {place}",), TWELVE, "does not fit questions about"),
        (("{value:colour} is in {subject}",), TWELVE, "does not fit questions about"),
        (("{value} is in {subject}",), (*TWELVE[:11], "Is it {value}?"), "does not fit questions about"),
    ],
)
def test_a_broken_relation_is_refused(says: tuple[str, ...], asks: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^relation 'broken': .*{message}"):
        Relation("broken", says, asks)


def test_an_own_grammar_takes_the_place_of_the_embedded_one() -> None:
    rules = Rules((Relation("guild", ("{subject} is in {value}",), TWELVE),))
    assert rules.pairs(Fact("The smith is in the town.", "a"))[3][:2] == ("Question 3 about the smith?", "town")
    assert rules.describe()["sha256"] != RULES.describe()["sha256"]
