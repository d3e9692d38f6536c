"""Every shipped run file parses, and what it describes is built under eval_shape: no array, no data."""

from __future__ import annotations

import gin
import jax
import jax.numpy as jnp
import pytest

from hyperflax.cli.gin_jobs import shipped_folder, shipped_runs
from hyperflax.hypermodel import HYPERNETWORKS
from hyperflax.models.t5 import T5

MODELS = sorted(path.name for path in shipped_folder().glob("models/*.gin"))
HYPERNETS = sorted(path.name for path in shipped_folder().glob("hypernets/*.gin"))
ADAPTERS = sorted(path.name for path in shipped_folder().glob("adapters/*.gin") if path.stem != "lora_all")
REQUIRED = ["MODEL_DIR = 'x'", "INITIAL_CHECKPOINT_PATH = 'x'", "VOCABULARY_FILE = 'x'", "EVAL_OUTPUT_DIR = 'x'"]


def probe(value):
    return value


gin.external_configurable(probe, "hyperflax_test_probe")


def value_of(macro: str):
    """What a macro of the parsed files stands for."""
    with gin.unlock_config():
        gin.parse_config(f"hyperflax_test_probe.value = %{macro}")
    return gin.get_configurable("hyperflax_test_probe")()


def parse(*files: str) -> None:
    gin.clear_config()
    folder = "hyperflax_gin_configs"
    gin.parse_config_files_and_bindings([f"{folder}/{file}" for file in files], REQUIRED)


@pytest.mark.parametrize("run", shipped_runs())
def test_a_run_parses_and_says_how_it_is_started(run: str) -> None:
    text = (shipped_folder() / run.removeprefix("hyperflax_gin_configs/")).read_text()
    header = text.partition("from __gin__")[0]
    assert f"--gin_file={run}" in header
    assert "cores" in header
    parse(run.removeprefix("hyperflax_gin_configs/"))
    if "train" in header:
        assert gin.query_parameter("TRAIN_STEPS/gin.macro.value") > 0


@pytest.mark.parametrize(
    ("model", "adapter", "hypernet"),
    [(model, "lora_all.gin", hypernet) for model in MODELS for hypernet in HYPERNETS]
    + [("strings.gin", adapter, hypernet) for adapter in ADAPTERS for hypernet in HYPERNETS],
)
def test_every_model_adapter_and_hypernetwork_is_built(model: str, adapter: str, hypernet: str) -> None:
    parse(f"models/{model}", f"adapters/{adapter}", f"hypernets/{hypernet}")
    config, spec, hypernetwork = (value_of(name) for name in ("T5_CONFIG", "ADAPTER_SPEC", "HYPERNETWORK"))
    tokens = jax.ShapeDtypeStruct((2, 8), jnp.int32)
    base = T5(config)
    params = jax.eval_shape(base.init, jax.random.key(0), tokens, tokens)["params"]
    net = next(network for config, network in HYPERNETWORKS.values() if isinstance(hypernetwork, config))(
        hypernetwork, spec
    )
    variables = jax.eval_shape(net.init, jax.random.key(0), {"support_tokens": tokens})
    adapters = jax.eval_shape(net.apply, variables, {"support_tokens": tokens})
    spec.validate(adapters)
    logits = jax.eval_shape(base.apply, {"params": params, "adapters": adapters}, tokens, tokens)
    assert logits.shape == (2, 8, config.vocab_size)
