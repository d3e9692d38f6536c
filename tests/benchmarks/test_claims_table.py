"""The table is whole, its hashes say what they should, and the committed results are those of the table."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import pytest

import hyperflax
from benchmarks.claims.__main__ import write_tables
from benchmarks.claims.comparisons import Side
from benchmarks.claims.experiments import Experiment, Tuning, described, digest
from benchmarks.claims.results import COMMITTED, result_path, stale
from benchmarks.claims.settings import SETTINGS
from benchmarks.claims.table import at_equal_flops, claims, experiments
from hyperflax.adapters.lora import LoRA
from hyperflax.errors import ConfigError
from hyperflax.json_files import read_json

TABLES = {key: claims(setting) for key, setting in SETTINGS.items()}
EXPERIMENTS = {key: experiments(table) for key, table in TABLES.items()}
STRINGS = EXPERIMENTS["strings_demo", "cpu"]


@pytest.mark.parametrize("key", TABLES, ids="-".join)
def test_every_side_of_every_claim_is_run_for_it(key: tuple[str, str]):
    assert [claim.number for claim in TABLES[key]] == [1, 2, 3, 4, 5, 6]
    for claim in TABLES[key]:
        names = {experiment.name for experiment in claim.experiments}
        sides: list[Side] = [side for comparison in claim.comparisons for side in (comparison.a, comparison.b)]
        sides += [side for curve in claim.curves for line in curve.lines.values() for _, side in line]
        assert {side.experiment for side in sides} <= names
        assert any(comparison.decides for comparison in claim.comparisons)
        for experiment in claim.experiments:
            assert len(experiment.seeds) >= 3


@pytest.mark.parametrize("key", TABLES, ids="-".join)
def test_names_and_hashes_are_unique(key: tuple[str, str]):
    hashes = {digest(experiment) for experiment in EXPERIMENTS[key].values()}
    assert len(hashes) == len(EXPERIMENTS[key])


def test_a_claim_about_depth_has_more_than_one():
    for table in TABLES.values():
        depths = {one.base.shape.num_encoder_layers for one in table[2].experiments}
        assert len(depths) >= 2


def test_variants_differ_from_their_reference_in_one_thing():
    plain, joint = STRINGS["hyper_t5"], STRINGS["hyper_t5_joint"]
    assert joint.episodes.rows * joint.episodes.support_length == plain.episodes.rows * plain.episodes.support_length
    direct = STRINGS["hart_direct"].hypernetwork
    assert dataclasses.replace(direct, feedback="projected") == STRINGS["hart"].hypernetwork != direct
    scored = STRINGS["hyper_t5_scored_16"].episodes
    assert scored.examples * scored.tasks_per_batch == plain.episodes.examples * plain.episodes.tasks_per_batch
    wide = STRINGS["hyper_t5_rank_32"].adapter
    assert (wide.rank, wide.alpha / wide.rank) == (32, plain.adapter.alpha / plain.adapter.rank)


def test_equal_operations_give_other_steps_where_costs_differ():
    plain, pulled = STRINGS["hart"], STRINGS["hart_consistency_1"]
    matched = at_equal_flops(pulled, plain)
    assert matched.name == "hart_consistency_1_equal_flops"
    # Steps are whole: half a step's operations may be left over.
    assert abs(matched.steps * pulled.flops_per_step - plain.steps * plain.flops_per_step) <= pulled.flops_per_step / 2
    assert at_equal_flops(plain, plain) is plain


def test_a_hash_depends_on_every_part_of_the_configuration():
    plain = STRINGS["hyper_t5"]
    changed = [
        plain.replace(steps=plain.steps + 1),
        plain.replace(episodes=plain.episodes.replace(min_shots=2)),
        plain.replace(base=dataclasses.replace(plain.base, steps=1)),
        plain.replace(adapter=dataclasses.replace(plain.adapter, a_head_std=0.2)),
        plain.replace(evaluation=dataclasses.replace(plain.evaluation, draws=1)),
    ]
    hashes = {digest(one) for one in (plain, *changed)}
    assert len(hashes) == 6
    assert digest(plain) == digest(plain.replace())
    tuning = STRINGS["tuning_lora"]
    assert digest(tuning) != digest(dataclasses.replace(tuning, hypermodel=changed[0]))


def test_a_described_configuration_names_its_classes():
    found = json.loads(json.dumps(described(STRINGS["hart"])))
    assert (found["class"], found["hypernetwork"]["class"], found["adapter"]["rank"]) == ("Experiment", "HARTConfig", 8)
    assert isinstance(STRINGS["tuning_lora"], Tuning)


def test_impossible_experiments_are_refused():
    plain = STRINGS["hyper_t5"]
    with pytest.raises(ConfigError, match="expected an adapter for the hypernetwork"):
        plain.replace(adapter=None)
    with pytest.raises(ConfigError, match="expected a hypernetwork for its objective"):
        STRINGS["shared"].replace(consistency=1.0)
    with pytest.raises(ConfigError, match="one base and one adapter"):
        dataclasses.replace(STRINGS["tuning_lora"], shared=STRINGS["shared_prefix"])
    with pytest.raises(ConfigError, match="expected a hypernetwork and a shared adapter"):
        dataclasses.replace(STRINGS["tuning_lora"], shared=plain)


# Committed results


def test_committed_results_are_those_of_the_table():
    wrong = stale(COMMITTED, EXPERIMENTS)
    assert not wrong, "run `python -m benchmarks.claims` again:\n" + "\n".join(wrong)


def test_the_committed_table_is_that_of_the_committed_results(tmp_path: pathlib.Path):
    """Without results there is no table; with results, table, json and pictures are what follows from them."""
    scales = {path.name for path in COMMITTED.iterdir() if path.is_dir()}
    (tmp_path / "results").symlink_to(COMMITTED)
    for scale in scales:
        families = [family for family, of in TABLES if of == scale and (COMMITTED / scale / family).is_dir()]
        text = write_tables(tmp_path, scale, {family: TABLES[family, scale] for family in families})
        assert (COMMITTED.parent / f"verdicts-{scale}.md").read_text("utf-8") == text
        written, committed = (
            json.loads((folder / f"verdicts-{scale}.json").read_text()) for folder in (tmp_path, COMMITTED.parent)
        )
        assert committed == written
    for names in ("verdicts-*", "*-claim*.*"):
        made, there = ({path.name for path in folder.glob(names)} for folder in (tmp_path, COMMITTED.parent))
        assert there == made


def test_results_on_the_shipped_base_are_of_the_one_that_ships():
    shipped = read_json(pathlib.Path(hyperflax.__file__).parent / "assets/strings/hypermodel.json")["base_fingerprint"]
    bases = [json.loads(path.read_text())["base"] for path in (COMMITTED / "cpu" / "strings_demo").glob("*.json")]
    found = [base["fingerprint"] for base in bases if base["name"] == "strings_4"]
    assert set(found) == {shipped}


def write(folder: pathlib.Path, experiment: Experiment, **changes) -> pathlib.Path:
    result = {
        "experiment": experiment.name,
        "family": "strings_demo",
        "scale": "cpu",
        "seed": 0,
        "hash": digest(experiment),
        "config": described(experiment),
        "base": {"name": experiment.base.name, "fingerprint": "f"},
        "measures": {},
        "figures": {},
        "run": {},
    } | changes
    path = result_path(folder, "cpu", "strings_demo", experiment.name, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))
    return path


def test_a_stale_result_is_named(tmp_path: pathlib.Path):
    plain = STRINGS["hyper_t5"]
    assert stale(tmp_path, EXPERIMENTS) == []
    path = write(tmp_path, plain)
    assert stale(tmp_path, EXPERIMENTS) == []
    changed = {("strings_demo", "cpu"): {"hyper_t5": plain.replace(adapter=LoRA(rank=3))}}
    (line,) = stale(tmp_path, changed)
    assert line.startswith(f"{path}: stale")
    (line,) = stale(tmp_path, {})
    assert "the table has no experiment 'hyper_t5'" in line
    write(tmp_path, plain, seed=7)
    (line,) = stale(tmp_path, EXPERIMENTS)
    assert "holds 'hyper_t5', seed 7" in line
