"""Recorded tables, replays and their regret, against small tables worked out by hand."""

from __future__ import annotations

import dataclasses
import functools
import json
import lzma
import threading

import numpy as np
import pytest

import hyperflax
from hyperflax.cli.main import main
from hyperflax.errors import ConfigError, DataError
from hyperflax.tuner.comparison import compare, default_optimisers, draw, table
from hyperflax.tuner.encoding import encode
from hyperflax.tuner.foreign import peft_comparison, quick_tune, scaling_law
from hyperflax.tuner.history import History, Trial
from hyperflax.tuner.optimisers import Only, RandomSearch
from hyperflax.tuner.packages import DEHB, SMAC, Proposal
from hyperflax.tuner.pipeline import FIDELITIES, default_pipeline
from hyperflax.tuner.recommender import Recommender, best_pipelines, every_part
from hyperflax.tuner.recorded import Recorded, from_runs
from hyperflax.tuner.replay import play, regrets
from hyperflax.tuner.surrogates import DeepKernelGP, MLPCost
from hyperflax.tuner.table import write
from tests.tuner.test_table import FAILED, RUN

NAN = np.nan


def recorded(scores, cost=None, final=None, start=0.0, names=None) -> Recorded:
    scores = np.array(scores, np.float32)
    runs = len(scores)
    names = names or ["a"] * runs
    datasets = tuple(sorted(set(names)))
    return Recorded(
        datasets=datasets,
        groups=datasets,
        dataset=np.array([datasets.index(name) for name in names]),
        columns=("x", "y"),
        pipelines=np.random.default_rng(0).uniform(size=(runs, 2)).astype(np.float32),
        scores=scores,
        cost=np.ones_like(scores) if cost is None else np.array(cost, np.float32),
        final=np.full(runs, NAN, np.float32) if final is None else np.array(final, np.float32),
        features=("size",),
        meta=np.arange(len(datasets), dtype=np.float32)[:, None],
        start=np.full(len(datasets), start, np.float32),
    )


def test_regret_by_hand():
    """Best .8, start 0: a score of .4 has half the regret. The final score judges from a run's best part on."""
    np.testing.assert_allclose(regrets(recorded([[0.2, 0.4], [0.6, 0.8]])), [[0.75, 0.5], [0.25, 0.0]], atol=1e-6)
    judged = recorded([[0.2, 0.9, 0.5], [0.1, 0.2, 0.3]], final=[0.4, 0.8])
    np.testing.assert_allclose(regrets(judged), [[0.75, 0.5, 0.5], [0.875, 0.75, 0.0]], atol=1e-6)
    # Before its best part a run is judged by its own score, and that may be the best of the pool.
    np.testing.assert_allclose(
        regrets(recorded([[0.8, 0.9], [0.2, 0.3]], final=[0.4, 0.6])), [[0, 0.5], [0.75, 0.25]], atol=1e-6
    )
    # Without a known start the worst of the pool is a regret of 1; a pool of equals has none.
    np.testing.assert_allclose(regrets(recorded([[0.2, 0.4], [0.6, NAN]], start=NAN)), [[1, 0.5], [0, NAN]], atol=1e-6)
    assert np.all(regrets(recorded([[0.3], [0.3]], start=0.3)) == 0)


def test_a_play_spends_what_the_record_says():
    """Two runs of 2 + 2 and 1 + 1 seconds cost 3 on average; a budget of one run is spent after part 1 and a half."""
    pool = recorded([[0.2, 0.4], [0.6, 0.8]], cost=[[2, 2], [1, 1]])
    curve = play(pool, Only(0), budget=1.0, seed=0)
    np.testing.assert_allclose(curve.spent, [2 / 3])
    np.testing.assert_allclose(curve.at(np.array([0.0, 0.5, 0.67, 1.0])), [1, 1, 0.75, 0.75], atol=1e-6)
    curve = play(pool, Only(1), budget=1.0, seed=0)
    np.testing.assert_allclose(curve.spent, [1 / 3, 2 / 3])
    np.testing.assert_allclose(curve.regret, [0.25, 0.0], atol=1e-6)


