"""The examples in this room's docstrings are true."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "name", ["contamination", "controls", "intervals", "metrics", "provenance", "report", "runner"]
)
def test_examples(name: str) -> None:
    module = importlib.import_module(f"hyperflax.evaluation.{name}")
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
