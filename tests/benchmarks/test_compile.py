"""Committed results of compilations belong to the configurations as they are, and the docs show them."""

from __future__ import annotations

import itertools
import math
import pathlib
import re

import gin
import pytest

from benchmarks.compile.configs import CONFIGS
from benchmarks.compile.results import FOLDER, rendered, stale, write_result
from hyperflax.cli import gin_jobs
from hyperflax.cli.compile import STAND_INS
from hyperflax.compile.topology import parse_topology
from hyperflax.json_files import read_json, write_json

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


@pytest.mark.parametrize("run", ["hart", "hyper_t5_lora", "hyper_t5_prefix"])
def test_a_run_file_tells_the_hours_of_the_larger_sizes(run: str) -> None:
    """Those of the compiled steps, for the adapters that the file has."""
    text = (gin_jobs.shipped_folder() / f"runs/natural_instructions_{run}.gin").read_text()
    steps = int(re.search(r"^TRAIN_STEPS = (\d+)$", text, re.MULTILINE)[1])
    name = "hart_lora" if run == "hart" else run
    xl, xxl = (
        steps * read_json(FOLDER / f"{result}.json")["reports"][0]["estimate"]["step"] / 3600
        for result in (f"xl_{name}_v5e", f"xxl_{name}_v5p")
    )
    header = text.partition("from __gin__")[0].replace("\n#", "")
    assert f"XL on 256 TPU v5e chips {xl:.2g} hours, XXL on 512 v5p chips {xxl:.2g} hours" in header


@pytest.mark.parametrize("name", CONFIGS)
def test_every_mesh_is_made_of_whole_axes_of_its_slice(name: str) -> None:
    gin_jobs.parse(gin_jobs.TRAINING, CONFIGS[name].arguments(), STAND_INS)
    sizes = [gin.query_parameter("make_mesh.data"), gin.query_parameter("make_mesh.fsdp"), 1]
    _, slice_axes = parse_topology(CONFIGS[name].topology)
    shared_out = itertools.product(range(3), repeat=len(slice_axes))  # which axis of the mesh each one belongs to
    assert sizes in [
        [math.prod(size for size, place in zip(slice_axes, places, strict=True) if place == axis) for axis in range(3)]
        for places in shared_out
    ]


def test_every_configuration_has_its_own_hash() -> None:
    digests = [config.digest() for config in CONFIGS.values()]
    assert len(set(digests)) == len(digests)
