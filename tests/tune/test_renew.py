"""Tables that are carried over to a newer hypermodel, with hypermodels of a few hundred parameters."""

from __future__ import annotations

import dataclasses
import math

import jax
import pytest

import hyperflax.tune.renew as module
from hyperflax import hypermodel
from hyperflax.adapters import Prefix
from hyperflax.cli.main import main
from hyperflax.errors import ConfigError, DataError
from hyperflax.hypermodel import Hypermodel
from hyperflax.tune.bench import Bench
from hyperflax.tune.collect import Collection, collect
from hyperflax.tune.renew import _groups, renew
from hyperflax.tuner import table
from hyperflax.tuner.datasets import read
from hyperflax.tuner.pipeline import GENERATED
from tests.finetuning.micro_model import micro_model, write_task
from tests.tune.test_collect import data_set

SETS = [data_set("first"), data_set("second", 1)]


def newer(model: Hypermodel) -> Hypermodel:
    """The model with another hypernetwork, as if it had been trained further."""
    params = jax.tree.map(
        lambda x: x + 0.2 * jax.random.normal(jax.random.key(x.size), x.shape), model.hypernetwork_params
    )
    return Hypermodel(model.config, model.base_params, params, name="newer")


@pytest.fixture(scope="module")
def models() -> tuple[Hypermodel, Hypermodel]:
    return micro_model(), newer(micro_model())


def collected(model: Hypermodel, out) -> dict[tuple, table.Run]:
    collect(Collection(Bench(model), SETS, out=out, structures=4, variants=2, seed=0), progress=False)
    return by_place(out)


def by_place(path) -> dict[tuple, table.Run]:
    """The rows by what a run is, whatever the model."""
    return {(run.dataset_hash, run.pipeline.id, run.seed): run for run in table.read(path)}


@pytest.fixture(scope="module")
def tables(models, tmp_path_factory):
    """The earlier model's table, the newer one's as it is when all of it is run, and the renewed one."""
    folder = tmp_path_factory.mktemp("tables")
    before, whole = collected(models[0], folder / "before"), collected(models[1], folder / "whole")
    written = renew(Bench(models[1]), table.read(folder / "before"), SETS, out=folder / "renewed", progress=False)
    renewed = by_place(folder / "renewed")
    assert written == len(renewed) == len(before) == len(whole)
    return before, whole, renewed


def test_rows_are_those_of_a_collection_with_the_newer_model(tables):
    """What random starts gave is kept; what generated adapters give is found anew, by the same pipelines and seeds."""
    before, whole, renewed = tables
    assert {run.pipeline.init for run in renewed.values()} >= {"random", "generated"}
    for place, run in renewed.items():
        assert (run.id, run.meta, run.bare_score) == (whole[place].id, whole[place].meta, whole[place].bare_score)
        assert run.generated_score == whole[place].generated_score
        assert run.losses == pytest.approx(whole[place].losses, rel=1e-4)
        assert run.curve == whole[place].curve
    changed = {run.pipeline.init for place, run in renewed.items() if run.losses != before[place].losses}
    assert changed <= {"generated", None}
    assert GENERATED in changed


def test_a_collection_goes_on_from_a_renewed_table_and_a_renewal_from_a_collected_one(models, tables, tmp_path):
    before = list(tables[0].values())
    renew(Bench(models[1]), before, SETS, out=tmp_path, progress=False)
    collected(models[1], tmp_path)
    assert len(table.read(tmp_path)) == sum(1 for file in tmp_path.iterdir() for _ in table.read(file)) == len(before)
    whole = list(tables[1].values())
    table.write(tmp_path / "other" / "some.parquet", whole[1:])
    assert renew(Bench(models[1]), before, SETS, out=tmp_path / "other", progress=False) == 1


def test_seconds_and_machine_of_kept_runs_are_the_tables(tables):
    before, _, renewed = tables
    for place, run in renewed.items():
        assert run.seconds == before[place].seconds
        assert (run.seconds_per_epoch, run.amortised) == (before[place].seconds_per_epoch, before[place].amortised)
        if run.pipeline.init == "random":
            assert (run.created, run.test_score) == (before[place].created, before[place].test_score)


def test_a_run_that_goes_further_than_before_has_its_own_seconds(models, tables, tmp_path):
    before = next(run for run in tables[0].values() if run.pipeline.init == GENERATED)
    cut = {name: getattr(before, name)[:2] for name in ("curve", "losses", "seconds")}
    stopped = dataclasses.replace(before, **cut, status=table.STOPPED)
    renew(Bench(models[1]), [stopped], SETS, out=tmp_path, progress=False)
    (run,) = table.read(tmp_path)
    assert run.status == table.COMPLETED
    assert len(run.seconds) == len(run.curve) == 8


