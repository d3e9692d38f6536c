"""Fine-tuning: what is kept is the best, what is told is true, every kind trains, and what cannot be is refused."""

from __future__ import annotations

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

import hyperflax
import hyperflax.finetune as finetuning
from hyperflax import trees
from hyperflax.adapters import KINDS, Full, LoRA, ParallelMLP, Prefix, SoftPrompt, build_spec, merge
from hyperflax.checkpoints.artefacts import Adapter, AdapterMetadata, load_adapter
from hyperflax.checkpoints.peft import write_peft
from hyperflax.cli.finetune import choose_kinds, load_start
from hyperflax.cli.main import main
from hyperflax.data.finetuning import hold_out
from hyperflax.data.jsonl import Line, read_lines
from hyperflax.data.vocabularies import SentencePiece
from hyperflax.errors import AdapterError, CheckpointError, ConfigError, DataError
from hyperflax.evaluation.metrics import METRICS
from hyperflax.finetune import finetune, generate
from hyperflax.hypermodel import Hypermodel
from hyperflax.models import memory
from hyperflax.training import loop
from hyperflax.training.finetuning import LEARNING_RATES, FineTuning
from hyperflax.training.run_log import read_rows
from tests.adapters.micro import random_tree
from tests.finetuning.micro_model import LORA, T5, micro_model, write_task

SETTINGS = FineTuning(steps=20, batch_size=4, evaluations=4, learning_rate=0.02)
ONE_STEP = FineTuning(steps=1, batch_size=4, evaluations=1, learning_rate=1e-3)


@pytest.fixture(scope="module")
def model() -> Hypermodel:
    return micro_model()


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("task") / "task.jsonl")


@pytest.fixture(scope="module")
def run(model, task, tmp_path_factory):
    """A run from the generated adapter: its folder, report and what it said."""
    folder, said = tmp_path_factory.mktemp("run") / "tuned", []
    report = finetune(
        model=model, examples=task, out=folder, kinds=(LORA,), settings=SETTINGS, progress=False, say=said.append
    )
    return folder, report, said


def loss_of(model: Hypermodel, adapter: Adapter | None, lines, params=None) -> float:
    """Mean loss over target tokens, without the training code; all lines of a task have the same lengths."""
    sources, targets = (
        np.array([[byte + 3 for byte in text.encode()] + [1] for text in texts])
        for texts in ([line.input for line in lines], [line.target for line in lines])
    )
    variables = {"params": model.base_params if params is None else params}
    if adapter is not None:
        variables["adapters"] = adapter.tree
    logits = jax.jit(model.model.apply)(variables, sources, np.pad(targets[:, :-1], ((0, 0), (1, 0))))
    chosen = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), targets[..., None], axis=-1)
    return -float(chosen.mean())


def test_the_result_is_the_best_checkpoint_as_an_ordinary_adapter(model, task, run):
    folder, report, said = run
    adapter = hyperflax.load_adapter(folder)
    train, held = hold_out(read_lines(task), 0.2, 0)
    assert said == ["held out 5 of 24 examples (seed 0), 19 to train on"]
    assert (report["examples"], report["held_out"], report["overlap"]) == (19, 5, 0)
    assert adapter.spec == build_spec(LORA, T5)
    assert adapter.metadata.base_fingerprint == model.base_fingerprint
    assert adapter.metadata.hypermodel == model.parts.id
    rows = {row["step"]: row["loss"] for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "eval"}
    assert rows[report["best_step"]] == min(rows.values()) == report["loss"]["tuned"]
    assert adapter.metadata.refine_steps == report["best_step"] > 0
    assert report["loss"]["tuned"] == pytest.approx(loss_of(model, adapter, held), rel=1e-5)
    assert report["loss"]["start"] == rows[0] == pytest.approx(loss_of(model, generate(model, train), held), rel=1e-5)
    assert set(report["scores"]) == {"bare", "generated", "tuned"}
    assert set(report["gain"]) == {"bare", "generated"}
    assert json.loads((folder / "report.json").read_text()) == report
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert len(model.predict(["ap"], adapter)) == 1


