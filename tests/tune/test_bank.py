"""Banks of source adapters: made, read, ranked, and started from."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import hyperflax.tune.bank as module
from hyperflax.checkpoints.tensors import save_tree
from hyperflax.data.jsonl import Line
from hyperflax.errors import CheckpointError, ConfigError, DataError
from hyperflax.tune.bank import MAP, Bank, answers, build, embed
from hyperflax.tune.bench import Bench
from hyperflax.tune.trial import Group
from hyperflax.tuner.pipeline import default_pipeline
from hyperflax.tuner.sources import apply_map
from tests.finetuning.micro_model import micro_model
from tests.tune.test_collect import data_set

SHORT = dataclasses.replace(default_pipeline(), epochs=4, batch_size=16)


@pytest.fixture(scope="module")
def model():
    return micro_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("bank")
    build(Bench(model), [data_set("first"), data_set("second", 1)], out, pipeline=SHORT, progress=False)
    return out


def test_a_bank_is_read_as_it_was_made_and_made_once(model, folder):
    bank = Bank.load(folder, model)
    assert set(bank.adapters) == {"first", "second"}
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    build(Bench(model), [data_set("first"), data_set("second", 1)], folder, pipeline=SHORT, progress=False)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_source_is_never_another_one_of_its_name(model, folder, tmp_path):
    """Neither one given beside it nor one that stood there before."""
    first, other = data_set("first"), data_set("first", 1)
    with pytest.raises(DataError, match="'first' and 'first' have the same name"):
        build(Bench(model), [first, other], tmp_path, pipeline=SHORT, progress=False)
    assert not any(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="gs://bucket/bank: this is not written to a bucket"):
        build(Bench(model), [first], "gs://bucket/bank", pipeline=SHORT, progress=False)
    with pytest.raises(DataError, match=f"first: expected the source of data set {other.hash}, found {first.hash}'s"):
        build(Bench(model), [other], folder, pipeline=SHORT, progress=False)


def test_all_sources_are_looked_at_before_the_first_is_trained(model, tmp_path):
    named = dataclasses.replace(data_set("second", 1), name="super_glue/boolq")
    with pytest.raises(ConfigError, match="expected a plain folder name, got 'super_glue/boolq'"):
        build(Bench(model), [data_set("first"), named], tmp_path, pipeline=SHORT, progress=False)
    assert not any(tmp_path.iterdir())


def test_embeddings_are_means_over_real_tokens_and_maps_bring_them_closer(model, folder):
    data, bank = data_set("first"), Bank.load(folder, model)
    base = embed(model, data, None)
    tokens = data.arrays("train", model.config.vocabulary, model.config.episodes)["encoder_input_tokens"][:-1]
    states = np.asarray(model.model.apply({"params": model.base_params}, tokens, method="encode"))
    by_hand = np.stack([states[row][tokens[row] > 0].mean(axis=0) for row in range(len(tokens))])
    np.testing.assert_allclose(base, by_hand, atol=1e-5)
    tuned = embed(model, data, bank.adapters["first"])
    mapped = apply_map(bank.maps["first"], base)
    assert np.square(mapped - tuned).sum() < np.square(base - tuned).sum()


def test_inputs_are_embedded_in_blocks_by_one_program(model, monkeypatch):
    whole = embed(model, data_set("first"), None)
    monkeypatch.setattr(module, "ROWS", 12)
    before = module._encode._cache_size()
    np.testing.assert_allclose(embed(model, data_set("first"), None), whole, atol=1e-6)
    embed(model, data_set("second", 1), None)
    assert module._encode._cache_size() == before + 1


def test_answers_are_mean_embeddings_of_target_tokens(model):
    data = data_set("first")
    made = answers(model, data)
    assert made.shape == (32, 8)
    same = [number for number, line in enumerate(data.train) if line.target == data.train[0].target]
    np.testing.assert_array_equal(made[same], np.repeat(made[:1], len(same), axis=0))


def test_a_data_set_is_not_its_own_source(model, folder):
    bank = Bank.load(folder, model)
    assert [name for name, _ in bank.ranked(model, data_set("first"))] == ["second"]
    renamed = dataclasses.replace(data_set("first"), name="renamed")
    assert bank.first(model, renamed, SHORT) is bank.adapters["second"]
    again = dataclasses.replace(data_set("second", 1), name="third")
    assert [name for name, _ in bank.ranked(model, again)] == ["first"]
    with pytest.raises(ConfigError, match="'first': the bank holds no source of another name and other examples"):
        Bank({"first": bank.adapters["first"]}, {"first": bank.maps["first"]}).ranked(model, data_set("first"))


@pytest.mark.parametrize("answers", [["a"], ["a"] * 8, ["ab", "ba"] * 4], ids=["one", "equal", "equal on average"])
def test_sources_of_which_no_answer_tells_come_by_name(model, folder, answers):
    bank, data = Bank.load(folder, model), data_set("third")
    train = [Line(f"{number}", f"x{number}", answer) for number, answer in enumerate(answers)]
    data = dataclasses.replace(data, train=train)
    assert [name for name, _ in bank.ranked(model, data)] == ["first", "second"]
    assert bank.first(model, data, SHORT) is bank.adapters["first"]


def test_a_pipeline_starts_from_the_source_that_ranks_first(model, folder):
    bank = Bank.load(folder, model)
    bench = Bench(model, {"source": bank})
    pipeline = next(one for one in bench.space.sample(40, seed=0) if one.init == "source" and one.rank >= 8)
    data = dataclasses.replace(data_set("first"), name="renamed")
    group = Group(bench, data, [pipeline], [0])
    exact, loss = bench.score(data, "validation", bank.adapters["second"])
    assert (float(group.start.exact[0]), float(group.start.loss[0])) == pytest.approx((exact, loss), abs=1e-5)


def test_broken_banks_are_refused(model, folder, tmp_path):
    with pytest.raises(CheckpointError, match="found none"):
        Bank.load(tmp_path, model)
    import shutil

    shutil.copytree(folder, tmp_path / "bank")
    save_tree(tmp_path / "bank" / "first" / MAP, {"map": np.full((17, 16), np.nan, np.float32)})
    with pytest.raises(CheckpointError, match="expected finite numbers"):
        Bank.load(tmp_path / "bank", model)
    save_tree(tmp_path / "bank" / "first" / MAP, {"map": np.zeros((3, 16), np.float32)})
    with pytest.raises(CheckpointError, match=r"expected finite numbers \[17, 16\], got \(3, 16\)"):
        Bank.load(tmp_path / "bank", model)
