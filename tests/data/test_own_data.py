"""docs/own_data.md does what it says: its module registers, its gin file parses, the cache gives the same episodes."""

from __future__ import annotations

import json
import pathlib
import re
import sys
from collections.abc import Iterator

import gin
import numpy as np
import pytest

from hyperflax.data import commands, registry
from hyperflax.data.cache_source import CachedSource
from hyperflax.data.episodes import EpisodeConfig, Episodes
from hyperflax.data.examples import ExampleSource, InMemorySource

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "own_data.md"
CONFIG = EpisodeConfig(tasks_per_batch=3, shots=2, examples=3)


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """The reader's folder: the page's module and gin file, and enough lines of its kind."""
    (tmp_path / "my_data.py").write_text(block("python"))
    (tmp_path / "my_run.gin").write_text(block("gin"))
    lines = [json.loads(line) for line in block("json").splitlines()]
    lines += [{"task": "first letter", "input": f"{a} {a}", "target": a} for a in "cdefgh"]
    lines += [{"task": "last word", "input": f"{a} {b}", "target": b} for a, b in ("cd", "ef", "gh", "ij", "kl")]
    for split, order in (("train", lines), ("validation", lines[::-1])):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in order))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    registry.unregister_source("my_data")
    registry._REGISTERED.discard("my_data")
    sys.modules.pop("my_data", None)
    gin.clear_config()


def assert_same(a: ExampleSource, b: ExampleSource) -> None:
    first, second = (Episodes(source, CONFIG, seed=1).batch(4) for source in (a, b))
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key])


def test_the_module_and_its_cache(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row for row in commands.list_tasks(["my_data"]) if row.name == "my_data"]
    assert [(row.split, row.description) for row in rows] == [
        ("train", "my own examples"),
        ("validation", "my own examples"),
    ]
    train, validation = (registry.load_source("my_data", split) for split in ("train", "validation"))
    assert train.task_names == ("first letter", "last word")
    assert train.sizes.tolist() == [8, 6]
    monkeypatch.setattr(InMemorySource, "__init__", lambda *given, **more: pytest.fail("it is held in memory"))
    for split in ("train", "validation"):
        commands.cache_mixture("my_data", folder / "cache" / "my_data" / split, split=split, modules=["my_data"])
    assert_same(train, registry.load_source("cache/my_data"))
    assert_same(validation, registry.load_source("cache/my_data", "validation"))


def from_gin(*bindings: str) -> dict[str, ExampleSource]:
    """What the page's run would train and validate on."""
    gin.clear_config()
    gin.parse_config_files_and_bindings(["my_run.gin"], ["MODEL_DIR = 'a'", "INITIAL_CHECKPOINT_PATH = 'b'", *bindings])
    scopes = {"train": "training", "validation": "validation"}
    references = {split: gin.query_parameter(f"{scope}/episodes.Episodes.source") for split, scope in scopes.items()}
    return {split: reference.scoped_configurable_fn() for split, reference in references.items()}


def test_a_shipped_run_takes_it_by_t5x_s_names(folder: pathlib.Path) -> None:
    gin.clear_config()
    given = ["MODEL_DIR = 'a'", "INITIAL_CHECKPOINT_PATH = 'b'", "MIXTURE_OR_TASK_MODULE = 'my_data'"]
    vocabulary = ["VOCABULARY = None", "VOCABULARY_FILE = ''"]  # the source's own
    run = ["hyperflax_gin_configs/runs/p3_hypermodel.gin"]
    gin.parse_config_files_and_bindings(run, [*given, "MIXTURE_OR_TASK_NAME = 'my_data'", *vocabulary])
    source = gin.query_parameter("episodes.Episodes.source").scoped_configurable_fn()
    assert_same(source, registry.load_source("my_data"))


def test_the_gin_file(folder: pathlib.Path) -> None:
    assert "my_data" not in registry.sources()
    found = from_gin()
    assert found["train"].task_names != found["validation"].task_names
    for split, source in found.items():
        assert_same(source, registry.load_source("my_data", split))
        commands.cache_mixture("my_data", folder / "cache" / "my_data" / split, split=split)
    cached = from_gin("registry.load_source.name = 'cache/my_data'")
    for split, source in found.items():
        assert isinstance(cached[split], CachedSource)
        assert_same(source, cached[split])