def test_a_record_that_ends_early_is_a_failure_there():
    pool = recorded([[0.2, NAN], [0.6, 0.8]], cost=[[2, NAN], [1, 1]])
    curve = play(pool, Only(0), budget=5.0, seed=0)
    assert [seen.status for seen in curve.history.observations] == ["completed", "failed"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"scores": np.array([[NAN, 0.5]], np.float32)}, "no gap in a curve"),
        ({"cost": np.array([[0.0, 1.0]], np.float32)}, "a positive number beside every score"),
        ({"meta": np.zeros((2, 1), np.float32)}, r"meta: expected shape \(1, 1\), got \(2, 1\)"),
        ({"dataset": np.array([3])}, "known data sets"),
    ],
)
def test_broken_tables_are_refused(change, complaint):
    with pytest.raises(DataError, match=complaint):
        dataclasses.replace(recorded([[0.2, 0.4]]), **change)


def test_our_own_runs_as_a_table():
    other = dataclasses.replace(RUN, dataset="dates", corpus="ni", dataset_hash="f" * 16, meta={"log_train": 2.0})
    made = from_runs([RUN, FAILED, other])
    assert (made.datasets, made.groups) == (("dates", "initials"), ("ni", "strings"))
    assert np.sum(~np.isnan(made.scores), axis=1).tolist() == [8, 1, 8]
    assert made.features == ("log_train", "task_0")
    np.testing.assert_allclose(made.meta, [[2.0, NAN], [4.158, -1.5]], rtol=1e-4)
    assert made.of(1).dataset.tolist() == [1, 1]
    np.testing.assert_array_equal(made.pipelines[0], encode([default_pipeline()])[0])
    queries, scores, seconds = every_part(made)
    assert len(queries) == len(scores) == len(seconds) == 2 * (8 + 7) + 1
    for row in range(len(queries)):
        assert queries.observed[row] in (0, queries.fidelity[row] - 1)
        assert scores[row] in (*RUN.curve, *FAILED.curve)


def test_the_unchanged_model_has_a_regret_of_1_on_the_examples_that_judge():
    """It scored .25 on the test split, whatever it scored on the held-out examples; the best run scored .5 there."""
    given = {"bare_score": 0.25, "meta": {**RUN.meta, "bare_exact": 0.75}}
    unchanged = dataclasses.replace(RUN, seed=2, curve=(0.75,) * 8, test_score=0.25)
    made = from_runs([dataclasses.replace(run, **given) for run in (RUN, unchanged)])
    np.testing.assert_array_equal(regrets(made)[:, -1], [0.0, 1.0])


def test_data_sets_of_one_name_are_kept_apart():
    """Other examples are, and another model's facts of the same examples; a name that is alone stays as it is."""
    others = [
        dataclasses.replace(RUN, dataset_hash="f" * 16, meta={"log_train": 2.0}),
        dataclasses.replace(RUN, model="strings-2", meta={"log_train": 3.0}),
        dataclasses.replace(RUN, dataset="dates", dataset_hash="e" * 16),
    ]
    made = from_runs([RUN, FAILED, *others])
    assert made.datasets == (
        "dates",
        "initials (0123456789abcdef, strings-1)",
        "initials (0123456789abcdef, strings-2)",
        "initials (ffffffffffffffff, strings-1)",
    )
    assert made.dataset.tolist() == [1, 1, 3, 2, 0]
    np.testing.assert_allclose(made.meta[:, made.features.index("log_train")], [4.158, 4.158, 3.0, 2.0], rtol=1e-4)


def test_a_data_set_that_was_renamed_or_moved_is_one():
    """By its examples, as everywhere else; it is called as in the first of its runs."""
    moved = dataclasses.replace(RUN, dataset="anew", corpus="other", category="more", seed=3)
    other = dataclasses.replace(RUN, dataset="dates", dataset_hash="f" * 16)
    made = from_runs([RUN, moved, other])
    assert (made.datasets, made.groups) == (("dates", "initials"), ("strings", "strings"))
    assert made.dataset.tolist() == [1, 1, 0]
    assert from_runs([moved, RUN], group="category").groups == ("more",)


def test_a_tuner_is_learnt_from_one_models_runs(tmp_path, capsys):
    write(tmp_path / "runs.parquet", [RUN, dataclasses.replace(RUN, model="strings-2")])
    command = ["tune", "fit", "--table", str(tmp_path / "runs.parquet"), "--out", str(tmp_path / "tuner")]
    assert main(command) != 0
    assert "expected runs of one hypermodel, got some of strings-1, strings-2" in capsys.readouterr().err
    assert main([*command, "--leave_out", RUN.corpus, "--leave_out", "misspelt"]) == 2
    assert f"--leave_out: expected some of {RUN.corpus}, got 'misspelt'" in capsys.readouterr().err


