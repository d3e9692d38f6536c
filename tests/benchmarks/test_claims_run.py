"""The benchmark end to end on micro models: two experiments and two seeds, stopped and continued, to the table."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib

import jax
import numpy as np
import pytest

from benchmarks.claims import results as results_module
from benchmarks.claims import training as training_module
from benchmarks.claims.__main__ import main, run_all
from benchmarks.claims.comparisons import Claim, Comparison, Side
from benchmarks.claims.evaluation import figures
from benchmarks.claims.experiments import (
    Base,
    Evaluation,
    Experiment,
    Hyperpretraining,
    PrunedBase,
    ReconstructionExperiment,
    TaskTraining,
    Tuning,
    digest,
)
from benchmarks.claims.families import Family
from benchmarks.claims.pictures import is_curve, turned, write_pictures
from benchmarks.claims.report import aggregate
from benchmarks.claims.results import read_results, run
from benchmarks.claims.training import Workspace, base_fingerprint, trained, trained_base
from benchmarks.claims.tuning import by_task, descend, marks_to, run_tuning
from benchmarks.claims.verdicts import UNDECIDED
from hyperflax.adapters.lora import LoRA
from hyperflax.checkpoints.forms import load_base
from hyperflax.checkpoints.t5_directory import save_t5
from hyperflax.checkpoints.task_adapters import load_task_adapters
from hyperflax.data.episode_config import EpisodeConfig
from hyperflax.data.examples import InMemorySource
from hyperflax.data.multitask import TaskPairs
from hyperflax.data.text import PackedBatches
from hyperflax.data.vocabularies import Bytes
from hyperflax.errors import ConfigError, DataError, HyperflaxError
from hyperflax.evaluation.runner import EvaluationTask
from hyperflax.hypernets.heads import HeadsConfig
from hyperflax.hypernets.hyper_t5 import HyperT5Config
from hyperflax.models.t5 import T5
from hyperflax.objectives import T5Objective
from hyperflax.training.optimizers import adamw
from hyperflax.types import T5Config

SHAPE = T5Config(
    vocab_size=384, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=16, num_encoder_layers=1, num_decoder_layers=1
)
WORDS = [a + b for a in "abcdef" for b in "ghij"]
RULES = {"upper": str.upper, "double": lambda w: w + w, "first": lambda w: w[0], "turned": lambda w: w[::-1]}
TASKS = InMemorySource.from_strings(
    {name: [(word, rule(word)) for word in WORDS] for name, rule in RULES.items()},
    Bytes(),
    definitions={name: name for name in RULES},
)
EPISODES = EpisodeConfig(
    tasks_per_batch=2, shots=2, examples=2, support_length=12, inputs_length=6, targets_length=6,
    too_long="skip", too_few="skip",
)  # fmt: skip


def base_batches(base: Base) -> PackedBatches:
    shown = EPISODES.replace(shots=0, examples=1, demonstrations="none")
    return PackedBatches(TaskPairs(TASKS, shown), base.batch_size, base.inputs_length, base.targets_length)


FAMILY = Family(
    name="toy",
    metric="exact_match",
    vocabulary=Bytes,
    training=lambda: TASKS,
    held_out=lambda: TASKS,
    text=lambda: InMemorySource.from_strings({"text": [("", " ".join(WORDS))]}, Bytes()),
    base_batches=base_batches,
    base_optimizer=lambda base: adamw(1e-2),
)
BASE = Base("toy_1", "toy", SHAPE, steps=2, batch_size=2, inputs_length=12, targets_length=12)
HYPER = Experiment(
    "hyper_t5",
    BASE,
    EPISODES,
    Evaluation(tasks=4, examples=3, draws=2, conditions=("bare", "generated", "shuffled_support"), shots=(1,)),
    steps=2,
    learning_rate=1e-2,
    seeds=(0, 1),
    adapter=LoRA(rank=2),
    hypernetwork=HyperT5Config(t5=SHAPE, heads=HeadsConfig(hidden=8)),
)
SHARED = HYPER.replace(
    name="shared", hypernetwork=None, evaluation=Evaluation(tasks=4, examples=3, draws=2, conditions=("shared",))
)
CLAIM = Claim(
    1,
    "Generated adapters beat one shared adapter.",
    (HYPER, SHARED),
    (Comparison("generated beats shared", Side("hyper_t5"), Side("shared", "shared"), 0.01),),
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace in which the claim's two experiments have run for two seeds."""
    made = Workspace(tmp_path_factory.mktemp("claims"), families={"toy": FAMILY}, progress=False)
    for seed in (1, 0):  # as two processes do, one for each
        run_all("toy", [CLAIM], made, "micro", {seed})
    return made


