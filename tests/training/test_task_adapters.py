"""Task adapters on disk and in batches: rows by name, and what does not belong together."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import save_file

from hyperflax.adapters.kinds import build_spec
from hyperflax.adapters.lora import LoRA
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.checkpoints.task_adapters import TaskAdaptersMetadata, load_task_adapters, save_task_adapters
from hyperflax.data.curriculum import Curriculum
from hyperflax.data.episodes import EpisodeConfig, Episodes
from hyperflax.data.examples import InMemorySource
from hyperflax.data.vocabularies import Bytes
from hyperflax.errors import AdapterError, CheckpointError, DataError
from hyperflax.training.task_adapters import WithTaskAdapters
from tests.adapters.micro import CONFIG, random_tree

SPEC = build_spec(LoRA(rank=2), CONFIG)
TREE = random_tree(SPEC, 0, (2,))
METADATA = TaskAdaptersMetadata(tasks=("b", "a"), base_fingerprint="sha256:" + 64 * "0", base_digest=16 * "1")
SHAPE = EpisodeConfig(tasks_per_batch=6, shots=1, examples=1, support_length=16, inputs_length=8, targets_length=8)


def source(*names: str) -> InMemorySource:
    return InMemorySource.from_strings({name: [(f"{name}{i}", "y") for i in range(5)] for name in names}, Bytes())


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    save_task_adapters(tmp_path / "tasks", TREE, SPEC, METADATA)
    return tmp_path / "tasks"


def test_what_is_saved_is_loaded(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    stored = load_task_adapters(folder)
    assert (stored.spec, stored.metadata) == (SPEC, METADATA)
    for path, leaf in SPEC.flatten(TREE).items():
        np.testing.assert_array_equal(SPEC.flatten(stored.tree)[path], leaf)
    with pytest.raises(CheckpointError, match="tasks"):
        save_task_adapters(folder, TREE, SPEC, METADATA)
    save_task_adapters(folder, TREE, SPEC, METADATA, dtype="bfloat16", overwrite=True)
    narrow = SPEC.flatten(load_task_adapters(folder).tree)
    for path, leaf in SPEC.flatten(TREE).items():
        np.testing.assert_allclose(narrow[path], leaf, rtol=2**-8)


def test_what_does_not_belong_together_is_refused(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    three = TaskAdaptersMetadata(("a", "b", "c"), METADATA.base_fingerprint, METADATA.base_digest)
    with pytest.raises(CheckpointError, match="new: expected an adapter for each of 3 tasks, got 2"):
        save_task_adapters(tmp_path / "new", TREE, SPEC, three)
    with pytest.raises(AdapterError):
        save_task_adapters(tmp_path / "new", random_tree(SPEC, 0), SPEC, METADATA)
    with pytest.raises(CheckpointError, match="new: metadata"):
        save_task_adapters(tmp_path / "new", TREE, SPEC, dataclasses.replace(METADATA, provenance={"by": object()}))
    assert not (tmp_path / "new").exists()
    document = json.loads((folder / "task_adapters.json").read_text())
    for change, told in (
        ({"tasks": ["a"]}, "expected an adapter for each of 1 tasks, got 2"),
        ({"tasks": ["a", "a"]}, "expected an adapter for each of 1 tasks, got 2"),
        ({"fingerprint": "sha256:" + 64 * "2"}, "holds other values than task_adapters.json was written with"),
        ({"spec": build_spec(LoRA(rank=3), CONFIG).to_json()}, r"does not fit the spec in task_adapters\.json"),
        ({"format": "hyperflax-adapter"}, "format"),
    ):
        (folder / "task_adapters.json").write_text(json.dumps({**document, **change}))
        with pytest.raises(CheckpointError, match=told):
            load_task_adapters(folder)
    (folder / "task_adapters.json").write_text(json.dumps({**document, "spec": AdapterSpec(()).to_json()}))
    save_file({}, folder / "task_adapters.safetensors")
    with pytest.raises(CheckpointError, match="the spec has no leaves"):
        load_task_adapters(folder)


def test_each_episode_gets_the_adapter_of_its_task(folder: pathlib.Path) -> None:
    episodes = Episodes(source("a", "b", "new"), SHAPE)
    batch = WithTaskAdapters(episodes, str(folder)).batch(3)
    plain = episodes.batch(3)
    assert {"a", "b", "new"} == {episodes.source.task_names[i] for i in plain["task_index"]}
    for name, feature in plain.items():
        np.testing.assert_array_equal(batch[name], feature)
    row = {"a": 1, "b": 0}
    for at, task in enumerate(plain["task_index"]):
        name = episodes.source.task_names[task]
        assert batch["task_adapters_known"][at] == (name in row)
        for path, leaf in SPEC.flatten(TREE).items():
            wanted = leaf[row[name]] if name in row else np.zeros_like(leaf[0])
            np.testing.assert_array_equal(batch[f"task_adapters/{path}"][at], wanted)


def test_stages_of_a_curriculum_may_load_their_tasks_each_for_itself(folder: pathlib.Path) -> None:
    stages = [Episodes(source("a", "b"), SHAPE), Episodes(source("a", "b"), SHAPE.replace(inputs_length=9))]
    batches = WithTaskAdapters(Curriculum(stages, boundaries=[1]), str(folder))
    assert [batches.batch(step)["encoder_input_tokens"].shape[-1] for step in (0, 1)] == [8, 9]
    assert batches.batch(1)["task_adapters_known"].all()
    others = Curriculum([*stages, Episodes(source("b", "a"), SHAPE)], boundaries=[1, 2])
    with pytest.raises(DataError, match="expected episodes of one list of tasks, got 2 lists"):
        WithTaskAdapters(others, str(folder)).batch(0)


def test_adapters_of_other_tasks_are_refused(folder: pathlib.Path) -> None:
    batches = WithTaskAdapters(Episodes(source("c", "d"), SHAPE), str(folder))
    with pytest.raises(DataError, match="expected adapters of the tasks that are trained on, of 'c' and 1 others; got"):
        batches.batch(0)
    with pytest.raises(DataError, match="expected episodes of one list of tasks, got 0 lists"):
        WithTaskAdapters(
            type("Bare", (), {"batch": lambda self, step: {"task_index": np.zeros(1, int)}})(), str(folder)
        ).batch(0)
