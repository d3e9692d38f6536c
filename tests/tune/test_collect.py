"""Runs of pipelines on data sets, and collections of them, with a hypermodel of a few hundred parameters."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from hyperflax.checkpoints.fingerprint import support_hash
from hyperflax.data.examples import tokenise
from hyperflax.data.jsonl import Line
from hyperflax.errors import ConfigError, DataError
from hyperflax.evaluation.contamination import TRAINING_DATA_SETS, TRAINING_TASKS, UNRECORDED, name_digests
from hyperflax.tune.bench import Bench
from hyperflax.tune.collect import Collection, check_unseen, collect, vary
from hyperflax.tune.trial import Group, program
from hyperflax.tuner import table
from hyperflax.tuner.datasets import SPLITS, DataSet, read
from hyperflax.tuner.pipeline import FIDELITIES, Pipeline, default_pipeline
from tests.finetuning.micro_model import micro_model

WORDS = [a + b for a in "abcdefgh" for b in "pqrstuvw"]
TUNED = dataclasses.replace(default_pipeline(), epochs=8, learning_rate=0.02, batch_size=8)


def data_set(name: str, place: int = 0) -> DataSet:
    lines = [Line(f"{name}:{number}", word, word[place] * 2) for number, word in enumerate(WORDS)]
    return DataSet(name, lines[:32], lines[32:48], lines[48:], corpus="letters", task=f"task {name}")


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(micro_model())


@pytest.mark.parametrize(("longest", "expected"), [(1, 5), (4, 5), (5, 10), (9, 10), (10, 19), (18, 19)])
def test_rows_are_as_long_as_the_limit_or_half_or_a_quarter_of_it(longest, expected):
    """Rows hold the end of the sequence, too; one long example of any part makes all rows long."""
    vocabulary = micro_model().config.vocabulary
    config = dataclasses.replace(micro_model().config.episodes, inputs_length=19, targets_length=19)
    lines = [Line(f"{number}", word, "a") for number, word in enumerate(WORDS[:9])]
    lines[8] = Line("8", "b" * longest, "a")
    assert len(tokenise(lines[8].input, vocabulary)) == longest
    data = DataSet("lengths", lines[:3], lines[3:6], lines[6:])
    for split in SPLITS:
        arrays = data.arrays(split, vocabulary, config)
        assert arrays["encoder_input_tokens"].shape == (4, expected)
        assert arrays["decoder_target_tokens"].shape == (4, 5)


@pytest.fixture(scope="module")
def group(bench) -> Group:
    group = Group(bench, data_set("first"), [TUNED, dataclasses.replace(TUNED, learning_rate=1e-5)], [0, 1])
    group.finish()
    return group


def test_a_run_learns_and_its_row_says_what_happened(bench, group):
    good, idle = group.rows()
    assert good.losses[-1] < idle.losses[-1] == pytest.approx(float(group.start.loss[1]), abs=0.05)
    assert good.status == idle.status == "completed"
    assert len(good.curve) == FIDELITIES
    assert good.amortised
    test = bench.test_scores(group.data)
    assert (good.bare_score, good.generated_score) == (test["bare"], test["generated"])
    assert good.meta == bench.facts(group.data).meta
    assert good.meta["log_train"] == pytest.approx(math.log(32))
    assert good.id == table.run_id(group.data.hash, TUNED, 0, bench.model.parts.id)
    assert good.seconds_per_epoch == pytest.approx(group.training_seconds / 2 / 8)


def test_the_adapter_that_is_kept_has_the_score_that_is_told(bench, group):
    for run, told in enumerate(group.rows()):
        exact, loss = bench.score(group.data, "validation", group.adapter(run))
        best = max(
            zip(
                [group.start.exact[run], *told.curve], [-group.start.loss[run], *(-x for x in told.losses)], strict=True
            )
        )
        assert (exact, -loss) == pytest.approx(best, abs=1e-5)
        assert bench.score(group.data, "test", group.adapter(run))[0] == pytest.approx(told.test_score)


def test_a_run_beside_others_is_the_run_alone(bench, group):
    alone = Group(bench, group.data, [TUNED], [0])
    (row,) = alone.finish()
    assert not row.amortised
    np.testing.assert_allclose(row.losses, group.rows()[0].losses, rtol=1e-4)


def test_what_trains_nothing_is_the_generated_adapter(bench):
    data = data_set("second", 1)
    (row,) = Group(bench, data, [Pipeline(method="as_generated")], [0]).finish()
    assert row.test_score == row.generated_score == bench.test_scores(data)["generated"]
    assert set(row.losses) == {bench.facts(data).meta["generated_loss"]}


def test_an_adapter_says_where_it_comes_from(bench, group, monkeypatch):
    data = data_set("second", 1)
    generated = bench.facts(data).generated.metadata
    whole = support_hash({"input": line.input, "target": line.target} for line in data.train)
    random = dataclasses.replace(TUNED, learning_rate=1e-3, epochs=4)
    begun = next(p for p in bench.space.sample(6, seed=0) if p.init == "generated")
    for pipeline, hypermodel, support in (
        (Pipeline(method="as_generated"), bench.model.parts.id, generated.support_hash),
        (begun, bench.model.parts.id, whole),
        (random, None, whole),
    ):
        one = Group(bench, data, [pipeline], [3]).adapter(0).metadata
        assert (one.hypermodel, one.support_hash, one.refine_steps) == (hypermodel, support, 0)
        assert one.provenance == {"pipeline": pipeline.to_json(), "seed": 3}
    # 32 examples in batches of 8, 8 times over: 4 steps a part.
    losses, exact = group.rows()[0].losses, group.rows()[0].curve
    best = max(range(FIDELITIES), key=lambda part: (exact[part], -losses[part]))
    one = group.adapter(0).metadata
    assert (one.refine_steps, one.provenance[UNRECORDED]) == (4 * (best + 1), ["DataSet"])
    # A start that other data sets have trained hands on which.
    adapter = bench.facts(data).generated
    told = dataclasses.replace(generated, provenance={"sources": {"dates": "sha256:9f"}, "results": []})
    monkeypatch.setattr(bench, "start", lambda *_: dataclasses.replace(adapter, metadata=told))
    assert Group(bench, data, [begun], [3]).adapter(0).metadata.provenance["sources"] == {"dates": "sha256:9f"}


def test_a_generated_start_begins_where_the_generated_adapter_is(bench):
    data = data_set("third", 1)
    pipeline = next(p for p in bench.space.sample(6, seed=0) if p.init == "generated" and p.rank >= 2)
    group = Group(bench, data, [pipeline], [0])
    assert float(group.start.loss[0]) == pytest.approx(bench.facts(data).meta["generated_loss"], abs=1e-5)


def test_a_loss_that_is_not_finite_is_a_failure_with_its_part(bench):
    group = Group(bench, data_set("first"), [dataclasses.replace(TUNED, learning_rate=0.1, optimizer="lion")], [0])
    group.advance()
    group.parts.append(group.parts[-1]._replace(loss=np.array([np.nan])))
    (row,) = group.rows()
    assert (row.status, len(row.curve), row.error) == ("failed", 1, "the loss was not finite after part 2")


def test_pipelines_of_two_programs_are_refused(bench):
    with pytest.raises(ConfigError, match="got 2 programs"):
        Group(bench, data_set("first"), [TUNED, dataclasses.replace(TUNED, rank=2)], [0, 1])


def test_variants_share_their_program(bench):
    data = data_set("first")
    for structure in bench.space.sample(8, seed=5):
        variants = vary(bench.space, structure, 3, seed=1)
        assert len({program(bench, data, variant) for variant in variants}) == 1
        for variant in variants:
            bench.space.check(variant)


def test_a_plan_follows_from_its_arguments_and_every_data_set_has_solo_runs(bench, tmp_path):
    sets = [data_set("first"), data_set("second", 1)]
    plans = [
        [
            job
            for number in numbers
            for job in Collection(bench, sets, out=tmp_path, structures=4, variants=2, solo=1, seed=3).jobs(number)
        ]
        for numbers in ((0, 1, 2, 3), (3, 2, 1, 0))
    ]
    jobs = plans[0]
    ids = [frozenset(job.ids("micro")) for job in jobs]
    assert set(ids) == {frozenset(job.ids("micro")) for job in plans[1]}
    assert len(set(ids)) == len(jobs) == 8
    assert {job.data.name for job in jobs if job.solo} == {"first", "second"}


def test_a_killed_collection_goes_on_and_repeats_nothing(bench, tmp_path, monkeypatch):
    sets = [data_set("first"), data_set("second", 1)]
    collection = Collection(bench, sets, out=tmp_path, structures=2, variants=2, seed=0)
    import hyperflax.tune.collect as module

    done = []

    def killed(bench, job):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(job)
        return carry_out(bench, job)

    carry_out = module.carry_out
    monkeypatch.setattr(module, "carry_out", killed)
    with pytest.raises(KeyboardInterrupt):
        collect(collection, progress=False)
    assert len(list(tmp_path.glob("*.parquet"))) == 2
    before = {run.id: run for run in table.read(tmp_path)}
    monkeypatch.setattr(module, "carry_out", lambda bench, job: done.append(job) or carry_out(bench, job))
    written = collect(collection, progress=False)
    assert len(done) == len({frozenset(job.ids("micro")) for job in done}) == 4
    after = {run.id: run for run in table.read(tmp_path)}
    assert len(after) == len(before) + written
    assert all(after[key] == run for key, run in before.items())
    assert collect(collection, progress=False) == 0
    table.compact(tmp_path)
    assert collect(collection, progress=False) == 0
    assert {run.id: run for run in table.read(tmp_path)} == after


def test_what_the_table_holds_is_not_run_again_for_another_order_or_a_further_data_set(bench, tmp_path):
    sets = [data_set("first"), data_set("second", 1)]

    def written(*datasets):
        return collect(Collection(bench, datasets, out=tmp_path, structures=2, variants=2), progress=False)

    third = dataclasses.replace(data_set("third"), train=data_set("third").train[1:])
    assert written(*sets) == len(table.ids(tmp_path))
    assert written(*reversed(sets)) == 0
    assert written(third, *sets) == len(table.ids(tmp_path)) // 3


def test_runs_of_another_model_are_other_runs(bench, tmp_path):
    other = micro_model()
    other.parts = dataclasses.replace(other.parts, name="other")
    plans = []
    for model in (bench.model, other):
        collection = Collection(Bench(model), [data_set("first")], out=tmp_path, structures=4)
        plans.append({one for n in range(4) for job in collection.jobs(n) for one in job.ids(model.parts.id)})
    assert not plans[0] & plans[1]
    assert len(plans[0]) == len(plans[1])


def test_shards_are_disjoint_and_whole(bench, tmp_path, monkeypatch):
    collection = Collection(bench, [data_set("first")], out=tmp_path, structures=5)
    filled = []
    monkeypatch.setattr(collection, "fill", lambda number: filled.append(number) or 1)
    assert [collect(collection, shard=(place, 2), progress=False) for place in range(2)] == [3, 2]
    assert filled == [0, 2, 4, 1, 3]
    with pytest.raises(ConfigError, match=r"expected a shard \(i, n\) with i < n, got \(2, 2\)"):
        collect(collection, shard=(2, 2))


def test_an_error_of_the_device_is_an_observation(bench, monkeypatch):
    import jax

    import hyperflax.tune.collect as module

    def no_memory(*arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory allocating 1 byte")

    monkeypatch.setattr(module, "Group", no_memory)
    job = module.Job(data_set("first"), (TUNED,), (0,), solo=True)
    (row,) = module.carry_out(bench, job)
    assert (row.status, row.curve, row.dataset) == ("out_of_memory", (), "first")
    assert "RESOURCE_EXHAUSTED" in row.error


def test_data_that_the_hypermodel_knows_is_refused():
    model = micro_model()
    model.parts.provenance[TRAINING_TASKS] = name_digests(["task first"])
    with pytest.raises(DataError, match="was trained on and holds the evaluated task 'task first'"):
        check_unseen(model, [data_set("first")])
    check_unseen(model, [data_set("second", 1)])
    with pytest.raises(DataError, match="'second' and 'copy' have the same hash"):
        check_unseen(model, [data_set("second", 1), dataclasses.replace(data_set("second", 1), name="copy")])


def test_a_record_that_knows_no_tasks_is_no_all_clear(caplog):
    model = micro_model()
    check_unseen(model, [data_set("first")])
    assert "'micro': its training tasks are not recorded, or not all" in caplog.text
    caplog.clear()
    model.parts.provenance[TRAINING_TASKS] = name_digests(["other"])
    check_unseen(model, [data_set("first")])
    assert not caplog.records


def test_data_that_the_hypermodel_knows_from_another_collection_is_refused():
    model = micro_model()
    model.parts.provenance.update({TRAINING_TASKS: name_digests(["other"]), TRAINING_DATA_SETS: ["p3/quartz"]})
    data = dataclasses.replace(data_set("first"), data_sets=("metaicl/quartz",))
    with pytest.raises(DataError, match="'micro' was trained on the data set of 'task first', as p3/quartz"):
        check_unseen(model, [data])
    check_unseen(model, [dataclasses.replace(data, data_sets=("metaicl/sick",))])


def test_a_folder_is_a_data_set(tmp_path):
    folder = tmp_path / "letters" / "twice"
    folder.mkdir(parents=True)
    rows = [json.dumps({"input": word, "target": word[0]}) for word in WORDS]
    for split, part in (("train", rows[:40]), ("validation", rows[40:50]), ("test", rows[50:])):
        (folder / f"{split}.jsonl").write_text("\n".join(part))
    data = read(folder)
    assert (data.name, data.corpus, len(data.train), len(data.test)) == ("twice", "letters", 40, 14)
    (folder / "dataset.json").write_text('{"name": "other", "category": "c"}')
    assert (read(folder).name, read(folder).category) == ("other", "c")
    assert read(folder).hash == data.hash
    (folder / "dataset.json").write_text('{"data_sets": ["metaicl/quartz"]}')
    assert (read(folder).data_sets, data.data_sets) == (("metaicl/quartz",), ())
    for wrong in ('"metaicl/quartz"', "[1]"):
        (folder / "dataset.json").write_text(f'{{"data_sets": {wrong}}}')
        with pytest.raises(DataError, match="a list of texts for data_sets, got 'data_sets'"):
            read(folder)
    (folder / "dataset.json").write_text('{"colour": "red"}')
    with pytest.raises(DataError, match=r"dataset\.json: expected texts for some of name, corpus, category, task"):
        read(folder)
    (folder / "dataset.json").unlink()
    (folder / "test.jsonl").write_text(rows[0])
    with pytest.raises(DataError, match="of 'test' also stands in 'train'"):
        read(folder)


def test_a_file_is_a_data_set_with_parts_held_out(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps({"input": word, "target": word[0]}) for word in WORDS))
    data = read(path)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [38, 13, 13]
    assert data == read(path)
    assert data.hash != read(path, seed=1).hash