def test_the_pool_holds_every_data_sets_best_first():
    pipelines = [dataclasses.replace(default_pipeline(), rank=rank) for rank in (1, 2, 3, 4)]
    table = recorded([[0.2], [0.9], [0.5], [0.1]], names=["a", "a", "b", "b"])
    assert [one.rank for one in best_pipelines(pipelines, table, 3)] == [2, 3, 1]


# Foreign tables


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.csv").write_text(",dataset,lr,opt\n0,a,0.1,adam\n1,a,0.001,sgd\n2,b,0.01,\n")
    (tmp_path / "curve.csv").write_text(",1,2,3\n0,.1,.2,.3\n1,.2,.4,\n2,.5,.6,.7\n")
    (tmp_path / "cost.csv").write_text(",cost\n0,10\n1,20\n2,30\n")
    (tmp_path / "meta.csv").write_text("dataset,num_classes,domain\na,10,birds\nb,2,cars\n")
    return tmp_path


def test_quick_tunes_folder(folder):
    read = quick_tune(folder)
    assert (read.datasets, read.columns) == (("a", "b"), ("lr?", "lr", "opt=adam", "opt=sgd"))
    np.testing.assert_allclose(read.pipelines, [[1, 1, 1, 0], [1, 0, 0, 1], [1, 0.5, 0, 0]], atol=1e-6)
    assert np.sum(~np.isnan(read.scores), axis=1).tolist() == [3, 2, 3]
    np.testing.assert_allclose(read.cost[:, 0], [10, 20, 30])
    assert read.features == ("num_classes",)
    np.testing.assert_allclose(read.meta, [[10], [2]])


def test_a_byte_order_mark_before_a_table_changes_nothing(folder):
    """Excel saves one; it is no part of the index column's name, which is empty."""
    plain = quick_tune(folder)
    for path in folder.iterdir():
        path.write_text(path.read_text(), encoding="utf-8-sig")
    marked = quick_tune(folder)
    assert (marked.columns, marked.features, marked.fidelities) == (plain.columns, plain.features, plain.fidelities)
    np.testing.assert_array_equal(marked.scores, plain.scores)


@pytest.mark.parametrize("rows", [["a,,10", "b,5,20"], ["b,5,20", "a,,10"]])
def test_an_unknown_meta_feature_is_unknown_in_any_row(folder, rows):
    (folder / "meta.csv").write_text("\n".join(["dataset,classes,n", *rows, ""]))
    read = quick_tune(folder)
    assert read.features == ("classes", "n")
    np.testing.assert_array_equal(read.meta, np.array([[np.nan, 10], [5, 20]], np.float32))


@pytest.mark.parametrize("meta", [None, "dataset,n\na,3\nb,3\n"])
def test_data_sets_that_nothing_tells_apart_are_not_one(folder, meta):
    (folder / "meta.csv").unlink()
    if meta:
        (folder / "meta.csv").write_text(meta)
    read = quick_tune(folder)
    assert read.features[-1] == "dataset"
    np.testing.assert_array_equal(every_part(read)[0].tasks[:8], [0, 0, 0, 0, 0, 1, 1, 1])
    alike = dataclasses.replace(read, meta=np.zeros_like(read.meta))
    with pytest.raises(DataError, match="data sets 'a' and 'b' have equal meta-features"):
        Recommender.fit(alike)


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("curve.csv", ",1\n0,.1\n", "expected 3 rows as config.csv has, got 1"),
        ("curve.csv", ",1\n0,.1\n1,high\n2,.2\n", r"curve\.csv:3: column '1': expected a finite number, got 'high'"),
        ("cost.csv", ",1,2\n0,1,1\n1,1,1\n2,1,1\n", "expected 1 or 3 columns, got 2"),
        ("meta.csv", "dataset,n\na,1\nc,2\n", "expected a row for data set 'b'"),
        ("config.csv", ",lr\n0\n", r"config\.csv:2: expected as many cells as the first line"),
        ("config.csv", ",lr\n0,1\n1,1,0\n2,1\n", r"config\.csv:3: expected as many cells as the first line"),
        ("config.csv", ",lr\n", "expected at least one row"),
    ],
)
def test_broken_csv_files_are_refused_with_their_place(folder, file, text, complaint):
    (folder / file).write_text(text)
    with pytest.raises(DataError, match=complaint):
        quick_tune(folder)


