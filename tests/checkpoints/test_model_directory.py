"""Model directories: round trips, damage, swapped parts, and interrupted writes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from hyperflax import trees
from hyperflax.checkpoints import (
    collect_files,
    documents,
    fingerprint,
    load_adapter,
    load_model_directory,
    load_tree,
    model_directory,
    rounded,
    save_model_directory,
    save_tree,
)
from hyperflax.errors import CheckpointError
from tests.checkpoints.directories import base, edit_json, model_parts
from tests.checkpoints.test_tensors import same

PLAIN = (
    "name", "t5", "hypernetwork_class", "hypernetwork_config", "spec", "vocabulary", "episode", "results", "provenance",
    "created_with", "versions", "files",
)  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    save_model_directory(tmp_path / "model", model_parts())
    return tmp_path / "model"


def refused(folder, *told: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_model_directory(folder)
    for text in told:
        assert text in str(caught.value), str(caught.value)


def test_round_trip(saved):
    found, expected = load_model_directory(saved), model_parts()
    for name in PLAIN:
        assert getattr(found, name) == getattr(expected, name), name
    assert same(found.base, expected.base)
    assert same(found.hypernetwork_params, expected.hypernetwork_params)
    assert found.base_fingerprint == expected.base_fingerprint == fingerprint(base())
    assert found.id == expected.id
    assert found.id.startswith("small@")
    names = ["base.safetensors", "hypermodel.json", "hypernetwork.safetensors", "vocabulary.model"]
    assert sorted(path.name for path in saved.iterdir()) == names


def test_a_loaded_model_is_hashed_once(saved, monkeypatch):
    hashed = []
    for module in (documents, model_directory):
        monkeypatch.setattr(module, "fingerprint", lambda tree: hashed.append(tree) or fingerprint(tree))
    found = load_model_directory(saved)
    assert (found.base_fingerprint, found.id) == (fingerprint(base()), model_parts().id)
    assert len(hashed) == 3  # base and hypernetwork, and the model that it is compared with
    del hashed[:]
    assert load_model_directory(saved, hypernetwork=False).base_fingerprint == fingerprint(base())
    assert len(hashed) == 1


def test_round_trip_in_bfloat16(tmp_path):
    returned = save_model_directory(tmp_path / "model", model_parts(), dtype="bfloat16")
    found = load_model_directory(tmp_path / "model")
    assert same(found.base, rounded(model_parts().base, "bfloat16"))
    for path, leaf in trees.flatten(found.base).items():
        assert leaf.dtype == np.float32
        given = trees.flatten(model_parts().base)[path]
        np.testing.assert_array_equal(leaf, given.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert found.base_fingerprint == returned.base_fingerprint == fingerprint(rounded(base(), "bfloat16"))
    assert found.base_fingerprint != model_parts().base_fingerprint
    assert found.id == returned.id
    again = save_model_directory(tmp_path / "again", found, dtype="bfloat16")
    assert again.base_fingerprint == found.base_fingerprint
    for name in ("base.safetensors", "hypernetwork.safetensors", "hypermodel.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


def test_a_base_in_bfloat16_stays_so(tmp_path):
    narrow = trees.map_with_path(lambda _, leaf: leaf.astype(ml_dtypes.bfloat16), base())
    save_model_directory(tmp_path / "model", model_parts(base=narrow))
    assert same(load_model_directory(tmp_path / "model").base, narrow)


def test_overwriting_takes_the_old_files_away_but_nobody_elses(saved):
    save_model_directory(saved, model_parts(files={"other.model": b"x"}), overwrite=True)
    assert load_model_directory(saved).files == {"other.model": b"x"}
    assert not (saved / "vocabulary.model").exists()
    (saved / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"notes\.txt"):
        save_model_directory(saved, model_parts(), overwrite=True)
    load_model_directory(saved)


@pytest.mark.parametrize("name", ["my vocab.model", "_spm.model", "vocabulaire-é.model"])
def test_a_vocabulary_keeps_its_files_name(tmp_path, name):
    save_model_directory(tmp_path / "model", model_parts(files={name: b"x"}))
    assert load_model_directory(tmp_path / "model").files == {name: b"x"}


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", ".hidden", "", "a\nb", "C:x"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
    with pytest.raises(CheckpointError, match="files"):
        save_model_directory(tmp_path / "model", model_parts(files={name: b"x"}))
    assert not (tmp_path / "model").exists()


def test_saving_what_could_not_be_loaded(tmp_path):
    flat = trees.flatten(base())
    del flat["encoder/encoder_norm/scale"]
    for changes, told in (
        ({"base": trees.unflatten(flat)}, "encoder/encoder_norm/scale"),
        ({"t5": {**model_parts().t5, "vocab_size": "32"}}, "vocab_size"),
        ({"t5": {**model_parts().t5, "colour": "red"}}, "colour"),
        ({"files": {"../x": b""}}, "files"),
        ({"files": {"base.safetensors": b""}}, "base.safetensors"),
        ({"name": ""}, "name"),
        ({"results": {"x": float("inf")}}, "hypermodel.json"),
        ({"hypernetwork_params": {}}, "empty"),
    ):
        with pytest.raises(CheckpointError, match=told):
            save_model_directory(tmp_path / "model", model_parts(**changes))
        assert list(tmp_path.iterdir()) == []


# Damage


def test_missing_files(saved, tmp_path):
    for name in ("hypermodel.json", "base.safetensors", "hypernetwork.safetensors", "vocabulary.model"):
        (saved / name).rename(tmp_path / name)
        refused(saved, name, "expected a file")
        (tmp_path / name).rename(saved / name)


def test_truncated_files(saved):
    for name in ("hypermodel.json", "base.safetensors", "hypernetwork.safetensors", "vocabulary.model"):
        data = (saved / name).read_bytes()
        for length in (0, len(data) // 2, len(data) - 2):
            (saved / name).write_bytes(data[:length])
            refused(saved, name)
        (saved / name).write_bytes(data)


def test_every_key_is_needed_and_typed(saved):
    original = (saved / "hypermodel.json").read_text()
    for key in json.loads(original):
        edit_json(saved / "hypermodel.json", lambda value, key=key: value.pop(key))
        refused(saved, "hypermodel.json", key)
        (saved / "hypermodel.json").write_text(original)
        edit_json(saved / "hypermodel.json", lambda value, key=key: value.update({key: 1.5}))
        refused(saved, "hypermodel.json", key)
        (saved / "hypermodel.json").write_text(original)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda value: value["t5"].update(vocab_size=33), "token_embedder/embedding"),
        (lambda value: value["t5"].update(num_heads=0), "num_heads"),
        (lambda value: value["t5"].update(emb_dim="8"), "emb_dim"),
        (lambda value: value["t5"].pop("vocab_size"), "vocab_size"),
        (lambda value: value["spec"].update(leaves=7), "leaves"),
        (lambda value: value["spec"].update(version=99), "version"),
        (lambda value: value["hypernetwork"].pop("class_name"), "class_name"),
        (lambda value: value["files"].update({"../../passwd": "sha256:" + "0" * 64}), "files"),
        (lambda value: value["files"].update({"hypermodel.json": "sha256:" + "0" * 64}), "hypermodel.json"),
        (lambda value: value["files"].update({"vocabulary.model": "sha256:" + "0" * 64}), "vocabulary.model"),
        (lambda value: value.update(base_fingerprint="sha256:" + "0" * 64), "base.safetensors"),
    ],
)
def test_json_that_does_not_fit_the_rest(saved, change, told):
    edit_json(saved / "hypermodel.json", change)
    refused(saved, str(saved), told)


def test_extra_missing_and_wrong_leaves_are_all_listed(saved):
    flat = trees.flatten(base())
    flat["encoder/extra/kernel"] = np.zeros(3, np.float32)
    del flat["encoder/encoder_norm/scale"]
    flat["decoder/logits_dense/kernel"] = flat["decoder/logits_dense/kernel"].T
    save_tree(saved / "base.safetensors", trees.unflatten(flat))
    refused(
        saved, "base.safetensors", "encoder/extra/kernel", "encoder/encoder_norm/scale", "decoder/logits_dense/kernel"
    )


def test_extra_leaf_in_the_hypernetwork(saved):
    params = load_tree(saved / "hypernetwork.safetensors")
    save_tree(saved / "hypernetwork.safetensors", {**params, "extra": np.zeros(1, np.float32)})
    refused(saved, "hypernetwork.safetensors", model_parts().hypernetwork_fingerprint)


def test_swapped_base(saved, tmp_path):
    other = model_parts(base=base(seed=7))
    save_model_directory(tmp_path / "other", other)
    shutil.copy(tmp_path / "other" / "base.safetensors", saved)
    refused(saved, "base.safetensors", model_parts().base_fingerprint, other.base_fingerprint)


def test_a_model_is_no_adapter(saved):
    with pytest.raises(CheckpointError, match=r"adapter\.json"):
        load_adapter(saved)


def test_files_of_a_vocabulary_are_collected():
    assert collect_files(lambda folder: None) == {}
    assert collect_files(lambda folder: (folder / "a.model").write_bytes(b"\0x")) == {"a.model": b"\0x"}


# Killed in the middle

KILLED = """
import json, os, pathlib, signal, sys
from hyperflax import files
from hyperflax.checkpoints import load_model_directory, save_model_directory
from hyperflax.errors import CheckpointError
from tests.checkpoints.directories import base, model_parts

