"""Every shipped run file parses, and models, adapters and hypernetworks are built under eval_shape: no array, no data.

The runs' training steps are built in `test_gin_steps.py`.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import pathlib
import re
import shutil
import sys
import types
from typing import Any

import gin
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from hyperflax import trees
from hyperflax.adapters.kinds import check_spec
from hyperflax.cli.gin_jobs import shipped_folder, shipped_runs
from hyperflax.data import registry, seqio_source
from hyperflax.data.examples import Example, InMemorySource, TaskExamples, TaskInfo
from hyperflax.data.vocabularies import Bytes
from hyperflax.hypermodel import HYPERNETWORKS
from hyperflax.hypermodel.find import find
from hyperflax.models.t5 import T5
from hyperflax.objectives.language_model import axes_of
from hyperflax.training.partitioning import Partitioner, t5_axes
from hyperflax_tasks.strings import episodes as strings
from tests.gin_runs import TRAINING_RUNS, made, parse, value_of, without_sources

MODELS = sorted(path.name for path in shipped_folder().glob("models/*.gin"))
HYPERNETS = sorted(path.name for path in shipped_folder().glob("hypernets/*.gin"))
ADAPTERS = sorted(path.name for path in shipped_folder().glob("adapters/*.gin"))
TOKENS = jax.ShapeDtypeStruct((2, 8), jnp.int32)

# What each run that loads data by name loads to train on, and what more to validate on.
INSTRUCTIONS, TEXT = ("natural_instructions_train", "train"), ("text", "train")
METAICL, P3 = ("metaicl_hr_to_lr", "train"), ("p3", "train")
LOADED = {
    "hyperpretraining": ([TEXT], [("text", "validation")]),
    "lm_adaptation": ([TEXT], [("text", "validation")]),
    "metaicl_hypermodel": ([METAICL], []),
    "metaicl_mtf": ([METAICL], []),
    "metaicl_shared": ([METAICL], []),
    "natural_instructions_base": ([TEXT, INSTRUCTIONS], [("text", "validation")]),
    "natural_instructions_hart": ([INSTRUCTIONS], [INSTRUCTIONS]),
    "natural_instructions_hyper_t5_lora": ([INSTRUCTIONS], [INSTRUCTIONS]),
    "natural_instructions_hyper_t5_prefix": ([INSTRUCTIONS], [INSTRUCTIONS]),
    "natural_instructions_hypermodel": ([INSTRUCTIONS], []),
    "natural_instructions_mtf": ([INSTRUCTIONS], []),
    "natural_instructions_shared": ([INSTRUCTIONS], []),
    "natural_instructions_task_adapters": ([INSTRUCTIONS], []),
    "p3_hypermodel": ([P3], []),
    "p3_mtf": ([P3], []),
    "p3_shared": ([P3], []),
}


@pytest.mark.parametrize("run", shipped_runs())
def test_a_run_parses_and_says_how_it_is_started(run: str) -> None:
    text = (shipped_folder() / run.removeprefix("hyperflax_gin_configs/")).read_text()
    header = text.partition("from __gin__")[0]
    assert f"--gin_file={run}" in header
    assert re.search("cores|H200", header)
    assert "hour" in header
    # Its figures, a page that has them, or that there are none.
    assert re.search(r"not run\s(# )?here|docs/(recipe|strings)\.md|thousand inputs|validation loss", header)
    parse(run.removeprefix("hyperflax_gin_configs/"))
    if "train" in header:
        assert gin.query_parameter("TRAIN_STEPS/gin.macro.value") > 0
    if "HYPERNETWORK" in gin.config_str():
        check_spec(value_of("ADAPTER_SPEC"), value_of("T5_CONFIG"))
        assert value_of("HYPERNETWORK").t5 == value_of("T5_CONFIG")


@pytest.mark.parametrize("run", TRAINING_RUNS)
def test_a_training_run_has_the_macros_of_t5x(run: str) -> None:
    """And binds them: what is given on the command line counts."""
    parse(run)
    job = gin.get_bindings("hyperflax.train.train", resolve_references=False)
    name = str(job["model"]).removeprefix("@").removesuffix("()").rpartition(".")[2]
    bound = {**job, **gin.get_bindings(f"hyperflax.train.{name}", resolve_references=False)}
    for argument in ("optimizer", "loss_normalizing_factor", "z_loss", "label_smoothing"):
        assert str(bound[argument]) == f"%{argument.upper()}"
    assert ("validation" in job) == (str(job.get("validation_batches")) == "%EVAL_STEPS")


def test_every_run_that_loads_data_to_train_on_is_listed() -> None:
    loading = []
    for run in shipped_runs():
        parse(run.removeprefix("hyperflax_gin_configs/"))
        text = gin.config_str()  # with what the run includes
        if "load_source.name" in text and "train.train.batches" in text:
            loading.append(run)
    assert [f"hyperflax_gin_configs/runs/{name}.gin" for name in LOADED] == loading


def test_a_file_is_answered_by_the_shipped_job(tmp_path: pathlib.Path) -> None:
    """`runs/infer.gin` from its bindings to its file; of the model it reads the frozen T5 alone, as `predict` does."""
    gin.clear_config()
    inputs, outputs = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    inputs.write_text('{"input": "ada"}\n{"input": "alan"}\n')
    model = shutil.copytree(find("strings"), tmp_path / "strings")
    (model / "hypernetwork.safetensors").unlink()
    bindings = [f"INPUTS = '{inputs}'", f"OUTPUTS = '{outputs}'", f"CHECKPOINT_PATH = '{model}'"]
    gin.parse_config_files_and_bindings(["hyperflax_gin_configs/runs/infer.gin"], bindings)
    gin.get_configurable("hyperflax.infer.infer")()
    rows = [json.loads(line) for line in outputs.read_text().splitlines()]
    assert [row["input"] for row in rows] == ["ada", "alan"]
    assert all(isinstance(row["prediction"], str) for row in rows)


def test_a_mixture_is_evaluated_by_the_shipped_job(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    gin.clear_config()
    source = strings.source("held_out", 12, tasks=2)
    without_sources(monkeypatch)
    registry.register_source("two", {"test": lambda _: source}, description="two tasks")
    bindings = [
        "CHECKPOINT_PATH = 'strings'", "MIXTURE_OR_TASK_NAME = 'two'", "METRIC = 'exact_match'",
        f"EVAL_OUTPUT_DIR = '{tmp_path}'",
        "hyperflax.evaluate.evaluate.conditions = ['bare', 'generated']", "hyperflax.evaluate.evaluate.examples = 1",
    ]  # fmt: skip
    gin.parse_config_files_and_bindings(["hyperflax_gin_configs/runs/evaluate.gin"], bindings)
    gin.get_configurable("hyperflax.evaluate.evaluate")()
    assert json.loads((tmp_path / "report.json").read_text())["n_tasks"] == 2


@pytest.mark.parametrize("name", LOADED)
def test_a_run_trains_and_validates_on_these_splits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, splits and scopes in gin files are only tried out when what they configure is called."""
    loaded: list[tuple[str, str]] = []
    example = Example.from_text("short", "a text from which windows can be cut, and a support row holds it", Bytes())
    source = InMemorySource([TaskExamples("task", [example] * 40, TaskInfo())], Bytes())

    def load(name: str, split: str, **options: Any) -> InMemorySource:
        loaded.append((name, split))
        return source

    without_sources(monkeypatch)
    monkeypatch.setitem(sys.modules, "seqio", seqio_source)  # only where it is imported is it asked
    monkeypatch.setattr(seqio_source, "read_seqio", load)
    parse(f"runs/{name}.gin")
    parts = gin.get_bindings("hyperflax.train.train", resolve_references=False)
    with gin.unlock_config():
        gin.bind_parameter("hyperflax.data.registry.load_source.vocabulary", None)  # the source's own
    found = []
    for part in ("batches", "validation"):
        loaded.clear()
        made(parts.get(part))
        found.append(loaded.copy())
    assert tuple(found) == LOADED[name]