def test_a_finished_run_is_told_again_and_another_one_is_refused(model, task, run):
    folder, report, _ = run
    rows = read_rows(folder / "metrics.jsonl")
    common = {"model": model, "examples": task, "out": folder, "progress": False}
    assert finetune(kinds=(LORA,), settings=SETTINGS, **common) == report
    assert read_rows(folder / "metrics.jsonl") == rows
    with pytest.raises(
        CheckpointError, match=r"expected {'learning_rate': 0\.02}, got {'learning_rate': 0\.01}; choose"
    ):
        finetune(kinds=(LORA,), settings=dataclasses.replace(SETTINGS, learning_rate=0.01), **common)
    with pytest.raises(CheckpointError, match="a run with other spec; choose another folder"):
        finetune(kinds=(LORA.resized(3),), settings=SETTINGS, **common)
    with pytest.raises(CheckpointError, match=r"a run with other start: expected generated by micro@.*, got random;"):
        finetune(kinds=(LORA,), settings=SETTINGS, init="random", **common)


@pytest.mark.parametrize(("batch_size", "parts"), [(4, 2), (5, 3)])
def test_a_batch_that_keeps_too_much_is_worked_through_in_parts(model, task, tmp_path, monkeypatch, batch_size, parts):
    settings = dataclasses.replace(SETTINGS, steps=3, evaluations=1, batch_size=batch_size)
    common = {"model": model, "examples": task, "kinds": (LORA,), "settings": settings, "progress": False}
    whole = finetune(out=tmp_path / "whole", **common)
    kept, asked = [], loop.train
    monkeypatch.setattr(memory, "AT_ONCE", memory.kept_bytes(T5, 2, 8, 8))
    monkeypatch.setattr(loop, "train", lambda **arguments: kept.append(arguments["microbatches"]) or asked(**arguments))
    cut = finetune(out=tmp_path / "cut", **common)
    assert kept == [parts]
    assert cut["loss"] == pytest.approx(whole["loss"], rel=1e-5)


def test_a_generated_start_of_other_last_bits_is_the_same_run(model, task, tmp_path, monkeypatch):
    """Machines differ in them, and so do processes that read other supports before."""
    common = {"model": model, "examples": task, "out": tmp_path, "kinds": (LORA,), "progress": False}
    finetune(settings=ONE_STEP, **common)

    def nearly(*given):
        adapter = generate(*given)
        return dataclasses.replace(adapter, tree=jax.tree.map(lambda leaf: leaf * np.float32(1 + 1e-6), adapter.tree))

    monkeypatch.setattr(finetuning, "generate", nearly)
    finetune(settings=ONE_STEP, **common)


KINDS_ALONE = [LoRA(rank=3), ParallelMLP(bottleneck=2), Full(), SoftPrompt(length=2), Prefix(length=2)]


@pytest.mark.parametrize("kind", KINDS_ALONE, ids=lambda kind: kind.kind)
def test_every_kind_trains_from_a_random_start(model, task, tmp_path, kind):
    folder = tmp_path / "out"
    report = finetune(
        model=model, examples=task, out=folder, kinds=(kind,), init="random", settings=ONE_STEP, progress=False
    )
    adapter, held = load_adapter(folder), hold_out(read_lines(task), 0.2, 0)[1]
    assert adapter.spec == build_spec(kind, T5)
    assert adapter.metadata.hypermodel is None
    assert report["loss"]["tuned"] == pytest.approx(loss_of(model, adapter, held), rel=1e-5)
    if kind.starts_at_identity:
        assert report["loss"]["start"] == pytest.approx(loss_of(model, None, held), rel=1e-5)
    if kind.kind == "full":
        merged = merge(model.base_params, adapter.tree, adapter.spec)
        assert report["loss"]["tuned"] == pytest.approx(loss_of(model, None, held, merged), rel=1e-5)