def test_the_published_tables(data_dir, tmp_path):
    law = scaling_law(data_dir / "finetuning_runs" / "scaling_law")
    assert (law.datasets, law.scores.shape) == (("flan", "gigaword", "wmt19"), (90, 14))
    assert law.scores[0, 0] == pytest.approx(-4.247949918)
    assert law.cost[0].sum() == pytest.approx(1638400 * 124440576 / 1e15, rel=1e-5)
    packed = data_dir / "finetuning_runs" / "peft_method_comparison.jsonl.xz"
    (tmp_path / "peft.jsonl").write_bytes(lzma.decompress(packed.read_bytes()))
    peft = peft_comparison(tmp_path / "peft.jsonl")
    assert peft.scores.shape == (63, 20)
    assert 0 <= np.nanmin(peft.final) < np.nanmax(peft.final) == pytest.approx(0.5, abs=0.1)


def test_a_line_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "runs.jsonl").write_text(json.dumps({"path": "x/MetaMathQA/y"}) + "\n")
    with pytest.raises(DataError, match=r"runs\.jsonl:1: expected a run of PEFT"):
        peft_comparison(tmp_path / "runs.jsonl")
    for content, told in ((b"[]\n", "a JSON object, got list"), (b"{", "a JSON object"), (b"\xfd7zXZ", "UTF-8 text")):
        (tmp_path / "runs.jsonl").write_bytes(content)
        with pytest.raises(DataError, match=rf"runs\.jsonl:1: expected {told}"):
            peft_comparison(tmp_path / "runs.jsonl")


# Packages and comparisons


@pytest.mark.parametrize("make", [DEHB, SMAC])
def test_packages_keep_the_rules_and_repeat_themselves(make):
    rng = np.random.default_rng(0)
    pool = recorded(np.sort(rng.uniform(size=(12, 4)), axis=1))
    first = play(pool, make(pool.pipelines), budget=8, seed=1)
    assert len(first.history.observations) > 8
    again = play(pool, make(pool.pipelines), budget=8, seed=1)
    assert first.history == again.history
    assert play(pool, make(pool.pipelines), budget=8, seed=2).history != first.history
    # A fresh one picks up in the middle.
    half = dataclasses.replace(first.history, observations=first.history.observations[:9])
    seen = first.history.observations[9]
    assert make(pool.pipelines).choose(half) == (seen.pipeline, seen.fidelity)


def test_a_package_picks_up_in_the_middle_of_runs_that_fail():
    """What it was told is what was known then: a score, though the pipeline failed after it, and the worst so far."""
    rng = np.random.default_rng(4)
    scores = np.sort(rng.uniform(0.2, 1.0, size=(20, 4)), axis=1)
    scores[rng.uniform(size=20) < 0.4, 1:] = NAN
    pool = recorded(scores)
    whole = play(pool, DEHB(pool.pipelines), budget=14, seed=4).history
    assert any(seen.status == "failed" for seen in whole.observations[:4])
    for count in range(4, len(whole.observations), 8):
        half = dataclasses.replace(whole, observations=whole.observations[:count])
        seen = whole.observations[count]
        assert DEHB(pool.pipelines).choose(half) == (seen.pipeline, seen.fidelity)


@pytest.mark.parametrize("name", ["dehb", "smac"])
@pytest.mark.parametrize(("scores", "worst"), [([[-3, -2], [-5, -4]], -5.0), ([[0.2, 0.3], [0.1, 0.4]], 0.0)])
def test_what_fails_before_any_score_is_told_to_packages_as_the_worst(name, scores, worst, monkeypatch):
    pool, losses = recorded(scores), []

    class Watched:
        def ask(self):
            return Proposal(pool.pipelines[len(losses)], 1, None)

        def tell(self, proposal, loss, seconds):
            losses.append(loss)

    optimiser = default_optimisers()[name](pool, None)
    monkeypatch.setattr(type(optimiser), "start", lambda *arguments: Watched())
    history, trial = History(size=2, fidelities=2), Trial(0, 1)
    assert optimiser.choose(history) == trial
    assert optimiser.choose(history.asked(trial).told(trial, seconds=1.0, status="failed")) == Trial(1, 1)
    assert losses == [-worst]


def test_dehb_prints_nothing_and_leaves_no_log_open(capfd):
    pool = recorded(np.sort(np.random.default_rng(0).uniform(size=(6, 4)), axis=1))
    play(pool, DEHB(pool.pipelines), budget=4, seed=0)
    before = threading.active_count()
    for seed in range(3):
        play(pool, DEHB(pool.pipelines), budget=4, seed=seed)
    assert threading.active_count() == before  # a log has one
    assert capfd.readouterr() == ("", "")


