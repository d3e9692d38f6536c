"""Adapters that a service made are there again, whole or not at all, and found under what they were made of."""

from __future__ import annotations

import json
import os
import pathlib
import time
from typing import Any

import numpy as np
import pytest

from hyperflax import files, trees
from hyperflax.errors import CheckpointError
from hyperflax.serving.store import AdapterStore, Made, NotSaved, UnknownAdapter
from tests.evaluation.micro import hypermodel

PAIRS = [("ab", "AB"), ("cd", "CD")]
KEY = AdapterStore.identify("model", "base", PAIRS)


def listed(store: AdapterStore) -> list[str]:
    return store.listed.result(60).page(1000).ids


def refuse(patch: pytest.MonkeyPatch, call: str, below: pathlib.Path) -> None:
    """Has the system refuse one of its calls for all that lies there: permissions do not bind everybody."""
    found = getattr(os, call)

    def denied(path: Any, *arguments: Any, **options: Any) -> Any:
        if str(path).startswith(str(below)):
            raise PermissionError(13, "Permission denied", str(path))
        return found(path, *arguments, **options)

    patch.setattr(os, call, denied)


def test_what_was_saved_is_there_for_the_next_one(tmp_path: pathlib.Path) -> None:
    adapter = hypermodel().adapt(PAIRS)
    made = Made(KEY, examples=2, definition="upper", refine_steps=3, warnings=["1 of 2"], estimate={"advice": "use"})
    AdapterStore(tmp_path / "new" / "folder").save(made, adapter)
    again = AdapterStore(tmp_path / "new" / "folder")
    assert listed(again) == [KEY]
    assert again.about(KEY) == made
    for path, leaf in trees.flatten(again.load(KEY).tree).items():
        np.testing.assert_array_equal(leaf, trees.flatten(adapter.tree)[path])
    assert again.files(KEY) == {
        name: (tmp_path / "new" / "folder" / KEY / name).read_bytes()
        for name in ("adapter.json", "adapter.safetensors")
    }
    again.remove(KEY)
    assert listed(again) == []
    with pytest.raises(UnknownAdapter, match=KEY):
        again.about(KEY)


def test_what_an_earlier_version_made_is_read(tmp_path: pathlib.Path) -> None:
    store = AdapterStore(tmp_path)
    store.save(Made(KEY, examples=2), hypermodel().adapt(PAIRS))
    fields = {"examples": 2, "definition": None, "refine_steps": 0, "supports": 1, "created": 1.5, "estimate": None}
    document = {"id": KEY, **fields, "format": "hyperflax-made", "schema_version": 1}
    (tmp_path / KEY / "made.json").write_text(json.dumps(document))
    assert store.about(KEY) == Made(KEY, examples=2, created=1.5)


def test_an_id_is_of_everything_that_makes_the_adapter() -> None:
    options = {"definition": None, "refine_steps": 0, "supports": 1}
    ids = {
        AdapterStore.identify("model", "base", PAIRS, **options),
        AdapterStore.identify("other", "base", PAIRS, **options),
        AdapterStore.identify("model", "other", PAIRS, **options),
        AdapterStore.identify("model", "base", PAIRS[::-1], **options),
        *(AdapterStore.identify("model", "base", PAIRS, **options | {name: 2}) for name in options),
    }
    assert len(ids) == 7
    assert AdapterStore.identify("model", "base", list(PAIRS), **options) in ids


@pytest.mark.parametrize("key", ["", "..", "../" + KEY, KEY[:-1], KEY.upper() + "\n", "g" * 32])
def test_an_id_leads_nowhere_else(tmp_path: pathlib.Path, key: str) -> None:
    store = AdapterStore(tmp_path)
    store.save(Made(KEY, 2), hypermodel().adapt(PAIRS))
    assert key not in store
    for act in (store.about, store.load, store.files, store.remove):
        with pytest.raises(UnknownAdapter):
            act(key)
    assert listed(store) == [KEY]


@pytest.mark.parametrize("name", ["made.json", "adapter.json", "adapter.safetensors"])
def test_half_an_adapter_is_none(tmp_path: pathlib.Path, name: str) -> None:
    store = AdapterStore(tmp_path)
    store.save(Made(KEY, 2), hypermodel().adapt(PAIRS))
    (tmp_path / KEY / name).rename(tmp_path / "elsewhere")
    assert KEY not in store
    assert listed(store) == []