def test_an_adapter_of_the_same_base_is_a_start_and_a_condition(model, task, run, tmp_path):
    given = load_adapter(run[0])
    report = finetune(model=model, examples=task, out=tmp_path / "on", kinds=(LORA.resized(4),), init=given,
                      settings=ONE_STEP, progress=False)  # fmt: skip
    assert list(report["scores"]) == ["bare", "generated", "start", "tuned"]
    assert report["loss"]["start"] == pytest.approx(run[1]["loss"]["tuned"], rel=1e-5)
    other = model.with_base(jax.tree.map(lambda x: x * 1.5, model.base_params))
    with pytest.raises(AdapterError, match="the adapter was made for the base model sha256"):
        finetune(model=other, examples=task, out=tmp_path / "x", kinds=(LORA,), init=given, progress=False)
    assert not (tmp_path / "x").exists()


def test_what_the_start_was_trained_on_is_not_hidden(model, task, run, tmp_path):
    """Nor are the run's own examples taken for no examples, and what else the start says is of the start alone."""
    given = load_adapter(run[0])
    seen = {"training_tasks": ["0a"], "training_data_sets": ["p3/x"], "unrecorded_batches": ["CACLM"]}
    seen |= {"sources": {"dates": "sha256:12"}}
    metadata = dataclasses.replace(given.metadata, provenance={**seen, "results": [1]})
    finetune(model=model, examples=task, out=tmp_path / "on", kinds=(LORA,), settings=ONE_STEP, progress=False,
             init=dataclasses.replace(given, metadata=metadata))  # fmt: skip
    provenance = load_adapter(tmp_path / "on").metadata.provenance
    assert provenance.pop("finetuning")["report"]["examples"] == 19
    assert provenance == {**seen, "unrecorded_batches": ["CACLM", "PairBatches"]}
    assert given.metadata.provenance["unrecorded_batches"] == ["PairBatches"]


def test_what_cannot_be_is_refused_before_anything_is_written(model, task, tmp_path):
    def refused(error, match, *, file=task, kinds=(LORA,), **options):
        with pytest.raises(error, match=match):
            finetune(model=model, examples=file, out=tmp_path / "out", kinds=kinds, progress=False, **options)
        assert not (tmp_path / "out").exists()

    refused(AdapterError, "the start has lora at '.*where what is to be trained has nothing", kinds=(Prefix(),))
    refused(AdapterError, "no prefix is without effect", kinds=(LORA, Prefix()))
    few = write_task(tmp_path / "few.jsonl", count=7)
    refused(DataError, "expected at least 8, of which a part is held out, got 7; give more, or held-out", file=few)
    broken = tmp_path / "broken.jsonl"
    broken.write_text(task.read_text() + "{\n")
    refused(DataError, r"broken\.jsonl:25: expected a JSON object", file=broken)
    broken.write_text(task.read_text() + '\n{"input": "a long input", "target": "x"}\n')
    refused(DataError, r"broken\.jsonl:26: inputs: expected at most 8 tokens.*, got 13", validation=broken)
    for number in range(9):
        with (tmp_path / "long.jsonl").open("a") as file:
            file.write(json.dumps({"input": f"abcdef{number}", "target": "abcdefg"}) + "\n")
    refused(DataError, r"long\.jsonl:\d: too long for the hypernetwork to read", file=tmp_path / "long.jsonl")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    for place in (tmp_path / "full", tmp_path / "full" / "mine.txt"):  # before the examples are read
        with pytest.raises(CheckpointError, match="expected nothing, an empty folder or a run of finetune"):
            finetune(model=model, examples=tmp_path / "none", out=place, kinds=(LORA,), progress=False)
    with pytest.raises(CheckpointError, match="gs://bucket/run: this is not written to a bucket"):
        finetune(model=model, examples=task, out="gs://bucket/run", kinds=(LORA,), progress=False)


