"""What one command compiled, the next one reads; what the user has set stays."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from hyperflax.cli.compiled_programs import keep_compiled_programs

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


def hits(home: pathlib.Path, **variables: str) -> int:
    environment = {name: value for name, value in os.environ.items() if "COMPILATION_CACHE" not in name}
    environment |= {"XDG_CACHE_HOME": str(home), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", **variables}
    out = subprocess.run(
        [sys.executable, "-c", COMPILE], check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    return int(out.stdout)


def test_the_next_process_compiles_nothing_again(tmp_path: pathlib.Path) -> None:
    assert hits(tmp_path) == 0
    assert any((tmp_path / "hyperflax" / "jax").iterdir())
    assert hits(tmp_path) > 0
    assert hits(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false") == 0


def test_the_folder_is_bounded(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "hyperflax" / "jax"
    hits(tmp_path)
    whole = sum(path.stat().st_size for path in folder.glob("*-cache"))
    assert len(list(folder.glob("*-cache"))) > 2
    for path in folder.iterdir():
        path.unlink()
    hits(tmp_path, JAX_COMPILATION_CACHE_MAX_SIZE=str(whole // 2))
    assert 0 < sum(path.stat().st_size for path in folder.glob("*-cache")) <= whole // 2


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_MAX_SIZE", raising=False)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    keep_compiled_programs()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "elsewhere"
    assert "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ
    assert os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "0.1"
