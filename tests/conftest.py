"""Fixtures shared by all tests: where the reference data is."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """The folder of reference data: `HYPERFLAX_DATA`, by default `../shared/data` beside the repository."""
    path = pathlib.Path(os.environ.get("HYPERFLAX_DATA", REPOSITORY.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"reference data not found at {path}; set HYPERFLAX_DATA")
    return path


@pytest.fixture(scope="session")
def materialised(data_dir: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The reference data in the layouts in which users have it; made once per run, or taken from `HYPERFLAX_MATERIALISED`."""
    if ready := os.environ.get("HYPERFLAX_MATERIALISED"):
        return pathlib.Path(ready)
    out = tmp_path_factory.mktemp("materialised")
    subprocess.run([sys.executable, str(data_dir / "materialise.py"), str(out)], check=True)
    return out


@pytest.fixture(scope="session")
def goldens(data_dir: pathlib.Path) -> pathlib.Path:
    """Arrays computed by T5X itself."""
    return data_dir / "t5x" / "goldens"
