"""What training starts from and what it leaves: hypernetworks from a T5, from another one, from an exported model."""

from __future__ import annotations

import dataclasses
import functools
import logging
import pathlib
import re
import shutil
import types
from typing import Any

import jax
import numpy as np
import pytest

from hyperflax import trees
from hyperflax.adapters.full import Full
from hyperflax.adapters.kind_config import KindConfig
from hyperflax.adapters.kinds import build_spec, check_spec
from hyperflax.adapters.lora import LoRA
from hyperflax.checkpoints.artefacts import load_adapter
from hyperflax.checkpoints.fingerprint import fingerprint
from hyperflax.checkpoints.forms import Model, load_base, write_model
from hyperflax.checkpoints.shapes import difference
from hyperflax.checkpoints.t5_directory import save_t5
from hyperflax.checkpoints.task_adapters import load_task_adapters
from hyperflax.data.curriculum import Curriculum
from hyperflax.data.episode_config import EpisodeConfig
from hyperflax.data.episodes import Episodes
from hyperflax.data.examples import Example, InMemorySource, StreamedExample, TaskInfo
from hyperflax.data.hyperpretraining import CACLM
from hyperflax.data.text import PackedBatches
from hyperflax.data.vocabularies import Bytes
from hyperflax.errors import CheckpointError, ConfigError, DataError
from hyperflax.evaluation.contamination import (
    TRAINING_DATA_SETS,
    TRAINING_TASKS,
    UNRECORDED,
    name_digests,
    not_recorded,
)
from hyperflax.hypermodel import Hypermodel, HypermodelConfig, load
from hyperflax.hypernets.hart import HARTConfig
from hyperflax.hypernets.heads import HeadsConfig
from hyperflax.hypernets.hyper_t5 import HyperT5Config
from hyperflax.models.stacking import stack_layers
from hyperflax.models.t5 import T5
from hyperflax.train import HypernetworkOf, PlainT5, SharedAdapter, TaskAdapters, train
from hyperflax.trainables import Trained
from hyperflax.training import loop
from hyperflax.training.optimizers import Optimizer, adamw
from hyperflax.training.partitioning import Partitioner
from hyperflax.training.run_log import read_rows
from hyperflax.training.task_adapters import WithTaskAdapters
from hyperflax.types import PyTree, T5Config

BASE = T5Config(
    vocab_size=384, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=16, num_encoder_layers=1, num_decoder_layers=1
)
WIDE = BASE.replace(emb_dim=24, num_heads=3, mlp_dim=40, num_decoder_layers=2)
EPISODES = EpisodeConfig(tasks_per_batch=2, shots=2, examples=2, support_length=16, inputs_length=8, targets_length=8)
PARTITIONER = Partitioner()
WORDS = [a + b for a in "abcd" for b in "efgh"]
TASKS = InMemorySource.from_strings(
    {"upper": [(w, w.upper()) for w in WORDS], "double": [(w, w + w) for w in WORDS]}, Bytes()
)
TEXT = InMemorySource.from_strings({"text": [("", " ".join(WORDS))]}, Bytes())


def config(t5: T5Config = BASE, rank: int = 2) -> HypermodelConfig:
    return HypermodelConfig(
        base=BASE,
        spec=build_spec(LoRA(rank=rank), BASE),
        hypernetwork=HyperT5Config(t5=t5, heads=HeadsConfig(hidden=8)),
        episodes=EPISODES,
        vocabulary=Bytes(),
    )


