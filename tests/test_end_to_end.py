"""The main job through the commands, on a toy family of tasks: from pretraining to predictions."""

from __future__ import annotations

import json
import pathlib
import sys

import pytest

import hyperflax
from hyperflax.cli.main import main
from hyperflax.data import registry
from hyperflax.evaluation.contamination import name_digests
from hyperflax.evaluation.report import read_report

TOY = '''
"""Three toy tasks over short words."""
import itertools
from hyperflax.data import registry
from hyperflax.data.examples import InMemorySource
from hyperflax.data.vocabularies import Bytes

WORDS = ["".join(pair) for pair in itertools.product("abcd", "efgh")]
RULES = {"upper": str.upper, "first": lambda w: w[0], "double": lambda w: w + w}

def load(vocabulary):
    tasks = {name: [(w, rule(w)) for w in WORDS] for name, rule in RULES.items()}
    return InMemorySource.from_strings(tasks, vocabulary or Bytes(), definitions={name: name for name in RULES})

def register():
    registry.register_source("toy", {"train": load, "held_out": load}, description="toy rules", replace=True)
'''

# Every gin file imports what it names, as T5X's do.
IMPORTS = """
from __gin__ import dynamic_registration
from hyperflax import hypermodel
from hyperflax import train
from hyperflax import types
from hyperflax.adapters import kinds
from hyperflax.adapters import lora
from hyperflax.data import episode_config
from hyperflax.data import episodes
from hyperflax.data import multitask
from hyperflax.data import registry
from hyperflax.data import text
from hyperflax.data import vocabularies
from hyperflax.hypernets import heads
from hyperflax.hypernets import hyper_t5
from hyperflax.training import optimizers
"""

COMMON = """
MODEL_DIR = %gin.REQUIRED
TRAIN_STEPS = 4
types.T5Config:
  vocab_size = 384
  emb_dim = 16
  num_heads = 2
  head_dim = 8
  num_encoder_layers = 1
  num_decoder_layers = 1
  mlp_dim = 16
registry.load_source.name = 'toy'
train.train:
  optimizer = @optimizers.make_optimizer()
  total_steps = %TRAIN_STEPS
  model_dir = %MODEL_DIR
  log_period = 2
  save_period = 2
  progress = False
"""

BASE = """
include 'common.gin'
train.train:
  model = @train.PlainT5()
  batches = @text.PackedBatches()
  validation = @text.PackedBatches()
  validation_batches = 2
train.PlainT5:
  config = @types.T5Config()
  vocabulary = @vocabularies.Bytes()
text.PackedBatches:
  pairs = @multitask.TaskPairs()
  batch_size = 2
  inputs_length = 32
  targets_length = 16
multitask.TaskPairs:
  source = @registry.load_source()
  config = @episode_config.EpisodeConfig()
episode_config.EpisodeConfig:
  shots = 1
  examples = 2
  demonstrations = 'inputs'
  inputs_length = 32
  targets_length = 16
"""

