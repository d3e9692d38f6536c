"""Json files: what is written comes back, and any bytes are json or one clear error."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyperflax import json_files
from hyperflax.errors import CheckpointError

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
ONE_FILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@ONE_FILE
@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_json_round_trip(tmp_path, value):
    json_files.write_json(tmp_path / "x.json", value)
    assert json_files.read_json(tmp_path / "x.json") == value


@ONE_FILE
@given(st.binary(max_size=60))
def test_any_bytes_as_json(tmp_path, data):
    (tmp_path / "x.json").write_bytes(data)
    try:
        json.loads(data.decode("utf-8")).keys()
    except (ValueError, AttributeError):
        with pytest.raises(CheckpointError, match=r"x\.json"):
            json_files.read_json(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "expected json"),
        ("[1]", "list"),
        ('{"a": 1', "expected json"),
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "Infinity"),
        ('{"a": [-1e999]}', "-1e999 is too large a number"),
        ('{"a": {"b": 1, "b": 2}}', "'b' is given twice"),
        ('{"a": ["\\uD83d"]}', "expected json, .* surrogates not allowed"),
        ('{"a":' * 50_000, "nested too deep"),
    ],
)
def test_what_is_no_json_object(tmp_path, text, told):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(CheckpointError, match=told):
        json_files.read_json(tmp_path / "x.json")


def test_a_character_in_two_halves_is_one(tmp_path):
    (tmp_path / "x.json").write_text('{"a": "\\ud83d\\ude00"}')
    assert json_files.read_json(tmp_path / "x.json") == {"a": "\U0001f600"}


def test_a_key_given_twice_is_found_among_many(tmp_path):
    pairs = ", ".join(f'"{number}": 0' for number in [*range(200_000), 199_999])
    (tmp_path / "x.json").write_text(f"{{{pairs}}}")
    with pytest.raises(CheckpointError, match="'199999' is given twice"):  # key by key it took an hour
        json_files.read_json(tmp_path / "x.json")


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    json_files.write_json(tmp_path / "x.json", {"a": 1})
    for value in ({"a": float("nan")}, {"a": {1, 2}}, {"a": b"x"}, {"a": "\ud83d"}):
        with pytest.raises(CheckpointError, match=r"x\.json: not written"):
            json_files.write_json(tmp_path / "x.json", value)
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    assert json_files.read_json(tmp_path / "x.json") == {"a": 1}


def test_a_file_too_long_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "MAX_JSON_BYTES", 10)
    (tmp_path / "x.json").write_text('{"a": "0123456789"}')
    with pytest.raises(CheckpointError, match="at most 10 bytes"):
        json_files.read_json(tmp_path / "x.json")


@dataclasses.dataclass(frozen=True)
class Schema:
    format: str
    schema_version: int
    size: int
    note: str | None = None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"format": "other"}, "'format': expected 'f', got 'other'"),
        ({"schema_version": 3}, "newer hyperflax \\(3\\)"),
        ({"schema_version": 0}, "schema_version"),
        ({"schema_version": True}, "schema_version"),
        ({"schema_version": "1"}, "schema_version"),
        ({"size": "7"}, "size"),
        ({"size": 7.5}, "size"),
        ({"size": None}, "size"),
        ({"note": 7}, "note"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_schema_names_file_and_key(tmp_path, changes, told):
    good = {"format": "f", "schema_version": 1, "size": 7}
    file = tmp_path / "x.json"
    json_files.write_json(file, good)
    assert json_files.read_schema(file, Schema, file_format="f", version=2) == Schema("f", 1, 7)
    file.write_text(json.dumps(good | changes))
    with pytest.raises(CheckpointError, match=told) as caught:
        json_files.read_schema(file, Schema, file_format="f", version=2)
    assert str(file) in str(caught.value)