def test_a_model_that_is_shown_no_examples_generates_from_them_all_the_same(model):
    """One after the other, as a model of one shot does."""
    episodes = model.config.episodes
    lines = [Line(f"a:{number}", letter, letter.upper()) for number, letter in enumerate("abc")]
    told = [
        Hypermodel(
            dataclasses.replace(model.config, episodes=episodes.replace(shots=shots)),
            model.parts.base,
            model.parts.hypernetwork_params,
        )
        for shots in (0, 1)
    ]
    none, one = (trees.flatten(generate(other, lines).tree) for other in told)
    for path, leaf in none.items():
        np.testing.assert_allclose(leaf, one[path], rtol=1e-5, atol=1e-6)


def test_a_held_out_target_is_what_the_vocabulary_writes(data_dir):
    config = types.SimpleNamespace(vocabulary=SentencePiece(data_dir / "vocab" / "spiece.model"))
    model = types.SimpleNamespace(config=config, predict=lambda inputs, adapter: ["New York"] * len(inputs))
    held = [Line("held.jsonl:1", "a", "New  York "), Line("held.jsonl:2", "b", "York")]
    report = finetuning._compared(model, held, "exact_match", None, None, None)
    assert report["scores"]["tuned"]["mean"] == 0.5


def test_the_command(model, tmp_path, capsys):
    saved = tmp_path / "run" / "model"  # as a training run leaves it
    saved.parent.mkdir()
    model.save(saved)
    train, held = write_task(tmp_path / "train.jsonl"), write_task(tmp_path / "held.jsonl", first=22, count=6)
    out, shared = str(tmp_path / "out"), tmp_path / "run_shared" / "model"
    command = ["finetune", "--model", str(saved), "--examples", str(train), "--validation", str(held)]
    command += ["--out", out, "--steps", "2", "--batch_size", "4"]
    assert main([*command, "--init", "shared"]) == 2
    assert f"expected an adapter directory at {shared}, found none; train one for this model" in capsys.readouterr().err
    assert main([*command, "--init", "nowhere"]) == 2
    assert "expected generated, random, shared or an adapter directory, got 'nowhere'" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"expected an adapter directory at .*/named_shared, found none"):
        load_start("shared", tmp_path / "named")
    spec = build_spec(LORA, T5)
    shared.parent.mkdir()
    Adapter(random_tree(spec, 0, std=0.01), spec, generate(model, read_lines(train)).metadata).save(shared)
    assert main([*command, "--init", "shared", "--rank", "3"]) == 0
    told = capsys.readouterr().out
    assert "tuned" in told
    assert "start" in told
    assert "held-out examples also chose the step" in told
    assert "2 held-out inputs are among the training examples" in told
    assert load_adapter(out).spec == build_spec(LORA.resized(3), T5)
    assert main(["predict", "--model", str(saved), "--adapter", out, "--inputs", str(held)]) == 0


def test_the_command_takes_addresses_for_the_model_and_the_start(model, tmp_path, monkeypatch):
    import hyperflax.checkpoints.artefacts as artefacts
    import hyperflax.hypermodel as hypermodel
    from hyperflax.buckets import BucketPath

    read = []
    monkeypatch.setattr(hypermodel, "load", lambda place: read.append(str(place)) or model)
    monkeypatch.setattr(artefacts, "load_adapter", lambda place: pytest.fail(str(place)))
    monkeypatch.setattr(BucketPath, "is_dir", lambda self: read.append(str(self)) or False)
    command = ["finetune", "--model", "gs://bucket/run/model", "--examples", str(tmp_path / "absent.jsonl")]
    assert [main([*command, "--out", "out", "--init", init]) for init in ("shared", "s3://bucket/mine", "random")] == [
        2
    ] * 3
    address = "gs://bucket/run/model"
    assert read == [address, "gs://bucket/run_shared/model", address, "s3://bucket/mine", address]


