"""The strings language: every operation by hand-worked examples; spelling and parsing; what programs refuse."""

from __future__ import annotations

import pytest

from hyperflax.errors import DataError
from hyperflax_tasks.strings import FAMILIES, OPERATIONS, Program, Step, load_split, parse

# One step, an input, and what a reader of its summary writes down. None: the step makes no sense there.
CASES = [
    ("word 2", "Ada King Lovelace", "King"),
    ("word -1", "Lovelace, Ada", "Ada"),
    ("word 1", "Lovelace, Ada", "Lovelace"),
    ("word 4", "Ada King Lovelace", None),
    ("part 2", "ann.lee@web.de", "lee"),
    ("part -1", "AB-12/x", "x"),
    ("first 3", "Monday", "Mon"),
    ("first 3", "Mon", None),
    ("last 4", "5500 0000 1234", "1234"),
    ("skip 2", "ID734", "734"),
    ("cut 2", "12kg", "12"),
    ('before "@"', "ann@web@de", "ann"),
    ('before "@"', "nobody", None),
    ('after ","', "Lovelace, Ada, Lady", "Ada, Lady"),
    ('beforelast "."', "a.tar.gz", "a.tar"),
    ('afterlast "."', "a.tar.gz", "gz"),
    ('between "(" ")"', "Lamp (green) x", "green"),
    ('between "(" ")"', "Lamp (green", None),
    ('field 2 ";"', "red; green;blue", "green"),
    ('field -1 ";"', "red;green;blue", "blue"),
    ("digits", "+1 (415) 20", "141520"),
    ("letters", "AB-12c", "ABc"),
    ('initials "."', "Ada King Lovelace", "A.K.L."),
    ('initials ""', "user_name", "un"),
    ("fromword 2", "Dr. Ada Lovelace", "Ada Lovelace"),
    ("butlast", "12 Oak Street, Paris", "12 Oak Street"),
    ('words "$2, ^1."', "Ada Lovelace", "Lovelace, A."),
    ('words "$3"', "Ada Lovelace", None),
    ('parts "$3/$2/$1"', "2024-03-12", "12/03/2024"),
    ('swap "@"', "ann@web.de", "web.de@ann"),
    ('lastfirst ", "', "Ada King Lovelace", "Lovelace, Ada King"),
    ('firstlast "-"', "Ada King Lovelace", "King Lovelace-Ada"),
    ('flip "."', "12.03.2024", "2024.03.12"),
    ('join "-"', "how to  bake", "how-to-bake"),
    ('joinparts "_"', "a.b@c-d", "a_b_c_d"),
    ('replace "-" "/"', "2024-03-12", "2024/03/12"),
    ('replace "-" "/"', "20240312", None),
    ('remove "-"', "20-40-60", "204060"),
    ('insert 3 "-"', "415555", "415-555"),
    ('insert -2 ":"', "1435", "14:35"),
    ('spread "."', "ABC", "A.B.C"),
    ('humps " "', "userName12", "user Name 12"),
    ("nopunct", "St. Mary's, Kent", "St Marys Kent"),
    ("upper", "Ada", "ADA"),
    ("lower", "Ada", "ada"),
    ("title", "mary-ann o'neil KING", "Mary-Ann O'neil King"),
    ("sentence", "DISK is full", "Disk is full"),
    ("cap", "disk IS full", "Disk IS full"),
    ("camel", "Order date of", "orderDateOf"),
    ("pascal", "order_date", "OrderDate"),
    ("upword 1", "Ada Lovelace", "ADA Lovelace"),
    ("upword -1", "Ada Lovelace", "Ada LOVELACE"),
    ('prefix "Dr. "', "Who", "Dr. Who"),
    ('suffix "@x.io"', "ann", "ann@x.io"),
    ('wrap "<b>" "</b>"', "hi", "<b>hi</b>"),
    ('each "#" ""', "big news", "#big #news"),
    ('twice "-"', "ab", "ab-ab"),
    ("pad 5", "417", "00417"),
    ("pad 5", "x17", None),
    ('date "ymd" "d Month yyyy"', "2024-03-09", "9 March 2024"),
    ('date "mdy" "dd-MON-yy"', "07/04/1976", "04-JUL-76"),
    ('date "dmy" "Qq yyyy"', "31 December 2008", "Q4 2008"),
    ('date "mdy" "yyyy-mm-dd"', "May 6, 1954", "1954-05-06"),
    ('date "mdy" "yyyy"', "13/04/1976", None),
    ("clock 12", "00:05", "12:05 AM"),
    ("clock 12", "12:30", "12:30 PM"),
    ("clock 12", "on 1999-12-31 23:59", "on 1999-12-31 11:59 PM"),
    ("clock 24", "12:07 AM", "00:07"),
    ("clock 24", "1:45 PM", "13:45"),
    ('pattern "(###) ###-####"', "415.555.2671", "(415) 555-2671"),
    ('pattern "###"', "12", None),
    ('hide "*" 4', "4111 1111 1234", "**** **** 1234"),
    ('show "x" 1', "ann.lee", "axx.xxx"),
    ('thousands ","', "1234567.80", "1,234,567.80"),
    ("decimals 2", "12.3 kg", "12.30 kg"),
    ("decimals 0", "$12.99", "$12"),
    ("comma", "$1,234.50", "$1.234,50"),
    ("unpad", "03/04/2005", "3/4/2005"),
    ("clip 3", "Monday March 5", "Mon Mar 5"),
]


