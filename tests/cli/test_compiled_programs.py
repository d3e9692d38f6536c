"""What one command compiled, the next one reads; what the user has set stays."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import jax
import pytest

from hyperflax.cli import compiled_programs, gin_main
from hyperflax.cli import main as cli
from hyperflax.cli.compiled_programs import keep_compiled_programs, prune

COMPILE = """
import sys
from hyperflax.cli.compiled_programs import keep_compiled_programs
keep_compiled_programs()
import jax, jax.numpy as jnp
from jax._src import monitoring
hits = []
monitoring.register_event_listener(lambda event, **_: hits.append(event.rpartition("/")[2]))
jax.jit(lambda x: jnp.linalg.svd(jnp.sin(x @ x) @ x)[1])(jnp.eye(9))
print(hits.count("cache_hits"))
"""


@pytest.fixture(autouse=True)
def settings_of_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1.0")  # what JAX has by default
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def hits(home: pathlib.Path, *, first: str = "", **variables: str) -> int:
    environment = {name: value for name, value in os.environ.items() if "COMPILATION_CACHE" not in name}
    environment |= {"XDG_CACHE_HOME": str(home), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", **variables}
    out = subprocess.run(
        [sys.executable, "-c", first + COMPILE], check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    return int(out.stdout)


def test_the_next_process_compiles_nothing_again(tmp_path: pathlib.Path) -> None:
    assert hits(tmp_path) == 0
    assert any((tmp_path / "hyperflax" / "jax").iterdir())
    assert hits(tmp_path) > 0
    assert hits(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false") == 0


def test_a_process_that_has_imported_jax_already_reads_them_too(tmp_path: pathlib.Path) -> None:
    """As `python -m hyperflax.train` does before its `main` runs."""
    assert hits(tmp_path, first="import hyperflax.train") == 0
    assert hits(tmp_path, first="import hyperflax.train") > 0
    assert hits(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine"), first="import jax") == 0
    assert any((tmp_path / "mine").iterdir())


def test_the_oldest_half_goes_where_the_folder_has_grown_too_large(tmp_path: pathlib.Path) -> None:
    prune(tmp_path / "not there", 1)
    (tmp_path / "of_xla").mkdir()
    os.utime(tmp_path / "of_xla", (0, 0))
    for number in range(10):
        file = tmp_path / f"program-{number}"
        file.write_bytes(bytes(100))
        os.utime(file, (0, 1000 - number))  # program-9 is the oldest
    prune(tmp_path, 1000)
    assert len(list(tmp_path.glob("program-*"))) == 10
    prune(tmp_path, 999)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["of_xla", *(f"program-{number}" for number in range(4))]


def test_a_command_keeps_its_folder_bounded(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "hyperflax" / "jax"
    folder.mkdir(parents=True)
    (folder / "program").write_bytes(bytes(100))
    monkeypatch.setattr(compiled_programs, "MOST", 99)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    keep_compiled_programs()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(folder)
    assert not list(folder.iterdir())


def test_a_folder_that_cannot_be_listed_stops_no_command(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    keep_compiled_programs()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "file" / "hyperflax" / "jax")
    assert hits(tmp_path / "file") == 0


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    keep_compiled_programs()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "elsewhere"
    assert os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "0.1"


def test_one_of_several_processes_keeps_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Whichever way the job is started; both end with 2 here, for there is no gin file."""
    asked = []
    for module in (cli, gin_main):
        monkeypatch.setattr(module, "keep_compiled_programs", lambda: asked.append(True))
    assert cli.main(["train", "--multiprocess"]) == gin_main.main("hyperflax.train.train", ["--multiprocess"]) == 2
    assert not asked
    assert cli.main(["train"]) == gin_main.main("hyperflax.train.train", []) == 2
    assert len(asked) == 2