def test_killed_it_goes_on_and_shards_are_disjoint_and_whole(models, tables, tmp_path, monkeypatch):
    before, _, renewed = tables
    runs = list(before.values())
    carry_out, done = module.carry_out, []

    def killed(bench, job):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(job)
        return carry_out(bench, job)

    monkeypatch.setattr(module, "carry_out", killed)
    with pytest.raises(KeyboardInterrupt):
        renew(Bench(models[1]), runs, SETS, out=tmp_path, progress=False)
    kept = len(table.read(tmp_path))
    monkeypatch.setattr(module, "carry_out", carry_out)
    written = [renew(Bench(models[1]), runs, SETS, out=tmp_path, shard=(n, 2), progress=False) for n in (0, 1)]
    assert kept + sum(written) == len(runs)
    assert by_place(tmp_path).keys() == renewed.keys()
    table.compact(tmp_path)
    assert renew(Bench(models[1]), runs, SETS, out=tmp_path, progress=False) == 0


def test_shards_get_about_as_much_to_do_each(tables):
    run = next(run for run in tables[0].values() if run.pipeline.init == GENERATED)

    def of_size(batch_size: int) -> table.Run:
        pipeline = dataclasses.replace(run.pipeline, batch_size=batch_size)
        return dataclasses.replace(
            run, pipeline=pipeline, seconds=(100.0 if batch_size % 2 else 1.0,) * len(run.seconds)
        )

    groups = _groups([of_size(size) for size in range(1, 9)])
    assert len(groups) == 8
    costs = [sum(sum(run.seconds) for group in groups[shard::2] for (run,) in group) for shard in (0, 1)]
    assert costs[0] == costs[1]


def test_a_file_is_split_as_the_run_split_it(models, tmp_path, monkeypatch):
    """`tune run --seed 3` holds out other examples of a jsonl file than `--seed 0`."""
    path, given = write_task(tmp_path / "mine.jsonl"), []
    monkeypatch.setattr(hypermodel, "load", lambda name: models[1])
    monkeypatch.setattr(table, "read", lambda path: [])
    monkeypatch.setattr(module, "renew", lambda bench, runs, datasets, **names: given.extend(datasets) or 0)
    command = ["tune", "renew", "--table", "runs", "--model", "newer", "--data", str(path), "--out", str(tmp_path)]
    assert main(command) == main([*command, "--seed", "3"]) == 0
    assert [data.hash for data in given] == [read(path).hash, read(path, 3).hash]
    assert given[0].hash != given[1].hash


def test_what_cannot_be_carried_over_is_refused(models, tables, tmp_path):
    runs = list(tables[0].values())
    bench = Bench(models[1])
    with pytest.raises(DataError, match=r"every data set of the table, 1 are missing: \['second'\]"):
        renew(bench, runs, SETS[:1], out=tmp_path)
    split = dataclasses.replace(SETS[1], train=SETS[1].validation, validation=SETS[1].train)
    with pytest.raises(DataError, match=r"missing: \['second'\]; given with other examples or splits: \['second'\]"):
        renew(bench, runs, [SETS[0], split], out=tmp_path)
    with pytest.raises(
        DataError, match=r"expected runs of one earlier hypermodel than 'micro@.*', got runs of \['micro@"
    ):
        renew(Bench(models[0]), runs, SETS, out=tmp_path)
    with pytest.raises(DataError, match="got runs of"):
        renew(bench, [*runs, dataclasses.replace(runs[0], model="third@0")], SETS, out=tmp_path)
    with pytest.raises(ConfigError, match="expected a shard"):
        renew(bench, runs, SETS, out=tmp_path, shard=(2, 2))
    prefixes = Bench(micro_model(Prefix(length=2)))
    with pytest.raises(ConfigError, match=r"renew: 'micro@\w+' cannot start a pipeline of 'micro@\w+': pipeline"):
        renew(prefixes, runs, SETS, out=tmp_path, progress=False)
    loss = runs[0].meta["bare_loss"]
    others = [dataclasses.replace(run, meta={**run.meta, "bare_loss": loss * 1.01}) for run in runs]
    with pytest.raises(DataError, match=r"data set '\w+': expected runs on the same base, whose loss is .* of 'micro@"):
        renew(bench, others, SETS, out=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())
    assert math.isfinite(loss)