HYPERMODEL = """
include 'common.gin'
INITIAL_CHECKPOINT_PATH = %gin.REQUIRED
train.train:
  model = @train.HypernetworkOf()
  batches = @episodes.Episodes()
  export_dtype = 'bfloat16'
train.HypernetworkOf:
  config = @hypermodel.HypermodelConfig()
  base_checkpoint = %INITIAL_CHECKPOINT_PATH
  name = 'toy'
hypermodel.HypermodelConfig:
  base = @types.T5Config()
  spec = @kinds.build_spec()
  hypernetwork = @hyper_t5.HyperT5Config()
  episodes = @episode_config.EpisodeConfig()
  vocabulary = @vocabularies.Bytes()
kinds.build_spec:
  kinds = @lora.LoRA()
  t5_config = @types.T5Config()
lora.LoRA.rank = 2
hyper_t5.HyperT5Config:
  t5 = @types.T5Config()
  heads = @heads.HeadsConfig()
heads.HeadsConfig.hidden = 8
episodes.Episodes:
  source = @registry.load_source()
  config = @episode_config.EpisodeConfig()
episode_config.EpisodeConfig:
  tasks_per_batch = 2
  shots = 2
  examples = 2
  support_length = 16
  inputs_length = 8
  targets_length = 8
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> pathlib.Path:
    """A folder with the toy module and gin files, and the two models trained from them."""
    folder = tmp_path_factory.mktemp("workspace")
    (folder / "toy_tasks_module.py").write_text(TOY)
    for name, content in {"common": COMMON, "base": BASE, "hypermodel": HYPERMODEL}.items():
        (folder / f"{name}.gin").write_text(IMPORTS + content)
    sys.path.insert(0, str(folder))
    flags = ["--module=toy_tasks_module", f"--gin_search_paths={folder}"]
    assert main(["train", "--gin_file=base.gin", f"--gin.MODEL_DIR={folder}/base", *flags]) == 0
    hypermodel = ["--gin_file=hypermodel.gin", f"--gin.MODEL_DIR={folder}/hyper"]
    start = f"--gin.INITIAL_CHECKPOINT_PATH={folder}/base/model"
    assert main(["train", *hypermodel, start, *flags]) == 0
    yield folder
    sys.path.remove(str(folder))
    registry.unregister_source("toy")


def write_lines(path: pathlib.Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_run_leaves_its_log_its_configuration_and_its_model(workspace: pathlib.Path) -> None:
    for name in ("base", "hyper"):
        run = workspace / name
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows if row["kind"] == "train"] == [2, 4]
        assert "TRAIN_STEPS = 4" in (run / "config.gin").read_text()
        assert (run / "operative_config.gin").is_file()
        assert (run / "loss.png").is_file()
        assert list((run / "tensorboard").iterdir())
    assert hyperflax.load(workspace / "hyper" / "model").parts.results["steps"] == 4
    initial = json.loads((workspace / "hyper" / "metrics.jsonl").read_text().splitlines()[0])
    assert initial["kind"] == "initial"
    # LoRA generators start at almost no adapter: the first loss is the bare model's.
    assert initial["loss"] == pytest.approx(initial["bare/loss"], rel=0.02)


def test_training_may_add_terms_that_validation_does_not_measure(workspace: pathlib.Path) -> None:
    training = "training/episode_config.EpisodeConfig"
    bindings = {
        "MODEL_DIR": f"{workspace}/consistent",
        "INITIAL_CHECKPOINT_PATH": f"{workspace}/base/model",
        "TRAIN_STEPS": 2,
        "train.train.batches": "@training/episodes.Episodes()",
        "train.train.validation": "@validation/episodes.Episodes()",
        "train.train.validation_batches": 1,
        f"{training}.teacher": "'definition'",
        f"{training}.supports": 2,
        "train.HypernetworkOf.distillation": 0.5,
        "train.HypernetworkOf.consistency": 0.1,
    }
    flags = [f"--gin.{name}={value}" for name, value in bindings.items()]
    flags += ["--module=toy_tasks_module", f"--gin_search_paths={workspace}"]
    assert main(["train", "--gin_file=hypermodel.gin", *flags]) == 0
    rows = [json.loads(line) for line in (workspace / "consistent" / "metrics.jsonl").read_text().splitlines()]
    added = {"divergence", "within_task_distance", "between_task_distance"}
    trained, validated = rows[-2:]
    assert added < trained.keys()
    assert "loss" in validated
    assert not added & validated.keys()
    assert {"adapters/norm/encoder_0", "adapters/effective_rank/decoder_0"} < validated.keys()
    episodes = hyperflax.load(workspace / "consistent" / "model").config.episodes
    assert (episodes.teacher, episodes.supports) == ("none", 1)


def test_adapt_and_predict(workspace: pathlib.Path, capsys) -> None:
    model = str(workspace / "hyper" / "model")
    examples = write_lines(
        workspace / "examples.jsonl", [{"input": "ae", "target": "AE"}, {"input": "bf", "target": "BF"}]
    )
    inputs = write_lines(workspace / "inputs.jsonl", [{"input": "cg"}, {"input": "dh", "note": "kept out"}])
    adapter, out = str(workspace / "adapter"), workspace / "answers.jsonl"
    assert main(["adapt", "--model", model, "--examples", examples, "--out", adapter, "--refine", "2"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("bare", "in_context", "generated", "refined", "exact_match, 2 examples"))
    assert hyperflax.load_adapter(adapter).metadata.created_with == "hyperflax adapt"
    one = write_lines(workspace / "one.jsonl", [{"input": "ae", "target": "AE"}])
    assert main(["adapt", "--model", model, "--examples", one, "--out", str(workspace / "of_one")]) == 0
    assert "no estimate: expected two examples or more" in capsys.readouterr().out
    assert main(["predict", "--model", model, "--adapter", adapter, "--inputs", inputs, "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["input"] for row in rows] == ["cg", "dh"]
    loaded = hyperflax.load(model)
    expected = loaded.predict(["cg", "dh"], hyperflax.load_adapter(adapter))
    assert [row["prediction"] for row in rows] == expected
    capsys.readouterr()
    assert main(["predict", "--model", model, "--inputs", inputs]) == 0
    bare = [json.loads(line)["prediction"] for line in capsys.readouterr().out.splitlines()]
    assert bare == loaded.predict(["cg", "dh"])


def test_errors_end_a_command_with_one_line(workspace: pathlib.Path, capsys) -> None:
    model = str(workspace / "hyper" / "model")
    broken = workspace / "broken.jsonl"
    broken.write_text('{"input": "a", "target": "b"}\n{"input": \n')
    assert main(["adapt", "--model", model, "--examples", str(broken), "--out", str(workspace / "x")]) == 2
    assert f"{broken}:2" in capsys.readouterr().err
    assert not (workspace / "x").exists()
    assert main(["train", "--gin_file=no_such.gin"]) == 2
    assert "no_such.gin" in capsys.readouterr().err
    assert main(["train"]) == 2
    assert "hyperflax_gin_configs/runs/strings_base.gin" in capsys.readouterr().err
    assert main(["predict", "--model", "nothing", "--inputs", str(broken)]) == 2


def test_evaluate_writes_a_report_with_controls(workspace: pathlib.Path, capsys) -> None:
    out = workspace / "report"
    arguments = ["evaluate", "--model", str(workspace / "hyper" / "model"), "--mixture", "toy", "--out", str(out)]
    arguments += ["--module", "toy_tasks_module", "--examples", "3", "--refine", "1", "--neighbours", "train"]
    assert main(arguments) == 0
    report = read_report(out / "report.json")
    assert report["n_tasks"] == 3
    names = {
        "bare",
        "instruction",
        "in_context",
        "generated",
        "refined",
        "shuffled_support",
        "shuffled_support_refined",
    }
    assert set(report["conditions"]) == names | {"nearest_task"}
    assert (out / "report.png").is_file()
    assert (out / "adapters.png").is_file()
    assert {"norm/encoder_0", "within_task_distance", "between_task_distance"} < report["adapters"].keys()
    assert "generated" in capsys.readouterr().out


def test_a_model_records_what_it_must_not_be_evaluated_on(workspace: pathlib.Path) -> None:
    record = json.loads((workspace / "hyper" / "model" / "hypermodel.json").read_text())["provenance"]
    assert record == {"training_tasks": name_digests(["upper", "first", "double"])}


def test_training_from_a_cache_sees_the_same_arrays(workspace: pathlib.Path, capsys) -> None:
    from hyperflax.data.episode_config import EpisodeConfig
    from hyperflax.data.episodes import Episodes

    cache = workspace / "cache"
    assert main(["cache", "--mixture", "toy", "--out", str(cache), "--module", "toy_tasks_module"]) == 0
    assert main(["tasks", "--module", "toy_tasks_module"]) == 0
    assert "toy rules" in capsys.readouterr().out
    config = EpisodeConfig(tasks_per_batch=2, shots=2, examples=2, support_length=16, inputs_length=8, targets_length=8)
    live = Episodes(registry.load_source("toy"), config, seed=3).batch(7)
    cached = Episodes(registry.load_source(str(cache)), config, seed=3).batch(7)
    assert live.keys() == cached.keys()
    assert all((live[name] == cached[name]).all() for name in live)