def t5_directory(folder: pathlib.Path, shape: T5Config, seed: int, **told: Any) -> str:
    tokens = np.ones((1, 4), np.int32)
    params = jax.jit(T5(shape).init)(jax.random.key(seed), tokens, tokens)["params"]
    save_t5(folder, params, shape, Bytes(), **told)
    return str(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return t5_directory(tmp_path_factory.mktemp("base") / "model", BASE, 0)


def run(model, batches, folder: pathlib.Path, steps: int = 1, optimizer: Optimizer | None = None) -> pathlib.Path:
    return train(
        model=model,
        batches=batches,
        optimizer=optimizer or adamw(1e-2),
        total_steps=steps,
        model_dir=str(folder),
        progress=False,
    )


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> str:
    return t5_directory(tmp_path_factory.mktemp("wide") / "model", WIDE, 1)


@pytest.fixture(scope="module")
def hyperpretrained(base: str, wide: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A hypernetwork of another size than the base, started from another T5 and trained on text for a step."""
    windows = CACLM(
        TEXT, batch_size=2, length=24, shortest=2, support_length=22, inputs_length=8, targets_length=8, seed=1
    )
    return str(
        run(HypernetworkOf(config(WIDE), base, start=wide, name="first"), windows, tmp_path_factory.mktemp("first"))
    )


def fresh(model: HypernetworkOf) -> PyTree:
    """Zeros in the shapes of fresh parameters, without compiling anything."""
    shapes = jax.eval_shape(model.objective.init, jax.random.key(3), Episodes(TASKS, EPISODES).batch(0))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def started_from(model: HypernetworkOf) -> PyTree:
    return model.initial_params(fresh(model), PARTITIONER)


def same(a: PyTree, b: PyTree) -> bool:
    a, b = trees.flatten(a), trees.flatten(b)
    return a.keys() == b.keys() and all(np.array_equal(a[path], b[path]) for path in a)


def test_a_hypernetwork_starts_whole_from_a_hyperpretrained_one(base: str, hyperpretrained: str) -> None:
    first = load(hyperpretrained)
    assert first.parts.name == "first"
    model = HypernetworkOf(config(WIDE), base, start=hyperpretrained)
    assert same(started_from(model), first.parts.hypernetwork_params)


def test_a_model_records_what_its_base_was_trained_on_too(tmp_path: pathlib.Path) -> None:
    """The base in a T5 directory, the hypermodel and the shared adapter for it."""
    base = t5_directory(tmp_path / "base", BASE, 0, provenance={TRAINING_TASKS: name_digests(["earlier"])})
    expected = name_digests([*TASKS.task_names, "earlier"])
    hyper = run(HypernetworkOf(config(), base), Episodes(TASKS, EPISODES), tmp_path / "hyper")
    assert load(hyper).parts.provenance[TRAINING_TASKS] == expected
    shared = run(SharedAdapter(BASE, config().spec, Bytes(), base), Episodes(TASKS, EPISODES), tmp_path / "shared")
    assert load_adapter(shared).metadata.provenance[TRAINING_TASKS] == expected


def test_a_model_records_that_not_all_of_its_training_is_known(tmp_path: pathlib.Path) -> None:
    """What its base was trained on must not pass for all; and a later stage does not hide it."""
    base = t5_directory(tmp_path / "base", BASE, 0, provenance={TRAINING_TASKS: name_digests(["earlier"])})
    hidden = types.SimpleNamespace(batch=Episodes(TASKS, EPISODES).batch, _source=TASKS)
    model = HypernetworkOf(config(), base)
    first = run(model, hidden, tmp_path / "first")
    second = run(dataclasses.replace(model, start=str(first)), Episodes(TASKS, EPISODES), tmp_path / "second")
    stages = Curriculum([Episodes(TASKS, EPISODES), hidden], boundaries=[1])
    staged = run(model, stages, tmp_path / "staged")
    every = ["earlier", *TASKS.task_names]
    for folder, names in ((first, ["earlier"]), (second, every), (staged, every)):
        told = load(folder).parts.provenance
        assert told == {TRAINING_TASKS: name_digests(names), UNRECORDED: ["SimpleNamespace"]}
        assert not_recorded({"it": told}) == ["it"]
    assert not_recorded({"it": {TRAINING_TASKS: name_digests(["earlier"])}}) == []


def test_a_run_is_not_gone_on_with_under_another_vocabulary(tmp_path: pathlib.Path) -> None:
    batches = PackedBatches(lambda rng: [([3], [4])], batch_size=1, inputs_length=8, targets_length=8)
    run(PlainT5(BASE, Bytes()), batches, tmp_path)
    with pytest.raises(CheckpointError, match=r"other vocabulary\.extra_ids: expected 125, got 100"):
        run(PlainT5(BASE, Bytes(extra_ids=100)), batches, tmp_path, steps=2)


def test_a_model_records_the_data_sets_of_its_tasks_and_of_its_base(tmp_path: pathlib.Path) -> None:
    base = t5_directory(tmp_path / "base", BASE, 0, provenance={TRAINING_DATA_SETS: ["p3/imdb"]})
    stream = [
        StreamedExample(name, Example.from_text(word, word, Bytes()), TaskInfo(data_sets=data_sets))
        for name, data_sets in (("a", ("metaicl/rte", "metaicl/cb")), ("b", ()))
        for word in WORDS
    ]
    batches = Episodes(InMemorySource.from_stream(stream, Bytes()), EPISODES)
    hyper = run(HypernetworkOf(config(), base), batches, tmp_path / "hyper")
    assert load(hyper).parts.provenance == {
        TRAINING_TASKS: name_digests(["a", "b"]),
        TRAINING_DATA_SETS: ["metaicl/cb", "metaicl/rte", "p3/imdb"],
    }


def test_a_model_records_what_its_start_was_trained_on_too(base: str, tmp_path: pathlib.Path) -> None:
    """Else a second stage would hide the tasks of the first from the check for contamination."""
    model = HypernetworkOf(config(), base)
    other = InMemorySource.from_strings({"other": [(w, w) for w in WORDS]}, Bytes())
    first = run(model, Episodes(TASKS, EPISODES), tmp_path / "first")
    second = run(dataclasses.replace(model, start=str(first)), Episodes(other, EPISODES), tmp_path / "second")
    assert load(second).parts.provenance[TRAINING_TASKS] == name_digests([*TASKS.task_names, "other"])


def test_a_run_that_goes_on_with_other_data_records_what_it_learnt_from_before(
    base: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And learns that from the checkpoint that it goes on from; no other look is taken at the folder's."""
    model = HypernetworkOf(config(), base)
    other = InMemorySource.from_strings({"other": [(w, w) for w in WORDS]}, Bytes())
    run(model, Episodes(TASKS, EPISODES), tmp_path / "run", steps=1)
    shutil.rmtree(tmp_path / "run" / "model")
    opened, checkpoints = [], loop.Checkpoints
    monkeypatch.setattr(loop, "Checkpoints", lambda *given, **to: opened.append(given) or checkpoints(*given, **to))
    second = run(model, Episodes(other, EPISODES), tmp_path / "run", steps=2)
    assert load(second).parts.provenance[TRAINING_TASKS] == name_digests([*TASKS.task_names, "other"])
    assert len(opened) == 1
    assert "read only" not in caplog.text


OTHER_SCALE = build_spec(LoRA(rank=2, alpha=4.0), BASE)
HART_T5 = HARTConfig(t5=BASE, heads=HeadsConfig(hidden=8))


@pytest.mark.parametrize(
    ("began", "change", "told"),
    [
        ({}, {"spec": OTHER_SCALE}, r"scales\.encoder/.*/lora/.: expected 4\.0, got 2\.0"),
        (
            {"hypernetwork": HART_T5},
            {"hypernetwork": dataclasses.replace(HART_T5, order="backward")},
            r"hypernetwork\.order: expected 'forward', got 'backward'",
        ),
    ],
    ids=["alpha", "order"],
)
def test_a_run_does_not_go_on_as_another_model_of_the_same_shapes(
    base: str, tmp_path: pathlib.Path, began: dict[str, Any], change: dict[str, Any], told: str
) -> None:
    model = HypernetworkOf(dataclasses.replace(config(), **began), base)
    other = dataclasses.replace(model, config=dataclasses.replace(model.config, **change))
    run(model, Episodes(TASKS, EPISODES), tmp_path)
    with pytest.raises(CheckpointError, match=f"checkpoints: holds a run with other {told}; choose another folder"):
        run(other, Episodes(TASKS, EPISODES), tmp_path, steps=2)


def test_what_shapes_do_not_show_is_told_of_every_model() -> None:
    shared = SharedAdapter(BASE, config().spec, Bytes(), "base")
    tasks = TaskAdapters(BASE, config().spec, Bytes(), "base", source=TASKS)
    renamed = InMemorySource.from_strings({name: [("a", "b")] for name in ("upper", "other")}, Bytes())
    silu, swish = (BASE.replace(mlp_activations=(name, "linear")) for name in ("silu", "swish"))
    assert PlainT5(silu, Bytes()).meaning == PlainT5(swish, Bytes()).meaning
    for model, change, name in (
        (shared, {"spec": OTHER_SCALE}, "scales.encoder/"),
        (shared, {"base": silu}, "base.mlp_activations"),
        (tasks, {"spec": OTHER_SCALE}, "scales.encoder/"),
        (tasks, {"source": renamed}, "tasks.1"),
        (PlainT5(BASE, Bytes()), {"config": BASE.replace(max_distance=64)}, "max_distance"),
        (HypernetworkOf(config(), "base"), {"config": config(silu)}, "hypernetwork.t5.mlp_activations"),
    ):
        assert difference(model.meaning, dataclasses.replace(model).meaning) is None
        found = difference(model.meaning, dataclasses.replace(model, **change).meaning)
        assert found is not None
        assert found[0].startswith(name)


def test_a_hyperpretrained_hypernetwork_of_other_shape_is_refused(base: str, hyperpretrained: str) -> None:
    model = HypernetworkOf(config(WIDE, rank=3), base, start=hyperpretrained)
    with pytest.raises(CheckpointError, match=r"'slots': expected shape \(6, 24\), found \(4, 24\)"):
        started_from(model)


def test_a_hyperpretrained_hypernetwork_of_adapters_at_another_scale_is_refused(
    base: str, hyperpretrained: str
) -> None:
    other = dataclasses.replace(config(WIDE), spec=build_spec(LoRA(rank=2, alpha=4.0), BASE))
    message = r"/model: scales\..*/lora/b: expected 2\.0, found 4\.0; the same parameters would mean something else"
    with pytest.raises(CheckpointError, match=message):
        started_from(HypernetworkOf(other, base, start=hyperpretrained))


@pytest.mark.parametrize("change", [{"order": "backward"}, {"steps_per_layer": 2}], ids=str)
def test_a_trained_hart_of_other_settings_is_refused(base: str, tmp_path: pathlib.Path, change: dict[str, Any]) -> None:
    """Its parameters have the same shapes."""
    ours = dataclasses.replace(config(WIDE), hypernetwork=HARTConfig(t5=WIDE, heads=HeadsConfig(hidden=8)))
    params = fresh(HypernetworkOf(ours, base))
    Hypermodel(ours, load_base(base, BASE), params).save(tmp_path / "model")
    assert same(started_from(HypernetworkOf(ours, base, start=str(tmp_path / "model"))), params)
    other = dataclasses.replace(ours, hypernetwork=dataclasses.replace(ours.hypernetwork, **change))
    ((name, value),) = change.items()
    with pytest.raises(CheckpointError, match=f"model: hypernetwork.{name}: expected {value!r}, found "):
        started_from(HypernetworkOf(other, base, start=str(tmp_path / "model")))


@pytest.mark.parametrize("change", [{"mlp_activations": ("silu", "linear")}, {"max_distance": 64}], ids=str)
def test_a_trunk_that_computes_otherwise_is_no_copy_of_the_base(base: str, change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=rf"a copy of the base: {next(iter(change))}: expected"):
        started_from(HypernetworkOf(config(BASE.replace(**change)), base))


@pytest.mark.parametrize("fresh_heads", [False, True])
@pytest.mark.parametrize("change", [{"mlp_activations": ("silu", "linear")}, {"max_distance": 64}], ids=str)
def test_a_hyperpretrained_hypernetwork_that_computes_otherwise_is_refused(
    base: str, hyperpretrained: str, change: dict[str, object], fresh_heads: bool
) -> None:
    """In ways that the shapes of its parameters do not show."""
    ((name, value),) = change.items()
    model = HypernetworkOf(config(WIDE.replace(**change)), base, start=hyperpretrained, fresh_heads=fresh_heads)
    message = f"hypernetwork.config.t5: {name}: expected {value}, found {getattr(WIDE, name)}"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        started_from(model)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_fresh_heads_keep_the_t5_alone_and_may_write_other_adapters(
    base: str, hyperpretrained: str, scan_layers: bool
) -> None:
    model = HypernetworkOf(config(WIDE, rank=3), base, start=hyperpretrained, fresh_heads=True, scan_layers=scan_layers)
    new = fresh(model)
    started, t5 = model.initial_params(new, PARTITIONER), load(hyperpretrained).parts.hypernetwork_params["t5"]
    assert same(started["t5"], stack_layers(t5, WIDE) if scan_layers else t5)
    assert not same(started["t5"], new["t5"])
    rest = {name: part for name, part in started.items() if name != "t5"}
    assert rest
    assert same(rest, {name: part for name, part in new.items() if name != "t5"})


@pytest.mark.parametrize("start", ["base", "random", "wide"])
def test_fresh_heads_want_a_hypernetwork_to_start_from(base: str, wide: str, start: str) -> None:
    model = HypernetworkOf(config(WIDE), base, start=wide if start == "wide" else start, fresh_heads=True)
    with pytest.raises(ConfigError, match="fresh_heads: expected a model directory as start"):
        started_from(model)


def test_an_untied_hypernetwork_starts_from_another_t5_than_the_base(base: str, wide: str) -> None:
    model = HypernetworkOf(config(WIDE), base, start=wide)
    started, t5 = trees.flatten(started_from(model)), trees.flatten(load_base(wide, WIDE))
    copied = {path.removeprefix("t5/"): leaf for path, leaf in started.items() if path.startswith("t5/")}
    assert same(trees.unflatten(copied), trees.unflatten({path: t5[path] for path in copied}))
    assert copied["token_embedder/embedding"].shape == (384, 24)
    from_base = HypernetworkOf(config(WIDE), base)
    with pytest.raises(CheckpointError, match="the hypernetwork expects"):
        started_from(from_base)


def test_adapters_of_an_untied_hypernetwork_fit_the_base(hyperpretrained: str) -> None:
    adapter = load(hyperpretrained).adapt([("ab", "AB"), ("cd", "CD")])
    check_spec(adapter.spec, BASE)
    adapter.spec.validate(adapter.tree)


def test_exporting_a_hypernetwork_brings_nothing_to_a_device(base: str, tmp_path: pathlib.Path, monkeypatch) -> None:
    """A base that is trained on in parts need not fit one device."""
    model = HypernetworkOf(config(), base)
    trained = Trained(fresh(model), {}, {})
    monkeypatch.setattr(jax, "device_put", lambda *given, **options: pytest.fail("it was put on a device"))
    model.export(tmp_path / "model", trained)
    assert load(tmp_path / "model", hypernetwork=False).base_fingerprint == fingerprint(load_base(base, BASE))


def test_a_shared_adapter_is_one_for_all_tasks_and_fits_its_base(base: str, tmp_path: pathlib.Path) -> None:
    model = SharedAdapter(BASE, config().spec, Bytes(), base)
    episodes = EPISODES.replace(shots=0, demonstrations="none")
    adapter = load_adapter(run(model, Episodes(TASKS, episodes), tmp_path, steps=2))
    assert adapter.spec == config().spec
    assert adapter.metadata.base_fingerprint == fingerprint(load_base(base, BASE))
    assert adapter.metadata.provenance["results"]["steps"] == 2
    # `b` starts at zero and moves by at most 0.01 in each of two Adam steps; alpha / rank = 4 is in what layers read.
    moved = [np.abs(leaf).max() for path, leaf in trees.flatten(adapter.tree).items() if path.endswith("/b")]
    assert 0.04 * 0.9 < min(moved) <= max(moved) < 0.08 * 1.01


@pytest.fixture(scope="module")
def task_adapters(base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of `never`, which has too few examples to be drawn, and `double`, after two steps."""
    source = InMemorySource.from_strings({"never": [("a", "b")], "double": [(w, w + w) for w in WORDS]}, Bytes())
    episodes = Episodes(source, EPISODES.replace(shots=0, demonstrations="none", too_few="skip"))
    model = TaskAdapters(BASE, config().spec, Bytes(), base, source=source)
    return str(run(model, episodes, tmp_path_factory.mktemp("tasks"), steps=2, optimizer=adamw(0.3)))


def test_task_adapters_are_one_for_each_task_from_one_start(base: str, task_adapters: str) -> None:
    stored = load_task_adapters(task_adapters)
    assert stored.metadata.tasks == ("never", "double")
    assert stored.metadata.base_fingerprint == fingerprint(load_base(base, BASE))
    assert stored.metadata.provenance["results"]["steps"] == 2
    for path, (never, double) in stored.spec.flatten(stored.tree).items():
        moved = np.abs(double - never).max()
        # As of a shared adapter: two steps of 0.3, times alpha / rank; `a` has no gradient in the first of them.
        assert 1.2 * 0.9 < moved < 2.4 * 1.01 if path.endswith("/b") else 0 < moved < 0.3 * 1.01, path
        assert path.endswith("/a") or not never.any()


def test_a_hypernetwork_comes_near_to_the_adapters_of_its_tasks(
    base: str, task_adapters: str, tmp_path: pathlib.Path
) -> None:
    model = HypernetworkOf(config(), base, reconstruction=1.0)
    batches = WithTaskAdapters(Episodes(TASKS, EPISODES), task_adapters)
    train(
        model=model,
        batches=batches,
        optimizer=adamw(3e-3),
        total_steps=100,
        model_dir=str(tmp_path / "near"),
        log_period=1,
        progress=False,
    )
    rows = [row for row in read_rows(tmp_path / "near" / "metrics.jsonl") if row["kind"] == "train"]
    away = [row["reconstruction"] for row in rows if "reconstruction" in row]  # not where both are `upper`
    assert away[0] == pytest.approx(1.0, abs=0.01)  # a fresh generator writes next to nothing
    assert min(away) < 0.9
    with pytest.raises(DataError, match="expected 'task_adapters/' of 12 leaves"):
        run(model, Episodes(TASKS, EPISODES), tmp_path / "without")


def test_task_adapters_of_another_base_are_refused(wide: str, task_adapters: str, tmp_path: pathlib.Path) -> None:
    other = t5_directory(tmp_path / "other", BASE, 5)
    batches = WithTaskAdapters(Episodes(TASKS, EPISODES), task_adapters)
    with pytest.raises(CheckpointError, match=r"expected task adapters of the base model \w{16} in .*other, got those"):
        run(HypernetworkOf(config(), other, reconstruction=0.2), batches, tmp_path / "run")


def test_a_model_and_its_batches_have_one_vocabulary(base: str, tmp_path: pathlib.Path) -> None:
    """Ids beyond the embedding would be clipped to the last one, and targets beyond the logits make the loss NaN."""
    shape = BASE.replace(vocab_size=64)
    for build, named in (
        (lambda: PlainT5(shape, Bytes()), "PlainT5.config"),
        (lambda: SharedAdapter(shape, config().spec, Bytes(), base), "SharedAdapter.base"),
    ):
        with pytest.raises(ConfigError, match=rf"{named}\.vocab_size: expected at least the vocabulary's 384, got 64"):
            build()
    batches = Episodes(TASKS, EPISODES.replace(shots=0, demonstrations="none"))
    for model in (
        PlainT5(BASE, Bytes(extra_ids=100), initial_checkpoint=base),
        SharedAdapter(BASE, config().spec, Bytes(extra_ids=100), base),
        HypernetworkOf(dataclasses.replace(config(), vocabulary=Bytes(extra_ids=100)), base),
    ):
        with pytest.raises(ConfigError, match=r"train\.batches: expected tokens of the model's Bytes\(extra_ids=100\)"):
            run(model, batches, tmp_path)
        read = model.read_frozen if model.base_checkpoint else functools.partial(model.initial_params, {})
        with pytest.raises(CheckpointError, match=r"vocabulary: expected Bytes\(extra_ids=100\), found"):
            read(PARTITIONER)


def test_batches_that_tell_no_source_are_trained_on_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """A class of a user's own is found by the names of its attributes; what a function draws is told in passing."""
    hidden, told = (
        types.SimpleNamespace(batch=Episodes(TASKS, EPISODES).batch, **{n: TASKS}) for n in ("_source", "source")
    )
    drawn = PackedBatches(lambda rng: [([3], [4])], batch_size=1, inputs_length=8, targets_length=8)
    stages = Curriculum([told, hidden, drawn], boundaries=[1, 2])
    for batches, levels in (
        *((hidden, [logging.WARNING]), (told, []), (drawn, [logging.INFO])),
        (stages, [logging.WARNING]),
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO, "hyperflax"), pytest.raises(ConfigError, match="validation_batches"):
            train(
                model=SharedAdapter(BASE, config().spec, Bytes(), "unread"),
                batches=batches,
                optimizer=adamw(1e-2),
                total_steps=1,
                model_dir="never_made",
                validation=Episodes(TASKS, EPISODES),
                validation_batches=0,
            )
        assert [one.levelno for one in caplog.records if "train.batches" in one.message] == levels


def test_a_folder_that_is_no_path_is_refused_before_the_base_is_read(base: str, monkeypatch) -> None:
    monkeypatch.setattr(SharedAdapter, "read_frozen", pytest.fail)
    with pytest.raises(ConfigError, match=r"^20241130: expected a path, which is a string"):
        train(
            model=SharedAdapter(BASE, config().spec, Bytes(), base),
            batches=Episodes(TASKS, EPISODES),
            optimizer=adamw(1e-2),
            total_steps=1,
            model_dir=20241130,
        )


def test_a_job_that_is_done_and_started_again_keeps_its_validation(base: str, tmp_path: pathlib.Path) -> None:
    """Its log knows what the call that took the steps has found; the row of the last step is what is reported."""
    episodes = Episodes(TASKS, EPISODES.replace(shots=0, demonstrations="none"))
    options = {
        "model": SharedAdapter(BASE, config().spec, Bytes(), base),
        "batches": episodes,
        "optimizer": adamw(1e-2),
        "model_dir": str(tmp_path),
        "validation": episodes,
        "validation_batches": 1,
        "eval_period": 1,
        "progress": False,
    }
    directory = train(**options, total_steps=2)
    first = load_adapter(directory).metadata.provenance["results"]
    evaluated = [row for row in read_rows(tmp_path / "metrics.jsonl") if row["kind"] == "eval"]
    figures = ("loss", "z_loss", "accuracy", "sequence_accuracy")
    assert {name: first.pop(f"validation/{name}") for name in figures} == {name: evaluated[1][name] for name in figures}
    assert evaluated[0]["loss"] != evaluated[1]["loss"]
    assert first.pop("steps") == 2
    assert all(name.startswith("validation/adapters/") for name in first)
    results = load_adapter(directory).metadata.provenance["results"]
    again = load_adapter(train(**options, total_steps=2, export_dtype="bfloat16"))
    assert again.metadata.provenance["results"] == results


def test_a_validation_loss_is_the_mean_that_is_trained_on(base: str, tmp_path: pathlib.Path) -> None:
    """Nothing is learnt, and the first batch is validated on: its targets differ in length."""
    pairs = {"once": [(w, w) for w in WORDS], "thrice": [(w, 3 * w) for w in WORDS]}
    source = InMemorySource.from_strings(pairs, Bytes())
    episodes = Episodes(source, EPISODES.replace(shots=0, demonstrations="none", tasks_per_batch=8))
    assert len(np.unique(np.sum(episodes.batch(0)["decoder_loss_weights"], axis=-1))) == 2
    train(
        model=SharedAdapter(BASE, config().spec, Bytes(), base),
        batches=episodes,
        optimizer=adamw(0.0),
        model_dir=str(tmp_path),
        total_steps=1,
        validation=episodes,
        validation_batches=1,
        loss_normalizing_factor="AVERAGE_PER_SEQUENCE",
        progress=False,
    )
    rows = {row["kind"]: row for row in read_rows(tmp_path / "metrics.jsonl")}
    # A fresh adapter does nothing: the bare model has the same loss.
    found = [rows["initial"]["loss"], rows["initial"]["bare/loss"], rows["eval"]["loss"]]
    assert found == pytest.approx(3 * [rows["train"]["loss"]], rel=1e-5)


def test_what_kills_while_exporting_have_left_goes_with_the_next_export(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was the model goes last: until there is another it may be the only one."""
    left = {word: tmp_path / f".model.{word}-123-0a1b2c3d" for word in ("tmp", "old")}
    for folder in left.values():
        folder.mkdir()
        (folder / "base.safetensors").write_bytes(bytes(9))
    export, there = PlainT5.export, []

    def watched(*given: Any) -> None:
        there.extend(word for word, folder in left.items() if folder.exists())
        export(*given)

    monkeypatch.setattr(PlainT5, "export", watched)
    batches = PackedBatches(lambda rng: [([3], [4])], batch_size=1, inputs_length=8, targets_length=8)
    run(PlainT5(BASE, Bytes()), batches, tmp_path)
    assert there == ["old"]
    assert not list(tmp_path.glob(".model*"))
    assert load_base(str(tmp_path / "model"), BASE)


@pytest.mark.parametrize("place", ["directory", "run of T5X"])
def test_a_run_whose_base_changed_neither_goes_on_nor_is_exported(
    base: str, tmp_path: pathlib.Path, place: str
) -> None:
    """Be it that its directory was written anew, or that the run whose latest checkpoint is read has got further."""
    params = load_base(base, BASE)
    changed = {**params, "token_embedder": {"embedding": params["token_embedder"]["embedding"] * 1.5}}
    first = str(tmp_path / "base") if place == "directory" else str(tmp_path / "base" / "checkpoint_1")

    def write(params: PyTree, step: int) -> None:
        if place == "directory":
            save_t5(first, params, BASE, Bytes(), overwrite=True)
        else:
            write_model(tmp_path / "writing", Model("t5x", params, BASE, step), "t5x")
            (tmp_path / "base").mkdir(exist_ok=True)
            (tmp_path / "writing" / f"checkpoint_{step}").rename(tmp_path / "base" / f"checkpoint_{step}")

    def start(path: str, steps: int, **options: Any) -> pathlib.Path:
        return train(
            model=SharedAdapter(BASE, config().spec, Bytes(), path),
            batches=Episodes(TASKS, EPISODES.replace(shots=0, demonstrations="none")),
            total_steps=steps,
            model_dir=str(tmp_path / "run"),
            progress=False,
            **{"optimizer": adamw(1e-2), **options},
        )

    write(params, 1)
    with pytest.raises(ConfigError, match=r"train\.stepz: expected one of .*total_steps, .*got another name"):
        start(first, 1, stepz=5)
    with pytest.raises(ConfigError, match=r"train\.evaluator: expected one of async_checkpoints.*, got another name"):
        start(first, 1, evaluator=None)
    with pytest.raises(
        ConfigError, match=r"train\.validation_batch: expected one of .*validation, validation_batches,"
    ):
        start(first, 1, validation_batch=2)
    with pytest.raises(ConfigError, match=r"train\.optimizer: expected an optimizer, such as @make_.*, got 'adamw'"):
        start(first, 1, optimizer="adamw")
    with pytest.raises(ConfigError, match=r"train\.validation_batches: expected a whole number of at least 1, got 0"):
        start(first, 1, validation=Episodes(TASKS, EPISODES), validation_batches=0)
    assert not (tmp_path / "run").exists()
    read = str(tmp_path / "base")
    told = rf"expected .* began with, \w{{16}} from {read}, got \w{{16}} from {read}; "
    with pytest.raises(CheckpointError, match=f"^{read}: {told}"):
        start(read, 1, started=lambda: write(changed, 2))
    assert not (tmp_path / "run" / "model").exists()
    with pytest.raises(CheckpointError, match=f"run/checkpoints: {told}"):
        start(read, 2)
    if place == "directory":
        write(params, 1)
    assert load_adapter(start(first, 2)).metadata.base_fingerprint == fingerprint(params)


@pytest.mark.parametrize(("kind", "dtype"), [(LoRA(rank=2), "bfloat16"), (Full(), "float32")])
def test_the_base_is_not_rounded_before_full_adapters_are_added(base: str, kind: KindConfig, dtype: str) -> None:
    half = BASE.replace(dtype="bfloat16")
    model = HypernetworkOf(dataclasses.replace(config(), base=half, spec=build_spec(kind, half)), base)
    read, known = model.read_frozen(PARTITIONER), model.abstract_frozen
    assert {read["encoder"]["layers_0"]["attention"]["query"]["kernel"].dtype.name} == {dtype}
    assert jax.tree.map(lambda leaf: leaf.dtype, read) == jax.tree.map(lambda leaf: leaf.dtype, known)


def test_scanned_layers_train_to_the_same_model(base: str, tmp_path: pathlib.Path) -> None:
    """Three steps each; the exported models have the same layout, and the same values up to rounding."""
    # A small epsilon would blow up gradients that are nothing but rounding to whole steps.
    optimizer, found = adamw(0.1, eps=1.0), []
    for scan_layers in (False, True):
        model = HypernetworkOf(config(), base, scan_layers=scan_layers)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), model.read_frozen(PARTITIONER)) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), model.abstract_frozen
        )
        found.append(load(run(model, Episodes(TASKS, EPISODES), tmp_path / str(scan_layers), 3, optimizer)))
    apart, scanned = (trees.flatten(model.parts.hypernetwork_params) for model in found)
    assert found[0].base_fingerprint == found[1].base_fingerprint
    assert list(apart) == list(scanned)
    for path, leaf in apart.items():
        np.testing.assert_allclose(scanned[path], leaf, rtol=1e-5, atol=1e-6, err_msg=path)


def test_a_hypernetwork_with_scanned_layers_starts_from_an_exported_one(base: str, hyperpretrained: str) -> None:
    model = HypernetworkOf(config(WIDE), base, start=hyperpretrained, scan_layers=True)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), fresh(model))
    started = model.initial_params(shapes, PARTITIONER)  # of fresh parameters nothing is computed
    assert same(started["t5"], stack_layers(load(hyperpretrained).parts.hypernetwork_params["t5"], WIDE))
