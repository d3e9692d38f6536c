"""Inputs, examples and hand-written tasks of strings."""

from __future__ import annotations

import hashlib
import json
import pathlib
import random
import re

import pytest

from hyperflax.errors import DataError
from hyperflax_tasks.strings import TYPES, load_handwritten, load_split, make_examples, parse, pool, probes
from hyperflax_tasks.strings.columns import Column
from hyperflax_tasks.strings.inputs import generate
from hyperflax_tasks.strings.lexicon import CITIES, FIRST_NAMES, LAST_NAMES, WORDS, Draw

SHAPES = {
    "isodate": r"\d{4}-\d\d-\d\d",
    "usdate": r"\d\d/\d\d/\d{4}",
    "eudate": r"\d\d\.\d\d\.\d{4}",
    "longdate": r"\d{1,2} [A-Z][a-z]+ \d{4}",
    "time": r"\d\d:\d\d",
    "time12": r"\d{1,2}:\d\d [AP]M",
    "email": r"[^@ ]+@[^@ ]+\.[a-z]+",
    "card": r"(\d{4} ){3}\d{4}",
    "ssn": r"\d{3}-\d\d-\d{4}",
    "code": r"[A-Z]{2,4}-\d{2,5}-[A-Z]\d{0,2}",
    "file": r"[\w\- ]+\.\w+",
    "url": r"https?://[\w.]+(/\w+)+",
    "amount": r"[$€£]\d{1,3}(,\d{3})*\.\d\d",
    "pair": r"\w+=[\w.]+",
}


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_probes_and_pools(kind: str) -> None:
    fixed, train, held_out = probes(kind), pool(kind), pool(kind, "eval")
    assert len(set(fixed)) == 64
    assert len(set(train)) == len(train) >= 900
    assert len(set(held_out)) == len(held_out) >= 400
    assert not set(train) & set(held_out)
    assert not set(fixed) & (set(train) | set(held_out))
    for text in (*fixed, *train, *held_out):
        assert 1 <= len(text.encode()) <= 64
        assert text == text.strip()
        assert text.isprintable()
    if kind in SHAPES:
        assert all(re.fullmatch(SHAPES[kind], text) for text in train)


def test_inputs_are_mostly_ascii_and_not_only() -> None:
    texts = [text for kind in TYPES for text in pool(kind)]
    share = sum(text.isascii() for text in texts) / len(texts)
    assert 0.97 < share < 1.0


def test_half_of_the_names_are_in_no_list() -> None:
    """A model must copy names; one that could learn them all by heart would not have to."""
    first, last = zip(*(text.split(" ", 1) for text in pool("name")), strict=True)
    assert 0.3 < sum(name in FIRST_NAMES for name in first) / len(first) < 0.7
    assert 0.3 < sum(name in LAST_NAMES for name in last) / len(last) < 0.7
    assert len(set(last)) > 1500
    assert min(map(len, (FIRST_NAMES, LAST_NAMES, WORDS, CITIES))) >= 100


def test_draws_rest_on_the_promised_stream() -> None:
    """`random.Random(seed).random` is the same in every version of Python; a text counts as its bytes and a hash."""
    text = b"a fixed seed"
    draw, same = Draw(text.decode()), random.Random(int.from_bytes(text + hashlib.sha512(text).digest(), "big"))
    assert [draw.random() for _ in range(3)] == [same.random() for _ in range(3)]
    assert Draw(5).random() == pytest.approx(0.6229016948897019, abs=0)
    assert sorted(Draw(1).sample(range(9), 9)) == list(range(9))


def test_unknown_type_and_pool_are_refused() -> None:
    with pytest.raises(DataError, match="input type 'planet'"):
        generate("planet", Draw(0))
    with pytest.raises(DataError, match="pool 'test'"):
        pool("name", "test")


def test_column_facts() -> None:
    column = Column(("Lovelace, Ada", "King, Bob Lee"))
    assert column.delimiters == (",",)
    assert column.pairs == (", ",)
    assert (column.least_words, column.most_words) == (2, 3)
    assert column.spaced
    assert column.has_letters
    assert not column.has_digits
    assert Column(("userName", "AB12")).humps
    assert Column(("1 2", "34")).digit_counts == {2}


@pytest.mark.parametrize("inputs", ["train", "eval"])
def test_examples_show_what_the_program_does(inputs: str) -> None:
    split = load_split()
    for program in split.train[::97] + split.held_out[::7]:
        examples = make_examples(program, 3, 20, inputs)
        assert examples == make_examples(program, 3, 20, inputs)
        assert examples != make_examples(program, 4, 20, inputs)
        assert len({text for text, _ in examples}) == 20
        assert {text for text, _ in examples} <= set(pool(program.kind, inputs))
        for text, target in examples:
            assert program.run(text) == target
            assert target
            assert target != text
            assert len(target.encode()) <= 64


def test_outputs_differ_as_long_as_they_can() -> None:
    many = make_examples(parse('email | before "@"'), 0, 30)
    assert len({target for _, target in many}) == 30
    months = make_examples(parse('isodate | date "ymd" "Month"'), 0, 30)
    assert len({target for _, target in months}) == len({target for _, target in months[:12]}) == 12


def test_too_few_examples_are_refused() -> None:
    with pytest.raises(DataError, match=r"`phrase \| lower`: 100 examples wanted"):
        make_examples(parse("phrase | lower"), 0, 100)


def test_handwritten_tasks_are_well_formed() -> None:
    tasks = load_handwritten()
    assert len(tasks) == 30 == len({task.name for task in tasks})
    for task in tasks:
        assert len(task.support) in (4, 5)
        assert len(task.test) == 6
        assert task.intent
        texts = [text for text, _ in task.support + task.test]
        assert len(set(texts)) == len(texts), f"{task.name}: an input comes twice"
        for text, target in task.support + task.test:
            assert text != target, task.name
            assert text == text.strip()
            assert target == target.strip()
            assert max(len(text.encode()), len(target.encode())) <= 64


def test_no_training_input_is_a_handwritten_one() -> None:
    written = {text for task in load_handwritten() for text, _ in task.support + task.test}
    assert not any(written & set(pool(kind)) for kind in TYPES)


def test_the_language_can_say_many_handwritten_tasks_and_not_all() -> None:
    """The hand-written tasks were made without the language in mind: some of them it cannot say at all."""
    said = {
        "surname_first": 'name | words "$2, $1"',
        "email_domain": 'email | after "@"',
        "name_from_email": 'workemail | before "@" | replace "." " " | title',
        "long_date": 'isodate | date "ymd" "d Month yyyy"',
        "mask_card": 'card | hide "*" 4',
        "clock_am_pm": "time | clock 12",
    }
    tasks = {task.name: task for task in load_handwritten()}
    for name, instruction in said.items():
        program = parse(instruction)
        assert [program.run(text) for text, _ in tasks[name].test] == [target for _, target in tasks[name].test]


@pytest.mark.parametrize("line", ["{", "[]", '{"name": "x"}', '{"name": "x", "intent": "y", "support": 3, "test": []}'])
def test_broken_handwritten_line_is_named(line: str, tmp_path: pathlib.Path) -> None:
    good = json.dumps({"name": "x", "intent": "y", "support": [{"input": "a", "target": "b"}], "test": []})
    path = tmp_path / "tasks.jsonl"
    path.write_text(f"{good}\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"tasks\.jsonl:2"):
        load_handwritten(path)