def found(workspace: Workspace) -> dict:
    named = {"hyper_t5": HYPER, "shared": SHARED}
    return dict(read_results(workspace.out / "results", "micro", "toy", named))


def test_every_experiment_and_seed_has_its_result(workspace: Workspace):
    results = found(workspace)
    assert set(results) == {(name, seed) for name in ("hyper_t5", "shared") for seed in (0, 1)}
    ours, shared = results["hyper_t5", 1], results["shared", 1]
    assert set(ours["measures"]) == {"bare", "generated", "shuffled_support", "generated_1_shots"}
    assert {task: len(scores) for task, scores in ours["measures"]["generated"].items()} == dict.fromkeys(RULES, 2)
    assert {len(scores) for scores in shared["measures"]["shared"].values()} == {1}
    assert {"loss_spikes", "validation_loss", "within_over_between", "seconds_per_step"} <= set(ours["figures"])
    assert ours["flops_per_step"] == HYPER.flops_per_step
    assert [step for step, _ in ours["validation"]] == [1, 2]
    # One base for all, trained once; no checkpoint is left behind.
    assert len({result["base"]["fingerprint"] for result in results.values()}) == 1
    assert len(list((workspace.out / "bases").iterdir())) == 1
    assert not list(workspace.out.rglob("checkpoints"))


def test_seeds_differ_and_tasks_are_scored_on_the_same_examples(workspace: Workspace):
    results = found(workspace)
    assert results["hyper_t5", 0]["validation"] != results["hyper_t5", 1]["validation"]
    # The bare model reads no support: its score does not depend on the seed.
    assert results["hyper_t5", 0]["measures"]["bare"] == results["hyper_t5", 1]["measures"]["bare"]


def test_what_is_finished_is_not_run_again(workspace: Workspace, monkeypatch: pytest.MonkeyPatch):
    before = {path: path.stat().st_mtime_ns for path in workspace.out.rglob("*") if path.is_file()}

    def never(*_, **__):
        raise AssertionError("a finished experiment was run again")

    monkeypatch.setattr(results_module, "trained", never)
    monkeypatch.setattr(results_module, "evaluate", never)
    run_all("toy", [CLAIM], workspace, "micro", {0, 1})
    assert {path: path.stat().st_mtime_ns for path in workspace.out.rglob("*") if path.is_file()} == before
    # Another configuration is another experiment, whatever its name.
    with pytest.raises(AssertionError, match="run again"):
        run(HYPER.replace(steps=3), 0, workspace, "micro")


