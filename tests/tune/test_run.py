"""The tuner at work on a small task: budget, folder, report, and a kill in between."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import re
import time

import numpy as np
import pytest

import hyperflax.tune.run as module
from hyperflax.checkpoints.artefacts import load_adapter
from hyperflax.cli import tune_run
from hyperflax.cli.main import main
from hyperflax.cli.tune import tuner_of
from hyperflax.cli.tune_run import parse_time
from hyperflax.errors import CheckpointError, ConfigError, DataError
from hyperflax.tune import trial as groups
from hyperflax.tune.bench import Bench
from hyperflax.tune.record import Expected, Record, read
from hyperflax.tune.report import incumbents, markdown, of, pareto
from hyperflax.tune.run import make_pool, recommend, run
from hyperflax.tune.shared import Shared
from hyperflax.tuner import table
from hyperflax.tuner.encoding import encode
from hyperflax.tuner.history import History, Trial
from hyperflax.tuner.pipeline import Pipeline, default_pipeline
from hyperflax.tuner.recommender import FILE, Recommender, last_refit
from hyperflax.tuner.recorded import from_runs
from hyperflax.tuner.surrogates import DeepKernelGP, MLPCost
from tests.finetuning.micro_model import micro_model
from tests.tune.test_collect import data_set

POOL = [
    Pipeline(method="as_generated"),
    dataclasses.replace(default_pipeline(), epochs=8, learning_rate=0.02, batch_size=8),
]


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(micro_model())


@pytest.fixture(autouse=True)
def small_pool(monkeypatch):
    monkeypatch.setattr(module, "make_pool", lambda *arguments, **names: list(POOL))


def tune(bench, out, **given):
    return run(bench, data_set("first"), None, out=out, **{"budget": 1e6, "seed": 1, **given})


def trials(folder):
    history = History.from_json(json.loads((folder / "tune.json").read_text())["history"], "here")
    return [(seen.pipeline, seen.fidelity, seen.score) for seen in history.observations]


@pytest.fixture(scope="module")
def unbroken(bench, tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "make_pool", lambda *arguments, **names: list(POOL))
        report = tune(bench, out)
    return out, report


def test_a_run_writes_adapter_table_and_report(bench, unbroken):
    out, report = unbroken
    assert report["parts"] == 16
    assert report["incumbent"]["validation_score"] == max(score for _, _, score in trials(out))
    runs = table.read(out / "runs")
    assert {one.pipeline.id for one in runs} == {one.id for one in POOL}
    adapter = load_adapter(out)
    assert bench.score(data_set("first"), "test", adapter)[0] == pytest.approx(report["incumbent"]["test_score"])
    told = adapter.metadata.provenance
    assert (told["pipeline"], told["seed"]) == (report["incumbent"]["pipeline"], 1)
    assert told["tuning"]["report"]["test"] == report["test"]
    best = next(one for one in runs if one.pipeline.to_json() == report["incumbent"]["pipeline"])
    assert best.test_score == report["test"]["tuned"]
    text = (out / "report.md").read_text()
    assert f"{report['test']['tuned']:.3f}" in text
    assert (out / "report.png").read_bytes()[:4] == b"\x89PNG"


def test_going_back_to_a_pipeline_finds_out_nothing_twice(bench, tmp_path, monkeypatch):
    """Which examples are left out, and what the start scores: with two pipelines in turns, once for each."""
    pool = [dataclasses.replace(POOL[1], epochs=4, skip=0.5, learning_rate=rate) for rate in (0.01, 0.02)]
    monkeypatch.setattr(module, "make_pool", lambda *arguments, **names: pool)
    monkeypatch.setattr(module.RandomSearch, "choose", lambda self, history: next(turns, None))
    turns = iter([Trial(number, part) for part in (1, 2, 3) for number in (0, 1)])
    chosen, scored = [], []
    informative, scores = groups.informative, groups.Group._scored
    monkeypatch.setattr(groups, "informative", lambda *given, **share: chosen.append(1) or informative(*given, **share))
    monkeypatch.setattr(groups.Group, "_scored", lambda self: scored.append(1) or scores(self))
    report = tune(bench, tmp_path / "run")
    assert report["parts"] == 6
    assert len(chosen) == 2
    assert len(scored) == 2 + 6


def test_the_command_writes_the_report_that_the_run_wrote(unbroken, tmp_path):
    folder, report = unbroken
    assert main(["tune", "report", str(folder), "--out", str(tmp_path / "report")]) == 0
    for name in ("report.json", "report.md"):
        assert (tmp_path / "report" / name).read_bytes() == (folder / name).read_bytes()
    assert json.loads((folder / "report.json").read_text()) == report
    assert (tmp_path / "report" / "report.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["tune", "report", str(folder / "runs"), "--out", str(tmp_path / "table")]) == 0
    assert json.loads((tmp_path / "table" / "report.json").read_text())["runs"] == len(POOL)


def test_a_run_that_has_not_ended_has_a_report_and_one_without_a_score_says_so():
    history = History(size=2)
    record = Record("words", "0" * 16, "micro", 0, tuple(POOL), "transfer", 60.0, history)
    with pytest.raises(DataError, match="run on 'words': expected a part with a score, got none in 0 parts"):
        of(record)
    for trial, score in ((Trial(1, 1), 0.25), (Trial(0, 1), 0.5), (Trial(1, 2), 0.5)):
        history = history.asked(trial).told(trial, seconds=2.0, score=score)
    expected = (Expected(0.3, 0.1, 16.0), Expected(0.4, 0.2, 24.0))
    report = of(dataclasses.replace(record, history=history, expected=expected))
    assert report["incumbent"]["expected"] == {"score": 0.3, "std": 0.1, "seconds": 16.0, "rank": 2, "of": 2}
    assert [(one["seconds"], one["score"]) for one in report["over_time"]] == [(2.0, 0.25), (4.0, 0.5)]
    assert [(one["pipeline"], one["seconds"], one["pareto"]) for one in report["tried"]] == [
        ("as generated", 2.0, True),
        ("lora 8 random adamw 2e-02", 4.0, False),
    ]
    text = markdown(report)
    assert "The run has not ended" in text
    assert "a whole run of it was expected to score 0.30 +- 0.10 in 16 seconds: number 2 of 2" in text


def test_a_killed_run_goes_on_as_if_nothing_had_been(bench, unbroken, tmp_path, monkeypatch):
    """Killed once between two parts, and once after a part was saved and before it was written down."""
    out = tmp_path / "run"
    parts = []
    carry_out, save = module.Session.carry_out, module.Session._save

    def killed_between(self, trial):
        if len(parts) == 5:
            raise KeyboardInterrupt
        parts.append(trial)
        carry_out(self, trial)

    def killed_before_writing(self):
        if len(self.record.history.observations) == 11:
            raise KeyboardInterrupt
        save(self)

    for name, killer in (("carry_out", killed_between), ("_save", killed_before_writing)):
        with monkeypatch.context() as patch:
            patch.setattr(module.Session, name, killer)
            with pytest.raises(KeyboardInterrupt):
                tune(bench, out)
    report = tune(bench, out)
    assert trials(out) == trials(unbroken[0])
    assert report["test"] == unbroken[1]["test"]
    for ours, theirs in zip(_leaves(out), _leaves(unbroken[0]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def _leaves(folder):
    import jax

    return jax.tree.leaves(load_adapter(folder).tree)


def test_a_kill_forgets_the_time_of_no_part(bench, tmp_path, monkeypatch):
    carry_out = module.Session.carry_out

    def slowly_and_killed(self, trial):
        if self.record.history.observations:
            raise KeyboardInterrupt
        time.sleep(0.3)
        carry_out(self, trial)

    monkeypatch.setattr(module.Session, "carry_out", slowly_and_killed)
    with pytest.raises(KeyboardInterrupt):
        tune(bench, tmp_path / "run")
    record = read(tmp_path / "run")
    assert len(record.history.observations) == 1
    assert record.elapsed > 0.3 + record.history.spent


def test_the_budget_ends_a_run(bench, tmp_path):
    report = tune(bench, tmp_path / "run", budget=1e-9)
    assert report["parts"] == 1
    with pytest.raises(ConfigError, match="expected a positive number of seconds"):
        tune(bench, tmp_path / "other", budget=0)


def test_a_run_ends_when_every_held_out_example_is_right(bench, tmp_path, monkeypatch):
    advance = module.Group.advance
    monkeypatch.setattr(module.Group, "advance", lambda self: advance(self)._replace(exact=np.ones(1)))
    told = []
    report = tune(bench, tmp_path / "run", say=told.append)
    assert (report["parts"], report["incumbent"]["validation_score"]) == (1, 1.0)
    assert told[-1].startswith("every held-out example is right")
    assert tune(bench, tmp_path / "run")["parts"] == 1


def test_all_that_a_run_does_counts_towards_its_budget(bench, tmp_path, monkeypatch):
    carry_out = module.Session.carry_out

    def slowly(self, trial):  # as where every part is compiled anew
        time.sleep(0.3)
        carry_out(self, trial)

    monkeypatch.setattr(module.Session, "carry_out", slowly)
    report = tune(bench, tmp_path / "run", budget=0.5)
    assert report["parts"] <= 2
    assert report["spent"] < report["elapsed"]
    again = tune(bench, tmp_path / "run", budget=0.5)
    assert again["parts"] == report["parts"]


def test_other_arguments_and_foreign_folders_are_refused(bench, unbroken, tmp_path):
    with pytest.raises(CheckpointError, match="holds a run that differs in its seed"):
        tune(bench, unbroken[0], seed=2)
    other = Bench(bench.model, {"shared": Shared({"lora": load_adapter(unbroken[0])})})
    with pytest.raises(CheckpointError, match="holds a run that differs in its starts"):
        tune(other, unbroken[0])
    (tmp_path / "notes.txt").write_text("mine")
    for place, told in ((tmp_path, "found something else"), (tmp_path / "notes.txt", "nothing can be written there")):
        with pytest.raises(CheckpointError, match=told):
            tune(bench, place)
    with pytest.raises(CheckpointError, match="gs://bucket/run: this is not written to a bucket"):
        tune(bench, "gs://bucket/run")


def test_another_optimiser_or_tuner_is_another_run(bench, unbroken, learnt, tmp_path):
    def tuned(recommender, **given):
        return run(bench, data_set("first"), recommender, out=tmp_path / "run", budget=1e-9, **given)

    tuned(learnt)
    tuned(dataclasses.replace(learnt))  # read again it is the same one
    with pytest.raises(CheckpointError, match="holds a run that differs in its optimiser"):
        tuned(learnt, mode="condition")
    retold = dataclasses.replace(learnt.scores, task=learnt.scores.kept)
    for recommender, name in ((None, "optimiser"), (dataclasses.replace(learnt, scores=retold), "tuner")):
        with pytest.raises(CheckpointError, match=f"holds a run that differs in its {name}"):
            tuned(recommender)
    path = tmp_path / "run" / "tune.json"
    record = json.loads(path.read_text())
    del record["tuner"], record["starts"]
    path.write_text(json.dumps({**record, "schema_version": 1}))
    tuned(learnt)  # begun when they were not noted


def test_a_part_that_breaks_down_ends_its_pipeline(bench, tmp_path, monkeypatch):
    import jax

    advance = module.Group.advance

    def no_memory(self):
        if self.pipelines[0].method == "tune" and len(self.parts) == 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return advance(self)

    monkeypatch.setattr(module.Group, "advance", no_memory)
    tune(bench, tmp_path / "run")
    seen = trials(tmp_path / "run")
    assert [part for part in seen if part[0] == 1][-1] == (1, 3, None)
    rows = {one.pipeline.method: one for one in table.read(tmp_path / "run" / "runs")}
    assert (rows["tune"].status, rows["as_generated"].status) == ("out_of_memory", "completed")
    assert rows["tune"].error == "RESOURCE_EXHAUSTED: out of memory"


def test_a_run_in_which_every_pipeline_breaks_down_says_why(bench, tmp_path, monkeypatch):
    import jax

    def no_memory(self):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory" + "." * 1000)

    monkeypatch.setattr(module.Group, "advance", no_memory)
    with pytest.raises(ConfigError, match=r"2 of 2 pipelines were tried.* out_of_memory: RESOURCE_EXHAUSTED: out"):
        tune(bench, tmp_path / "run")
    seen = read(tmp_path / "run").history.observations
    assert [(one.status, len(one.error)) for one in seen] == [("out_of_memory", 500)] * 2
    path = tmp_path / "run" / "tune.json"
    record = json.loads(path.read_text())
    for one in record["history"]["observations"]:
        del one["error"]
    path.write_text(json.dumps({**record, "schema_version": 2}))  # as one was written when they were not kept
    assert {one.error for one in read(tmp_path / "run").history.observations} == {""}


@pytest.mark.parametrize("error", ["RESOURCE_EXHAUSTED", "not finite"])
def test_a_pipeline_that_broke_down_keeps_what_it_had_and_may_have_won(bench, tmp_path, monkeypatch, error):
    import jax

    advance = module.Group.advance

    def broken(self):
        if len(self.parts) < 2:
            return advance(self)
        if error == "not finite":
            return advance(self)._replace(loss=np.array([np.nan]))
        raise jax.errors.JaxRuntimeError(error)

    monkeypatch.setattr(module.Group, "advance", broken)
    monkeypatch.setattr(module, "make_pool", lambda *arguments, **names: POOL[1:])
    report = tune(bench, tmp_path / "run")
    (row,) = table.read(tmp_path / "run" / "runs")
    assert row.status == ("failed" if error == "not finite" else "out_of_memory")
    assert row.curve == tuple(score for _, _, score in trials(tmp_path / "run")[:2])
    exact, _ = bench.score(data_set("first"), "test", load_adapter(tmp_path / "run"))
    assert row.test_score == report["test"]["tuned"] == pytest.approx(exact)


def test_a_pipeline_that_was_not_run_to_its_end_is_stopped(bench, tmp_path):
    tune(bench, tmp_path / "run", budget=1e-9)
    (row,) = table.read(tmp_path / "run" / "runs")
    assert (row.status, row.error, len(row.curve)) == ("stopped", "", 1)


def test_pools_hold_what_the_model_can_run(bench, monkeypatch):
    monkeypatch.undo()
    pool = make_pool(bench, None, size=12, seed=0)
    assert len(pool) == 12
    assert pool[0].method == "as_generated"
    assert pool[1] == default_pipeline()
    for pipeline in pool:
        bench.space.check(pipeline)


@pytest.fixture(scope="module")
def learnt(unbroken) -> Recommender:
    recorded = from_runs(table.read(unbroken[0] / "runs"))
    return Recommender.fit(recorded, POOL, performance=DeepKernelGP(steps=5), cost=MLPCost(steps=5))


def test_the_tuner_in_a_models_folder_is_the_default(learnt, tmp_path):
    def given(**values):
        return argparse.Namespace(**{"model": str(tmp_path), "tuner": None, **values})

    (tmp_path / "hypermodel.json").touch()
    assert tuner_of(given()) is None
    assert tuner_of(given(model="s3://bucket/model")) is None
    learnt.save(tmp_path / "tuner")
    assert tuner_of(given()).pool == tuple(POOL)
    dataclasses.replace(learnt, pool=()).save(tmp_path / "other")
    assert tuner_of(given(tuner=str(tmp_path / "other"))).pool == ()


def test_a_tuner_that_is_to_learn_from_the_run_must_be_there(tmp_path, monkeypatch, capsys):
    (tmp_path / "hypermodel.json").touch()
    monkeypatch.setattr(tune_run, "bench_of", lambda arguments: None)
    command = ["tune", "run", "--model", str(tmp_path), "--data", "mine.jsonl", "--budget", "1s", "--out", "tuned"]
    for mode in ("condition", "refit"):
        assert main([*command, "--mode", mode]) == 2
        assert f"--mode {mode}: expected --tuner, for none ships with '{tmp_path}'" in capsys.readouterr().err
    assert main([*command, "--mode", "random", "--tuner", "mine"]) == 2
    assert "--tuner: expected none beside --mode random, which asks no tuner, got 'mine'" in capsys.readouterr().err


def test_a_tuner_is_for_the_model_whose_runs_it_has_seen(bench, unbroken, tmp_path, monkeypatch):
    short = functools.partial(Recommender.fit, performance=DeepKernelGP(steps=5), cost=MLPCost(steps=5))
    monkeypatch.setattr(Recommender, "fit", short)
    assert main(["tune", "fit", "--table", str(unbroken[0] / "runs"), "--out", str(tmp_path / "tuner")]) == 0
    fitted, data = Recommender.load(tmp_path / "tuner"), data_set("first")
    assert fitted.model == bench.model.parts.id
    recommend(bench, data, fitted)
    other = dataclasses.replace(fitted, model="other@0")
    with pytest.raises(ConfigError, match=r"expected one learnt from runs of 'micro@.*', got one from .* 'other@0'"):
        recommend(bench, data, other)
    with pytest.raises(ConfigError, match="got one from runs of 'other@0'"):
        run(bench, data, other, out=tmp_path / "run", budget=1.0)
    first, second, *rest = fitted.columns
    swapped = dataclasses.replace(fitted, columns=(second, first, *rest))
    told = f"tuner: column 0 of its pipelines: expected '{first}', got '{second}'; fit it again"
    with pytest.raises(ConfigError, match=re.escape(told)):
        recommend(bench, data, swapped)
    with pytest.raises(ConfigError, match=re.escape(told)):
        run(bench, data, swapped, out=tmp_path / "run", budget=1.0)
    longer = dataclasses.replace(fitted, columns=(*fitted.columns, "colour?"))
    with pytest.raises(ConfigError, match=f"column {len(fitted.columns)} of its pipelines: expected None, got 'colour"):
        recommend(bench, data, longer)
    about = json.loads((tmp_path / "tuner" / FILE).read_text())
    del about["model"]
    (tmp_path / "tuner" / FILE).write_text(json.dumps({**about, "schema_version": 1}))
    recommend(bench, data, Recommender.load(tmp_path / "tuner"))  # as one was saved when models were not noted
    (tmp_path / "tuner" / FILE).write_text(json.dumps({**about, "schema_version": 1, "pool": [{"colour": "red"}]}))
    with pytest.raises(CheckpointError, match=r"recommender.json: pool: .*colour"):
        Recommender.load(tmp_path / "tuner")


def test_a_recommender_from_recorded_runs_chooses_and_recommends(bench, learnt, tmp_path, monkeypatch):
    monkeypatch.undo()
    learnt.save(tmp_path / "tuner")
    again = Recommender.load(tmp_path / "tuner")
    assert again.pool == tuple(POOL)
    data = data_set("second", 1)
    with pytest.raises(ConfigError, match="expected a count of at least 1, got -1"):
        recommend(bench, data, again, count=-1)
    found = recommend(bench, data, again, count=3)
    assert found == recommend(bench, data, learnt, count=3)
    assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)
    assert all(one["std"] > 0 and one["seconds"] > 0 for one in found)
    for mode in ("transfer", "condition", "refit"):
        surrogate = learnt.on(encode(POOL), bench.facts(data).meta)
        history = History(size=2).asked(Trial(0, 1)).told(Trial(0, 1), seconds=1.0, score=0.25)
        mean, std, seconds = surrogate.predict(history, [Trial(0, 2), Trial(1, 1)], mode)
        assert mean.shape == std.shape == seconds.shape == (2,)
        assert np.all(std > 0)
        assert np.all(seconds > 0)


def test_a_refit_serves_all_trials_until_the_next_and_is_what_it_was(bench, learnt, monkeypatch):
    """Refits after 5, 10, 15 and 20 observations, then a quarter more each; the others are conditioned on."""
    assert [count for count in range(1, 50) if last_refit(count) == count] == [5, 10, 15, 20, 25, 31, 38, 47]
    assert last_refit(4) == 0
    whole, counted = DeepKernelGP.refit, []
    monkeypatch.setattr(
        DeepKernelGP, "refit", lambda self, *given, **seed: counted.append(1) or whole(self, *given, **seed)
    )
    meta, history = bench.facts(data_set("first")).meta, History(size=2)
    surrogate, told = learnt.on(encode(POOL), meta), []
    for part in range(1, 8):
        trial = Trial(1, part)
        history = history.asked(trial).told(trial, seconds=1.0, score=0.1 * part)
        told.append(surrogate.predict(history, [Trial(0, 1)], "refit"))
    assert len(counted) == 1  # after the fifth, for the sixth and seventh as well
    np.testing.assert_array_equal(learnt.on(encode(POOL), meta).predict(history, [Trial(0, 1)], "refit"), told[-1])
    other = History(size=2).asked(Trial(1, 1)).told(Trial(1, 1), seconds=1.0, score=0.9)
    for part in range(2, 8):
        other = other.asked(Trial(1, part)).told(Trial(1, part), seconds=1.0, score=0.9)
    assert surrogate.predict(other, [Trial(0, 1)], "refit")[0] != told[-1][0]  # another history is not taken for it


def test_what_other_data_sets_say_is_asked_once_and_is_what_it_was(bench, learnt, monkeypatch):
    whole, rows = DeepKernelGP.predict, []
    monkeypatch.setattr(
        DeepKernelGP, "predict", lambda self, fitted, asked: rows.append(len(asked)) or whole(self, fitted, asked)
    )
    meta, history = bench.facts(data_set("first")).meta, History(size=2)
    surrogate = learnt.on(encode(POOL), meta)
    asked = []
    for part, score in ((1, 0.1), (2, 0.4), (3, 0.2)):
        asked.append((history, [Trial(0, 1), Trial(1, part)]))
        history = history.asked(Trial(1, part)).told(Trial(1, part), seconds=1.0, score=score)
    other = History(size=2).asked(Trial(1, 1)).told(Trial(1, 1), seconds=1.0, score=0.9)
    asked += [(history, [Trial(1, 4), Trial(1, 5)]), (other, [Trial(1, 2)]), (other, [Trial(0, 1), Trial(1, 2)])]
    told = [surrogate.predict(*one, "transfer") for one in asked]
    assert rows == [2, 1, 1, 2, 1]  # (1, 2) after another score is another question
    for one, answer in zip(asked, told, strict=True):
        np.testing.assert_allclose(learnt.on(encode(POOL), meta).predict(*one, "transfer"), answer, rtol=1e-5)


def test_a_start_that_no_part_betters_counts_for_the_choice_and_the_report(bench, tmp_path, monkeypatch):
    """It is what is kept of its pipeline; the curve stays that of the parts, as surrogates have learnt from."""

    def scored(self):
        tuned = 0.8 if hasattr(self, "start") else 0.85  # first of all the start is scored
        exact = tuned if self.pipelines[0].method == "tune" else 0.82
        return np.array([exact]), np.ones(1)

    monkeypatch.setattr(groups.Group, "_scored", scored)
    report = tune(bench, tmp_path / "run")
    best = report["incumbent"]
    assert (best["pipeline"], best["validation_score"], best["parts"]) == (POOL[1].to_json(), 0.85, 0)
    assert load_adapter(tmp_path / "run").metadata.refine_steps == 0
    assert {score for pipeline, _, score in trials(tmp_path / "run") if pipeline == 1} == {0.8}
    assert [one["score"] for one in report["tried"]] == [0.85, 0.82]
    assert max(one["score"] for one in report["over_time"]) == 0.85
    assert "It began with 0.850 on held-out examples, which none of its parts bettered" in markdown(report)
    assert of(read(tmp_path / "run")) == report


def test_incumbents_and_the_pareto_front_by_hand():
    history = History(size=3, fidelities=2)
    for trial, seconds, score in ((Trial(0, 1), 1.0, 0.3), (Trial(1, 1), 4.0, 0.2), (Trial(2, 1), 5.0, 0.6)):
        history = history.asked(trial).told(trial, seconds=seconds, score=score)
    assert incumbents(history) == [(1.0, 0.3, 0), (10.0, 0.6, 2)]
    assert pareto(history) == [0, 2]


def test_budgets_are_read():
    assert [parse_time(text) for text in ("90s", "30m", "1.5h")] == [90, 1800, 5400]
    for text in ("30", "m", "-1m", "0s", "1d"):
        with pytest.raises(ConfigError, match="--budget: expected a number with s, m or h"):
            parse_time(text)


def test_a_message_names_the_command_as_it_was_typed(capsys):
    given = ["--model", "strings", "--data", "mine.jsonl", "--out", "tuned"]
    assert main(["tune", "run", *given, "--budget", "30"]) == 2
    assert capsys.readouterr().err.startswith("hyperflax tune run: --budget: expected")