root, existing = pathlib.Path(sys.argv[1]), sys.argv[2] == "existing"
old, new = model_parts(name="old", base=base(5)), model_parts(name="new")
outcomes = []
for moment in range(1, 200):
    folder = root / str(moment) / "model"
    folder.parent.mkdir()
    if existing:
        save_model_directory(folder, old)
    child = os.fork()
    if child == 0:  # a process that dies at its MOMENT-th flush, open file or rename
        calls = 0

        def watch(event, args):
            global calls
            writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
            if writes or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
                calls += 1
                if calls == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        save_model_directory(folder, new, overwrite=True)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    try:
        outcomes.append(load_model_directory(folder).name)
    except CheckpointError:
        outcomes.append(None)
    for left in folder.parent.iterdir():  # temporary folders must not pass for a model by their name
        assert left.name == "model" or left.name.startswith(".model."), left
    if os.WIFEXITED(status):
        break
print(json.dumps(outcomes))
"""


@pytest.mark.parametrize("existing", ["existing", "fresh"])
def test_killed_at_any_moment(tmp_path, existing):
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path), existing]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([".", *sys.path]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert len(outcomes) > 10
    # First the old model (or none), then perhaps one moment without any, then the new one, whole.
    before = "old" if existing == "existing" else None
    switch = outcomes.index("new")
    assert set(outcomes[switch:]) == {"new"}
    gap = outcomes[:switch].count(None) if existing == "existing" else 0
    assert gap <= 1
    assert outcomes[: switch - gap] == [before] * (switch - gap)