@pytest.mark.parametrize("name", LOADED)
def test_the_modules_that_a_run_names_are_task_modules(name: str) -> None:
    """That they know the names of `LOADED`, the tests of each have to show: registering reads the data."""
    parse(f"runs/{name}.gin")
    modules = re.findall(r"(?:load_source\.module|MIXTURE_OR_TASK_MODULE) = '(.*)'", gin.config_str())
    assert len(set(modules)) == len({mixture for part in LOADED[name] for mixture, _ in part})
    assert all(callable(importlib.import_module(module).register) for module in modules)


def test_a_later_model_file_changes_the_size_of_a_run() -> None:
    parse("runs/natural_instructions_hart.gin", "models/t5_1_1_tiny.gin")
    config = value_of("T5_CONFIG")
    assert (config.emb_dim, config.num_encoder_layers, config.dtype) == (8, 2, "bfloat16")
    assert value_of("HYPERNETWORK").t5 == config
    check_spec(value_of("ADAPTER_SPEC"), config)


def test_a_hypernetwork_may_have_another_size_than_the_base() -> None:
    parse("models/t5_mini.gin", "hypernets/hyper_t5.gin")
    with gin.unlock_config():
        gin.parse_config("hypernetwork/types.T5Config.emb_dim = 512")
    assert value_of("HYPERNETWORK").t5 == value_of("T5_CONFIG").replace(emb_dim=512)
    assert value_of("T5_CONFIG").emb_dim == 256


