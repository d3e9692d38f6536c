"""Committed results of compilations belong to the configurations as they are, and the docs show them."""

from __future__ import annotations

import pathlib

from benchmarks.compile.configs import CONFIGS
from benchmarks.compile.results import FOLDER, rendered, stale, write_result
from hyperflax.files import read_json, write_json

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs" / "compile.md"


def test_no_result_is_stale() -> None:
    assert not stale(FOLDER)


def test_the_docs_show_the_results() -> None:
    assert rendered(FOLDER) in DOCS.read_text("utf-8")


def test_a_stale_result_is_found(tmp_path: pathlib.Path) -> None:
    write_result(tmp_path, "xl_hart_lora_v5e", [])
    assert not stale(tmp_path)
    path = tmp_path / "xl_hart_lora_v5e.json"
    write_json(path, {**read_json(path), "hash": "0" * 16})
    write_json(tmp_path / "other.json", {"hash": "x"})
    first, second = stale(tmp_path)
    assert "other.json: no configuration has this name" in first
    assert "stale, expected the hash" in second


def test_every_configuration_has_its_own_hash() -> None:
    digests = [config.digest() for config in CONFIGS.values()]
    assert len(set(digests)) == len(digests)