def test_a_comparison_leaves_groups_out_and_tells_intervals(tmp_path):
    rng = np.random.default_rng(0)
    scores = np.sort(rng.uniform(size=(12, 3)), axis=1)
    made = recorded(scores, names=["a"] * 6 + ["b"] * 6)
    played = []

    def watched(pool, learnt):
        played.append((pool.dataset.tolist(), learnt.scores.kept.queries.meta[:, 0].tolist()))
        return RandomSearch()

    def for_one(pool, learnt):
        return RandomSearch() if pool.datasets[pool.dataset[0]] == "a" else None

    makers = {"random": watched, "nobody": lambda pool, learnt: None, "for one": for_one}

    def called(**given):
        return compare(made, makers, tmp_path, budget=4, seeds=2, progress=False, **given)

    assert called(shard=(0, 2)) is None
    assert len(played) == 2
    result = called(shard=(1, 2))
    assert len(played) == 4
    assert called() == result
    assert len(played) == 4  # nothing is played twice
    assert result["left_out"] == "groups"
    assert set(result["regret"]) == {"random", "for one"}
    for inside, learnt_from in played:
        assert not {float(number) for number in inside} & set(learnt_from)
    curve = result["regret"]["random"]
    assert curve["mean"][0] == 1.0 > curve["mean"][-1]
    assert all(low <= mean <= high for low, mean, high in zip(curve["low"], curve["mean"], curve["high"], strict=True))
    assert set(curve["datasets"]) == {"a", "b"}
    both = [result["groups"][group]["random"]["mean"] for group in ("a", "b")]
    np.testing.assert_allclose(np.mean(both, axis=0), curve["mean"])
    assert "| random | " in table(result)
    assert "| for one (1 of 2 data sets) | " in table(result)  # no mean over others than its neighbours'
    assert "| for one | " in table(result, "a")
    with pytest.raises(ConfigError, match=r"a shard \(i, n\) with i < n"):
        called(shard=(2, 2))
    draw(result, tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"


def test_a_single_group_is_split_by_pipelines_not_by_their_repetitions(tmp_path, monkeypatch):
    """Eight pipelines, each with two seeds: what surrogates learn from says nothing of a pipeline that is played."""
    short = functools.partial(Recommender.fit, performance=DeepKernelGP(steps=2), cost=MLPCost(steps=2))
    monkeypatch.setattr(Recommender, "fit", short)
    made = recorded(np.random.default_rng(0).uniform(size=(16, 3)))
    made = dataclasses.replace(made, pipelines=np.repeat(made.pipelines[:8], 2, axis=0))
    halves = []

    def watched(pool, learnt):
        halves.append([{tuple(row) for row in rows} for rows in (pool.pipelines, learnt.scores.kept.queries.pipelines)])
        return RandomSearch()

    result = compare(made, {"random": watched}, tmp_path, budget=4, seeds=2, progress=False)
    assert result["left_out"] == "pipelines"
    for played, known in halves:
        assert len(played) == len(known) == 4
        assert not played & known


def test_what_another_version_has_played_is_played_again(tmp_path, monkeypatch):
    """It may have chosen otherwise; the report says whose plays it has."""
    short = functools.partial(Recommender.fit, performance=DeepKernelGP(steps=2), cost=MLPCost(steps=2))
    monkeypatch.setattr(Recommender, "fit", short)
    made = recorded(np.random.default_rng(0).uniform(size=(8, 3)))
    played = []

    def called() -> str:
        makers = {"random": lambda pool, learnt: played.append(pool) or RandomSearch()}
        result = compare(made, makers, tmp_path, budget=4, seeds=1, progress=False)
        return result["versions"]["hyperflax"]

    assert [called(), called()] == [hyperflax.__version__] * 2
    assert len(played) == 1
    monkeypatch.setattr(hyperflax, "__version__", "0.0.1")
    assert called() == "0.0.1"
    assert len(played) == 2


def test_all_default_optimisers_can_be_made_for_a_pool():
    made = recorded(np.linspace(0, 1, 24).reshape(6, 4))
    makers = default_optimisers(np.zeros(2))
    assert set(makers) >= {
        "transfer",
        "condition",
        "quick_tune",
        "random",
        "successive_halving",
        "dehb",
        "smac",
        "default",
    }
    nearest = makers["default"](made, None)
    assert nearest == Only(int(np.argmin((made.pipelines**2).sum(axis=1))))
    assert makers["as_generated"](made, None) is None
    assert makers["dehb"](made, None) is not None
    assert makers["dehb"](recorded([[0.3], [0.4]]), None) is None  # its package takes several fidelities only
    assert FIDELITIES == 8
