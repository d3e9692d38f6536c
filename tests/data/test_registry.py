"""Names, modules and commands: what is found where, and what is refused."""

from __future__ import annotations

import importlib.metadata
import pathlib
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from types import ModuleType
from unittest.mock import ANY

import numpy as np
import pytest

from hyperflax.data import commands, registry
from hyperflax.data.cache_source import CachedSource
from hyperflax.data.episodes import EpisodeConfig, Episodes
from hyperflax.data.examples import Example, ExampleStream, InMemorySource, StreamedExample
from hyperflax.data.vocabularies import Bytes, Vocabulary
from hyperflax.errors import CheckpointError, ConfigError, DataError, MissingExtraError
from hyperflax_tasks import p3

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def letters(vocabulary: Vocabulary | None) -> InMemorySource:
    return InMemorySource.from_strings({"upper": [(c, c.upper()) for c in "abcdefgh"]}, vocabulary or Bytes())


@pytest.fixture
def upper() -> Iterator[str]:
    registry.register_source("test_upper", {"train": letters}, sizes=lambda: {"train": (1, 8)}, description="capitals")
    yield "test_upper"
    registry.unregister_source("test_upper")


def test_a_registered_source_is_found(upper: str) -> None:
    assert registry.load_source(upper).task_names == ("upper",)
    with pytest.raises(DataError, match=r"source 'test_upper': expected a split out of \['train'\], got 'test'"):
        registry.load_source(upper, "test")
    with pytest.raises(ConfigError, match="'test_upper': expected a new name"):
        registry.register_source(upper, {"train": letters})


def test_a_stream_is_held_where_a_source_is_asked_for_and_cached_as_it_comes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two tasks whose examples alternate; a mixture's rates go along."""

    def load(vocabulary: Vocabulary | None) -> ExampleStream:
        tokens = vocabulary or Bytes()
        examples = (Example.from_text(f"in {i}", f"out {i}", tokens) for i in range(5))
        rows = (StreamedExample(f"task {i % 2}", one, group=i % 2) for i, one in enumerate(examples))
        return ExampleStream(tokens, rows, [1.0, 3.0])

    registry.register_source("test_stream", {"train": load})
    try:
        held = registry.load_source("test_stream", vocabulary=Bytes())
        monkeypatch.setattr(InMemorySource, "__init__", lambda *given, **more: pytest.fail("it is held in memory"))
        commands.cache_mixture("test_stream", tmp_path / "cache")
    finally:
        registry.unregister_source("test_stream")
    cached = CachedSource(tmp_path / "cache")
    for source in (held, cached):
        assert (source.task_names, source.sizes.tolist()) == (("task 0", "task 1"), [3, 2])
        assert (source.groups.tolist(), source.group_rates.tolist()) == ([0, 1], [1.0, 3.0])
        assert [Bytes().decode(e.inputs.tolist()) for e in source.examples(0, range(3))] == ["in 0", "in 2", "in 4"]


def test_a_cache_is_found_by_its_folder_or_by_name(upper: str, tmp_path: pathlib.Path) -> None:
    manifest = commands.cache_mixture(upper, tmp_path / "caches" / upper / "train")
    assert manifest["origin"] == {"mixture": upper, "split": "train", "modules": []}
    folder = tmp_path / "caches" / upper
    for found in (
        registry.load_source(str(folder / "train")),
        registry.load_source(str(folder)),
        registry.load_source(upper, cache_dirs=[tmp_path / "caches"]),
    ):
        assert isinstance(found, CachedSource)
    assert registry.load_source(str(folder / "train"), "train").sizes.tolist() == [8]
    with pytest.raises(DataError, match=r"train: expected a cache of the split 'held_out', it was made of 'train'"):
        registry.load_source(str(folder / "train"), "held_out")
    with pytest.raises(
        DataError, match=r"expected tokens of Bytes\(extra_ids=7\), it has those of Bytes\(extra_ids=125\)"
    ):
        registry.load_source(str(folder), vocabulary=Bytes(extra_ids=7))


def test_where_no_cache_can_be_written_nothing_is_read(tmp_path: pathlib.Path) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(CheckpointError, match=f"{tmp_path}: already exists and is not empty"):
        commands.cache_mixture("not even looked up", tmp_path)


def test_without_seqio_an_unknown_name_is_answered_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hyperflax\[seqio\]'"):
        registry.load_source("no_such_mixture")