def built(*files: str) -> tuple[T5, Any, Any]:
    """The base model, its parameters and the adapters that the hypernetwork writes, as shapes."""
    parse(*files)
    config, spec, hypernetwork = (value_of(name) for name in ("T5_CONFIG", "ADAPTER_SPEC", "HYPERNETWORK"))
    base = T5(config)
    params = jax.eval_shape(base.init, jax.random.key(0), TOKENS, TOKENS)["params"]
    network = next(network for config, network in HYPERNETWORKS.values() if type(hypernetwork) is config)
    episode = {"support_tokens": TOKENS}
    adapters, _ = jax.eval_shape(network(hypernetwork, spec).init_with_output, jax.random.key(0), episode)
    spec.validate(adapters)
    check_spec(spec, config)
    return base, params, adapters


@pytest.mark.parametrize("model", MODELS)
def test_every_model_is_built(model: str) -> None:
    base, params, _ = built(f"models/{model}", "adapters/lora_qv.gin", "hypernets/hyper_t5.gin")
    assert params["token_embedder"]["embedding"].shape == (base.config.vocab_size, base.config.emb_dim)


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large", "xl", "xxl"])
@pytest.mark.parametrize("run", ["hart", "hyper_t5_lora", "hyper_t5_prefix"])
def test_the_papers_systems_are_built_in_every_size(run: str, size: str) -> None:
    """With all that the run file says of adapters, heads and dtypes."""
    base, params, adapters = built(f"runs/natural_instructions_{run}.gin", f"models/t5_1_1_{size}.gin")
    logits = jax.eval_shape(base.apply, {"params": params, "adapters": adapters}, TOKENS, TOKENS)
    assert logits.shape == (*TOKENS.shape, base.config.vocab_size)


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("hypernet", HYPERNETS)
@pytest.mark.parametrize("model", MODELS)
def test_every_parameter_is_matched_by_a_rule(model: str, hypernet: str, scan_layers: bool) -> None:
    """On a mesh with all three axes, and matrices lie in pieces: a rule that matches and splits nothing is no help."""
    parse(f"models/{model}", "adapters/lora_qv.gin", f"hypernets/{hypernet}")
    base, spec, hypernetwork = (value_of(name) for name in ("T5_CONFIG", "ADAPTER_SPEC", "HYPERNETWORK"))
    base = base.replace(scan_layers=scan_layers)
    hypernetwork = dataclasses.replace(hypernetwork, t5=hypernetwork.t5.replace(scan_layers=scan_layers))
    network = next(network for config, network in HYPERNETWORKS.values() if type(hypernetwork) is config)
    partitioner = Partitioner(types.SimpleNamespace(shape={"data": 2, "fsdp": 4, "model": 2}))
    boxed = jax.eval_shape(network(hypernetwork, spec).init, jax.random.key(0), {"support_tokens": TOKENS})["params"]
    frozen = jax.eval_shape(T5(base).init, jax.random.key(0), TOKENS, TOKENS)["params"]
    for params, declared in ((nn.unbox(boxed), trees.flatten(axes_of(boxed))), (frozen, {})):
        for path, leaf in trees.flatten(params).items():
            placed = partitioner.spec(path, leaf.shape, declared.get(path) or t5_axes(path))
            if path.endswith("/kernel") and base.emb_dim > 8:
                assert any(placed), f"{path} {leaf.shape} lies whole on every device"