def test_a_result_on_another_base_than_the_named_one_is_refused(workspace: Workspace, tmp_path: pathlib.Path):
    same = dataclasses.replace(workspace, bases={BASE.name: str(trained_base(BASE, workspace))})
    assert run(HYPER, 0, same, "micro") == found(workspace)["hyper_t5", 0]
    params = T5Objective(T5(SHAPE)).init(jax.random.key(7), base_batches(BASE).batch(0))
    save_t5(tmp_path / "model", params, SHAPE, Bytes())
    other = dataclasses.replace(workspace, bases={BASE.name: str(tmp_path / "model")})
    with pytest.raises(DataError, match=r"seed0\.json: expected a result on the base in .*; take another --out"):
        run(HYPER, 0, other, "micro")
    # Nor are its models scored once more, under the name of the base that is named now.
    path = workspace.out / "results" / "micro" / "toy" / "hyper_t5-seed0.json"
    result = path.read_bytes()
    path.unlink()
    note = workspace.run(HYPER, 0) / "base.json"
    content = note.read_bytes()
    for noted in (True, False):  # without a note, the model says which base it is on
        note.write_bytes(content) if noted else note.unlink()
        with pytest.raises(DataError, match=r"-seed0: expected a run on the base sha256:\w+, got one on sha256:"):
            run(HYPER, 0, other, "micro")
    assert not note.exists()
    assert trained(HYPER, 0, workspace).is_dir()
    note.write_bytes(content)
    path.write_bytes(result)


def test_a_finished_run_of_which_nothing_tells_the_base_is_refused(workspace: Workspace):
    """A T5 does not name the one that it was fine-tuned from."""
    mtf = SHARED.replace(name="unknown", adapter=None, steps=1)
    trained(mtf, 0, workspace)
    (workspace.run(mtf, 0) / "base.json").unlink()
    with pytest.raises(DataError, match=r"got one without base\.json, whose model does not tell its base; take"):
        trained(mtf, 0, workspace)