def test_a_mistyped_name_does_not_wait_for_tensorflow() -> None:
    program = """
import sys
from hyperflax.data import commands, registry
from hyperflax.errors import DataError
for ask in (registry.load_source, lambda name: commands.cache_mixture(name, "nowhere")):
    try:
        ask("stringz")
    except DataError as error:
        print(error)
print([name for name in ("seqio", "tensorflow") if name in sys.modules])
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    first, second, imported = told.splitlines()
    assert first == second
    assert re.match(r"'stringz': expected a token cache's folder, one of \[.*'strings'", first)
    assert imported == "[]"


def test_a_module_is_registered_where_the_name_is_not_known(upper: str) -> None:
    assert registry.load_source(upper, module="no_such_module").task_names == ("upper",)
    with pytest.raises(ConfigError, match=r"'lower', from module 'no_such_module': .* expected an importable"):
        registry.load_source("lower", module="no_such_module")


def test_modules_are_registered_once(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "once_tasks.py").write_text("calls = []\ndef register():\n    calls.append(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry.register_modules(["once_tasks"])
    registry.register_modules(["once_tasks"])
    assert sys.modules["once_tasks"].calls == [1]


@pytest.mark.parametrize("name", ["no_such_module", "", ".", "./here.py", "here.py", "../here", "/here.py", "os."])
def test_what_names_no_module_is_answered_with_how_one_is_named(
    name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    told = rf"^module '{re.escape(name)}': .* its dotted name, such as my_pkg.my_tasks, not its file, and in PYTHONPATH"
    with pytest.raises(ConfigError, match=told):
        registry.register_modules([name])


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("import os\nimport tensorflow_text_absent.x\n", 2, "No module named 'tensorflow_text_absent'"),
        ("from os import absent\n", 1, "cannot import name 'absent' from 'os'"),
        ("x = 1\ndef register(:\n", 2, "invalid syntax"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told_by_the_place(
    text: str, line: int, told: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_tasks.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    place = re.escape(f"{tmp_path / 'broken_tasks.py'}:{line}: {told}")
    with pytest.raises(ConfigError, match=f"^module 'broken_tasks': expected an importable Python module, {place}"):
        registry.register_modules(["broken_tasks"])


def test_a_module_that_needs_seqio_is_answered_with_the_command(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wants_seqio.py").write_text("import seqio\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "seqio", None)
    with pytest.raises(MissingExtraError, match=r"seqio is needed here.*pip install 'hyperflax\[seqio\]'"):
        registry.register_modules(["wants_seqio"])


def test_entry_points_are_discovered(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    plugin, calls = ModuleType("hyperflax_test_plugin"), []
    plugin.register = lambda: calls.append("module")
    plugin.other = lambda: calls.append("function")
    monkeypatch.setitem(sys.modules, "hyperflax_test_plugin", plugin)
    plugin.absent = lambda: p3.register(None)  # as a module does whose data nobody has named
    plugin.broken = lambda: calls.remove("nothing")
    monkeypatch.setitem(sys.modules, "hyperflax_silent_plugin", ModuleType("hyperflax_silent_plugin"))
    monkeypatch.delenv(p3.ROOT_VARIABLE, raising=False)
    values = {
        "c": "hyperflax_absent_plugin",
        "d": "hyperflax_test_plugin:absent",
        "e": "hyperflax_test_plugin:broken",
        "f": "hyperflax_silent_plugin",  # registers seqio tasks on import, for instance
        "a": "hyperflax_test_plugin",
        "b": "hyperflax_test_plugin:other",
    }
    points = [importlib.metadata.EntryPoint(name, value, "hyperflax.tasks") for name, value in values.items()]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points if group == "hyperflax.tasks" else [])
    registry.register_modules()
    assert calls == ["module", "function"]
    assert [message.partition(" of hyperflax.tasks is left out: ")[::2] for message in caplog.messages] == [
        ("entry point c = hyperflax_absent_plugin", "ModuleNotFoundError: No module named 'hyperflax_absent_plugin'"),
        ("entry point d = hyperflax_test_plugin:absent", ANY),
        ("entry point e = hyperflax_test_plugin:broken", "ValueError: list.remove(x): x not in list"),
    ]
    assert "is left out: ConfigError: P3: set" in caplog.text


def test_the_listing_shows_sizes(upper: str) -> None:
    row = next(row for row in commands.list_tasks() if row.name == upper)
    assert row[:5] == (upper, "train", "source", 1, 8)
    table = commands.format_listing([row, row._replace(name="x", tasks=None, examples=1234567)])
    assert table.splitlines() == [
        "name        split  kind    tasks   examples  description",
        "test_upper  train  source      1          8  capitals",
        "x           train  source      ?  1,234,567  capitals",
    ]


def test_a_cache_is_read_with_neither_tensorflow_nor_seqio(upper: str, tmp_path: pathlib.Path) -> None:
    commands.cache_mixture(upper, tmp_path / "cache")
    code = f"""
        import sys
        sys.modules.update(dict.fromkeys(["tensorflow", "seqio", "tensorflow_datasets", "tensorflow_text"]))
        import numpy as np
        from hyperflax.data.cache_source import CachedSource
        from hyperflax.data.episodes import EpisodeConfig, Episodes
        episodes = Episodes(CachedSource({str(tmp_path / "cache")!r}), EpisodeConfig(shots=2, examples=3), seed=5)
        np.savez({str(tmp_path / "batch.npz")!r}, **episodes.batch(3))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=REPOSITORY)
    expected = Episodes(letters(None), EpisodeConfig(shots=2, examples=3), seed=5).batch(3)
    with np.load(tmp_path / "batch.npz") as found:
        assert set(found) == set(expected)
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value)
