"""Conformance: what holds for every surrogate. A new one is a row of SURROGATES."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperflax import trees
from hyperflax.checkpoints.tensors import load_tree, save_tree
from hyperflax.errors import CheckpointError, ConfigError, DataError, SurrogateError
from hyperflax.tuner.surrogates import (
    CostSurrogate,
    DeepKernelGP,
    MLPCost,
    Observations,
    PerformanceSurrogate,
    Queries,
    deep_kernel,
    load,
    save,
)
from hyperflax.tuner.surrogates.features import LIMIT, Scaling, representative
from hyperflax.tuner.surrogates.minimise import Schedule, minimise
from hyperflax.tuner.surrogates.saving import KINDS
from tests.tuner.tables import SIZES, queries, values

SMALL = {"hidden": (8,), "kept": 24, "rows": 32, "steps": 6, "refit_steps": 2}
SURROGATES = {
    "deep_kernel": DeepKernelGP(features=2, channels=2, **SMALL),
    "deep_kernel_rbf": DeepKernelGP(features=2, channels=2, kernel="rbf", **SMALL),
    "cost": MLPCost(**SMALL),
}
TABLE = queries(60, seed=0)
TABLE_VALUES = values(TABLE, seed=1)
ASKED = queries(7, seed=2)


@pytest.fixture(scope="module", params=sorted(SURROGATES))
def surrogate(request):
    return SURROGATES[request.param]


@pytest.fixture(scope="module")
def fitted(surrogate):
    return surrogate.fit(TABLE, TABLE_VALUES, seed=3)


def one_task(rows: int, seed: int) -> Queries:
    return queries(rows, seed, tasks=1)


def same(one, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def check(prediction, rows: int) -> None:
    mean, std = prediction
    assert mean.shape == std.shape == (rows,)
    assert mean.dtype == std.dtype == np.float64
    assert np.isfinite(mean).all()
    assert np.isfinite(std).all()
    assert (std > 0).all()


def test_it_keeps_to_the_protocol_and_can_be_saved(surrogate):
    assert isinstance(surrogate, PerformanceSurrogate | CostSurrogate)
    assert KINDS[type(surrogate).__name__] is type(surrogate)
    assert hash(surrogate) == hash(dataclasses.replace(surrogate))


def test_predictions_are_finite_and_positive_in_std(surrogate, fitted):
    check(surrogate.predict(fitted, ASKED), len(ASKED))
    check(surrogate.predict(fitted, ASKED.take(slice(0, 1))), 1)
    check(surrogate.predict(fitted, ASKED.take(slice(0))), 0)


def test_the_seed_says_everything(surrogate, fitted):
    again = surrogate.fit(TABLE, TABLE_VALUES, seed=3)
    assert same(surrogate.predict(again, ASKED), surrogate.predict(fitted, ASKED))
    other = surrogate.fit(TABLE, TABLE_VALUES, seed=4)
    assert not same(surrogate.predict(other, ASKED), surrogate.predict(fitted, ASKED))


def test_the_order_of_rows_does_not_matter(surrogate, fitted):
    observed = one_task(5, seed=5)
    scores, order = values(observed, 6), np.random.default_rng(7).permutation(5)
    mean, std = surrogate.predict(surrogate.condition(fitted, observed, scores), ASKED)
    turned = surrogate.condition(fitted, observed.take(order), scores[order])
    asked = np.random.default_rng(8).permutation(len(ASKED))
    new_mean, new_std = surrogate.predict(turned, ASKED.take(asked))
    np.testing.assert_allclose(new_mean, mean[asked], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(new_std, std[asked], rtol=1e-4)


def test_an_observation_draws_the_prediction_to_it(surrogate, fitted):
    asked = one_task(1, seed=9)
    (before,), (wide,) = surrogate.predict(fitted, asked)
    for seen in (0.2, 9.0):
        (after,), (narrow,) = surrogate.predict(surrogate.condition(fitted, asked, [seen]), asked)
        target = np.log(seen) if isinstance(surrogate, MLPCost) else seen
        assert abs(after - target) < abs(before - target)
        assert min(before, target) <= after <= max(before, target)
        assert narrow < wide


def test_conditioning_adds_up_and_leaves_parameters_and_arguments_alone(surrogate, fitted):
    observed = one_task(6, seed=10)
    scores, first = values(observed, 11), slice(0, 2)
    whole = surrogate.condition(fitted, observed, scores)
    parts = surrogate.condition(fitted, observed.take(first), scores[first])
    parts = surrogate.condition(parts, observed.take(slice(2, 6)), scores[2:])
    assert same(surrogate.predict(whole, ASKED), surrogate.predict(parts, ASKED))
    assert whole.params is fitted.params
    assert len(fitted.task) == 0
    nothing = surrogate.condition(fitted, observed.take(slice(0)), scores[:0])
    assert same(surrogate.predict(nothing, ASKED), surrogate.predict(fitted, ASKED))


def test_refitting_trains_on_and_keeps_the_observations(surrogate, fitted):
    observed = one_task(6, seed=12)
    scores = values(observed, 13)
    once, again = (surrogate.refit(fitted, observed, scores, seed=14) for _ in range(2))
    check(surrogate.predict(once, ASKED), len(ASKED))
    assert same(surrogate.predict(once, ASKED), surrogate.predict(again, ASKED))
    assert len(once.task) == 6
    before, after = trees.flatten(fitted.params), trees.flatten(once.params)
    assert any(not np.array_equal(before[name], after[name]) for name in before)


def test_what_is_saved_comes_back_bit_for_bit(surrogate, fitted, tmp_path: pathlib.Path):
    observed = one_task(3, seed=15)
    known = surrogate.condition(fitted, observed, values(observed, 16))
    for number, state in enumerate((fitted, known)):  # without a new task, and with one
        save(tmp_path / str(number), surrogate, state)
        loaded, found = load(tmp_path / str(number))
        assert loaded == surrogate
        assert same(surrogate.predict(state, ASKED), loaded.predict(found, ASKED))
        more = values(observed, 17)
        continued = [one.refit(two, observed, more, seed=18) for one, two in ((surrogate, state), (loaded, found))]
        assert same(*(surrogate.predict(one, ASKED) for one in continued))
    with pytest.raises(CheckpointError, match="already exists"):
        save(tmp_path / "0", surrogate, fitted)
    save(tmp_path / "0", surrogate, known, overwrite=True)


@pytest.mark.parametrize(
    ("name", "leaf", "complaint"),
    [
        ("params", None, "expected the leaves"),
        ("first param", np.float32(np.nan), "expected finite numbers"),
        ("first param", np.zeros((1, 1, 1), np.float32), r"expected float32 \("),
        ("scaling/value_std", np.array(-1.0), "expected a positive number"),
        ("scaling/meta_mean", np.zeros(5), "one length"),
        ("kept/queries/fidelity", np.full(24, 99), "1..4"),
        ("kept/queries/pipelines", np.full((24, 3), 7.0, np.float32), "0..1"),
        ("kept/values", np.full(24, np.inf, np.float32), "finite"),
        ("task/queries/meta", np.zeros((0, 9), np.float32), "as in the table"),
        ("task/values", None, "expected the keys"),
        ("more", np.zeros(1), "expected the keys"),
    ],
)
def test_a_hostile_directory_is_refused_by_name(surrogate, fitted, tmp_path: pathlib.Path, name, leaf, complaint):
    save(tmp_path / "it", surrogate, fitted)
    path = tmp_path / "it" / "fitted.safetensors"
    flat = trees.flatten(load_tree(path))
    first = min(key for key in flat if key.startswith("params/") and flat[key].ndim)
    name = first if name in ("params", "first param") else name
    if leaf is None:
        del flat[name]
    else:
        flat[name] = np.full_like(flat[name], leaf) if name == first and np.ndim(leaf) == 0 else leaf
    save_tree(path, trees.unflatten(flat))
    with pytest.raises(CheckpointError, match=complaint):
        load(tmp_path / "it")


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("surrogate", "os.system", "expected one of"),
        ("schema_version", 99, "newer hyperflax"),
        ("config", {"hidden": [-1]}, "whole number"),
        ("config", {"width": 3}, "no field"),
        ("config", {"hidden": [9, 9]}, "expected the leaves"),
    ],
)
def test_a_hostile_header_is_refused(surrogate, fitted, tmp_path: pathlib.Path, key, value, complaint):
    save(tmp_path / "it", surrogate, fitted)
    path = tmp_path / "it" / "surrogate.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(CheckpointError, match=complaint):
        load(tmp_path / "it")


def test_parameters_of_another_surrogate_are_not_saved(surrogate, fitted, tmp_path: pathlib.Path):
    with pytest.raises(DataError, match="expected the leaves"):
        save(tmp_path / "it", dataclasses.replace(surrogate, hidden=(8, 8)), fitted)
    assert not (tmp_path / "it").exists()


def test_what_a_deep_kernel_knows_is_decomposed_once(monkeypatch: pytest.MonkeyPatch):
    calls, factors = [], deep_kernel._factors
    monkeypatch.setattr(deep_kernel, "_factors", lambda *given: calls.append(1) or factors(*given))
    gp = DeepKernelGP(hidden=(8,), features=2, channels=2, kept=16, rows=16, steps=5)
    table = queries(24, seed=5)
    one = gp.fit(table, values(table, seed=7), seed=0)
    calls.clear()
    asked = one_task(3, seed=6)
    first, again = gp.predict(one, asked), gp.predict(one, asked.take(slice(0, 2)))
    assert len(calls) == 1
    np.testing.assert_allclose(again[0], first[0][:2], rtol=1e-5)
    np.testing.assert_allclose(again[1], first[1][:2], rtol=1e-5)
    told = gp.condition(one, asked, np.array([0.1, 0.2, 0.3]))
    assert not same(gp.predict(told, asked), first)  # another surrogate is not taken for it
    assert len(calls) == 2


def constant(table: Queries) -> Queries:
    meta = np.stack([np.full(len(table), 1e6), np.full(len(table), np.nan)], axis=1)
    pipelines = table.pipelines.copy()
    pipelines[:, 1] = 0.25
    return dataclasses.replace(table, pipelines=pipelines, meta=meta)


@pytest.mark.parametrize("rows", [1, 2, 30])
def test_constant_columns_and_unknown_meta_features_do_no_harm(surrogate, rows):
    """One row is a table of nothing but constants; a constant meta-feature means nothing in a new task either."""
    table = constant(queries(rows, seed=20))
    known = surrogate.fit(table, np.full(rows, 2.0, np.float32) if rows == 2 else values(table, 21), seed=22)
    here = surrogate.predict(known, constant(ASKED))
    check(here, len(ASKED))
    new_tasks = (np.full((len(ASKED), 2), row) for row in ([-1e30, 4.0], [2e6, np.nan]))
    elsewhere = [surrogate.predict(known, dataclasses.replace(constant(ASKED), meta=meta)) for meta in new_tasks]
    assert same(*elsewhere)
    observed = one_task(2, seed=23)
    check(surrogate.predict(surrogate.refit(known, observed, values(observed, 24), seed=25), ASKED), len(ASKED))


@given(
    rows=st.integers(1, 32),
    sizes=st.sampled_from([(1, 1, 0), SIZES]),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([1e-3, 1.0, 1e4]),
)
@settings(max_examples=4, deadline=None)
@pytest.mark.parametrize("name", ["deep_kernel", "cost"])
def test_any_size_and_unit(name, rows, sizes, seed, scale):
    table = queries(rows, seed, sizes=sizes)
    known = SURROGATES[name].fit(table, scale * values(table, seed), seed=0)
    observed = queries(2, seed + 1, tasks=1, sizes=sizes)
    known = SURROGATES[name].condition(known, observed, scale * values(observed, seed))
    check(SURROGATES[name].predict(known, queries(3, seed + 2, sizes=sizes)), 3)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"pipelines": [[0.5, 1.5]]}, "pipelines: row 0: expected numbers in 0..1, got 1.5"),
        ({"pipelines": [[0.5, np.nan]]}, "expected numbers in 0..1"),
        ({"pipelines": [0.5]}, "expected 2 dimensions"),
        ({"pipelines": [["a", "b"]]}, "expected an array of numbers"),
        ({"curves": [[np.nan, 0.5, np.nan]]}, "no score after the first NaN"),
        ({"curves": [[np.inf, np.nan, np.nan]]}, "curves: row 0: expected finite numbers or NaN"),
        ({"fidelity": [1]}, "more than the fidelities already observed"),
        ({"fidelity": [4]}, "1..3"),
        ({"fidelity": [1.5]}, "whole numbers"),
        ({"fidelity": [2, 3]}, "as many rows"),
        ({"meta": [[np.inf]]}, "meta: row 0"),
    ],
)
def test_bad_queries_are_refused_with_their_place(changes, complaint):
    good = {"pipelines": [[0.5, 1.0]], "curves": [[0.5, np.nan, np.nan]], "fidelity": [2], "meta": [[np.nan]]}
    assert Queries(**good).observed == [1]
    with pytest.raises(DataError, match=complaint):
        Queries(**{**good, **changes})


def test_bad_tables_and_settings_are_refused(surrogate, fitted):
    with pytest.raises(DataError, match="at least one row"):
        surrogate.fit(TABLE.take(slice(0)), [], seed=0)
    with pytest.raises(DataError, match="expected one for each of 60"):
        surrogate.fit(TABLE, TABLE_VALUES[:-1], seed=0)
    with pytest.raises(DataError, match="finite"):
        surrogate.condition(fitted, ASKED.take(slice(0, 1)), [np.nan])
    with pytest.raises(DataError, match="as in the table"):
        surrogate.predict(fitted, queries(3, 0, sizes=(3, 4, 5)))
    for changes in ({"hidden": (0,)}, {"kept": 0}, {"steps": 0}, {"refit_learning_rate": 0.0}):
        with pytest.raises(ConfigError):
            dataclasses.replace(surrogate, **changes)


@dataclasses.dataclass(frozen=True)
class Halving:
    """The mean squared distance of one parameter to the targets; NaN while the parameter is below a floor."""

    floor: float

    def loss(self, params, batch, mask):
        error = jnp.sum(mask * (params["x"] - batch["targets"]) ** 2) / jnp.sum(mask)
        return jnp.where(params["x"] < self.floor, jnp.nan, error)


def test_training_finds_the_least_loss_and_says_when_it_diverged():
    targets = {"targets": np.float32([1.0, 2.0, 6.0])}
    start = {"x": np.float32(0.0)}
    found = minimise(Halving(-9.0), start, targets, Schedule(200, 0.3), rows=8, seed=0)
    assert found["x"] == pytest.approx(3.0, abs=0.01)
    with pytest.raises(SurrogateError, match="Halving: loss or gradient was not finite in 6 of 6 steps"):
        minimise(Halving(9.0), start, targets, Schedule(6, 0.3), rows=8, seed=0)


def test_scaling_is_the_tables_and_is_cut_off_far_outside():
    scaling = Scaling.of(TABLE, TABLE_VALUES)
    columns, fidelities, features = SIZES
    settings_ = scaling.settings(TABLE)
    meta = TABLE.meta.astype(np.float64)
    expected = (meta - np.nanmean(meta, axis=0)) / np.nanstd(meta, axis=0)
    np.testing.assert_allclose(settings_[:, columns : columns + features], np.nan_to_num(expected), atol=1e-5)
    np.testing.assert_array_equal(settings_[:, -1], np.float32(TABLE.fidelity / fidelities))
    far = dataclasses.replace(TABLE, meta=np.full(TABLE.meta.shape, 1e30))
    assert np.all(scaling.settings(far)[:, columns : columns + features] == LIMIT)


def test_a_row_among_many_of_its_task_is_kept_less_often():
    """Two tasks, 90 rows and 10: twenty kept rows are ten of each."""
    table = queries(100, seed=30, tasks=1)
    table = dataclasses.replace(table, meta=np.repeat([[0.0, np.nan], [1.0, np.nan]], [90, 10], axis=0))
    kept = representative(Observations(table, np.arange(100)), 20, seed=0)
    assert np.sum(kept.queries.meta[:, 0] == 0) == 10
    assert len(np.unique(kept.values)) == 20
    assert len(representative(kept, 500, seed=0)) == 20
