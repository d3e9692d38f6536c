"""Atomic writing, and json from strangers."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import stat

import pytest
import tensorstore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyperflax import buckets, files
from hyperflax.errors import CheckpointError


def names(folder: pathlib.Path) -> list[str]:
    return sorted(os.listdir(folder))


def content(folder: pathlib.Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def write_two(folder: pathlib.Path, text: str) -> None:
    (folder / "one").write_text(text)
    (folder / "two").write_text(text)


# Files


def test_file_appears_whole_or_not_at_all(tmp_path):
    file = tmp_path / "deep" / "file"
    with files.atomic_file(file) as temporary:
        temporary.write_text("first")
        assert not file.exists()
        assert temporary.parent == file.parent
    assert file.read_text() == "first"

    def interrupted():
        with files.atomic_file(file) as temporary:
            temporary.write_text("second, unfini")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert file.read_text() == "first"
    with files.atomic_file(file) as temporary:
        temporary.write_text("third")
    assert content(file.parent) == {"file": "third"}


def test_no_file_takes_the_place_of_a_directory(tmp_path):
    def write():
        with files.atomic_file(tmp_path) as temporary:
            pytest.fail(f"{temporary} was given out")

    with pytest.raises(CheckpointError, match=f"^{tmp_path}: expected a file or nothing, found a directory"):
        write()


# Directories


def test_directory_appears_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "deep" / "folder"
    with files.atomic_directory(folder) as temporary:
        write_two(temporary, "first")
        assert not folder.exists()
    assert content(folder) == {"one": "first", "two": "first"}
    other = tmp_path / "deep" / "other"

    def interrupted():
        with files.atomic_directory(other) as temporary:
            write_two(temporary, "second")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert names(tmp_path / "deep") == ["folder"]


def test_an_empty_directory_is_taken(tmp_path):
    (tmp_path / "folder").mkdir()
    with files.atomic_directory(tmp_path / "folder") as temporary:
        write_two(temporary, "x")
    assert names(tmp_path / "folder") == ["one", "two"]


def test_what_is_there_is_replaced_only_if_asked_and_only_our_own(tmp_path):
    folder = tmp_path / "folder"
    with files.atomic_directory(folder) as temporary:
        write_two(temporary, "old")

    def save(**options):
        with files.atomic_directory(folder, **options) as temporary:
            write_two(temporary, "new")

    with pytest.raises(CheckpointError, match="already exists"):
        save(owned=("one", "two"))
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"thesis\.txt"):
        save(overwrite=True, owned=("one", "two"))
    assert content(folder) == {"one": "old", "two": "old", "thesis.txt": "mine"}
    (folder / "thesis.txt").unlink()
    save(overwrite=True, owned=("one", "two"))
    assert content(folder) == {"one": "new", "two": "new"}
    assert names(tmp_path) == ["folder"]


def test_what_appeared_in_a_bucket_meanwhile_is_kept():
    bucket = buckets.Bucket("s3://bucket/adapter/")
    bucket.store = tensorstore.KvStore.open("memory://").result()
    whole = files.atomic_directory(buckets.BucketPath(bucket), marker="adapter.json")
    (whole.__enter__() / "adapter.json").write_text("ours")
    bucket.store.write("adapter.json", b"theirs").result()
    with pytest.raises(CheckpointError, match=r"s3://bucket/adapter: already exists"):
        whole.__exit__(None, None, None)
    assert bucket.store.read("adapter.json").result().value == b"theirs"


def test_a_file_or_link_in_the_way(tmp_path):
    (tmp_path / "file").write_text("mine")
    os.symlink(tmp_path / "nowhere", tmp_path / "link")
    for name in ("file", "link"):
        with (
            pytest.raises(CheckpointError, match=f"{name}: expected a directory"),
            files.atomic_directory(tmp_path / name, overwrite=True),
        ):
            pass
    assert names(tmp_path) == ["file", "link"]


def test_asking_for_a_place_leaves_no_trace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    for place in ("empty", "new", "deep/er/new", tmp_path / "new", "./new"):
        files.require_directory_place(place)
    for place in ("file", "new", "deep/er/new"):
        files.require_file_place(place)
    monkeypatch.chdir(tmp_path / "empty")
    files.require_directory_place(".")
    assert names(tmp_path) == ["empty", "file"]


def test_a_file_is_written_through_a_link_and_never_over_a_pipe(tmp_path):
    (tmp_path / "target").write_text("old")
    os.symlink(tmp_path / "target", tmp_path / "link")
    files.require_file_place(tmp_path / "link")
    files.write_json(tmp_path / "link", {"a": 1})
    assert os.path.islink(tmp_path / "link")
    assert files.read_json(tmp_path / "target") == {"a": 1}
    os.mkfifo(tmp_path / "pipe")
    reader, writer = os.pipe()  # which has no name where /dev/stdout leads to one
    for place in (tmp_path / "pipe", "/dev/null", f"/dev/fd/{writer}"):
        for write in (files.require_file_place, lambda path: files.write_json(path, [1])):
            with pytest.raises(CheckpointError, match="expected a file or nothing, found a device or a pipe"):
                write(place)
    os.close(reader), os.close(writer)
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
    assert names(tmp_path) == ["link", "pipe", "target"]


@pytest.mark.parametrize("after", [1, 2])
def test_an_interrupt_between_two_renames(tmp_path, monkeypatch, after):
    """Ctrl-C just after a rename: the old content is there, or the new one."""
    with files.atomic_directory(tmp_path / "folder") as temporary:
        write_two(temporary, "old")
    real, renames = os.rename, 0

    def rename(*args):
        nonlocal renames
        real(*args)
        renames += 1
        if renames == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", rename)
    with (
        pytest.raises(KeyboardInterrupt),
        files.atomic_directory(tmp_path / "folder", overwrite=True, owned=("one", "two")) as temporary,
    ):
        write_two(temporary, "new")
    assert set(content(tmp_path / "folder").values()) == {"old" if after == 1 else "new"}
    assert [name for name in names(tmp_path) if ".tmp-" in name] == []


@pytest.mark.parametrize("place", ["gs://bucket/run", "s3://bucket/run", "gs:/bucket/run"])
def test_a_folder_that_grows_is_in_no_bucket(place):
    with pytest.raises(CheckpointError, match=r"bucket/run: this is not written to a bucket; write it to a local"):
        files.local_folder(place)


@pytest.mark.parametrize("existing", [False, True])
def test_a_full_disk_at_any_moment(tmp_path, monkeypatch, existing):
    """Every flush and every rename fails once: the old content stays, or the new one is complete."""
    folder = tmp_path / "folder"
    calls, fail_at = 0, -1

    def failing(real):
        def call(*args):
            nonlocal calls
            calls += 1
            if calls == fail_at:
                raise OSError(28, "No space left on device")
            return real(*args)

        return call

    monkeypatch.setattr(files, "fsync", failing(files.fsync))
    monkeypatch.setattr(os, "rename", failing(os.rename))
    monkeypatch.setattr(os, "replace", failing(os.replace))

    def save(text):
        with files.atomic_directory(folder, overwrite=True, owned=("one", "two", "three.json")) as temporary:
            write_two(temporary, text)
            files.write_json(temporary / "three.json", {"text": text})

    fail_at, failures = 0, 0
    while True:
        if existing and not folder.exists():
            calls, fail_at = -(10**6), 0
            save("old")
        calls, fail_at = 0, failures + 1
        try:
            save("new")
        except OSError:
            failures += 1
        else:
            break
        hidden = [name for name in names(tmp_path) if name != "folder"]
        assert hidden == []
        if folder.exists():
            texts = set(content(folder).values())
            assert len(content(folder)) == 3
            assert texts in ({"old", '{\n "text": "old"\n}\n'}, {"new", '{\n "text": "new"\n}\n'})
            assert existing or "new" in texts
            if "new" in texts:
                for path in folder.iterdir():
                    path.unlink()
                folder.rmdir()
    assert failures >= 7


# Json

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
    files.write_json(tmp_path / "x.json", value)
    assert files.read_json(tmp_path / "x.json") == value


@ONE_FILE
@given(st.binary(max_size=60))
def test_any_bytes_as_json(tmp_path, data):
    (tmp_path / "x.json").write_bytes(data)
    try:
        json.loads(data.decode("utf-8")).keys()
    except (ValueError, AttributeError):
        with pytest.raises(CheckpointError, match=r"x\.json"):
            files.read_json(tmp_path / "x.json")


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
        files.read_json(tmp_path / "x.json")


def test_a_character_in_two_halves_is_one(tmp_path):
    (tmp_path / "x.json").write_text('{"a": "\\ud83d\\ude00"}')
    assert files.read_json(tmp_path / "x.json") == {"a": "\U0001f600"}


def test_a_key_given_twice_is_found_among_many(tmp_path):
    pairs = ", ".join(f'"{number}": 0' for number in [*range(200_000), 199_999])
    (tmp_path / "x.json").write_text(f"{{{pairs}}}")
    with pytest.raises(CheckpointError, match="'199999' is given twice"):  # key by key it took an hour
        files.read_json(tmp_path / "x.json")


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    files.write_json(tmp_path / "x.json", {"a": 1})
    for value in ({"a": float("nan")}, {"a": {1, 2}}, {"a": b"x"}, {"a": "\ud83d"}):
        with pytest.raises(CheckpointError, match=r"x\.json: not written"):
            files.write_json(tmp_path / "x.json", value)
    assert names(tmp_path) == ["x.json"]
    assert files.read_json(tmp_path / "x.json") == {"a": 1}


def test_a_file_too_long_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 10)
    (tmp_path / "x.json").write_text('{"a": "0123456789"}')
    with pytest.raises(CheckpointError, match="at most 10 bytes"):
        files.read_json(tmp_path / "x.json")


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
    files.write_json(file, good)
    assert files.read_schema(file, Schema, file_format="f", version=2) == Schema("f", 1, 7)
    file.write_text(json.dumps(good | changes))
    with pytest.raises(CheckpointError, match=told) as caught:
        files.read_schema(file, Schema, file_format="f", version=2)
    assert str(file) in str(caught.value)