def test_what_is_removed_while_it_is_described_is_gone(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, adapter = AdapterStore(tmp_path), hypermodel().adapt(PAIRS)
    store.save(Made(KEY, 2), adapter)
    write = store._write

    def late(*arguments: Any) -> None:
        store.remove(KEY)
        write(*arguments)

    with monkeypatch.context() as raced:
        raced.setattr(store, "_write", late)
        with pytest.raises(UnknownAdapter, match=KEY):
            store.describe(Made(KEY, 2, estimate={"advice": "use"}))
    assert listed(store) == []
    assert not (tmp_path / KEY).exists()
    store.save(Made(KEY, 2), adapter)
    assert store.about(KEY).estimate is None


@pytest.mark.parametrize(("hours", "kept"), [(1, True), (25, False)])
def test_what_is_not_whole_yet_goes_when_it_is_old(tmp_path: pathlib.Path, hours: int, kept: bool) -> None:
    half, foreign = tmp_path / f".{KEY}.tmp-123-0123abcd", tmp_path / ".notes.tmp-123-0123abcd"
    then = time.time() - hours * 3600
    for folder in (half, foreign):
        folder.mkdir()
        os.utime(folder, (then, then))
    assert listed(AdapterStore(tmp_path)) == []
    assert half.exists() == kept
    assert foreign.exists()


def test_what_is_left_of_an_adapter_makes_room_for_the_next_one(tmp_path: pathlib.Path) -> None:
    store, adapter = AdapterStore(tmp_path), hypermodel().adapt(PAIRS)
    store.save(Made(KEY, 2), adapter)
    (tmp_path / KEY / "made.json").unlink()
    store.save(Made(KEY, 2, refine_steps=5), adapter)
    assert store.about(KEY).refine_steps == 5
    assert {file.name for file in (tmp_path / KEY).iterdir()} == {"adapter.json", "adapter.safetensors", "made.json"}


def test_an_interrupted_removal_leaves_no_adapter_and_no_obstacle(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, adapter = AdapterStore(tmp_path), hypermodel().adapt(PAIRS)
    store.save(Made(KEY, 2), adapter)

    def killed(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            store.remove(KEY)
    assert listed(store) == []
    assert not (tmp_path / KEY).exists()
    store.save(Made(KEY, 2), adapter)
    assert listed(store) == [KEY]
    assert len(list(tmp_path.iterdir())) == 2
    assert listed(AdapterStore(tmp_path)) == [KEY]  # the next service does away with the rest
    assert [path.name for path in tmp_path.iterdir()] == [KEY]


def test_the_newest_adapter_comes_first(tmp_path: pathlib.Path) -> None:
    store, adapter = AdapterStore(tmp_path), hypermodel().adapt(PAIRS)
    keys = ["1" * 32, "3" * 32, "2" * 32]
    for age, key in enumerate(keys):
        store.save(Made(key, 2), adapter)
        os.utime(tmp_path / key / "adapter.json", (1e9 - age, 1e9 - age))
        assert key in store
    store.describe(Made(keys[-1], 2, estimate={"advice": "use"}))  # which makes it no newer
    assert listed(store) == listed(AdapterStore(tmp_path)) == keys


def test_what_another_process_does_is_found_when_it_is_asked_for(tmp_path: pathlib.Path) -> None:
    store, other, adapter = AdapterStore(tmp_path), AdapterStore(tmp_path), hypermodel().adapt(PAIRS)
    assert listed(store) == listed(other) == []
    other.save(Made(KEY, 2), adapter)
    assert listed(store) == []
    assert store.about(KEY).examples == 2
    assert listed(store) == [KEY]
    other.remove(KEY)
    assert listed(store) == [KEY]
    with pytest.raises(UnknownAdapter):
        store.about(KEY)
    assert listed(store) == []


def test_a_list_is_read_once(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = AdapterStore(tmp_path)
    store.save(Made(KEY, 2), hypermodel().adapt(PAIRS))
    store.listed.result(60)

    def look(*arguments: Any, **options: Any) -> None:
        pytest.fail("a page looked at the disk")

    with monkeypatch.context() as watched:
        for name in ("stat", "scandir", "listdir"):
            watched.setattr(os, name, look)
        page = store.listed.result().page(100)
    assert page == ([KEY], None, 1)


def test_a_look_that_another_change_overtook_is_put_right(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was seen is written after somebody else has changed the disk and the list."""
    store = AdapterStore(tmp_path)
    store.listed.result(60)
    AdapterStore(tmp_path).save(Made(KEY, 2), hypermodel().adapt(PAIRS))
    put, overtaken = store._listing.put, iter([True])

    def late(key: str, created: int | None) -> None:
        if next(overtaken, False):
            store.remove(KEY)
        put(key, created)

    with monkeypatch.context() as raced:
        raced.setattr(store._listing, "put", late)
        assert KEY not in store
    assert listed(store) == []


def test_a_folder_that_cannot_be_read_is_told_to_who_asks(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.scandir", broken)
    with pytest.raises(CheckpointError, match=f"{tmp_path}: .*Input/output error"):
        listed(AdapterStore(tmp_path))


def test_an_adapter_that_cannot_be_read_keeps_nobody_from_the_others(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other, adapter = "f" * 32, hypermodel().adapt(PAIRS)
    for key in (KEY, other):
        AdapterStore(tmp_path).save(Made(key, 2), adapter)
    with monkeypatch.context() as refused:
        refuse(refused, "stat", tmp_path / other)
        store = AdapterStore(tmp_path)
        assert listed(store) == [KEY]
        for ask in (store.__contains__, store.about, store.load, store.files):
            with pytest.raises(CheckpointError, match=f"{tmp_path / other}: .*Permission denied"):
                ask(other)
        with pytest.raises(NotSaved, match="Permission denied"):
            store.remove(other)
    assert f"not listed: {tmp_path / other}: " in caplog.text
    assert listed(AdapterStore(tmp_path)) == [other, KEY]


def test_what_may_not_be_removed_stays(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = AdapterStore(tmp_path)
    store.save(Made(KEY, 2), hypermodel().adapt(PAIRS))
    with monkeypatch.context() as refused:
        refuse(refused, "rename", tmp_path / KEY)
        with pytest.raises(NotSaved, match=f"{tmp_path / KEY}: .*Permission denied"):
            store.remove(KEY)
    assert listed(store) == [KEY]
    assert store.about(KEY).examples == 2


def test_a_folder_that_may_not_be_read_and_written_in_is_no_store(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CheckpointError, match=f"{place}: expected a folder to keep adapters in"):
            AdapterStore(place)
    for missing in (os.R_OK, os.W_OK):
        with monkeypatch.context() as other_user:
            other_user.setattr(os, "access", lambda path, mode, missing=missing, **_: not mode & missing)
            with pytest.raises(CheckpointError, match=f"{tmp_path}: expected a folder to keep adapters in"):
                AdapterStore(tmp_path)


def test_a_removal_is_on_disk_before_it_is_told(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = AdapterStore(tmp_path)
    store.save(Made(KEY, 2), hypermodel().adapt(PAIRS))
    flushed = []
    monkeypatch.setattr("hyperflax.serving.store.fsync", lambda folder: flushed.append((folder, KEY in store)))
    store.remove(KEY)
    assert flushed == [(tmp_path, False)]


@pytest.mark.parametrize("removed", [True, False])
def test_what_goes_while_it_is_read_is_unknown_and_what_is_broken_is_damaged(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, removed: bool
) -> None:
    store = AdapterStore(tmp_path)
    store.save(Made(KEY, 2), hypermodel().adapt(PAIRS))

    found = files.require_file

    def require_file(path: pathlib.Path) -> None:
        """Finds the file, which goes or proves broken before it is read."""
        found(path)
        if not removed:
            raise CheckpointError(f"{path}: cannot be read")
        AdapterStore(tmp_path).remove(KEY)

    monkeypatch.setattr(files, "require_file", require_file)
    with pytest.raises(UnknownAdapter if removed else CheckpointError, match=KEY):
        store.files(KEY)


def test_damage_is_named(tmp_path: pathlib.Path) -> None:
    store = AdapterStore(tmp_path)
    store.save(Made(KEY, 2), hypermodel().adapt(PAIRS))
    file = tmp_path / KEY / "made.json"
    text = file.read_text()
    for old, new, told in (
        ('"examples": 2', '"examples": -1', "examples"),
        (KEY, KEY[::-1], "key 'id'"),
        ("hyperflax-made", "other", "key 'format'"),
        ("{", "", "made.json"),
    ):
        file.write_text(text.replace(old, new, 1))
        with pytest.raises(CheckpointError, match=told):
            store.about(KEY)


def test_a_store_is_in_no_bucket() -> None:
    with pytest.raises(CheckpointError, match="gs://bucket/adapters: this is not written to a bucket"):
        AdapterStore("gs://bucket/adapters")