@pytest.mark.parametrize("mesh", sorted(path.name for path in shipped_folder().glob("meshes/*.gin")))
def test_a_mesh_file_sets_mesh_batch_and_scanned_layers(mesh: str) -> None:
    parse("runs/natural_instructions_hart.gin", "models/t5_1_1_xl.gin", f"meshes/{mesh}")
    sizes = [gin.query_parameter(f"hyperflax.training.partitioning.make_mesh.{axis}") for axis in ("data", "fsdp")]
    batch, parts = (gin.query_parameter(f"{name}/gin.macro.value") for name in ("BATCH_SIZE", "MICROBATCHES"))
    assert batch % (parts * math.prod(sizes)) == 0
    assert gin.query_parameter("hyperflax.train.HypernetworkOf.scan_layers")


@pytest.mark.parametrize("run", ["task_adapters", "hypermodel"])
def test_a_run_reads_its_tasks_once(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For training and validation; and adapters of tasks are named by the source that the episodes are drawn from."""
    source = InMemorySource([TaskExamples("task", [Example.from_text("a", "b", Bytes())] * 8, TaskInfo())], Bytes())
    without_sources(monkeypatch)
    monkeypatch.setitem(sys.modules, "seqio", seqio_source)  # only where it is imported is it asked
    monkeypatch.setattr(seqio_source, "read_seqio", lambda *_, **__: source)
    parse(f"runs/natural_instructions_{run}.gin")
    with gin.unlock_config():
        gin.bind_parameter("hyperflax.data.registry.load_source.vocabulary", None)
    assert value_of("SOURCE") is value_of("SOURCE") is source


def test_reconstruction_is_a_file_after_a_run() -> None:
    parse("runs/natural_instructions_hart.gin", "objectives/reconstruction.gin")
    assert gin.query_parameter("hyperflax.train.HypernetworkOf.reconstruction") == 0.2
    batches = gin.get_bindings("hyperflax.training.task_adapters.WithTaskAdapters", resolve_references=False)
    assert str(batches["batches"]) == "@training/episodes.Episodes()"
    assert "WithTaskAdapters" in str(gin.query_parameter("hyperflax.train.train.batches"))


@pytest.mark.parametrize("hypernet", HYPERNETS)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_adapter_and_hypernetwork_is_built(adapter: str, hypernet: str) -> None:
    base, params, adapters = built("models/strings.gin", f"adapters/{adapter}", f"hypernets/{hypernet}")
    logits = jax.eval_shape(base.apply, {"params": params, "adapters": adapters}, TOKENS, TOKENS)
    assert logits.shape == (2, 8, base.config.vocab_size)
