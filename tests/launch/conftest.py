"""A world for each test."""

from __future__ import annotations

import pathlib

import pytest

from tests.launch.worlds import World


@pytest.fixture
def world(tmp_path: pathlib.Path) -> World:
    return World(tmp_path)
