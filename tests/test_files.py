"""Files and directories that appear whole or not at all."""

from __future__ import annotations

import os
import pathlib
import stat

import pytest
import tensorstore

from hyperflax import buckets, files, json_files
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


def test_no_directory_takes_the_place_of_a_mount_point(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path / "out")
    for asked in (files.require_directory_place, lambda path: files.atomic_directory(path).__enter__()):
        with pytest.raises(CheckpointError, match=r"out: a file system is mounted there.*; name a folder inside it"):
            asked(tmp_path / "out")
    with files.atomic_directory(tmp_path / "out" / "model") as temporary:
        write_two(temporary, "x")
    assert names(tmp_path / "out" / "model") == ["one", "two"]


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
    json_files.write_json(tmp_path / "link", {"a": 1})
    assert os.path.islink(tmp_path / "link")
    assert json_files.read_json(tmp_path / "target") == {"a": 1}
    os.mkfifo(tmp_path / "pipe")
    reader, writer = os.pipe()  # which has no name where /dev/stdout leads to one
    for place in (tmp_path / "pipe", "/dev/null", f"/dev/fd/{writer}"):
        for write in (files.require_file_place, lambda path: json_files.write_json(path, [1])):
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
            json_files.write_json(temporary / "three.json", {"text": text})

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
