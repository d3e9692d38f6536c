"""The examples in the docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = (
    "batches",
    "cache",
    "draws",
    "hyperpretraining",
    "episodes",
    "examples",
    "jsonl",
    "registry",
    "rendering",
    "text",
    "vocabularies",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"hyperflax.data.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