def test_a_base_is_read_and_hashed_once(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    params = T5Objective(T5(SHAPE)).init(jax.random.key(3), base_batches(BASE).batch(0))
    save_t5(tmp_path / "model", params, SHAPE, Bytes())
    read = []
    monkeypatch.setattr(training_module, "load_base", lambda *given: read.append(given) or load_base(*given))
    given = Workspace(tmp_path, families={"toy": FAMILY}, bases={BASE.name: str(tmp_path / "model")})
    assert base_fingerprint(BASE, given) == base_fingerprint(BASE, given)
    assert len(read) == 1


def test_experiments_are_run_by_name(workspace: Workspace, capsys: pytest.CaptureFixture):
    run_all("toy", [CLAIM], workspace, "micro", {0, 1}, {"shared"})
    assert capsys.readouterr().out.splitlines() == ["[1/2] toy: shared, seed 0", "[2/2] toy: shared, seed 1"]


def test_one_that_fails_does_not_keep_the_others_from_being_run(
    workspace: Workspace, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    def fails_first(experiment, seed, *_):
        if seed == 0:
            raise HyperflaxError("run that seed first")

    monkeypatch.setattr("benchmarks.claims.__main__.run", fails_first)
    failed = run_all("toy", [CLAIM], workspace, "micro", {0, 1}, {"shared"})
    assert failed == ["toy: shared, seed 0: run that seed first"]
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "[2/2] toy: shared, seed 1"
    assert captured.err == "failed: run that seed first\n"


def test_a_lost_result_is_made_again_from_the_models_and_scores_that_are_there(workspace: Workspace):
    path = workspace.out / "results" / "micro" / "toy" / "hyper_t5-seed0.json"
    before = json.loads(path.read_text())
    model = next(workspace.run(HYPER, 0).glob("model/*.json"))
    path.unlink()
    written = model.stat().st_mtime_ns
    again = run(HYPER, 0, workspace, "micro")
    assert model.stat().st_mtime_ns == written
    assert {**again, "run": None} == {**before, "run": None}


def test_the_table_and_the_picture(workspace: Workspace, tmp_path: pathlib.Path):
    findings = aggregate("toy", "micro", [CLAIM], found(workspace))
    (claim,) = findings["claims"]
    (row,) = claim["comparisons"]
    assert (row["seeds"], row["tasks"], row["verdict"]) == (2, 4, UNDECIDED)
    assert "2 seeds, at least 3" in row["why"]
    assert set(claim["learning"]) == {"hyper_t5"}
    (path,) = write_pictures(findings, tmp_path)
    assert path.name == "toy-micro-claim1.png"
    assert path.stat().st_size > 10_000


def test_differences_are_drawn_towards_the_claim_in_the_least_that_would_matter():
    difference = {"low": -1.0, "mean": -0.5, "high": 0.25}
    assert turned({"better": "lower", "least": 0.5, "difference": difference}) == (-0.5, 1.0, 2.0)
    assert turned({"better": "higher", "least": 0.25, "difference": difference}) == (-4.0, -2.0, 1.0)


def test_a_reference_without_its_variants_is_no_curve():
    assert not is_curve({"lines": {"LoRA": [[8, 0.15]], "prefix": [[16, 0.1]]}})
    assert not is_curve({"lines": {}})
    assert is_curve({"lines": {"LoRA": [[8, 0.15], [32, 0.2]], "prefix": [[16, 0.1]]}})


def test_further_tuning_from_three_starts(workspace: Workspace):
    tuning = Tuning(
        "tuning_lora", HYPER, SHARED, tasks=3, rate_tasks=1, examples=3,
        train_examples=(2, 4), rates=(1e-3, 1e-2), marks=(0, 2), seeds=(0, 1),
    )  # fmt: skip
    with pytest.raises(HyperflaxError, match=r"seed 1: expected .*rates.json.* seed 0 .*run that seed first"):
        run_tuning(tuning, 1, workspace)
    measures, numbers = run_tuning(tuning, 0, workspace)
    tasks = {task for measure in measures.values() for task in measure}
    assert len(tasks) == 3
    assert len(measures) == 3 * 2 * 5  # starts, numbers of examples; loss and score at two marks, steps to the loss
    assert len(numbers) == 3 * 2 * 2
    # Random LoRA does nothing before it is tuned, and neither does it depend on the examples.
    assert measures["random_2_loss_0"] == measures["random_4_loss_0"]
    for task in tasks:
        assert measures["random_4_loss_2"][task] != measures["random_4_loss_0"][task]
        assert measures["generated_4_marks_to_loss"][task][0] in (0.0, 1.0, 2.0)
    # A task that diverged has no loss and scores nothing; the others keep theirs.
    wild, _ = run_tuning(dataclasses.replace(tuning, name="wild", rates=(3e38,)), 0, workspace)
    assert wild["random_4_loss_2"] == {}
    assert set(wild["random_4_score_2"]) == tasks
    assert all(score == [0.0] for score in wild["random_4_score_2"].values())
    # Other seeds tune the same tasks, from other starts, at the rates of the first.
    others, same = run_tuning(tuning, 1, workspace)
    assert same == numbers
    assert {task for measure in others.values() for task in measure} == tasks
    assert others["generated_4_loss_0"] != measures["generated_4_loss_0"]


def test_a_hyperpretrained_hypernetwork_and_a_fine_tuned_t5_run_as_well(workspace: Workspace):
    stage = Hyperpretraining(1, 2, length=24, shortest=2, inputs_length=12, targets_length=8, learning_rate=1e-2)
    evaluation = Evaluation(tasks=4, examples=3, draws=1, conditions=("generated",))
    before = HYPER.replace(name="before", hyperpretraining=stage, steps=1, evaluation=evaluation)
    assert set(run(before, 0, workspace, "micro")["measures"]) == {"generated"}
    assert (workspace.run(before, 0) / "before" / "model").is_dir()
    mtf = SHARED.replace(name="mtf", adapter=None, steps=1, evaluation=Evaluation(4, 3, 1, ("mtf",)))
    assert set(run(mtf, 0, workspace, "micro")["measures"]) == {"mtf"}


def test_a_hypernetwork_comes_near_to_adapters_of_some_tasks_own(workspace: Workspace):
    stage = TaskTraining(tasks=3, tasks_per_batch=2, steps=2, learning_rate=1e-2)
    near = ReconstructionExperiment.like(HYPER.replace(name="near"), task_adapters=stage, reconstruction=0.2)
    assert digest(near) != digest(HYPER.replace(name="near"))
    for seed in (0, 1):  # once for both
        assert set(run(near, seed, workspace, "micro")["measures"]) >= {"generated"}
    (folder,) = workspace.run(near, 0).parent.glob("near-*-tasks")
    stored = load_task_adapters(folder / "model")
    assert stored.metadata.tasks == ("upper", "double", "first")  # evenly spaced: 0, 1 and 2 of 4
    plain = HYPER.replace(name="far")
    losses = [run(one, 0, workspace, "micro")["validation"][-1] for one in (near, plain)]
    assert losses[0] != losses[1]


def test_a_base_that_is_there_is_not_trained(tmp_path: pathlib.Path):
    given = Workspace(tmp_path, families={"toy": FAMILY}, bases={"toy_1": "elsewhere/model"})
    assert trained_base(BASE, given) == pathlib.Path("elsewhere/model")


def test_a_pruned_base_starts_from_evenly_spaced_layers(tmp_path: pathlib.Path):
    deep = SHAPE.replace(num_encoder_layers=5, num_decoder_layers=3)
    deeper = Base("toy_5", "toy", deep, steps=1, batch_size=2, inputs_length=12, targets_length=12)
    shape = SHAPE.replace(num_encoder_layers=3, num_decoder_layers=2)
    base = PrunedBase("toy_3", "toy", shape, 1, 2, 12, 12, deeper=deeper)
    given = Workspace(tmp_path, families={"toy": FAMILY}, progress=False)
    directory = trained_base(base, given)
    assert load_base(directory, shape)["encoder"].keys() >= {"layers_0", "layers_1", "layers_2"}
    start = load_base(directory.parent / "start", shape)
    whole = load_base(trained_base(deeper, given), deep)
    for stack, kept in {"encoder": [0, 2, 4], "decoder": [0, 2]}.items():
        for number, layer in enumerate(kept):
            jax.tree.map(
                np.testing.assert_array_equal, start[stack][f"layers_{number}"], whole[stack][f"layers_{layer}"]
            )
    np.testing.assert_array_equal(start["token_embedder"]["embedding"], whole["token_embedder"]["embedding"])


def test_a_pruned_base_has_the_shape_of_the_deeper_one_and_no_more_layers():
    for change, message in (({"emb_dim": 32}, "but for its layers"), ({}, "num_encoder_layers: expected 2 to 1")):
        with pytest.raises(ConfigError, match=message):
            PrunedBase("toy_2", "toy", SHAPE.replace(num_encoder_layers=2, **change), 1, 2, 12, 12, deeper=BASE)


@pytest.mark.parametrize(
    ("losses", "best", "known"),
    [
        ([4.0, 3.0, 2.0, 1.0, 2.0, 3.0], 3, {2, 3, 4}),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 0, {0, 1, 2, 3, 4}),
        ([6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 5, {2, 3, 4, 5}),
        ([1.0, 0.5, np.nan], 1, {0, 1, 2}),  # a rate that diverged is not chosen
        ([2.0, np.inf, np.nan], 0, {0, 1, 2}),
        ([3.0], 0, {0}),
    ],
)
def test_rates_are_tried_from_the_middle_outwards(losses, best, known):
    asked = []

    def loss(at: int) -> float:
        asked.append(at)
        return losses[at]

    assert descend([functools.partial(loss, at) for at in range(len(losses))]) == best
    assert sorted(asked) == sorted(known)  # each once


def test_marks_to_a_given_loss():
    losses = np.array([[3.0, 3.0, 1.0], [2.0, 3.0, 1.0], [1.0, 2.5, 1.0]])
    assert marks_to(losses, np.array([2.0, 2.0, 2.0])).tolist() == [1.0, 3.0, 0.0]


def test_a_start_that_never_gets_there_is_later_than_one_that_does():
    """Though the loss is one that the other start reaches by definition, at the last mark at the latest."""
    random = np.array([[5.0, 5.0], [1.0, 1.0]])
    stuck = np.array([[3.0, 3.0], [2.0, 1.0]])
    assert marks_to(random, random[-1]).tolist() == [1.0, 1.0]
    assert marks_to(stuck, random[-1]).tolist() == [2.0, 1.0]


def test_a_task_that_diverged_has_no_loss():
    """One of a hundred would cost the others their result, after all of the tuning."""
    tasks = [EvaluationTask("a", (), ()), EvaluationTask("b", (), ())]
    assert by_task(tasks, np.array([1.5, np.nan])) == {"a": [1.5]}
    assert marks_to(np.array([[1.5, 1.5], [1.0, np.nan]]), np.array([1.0, 1.0])).tolist() == [1, 2]
    assert by_task(tasks, marks_to(np.array([[1.5, 1.5]]), np.array([1.5, np.nan]))) == {"a": [0.0]}


def test_spikes_are_rows_far_above_those_before():
    usual = [1.0 + 0.01 * (step % 5) for step in range(60)]
    usual[40] = 3.0
    rows = [{"kind": "train", "step": step, "loss": loss, "seconds": 0.5 * step} for step, loss in enumerate(usual)]
    rows += [{"kind": "eval", "step": step, "loss": loss} for step, loss in ((30, 2.0), (60, 1.0))]
    expected = {"loss_spikes": 1.0, "seconds_per_step": 0.5, "validation_loss": 1.0, "mean_validation_loss": 1.5}
    assert figures(rows) == pytest.approx(expected)


def test_the_command_says_what_is_wrong(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture):
    assert main(["--out", str(tmp_path), "--families", "words"]) == 2
    assert "expected some of" in capsys.readouterr().err
    assert main(["--out", str(tmp_path), "--families", "strings_demo", "--base", "x=y"]) == 2
    assert "['x']" in capsys.readouterr().err
    assert main(["--out", str(tmp_path), "--families", "strings_demo", "--experiments", "hart,harp"]) == 2
    said = capsys.readouterr().err
    assert "'hart_2'" in said
    assert said.endswith("got ['harp']\n")
    (tmp_path / "verdicts-cpu.md").write_text("of an earlier run")
    assert main(["--out", str(tmp_path), "--report"]) == 2
    assert "strings_demo is left out: no results" in capsys.readouterr().err
    assert (tmp_path / "verdicts-cpu.md").read_text() == "of an earlier run"
    for flag, text, allowed in (("--claims", "7", "1, 2, 3, 4, 5, 6"), ("--seeds", "0,9", "0, 1, 2")):
        with pytest.raises(SystemExit):
            main(["--out", str(tmp_path), flag, text])
        assert f"{flag}: expected numbers out of [{allowed}], got '{text}'" in capsys.readouterr().err


def test_running_one_claim_leaves_the_others_in_the_table(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "results" / "cpu" / "strings_demo").mkdir(parents=True)
    ran: list[int] = []
    monkeypatch.setattr(
        "benchmarks.claims.__main__.run_all",
        lambda family, table, *_: ran.extend(claim.number for claim in table) or [],
    )
    monkeypatch.setattr("benchmarks.claims.__main__.write_pictures", lambda *_: None)
    assert main(["--out", str(tmp_path), "--families", "strings_demo", "--claims", "2"]) == 0
    assert ran == [2]
    (table,) = json.loads((tmp_path / "verdicts-cpu.json").read_text())
    assert [claim["claim"] for claim in table["claims"]] == [1, 2, 3, 4, 5, 6]
    (tmp_path / "results" / "cpu" / "natural_instructions").mkdir()
    assert main(["--out", str(tmp_path), "--families", "strings_demo", "--claims", "2"]) == 0
    families = [table["family"] for table in json.loads((tmp_path / "verdicts-cpu.json").read_text())]
    assert families == ["strings_demo", "natural_instructions"]