def _step(text: str) -> Step:
    return parse(f"phrase | {text}").steps[0]


@pytest.mark.parametrize(("step", "text", "target"), CASES, ids=[f"{s} < {t}" for s, t, _ in CASES])
def test_operation(step: str, text: str, target: str | None) -> None:
    assert _step(step).apply(text) == target


def test_every_operation_has_an_example() -> None:
    assert {_step(step).name for step, _, _ in CASES} == set(OPERATIONS)


def test_size_of_the_language() -> None:
    assert len(OPERATIONS) >= 25
    assert {op.family for op in OPERATIONS.values()} == set(FAMILIES)
    assert len(FAMILIES) == 6
    assert all(op.name == name and set(op.signature) <= set("ns") for name, op in OPERATIONS.items())


def test_stored_programs_round_trip() -> None:
    for program in load_split().train + load_split().held_out:
        assert parse(program.instruction) == program


@pytest.mark.parametrize(
    "program",
    [
        Program("name", (Step("wrap", ('"', "\\")), Step("suffix", (' | "x" ',)))),
        Program("name", (Step("replace", ("|", " | ")),)),
        Program("name", (Step("suffix", ("",)),)),
        Program("phone", (Step("insert", (-3, "€")), Step("word", (-1,)))),
    ],
)
def test_awkward_constants_round_trip(program: Program) -> None:
    assert parse(program.instruction) == program


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "input type"),
        ("planet | upper", "input type first, got 'planet'"),
        ("name", "1 to 4 operations, got 0"),
        ("name | upper | lower | upper | lower | upper", "1 to 4 operations, got 5"),
        ("name | shout", "an operation, got 'shout'"),
        ("name | word", "`word` takes 1 parameters, got 0"),
        ('name | word "2"', "expects an int"),
        ("name | suffix 2", "expects a quoted string"),
        ("name |  upper", "canonical spelling is 'name | upper'"),
        ("name | word 02", "canonical spelling is 'name | word 2'"),
        ('name | suffix "!', "expects a quoted string, got !"),
    ],
)
def test_other_spellings_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(DataError, match="instruction") as error:
        parse(text)
    assert complaint in str(error.value)


def test_pipeline_runs_left_to_right() -> None:
    program = parse('workemail | before "@" | replace "." " " | title | prefix "To: "')
    assert program.run("ada.king@web.de") == "To: Ada King"
    assert program.depth == 4
    assert program.pairs == (("before", "replace"), ("replace", "title"), ("title", "prefix"))


def test_inapplicable_and_overlong_are_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"`email \| before \"@\"`: not applicable to 'nobody'"):
        parse('email | before "@"').run("nobody")
    twice = parse('phrase | twice ""')
    assert twice.try_run("x" * 32) == "x" * 64
    assert twice.try_run("x" * 33) is None
    assert twice.try_run("é" * 16) == "é" * 32
    assert twice.try_run("é" * 17) is None, "the limit is 64 bytes, not characters"
