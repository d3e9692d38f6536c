"""The models that come with hyperflax: loaded by name, small, free of foreign paths, and doing what the docs say."""

from __future__ import annotations

import json
import pathlib
import re

import pytest

import hyperflax
from hyperflax import trees
from hyperflax.checkpoints.artefacts import check_base
from hyperflax.cli.finetune import load_start
from hyperflax.data.jsonl import Line
from hyperflax.evaluation.conditions import Conditions
from hyperflax.evaluation.held_out import HeldOut
from hyperflax.evaluation.provenance import run_info
from hyperflax.evaluation.report import read_report
from hyperflax.evaluation.runner import evaluate_conditions
from hyperflax.hypermodel import Hypermodel, find
from hyperflax.tune.bench import Bench
from hyperflax.tune.run import recommend
from hyperflax.tuner import table
from hyperflax.tuner.datasets import DataSet
from hyperflax.tuner.recommender import Recommender
from hyperflax.tuner.recorded import from_runs
from hyperflax_tasks.strings.episodes import source

ASSETS = pathlib.Path(hyperflax.__file__).parent / "assets"
FOLDER = ASSETS / "strings"
DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs"
MEGABYTES = 24
MODELS = ("strings", "strings_prefix")


@pytest.fixture(scope="module")
def strings() -> Hypermodel:
    return hyperflax.load("strings")


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Hypermodel:
    return hyperflax.load(request.param)


def test_they_are_small_and_hold_nothing_but_arrays_and_text() -> None:
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors", ".parquet"}
    assert sum(path.stat().st_size for path in files) < MEGABYTES * 2**20
    for path in files:
        if path.suffix == ".json":
            text = path.read_text()
            json.loads(text)
            assert not re.search(r"(?<!\w)/\w", text), "a path of the machine that made it"


def test_adapters_help_on_unseen_tasks_and_those_of_other_tasks_do_not(model: Hypermodel) -> None:
    """A floor under the figures of docs/strings.md, on 32 held-out tasks of one or two operations."""
    tasks = source("held_out", examples=12, max_depth=2)
    held_out = HeldOut.from_source(tasks, model.config.episodes, examples=4, tasks=32)
    conditions = Conditions(model, held_out).pick("bare", "generated", "refined", "shuffled_support")
    table = evaluate_conditions(held_out.tasks, conditions, "exact_match", batch_size=32)
    means = {name: column["mean"] for name, column in table.report(run_info({}, seconds=0.0))["conditions"].items()}
    assert means["bare"] < 0.02
    assert means["shuffled_support"] < 0.05
    assert means["generated"] > 0.6
    assert means["refined"] > means["generated"]


@pytest.mark.parametrize("name", MODELS)
def test_the_report_in_the_docs_is_of_the_model_that_ships_and_reaches_the_target(name: str) -> None:
    """85% exact match on held-out behaviour from four examples; docs/strings.md tells its figures."""
    report = read_report(DOCS / "reports" / name)
    settings = report["run"]["config"]
    assert settings["model"] == hyperflax.load(name).parts.id, "of another model: evaluate it again"
    assert (report["metric"], report["n_tasks"], settings["episodes"]["shots"]) == ("exact_match", 600, 4)
    assert report["conditions"]["generated"]["mean"] >= 0.85
    told = re.sub(r"[^\S\n]+", " ", (DOCS / "strings.md").read_text())
    for condition, found in report["conditions"].items():
        mean, low, high = (f"{found[key]:.3f}".lstrip("0") for key in ("mean", "low", "high"))
        assert re.search(rf"\| {condition}\b.*\| {mean} \| \[{low}, {high}\] \|", told), condition


def test_all_write_adapters_for_one_base(model: Hypermodel, strings: Hypermodel) -> None:
    assert model.base_fingerprint == strings.base_fingerprint


def test_a_shared_adapter_of_the_same_kind_lies_beside_it(model: Hypermodel) -> None:
    shared = load_start("shared", find(model.parts.name))
    check_base(shared, model.base_fingerprint)
    assert shared.spec == model.config.spec
    trained = [leaf for path, leaf in trees.flatten(shared.tree).items() if path.endswith(("/b", "/key", "/value"))]
    assert trained
    assert all(abs(leaf).max() > 1e-3 for leaf in trained)


def test_the_table_of_runs_is_the_hypermodels_own_and_the_tuner_is_learnt_from_it(strings: Hypermodel) -> None:
    runs = table.read(FOLDER / "runs.parquet")
    assert len(runs) >= 1800
    assert len({run.dataset_hash for run in runs}) >= 30
    assert {run.model for run in runs} == {strings.parts.id}
    learnt = Recommender.load(FOLDER / "tuner")
    assert (learnt.columns, learnt.features) == (from_runs(runs).columns, from_runs(runs).features)
    assert set(learnt.pool) <= {run.pipeline for run in runs}


def test_the_tuner_expects_more_of_what_did_well(strings: Hypermodel) -> None:
    """A data set of no corpus of the table: what the tuner puts first is expected to score, and to cost, something."""
    names = [(f"{a} {b}", f"{b}, {a[0]}.") for a in ("ada", "alan", "grace", "john") for b in "abcdefghijklmnop"]
    lines = [Line(f"{number}", *pair) for number, pair in enumerate(names)]
    data = DataSet("names", lines[:32], lines[32:48], lines[48:])
    first, *others = recommend(Bench(strings), data, Recommender.load(FOLDER / "tuner"), count=32)
    assert first["score"] > max(0.5, others[-1]["score"] + 0.1)
    assert 0 < first["std"] < 1
    assert 0 < first["seconds"] < 600