def test_kinds_are_those_of_the_start_where_it_has_them():
    like = build_spec((LORA, Prefix(length=3)), T5)
    assert choose_kinds(None, {}, like) is None
    assert choose_kinds(None, {"rank": 5}, like) == (LORA.resized(5), Prefix(length=3))
    assert choose_kinds("lora", {}, like) == (LORA,)
    assert choose_kinds("lora+parallel_mlp", {"rank": 5}, like) == (LORA.resized(5), ParallelMLP())
    for names, sizes, told in (
        ("lora+ia3", {}, "--kind: expected some of lora, prefix, .* got 'lora.ia3'"),
        ("lora+lora", {}, "--kind: expected some of"),
        ("full", {"rank": 2}, "--rank: none of full has it"),
    ):
        with pytest.raises(ConfigError, match=told):
            choose_kinds(names, sizes, like)


def test_of_a_start_that_says_no_settings_the_size_is_kept():
    """An adapter from elsewhere: there are its leaves alone."""
    like = dataclasses.replace(build_spec(LoRA(rank=16, alpha=4.0), T5), kinds=())
    assert choose_kinds(None, {}, like) is None
    assert choose_kinds("lora", {}, like) == choose_kinds("lora", {"rank": 16}, like) == (LoRA(rank=16, alpha=16.0),)
    assert choose_kinds(None, {"rank": 4}, like) == (LoRA(rank=4, alpha=4.0),)
    assert choose_kinds("lora+prefix", {}, like) == (LoRA(rank=16, alpha=16.0), Prefix())


def test_an_adapter_from_elsewhere_is_trained_on_as_it_is(model, tmp_path, capsys):
    """Of two ranks, at places that no default has."""
    saved, train = tmp_path / "model", write_task(tmp_path / "train.jsonl")
    model.save(saved)
    spec = build_spec((LoRA(rank=3, sites=("encoder/attention/*",)), LoRA(rank=1, sites=("decoder/mlp/wi_0",))), T5)
    write_peft(tmp_path / "peft", Adapter(random_tree(spec, 0, std=0.01), spec, AdapterMetadata(None)))
    (tmp_path / "peft" / "hyperflax.json").unlink()
    theirs, out = tmp_path / "theirs", tmp_path / "out"
    assert main(["import", str(tmp_path / "peft"), "--out", str(theirs), "--base", str(saved)]) == 0
    command = ["finetune", "--model", str(saved), "--examples", str(train), "--init", str(theirs), "--out", str(out)]
    assert main([*command, "--steps", "1", "--batch_size", "4"]) == 0
    tuned, given = load_adapter(out), load_adapter(theirs)
    assert tuned.spec == given.spec
    assert {leaf.path: leaf.shape for leaf in given.spec.leaves} == {leaf.path: leaf.shape for leaf in spec.leaves}
    start = loss_of(model, given, hold_out(read_lines(train), 0.2, 0)[1])
    assert json.loads((out / "report.json").read_text())["loss"]["start"] == pytest.approx(start, rel=1e-5)


@pytest.mark.parametrize(
    "fields",
    [{"steps": 0}, {"patience": 0}, {"warmup": 1.0}, {"held_out": -0.1}, {"learning_rate": 0.0}, {"metric": "x"}],
)
def test_settings_are_checked_where_they_are_made(fields):
    with pytest.raises(ConfigError, match=rf"FineTuning\.{next(iter(fields))}: expected"):
        FineTuning(**fields)


def test_a_held_out_score_is_by_any_metric_that_scores_an_example_alone():
    chosen = [metric.name for metric in METRICS.values() if metric.per_example]
    assert [FineTuning(metric=name).metric for name in chosen] == chosen
    with pytest.raises(
        ConfigError, match=r"FineTuning\.metric: expected one that scores an example alone .*'macro_f1'"
    ):
        FineTuning(metric="macro_f1")


@pytest.mark.parametrize(("steps", "period"), [(1, 1), (20, 1), (30, 2), (39, 2), (400, 20), (410, 21)])
def test_there_are_no_more_evaluations_than_were_asked_for(steps, period):
    assert FineTuning(steps=steps, evaluations=20).period == period


def test_of_several_kinds_the_lowest_learning_rate_is_taken():
    assert KINDS.keys() > LEARNING_RATES.keys()
    schedule = FineTuning(steps=100).optimizer((LoRA(), Full())).schedule
    assert float(schedule(5)) == pytest.approx(1e-4)
