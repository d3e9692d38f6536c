"""The start `shared`: one adapter for each kind, trained on equally many examples of every source."""

from __future__ import annotations

import dataclasses

import pytest

from hyperflax.checkpoints.artefacts import load_adapter
from hyperflax.errors import CheckpointError, ConfigError, DataError
from hyperflax.tune.bench import Bench
from hyperflax.tune.collect import Collection
from hyperflax.tune.shared import Shared, build, pipeline_of, pool
from hyperflax.tune.trial import Group
from hyperflax.tuner.pipeline import default_pipeline
from hyperflax.tuner.space import KINDS
from tests.finetuning.micro_model import micro_model
from tests.tune.test_collect import data_set

KIND = "prefix+parallel_mlp"


@pytest.fixture(scope="module")
def model():
    return micro_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("shared")
    sources = [data_set("first"), data_set("second", 1)]
    build(Bench(model), sources, out, kinds=("lora", KIND), epochs=4, progress=False)
    return out


def new_data():
    """A data set that was no source, though it asks for the same as one."""
    data = data_set("third", 1)
    return dataclasses.replace(data, train=data.train[1:])


def test_every_source_gives_equally_many_examples():
    long, short = data_set("first"), data_set("second", 1)
    short = dataclasses.replace(short, train=short.train[:10], validation=short.validation[:3])
    made = pool([long, short])
    assert made.train == (*long.train[:10], *short.train)
    assert made.validation == (*long.validation[:3], *short.validation)
    with pytest.raises(ConfigError, match="expected at least one source, got none"):
        pool([])


def test_sources_of_one_name_or_content_and_kinds_given_twice_are_refused(model, tmp_path):
    for sources, key in (([data_set("a"), data_set("a", 1)], "name"), ([data_set("a"), data_set("b")], "hash")):
        with pytest.raises(DataError, match=f"have the same {key}"):
            build(Bench(model), sources, tmp_path, kinds=("lora",), epochs=4, progress=False)
    with pytest.raises(ConfigError, match="shared: expected every kind once, got 'lora' more than once"):
        build(Bench(model), [data_set("a")], tmp_path, kinds=("lora", "prefix", "lora"), progress=False)
    with pytest.raises(CheckpointError, match="gs://bucket/shared: this is not written to a bucket"):
        build(Bench(model), [data_set("a")], "gs://bucket/shared", kinds=("lora",), progress=False)


def test_every_kind_has_a_pipeline_that_its_space_takes(model):
    for kind in KINDS:
        Bench(model).space.check(pipeline_of(kind, 4))
    with pytest.raises(ConfigError, match=r"kind: expected one of lora, .*, got 'ia3'"):
        pipeline_of("ia3", 4)


def test_what_is_there_is_kept(model, folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    build(Bench(model), [data_set("second", 1), data_set("first")], folder, kinds=("lora", KIND), progress=False)
    for others in ([data_set("first")], [data_set("first"), dataclasses.replace(new_data(), name="second")]):
        with pytest.raises(DataError, match="lora: expected an adapter of these sources, found one of others"):
            build(Bench(model), others, folder, kinds=("prefix", "lora"), progress=False)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_pipeline_starts_from_the_adapter_of_its_kind(model, folder):
    bench, data = Bench(model, {"shared": Shared.load(folder, model)}), new_data()
    drawn = [one for one in bench.space.sample(60, seed=0) if one.init == "shared"]
    assert {one.kind for one in drawn} == {"lora", KIND}
    for kind in ("lora", KIND):
        # LoRA of any rank from 8 on, which pads: the same effect.
        pipeline = next(one for one in drawn if one.kind == kind and (one.rank or 8) >= 8)
        group = Group(bench, data, [pipeline], [0])
        exact, loss = bench.score(data, "validation", load_adapter(folder / kind))
        assert (float(group.start.exact[0]), float(group.start.loss[0])) == pytest.approx((exact, loss), abs=1e-5)


def test_it_was_trained_on_all_sources(model, folder):
    """Both tasks are easier with it than with the adapter that it started as, which has no effect."""
    bench, adapter = Bench(model), load_adapter(folder / "lora")
    for data in (data_set("first"), data_set("second", 1)):
        assert bench.score(data, "train", adapter)[1] < bench.score(data, "train", None)[1]
    assert set(adapter.metadata.provenance["sources"]) == {"first", "second"}


def test_a_source_cannot_start_from_it(model, folder, tmp_path):
    shared = Shared.load(folder, model)
    renamed = dataclasses.replace(data_set("first"), name="renamed")
    with pytest.raises(ConfigError, match="'renamed': the shared lora was trained on it, as 'first'"):
        shared.check(renamed)
    with pytest.raises(ConfigError, match="'second': the shared lora was trained on it"):
        Collection(Bench(model, {"shared": shared}), [data_set("second")], out=tmp_path, structures=1)
    shared.check(new_data())
    with pytest.raises(
        ConfigError, match=r"'first': has the name of a source of the shared lora and other examples; .* rename it"
    ):
        shared.check(dataclasses.replace(new_data(), name="first"))


def test_a_single_adapter_is_a_start_as_well(model, folder):
    shared = Shared.load(folder / "lora", model)
    assert [spec.leaves for spec in shared.specs] == [load_adapter(folder / "lora").spec.leaves]
    assert shared.first(model, new_data(), default_pipeline()) is shared.adapters["lora"]


def test_broken_folders_are_refused(model, folder, tmp_path):
    with pytest.raises(CheckpointError, match="expected an adapter, or folders of them named by kinds, found none"):
        Shared.load(tmp_path, model)
    (tmp_path / "prefix").symlink_to(folder / "lora")
    with pytest.raises(CheckpointError, match="prefix: expected an adapter of prefix, found lora"):
        Shared.load(tmp_path, model)
