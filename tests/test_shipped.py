"""The models that come with hyperflax: loaded by name, small, free of foreign paths, and doing what the docs say."""

from __future__ import annotations

import json
import pathlib
import re

import pytest

import hyperflax
from hyperflax.evaluation.conditions import Conditions
from hyperflax.evaluation.held_out import HeldOut
from hyperflax.evaluation.provenance import run_info
from hyperflax.evaluation.runner import evaluate_conditions
from hyperflax.hypermodel import Hypermodel
from hyperflax_tasks.strings.episodes import source

FOLDER = pathlib.Path(hyperflax.__file__).parent / "assets" / "strings"
MEGABYTES = 16


@pytest.fixture(scope="module")
def strings() -> Hypermodel:
    return hyperflax.load("strings")


def test_it_is_small_and_holds_nothing_but_arrays_and_text() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert sum(path.stat().st_size for path in files) < MEGABYTES * 2**20
    for path in files:
        if path.suffix == ".json":
            text = path.read_text()
            json.loads(text)
            assert not re.search(r"(?<!\w)/\w", text), "a path of the machine that made it"


def test_adapters_help_on_unseen_tasks_and_those_of_other_tasks_do_not(strings: Hypermodel) -> None:
    """A floor under the figures of docs/strings.md, on 32 held-out tasks of one or two operations."""
    tasks = source("held_out", examples=12, max_depth=2)
    held_out = HeldOut.from_source(tasks, strings.config.episodes, examples=4, tasks=32)
    conditions = Conditions(strings, held_out).pick("bare", "generated", "refined", "shuffled_support")
    table = evaluate_conditions(held_out.tasks, conditions, "exact_match", batch_size=32)
    means = {name: column["mean"] for name, column in table.report(run_info({}, seconds=0.0))["conditions"].items()}
    assert means["bare"] < 0.02
    assert means["shuffled_support"] < 0.05
    assert means["generated"] > 0.6
    assert means["refined"] > means["generated"]
