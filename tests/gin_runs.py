"""Shipped run files in tests: parsed, and what their names stand for."""

from __future__ import annotations

from typing import Any

import gin
import pytest

from hyperflax.cli.compile import STAND_INS, stand_in
from hyperflax.cli.gin_jobs import shipped_runs
from hyperflax.data import registry
from hyperflax.data.batches import Batches
from hyperflax.trainables import Trainable

TRAINING_RUNS = [
    run.removeprefix("hyperflax_gin_configs/")
    for run in shipped_runs()
    if not run.endswith(("evaluate.gin", "evaluate_suite.gin", "infer.gin"))
]
REQUIRED = [
    f"{name} = 'x'"
    for name in (
        *("MODEL_DIR", "INITIAL_CHECKPOINT_PATH", "VOCABULARY_FILE", "TASK_ADAPTERS"),  # of training
        *("CHECKPOINT_PATH", "EVAL_OUTPUT_DIR", "SUITE", "INPUTS", "OUTPUTS"),  # of the other jobs
    )
]


def probe(value: Any) -> Any:
    return value


gin.external_configurable(probe, "hyperflax_test_probe")


def value_of(macro: str) -> Any:
    """What a macro of the parsed files stands for."""
    with gin.unlock_config():
        gin.parse_config(f"hyperflax_test_probe.value = %{macro}")
    return gin.get_configurable("hyperflax_test_probe")()


def made(reference: Any) -> Any:
    """What an unresolved reference, such as `@train.PlainT5()` in the bindings, makes."""
    with gin.unlock_config():
        gin.bind_parameter("hyperflax_test_probe.value", reference)
    return gin.get_configurable("hyperflax_test_probe")()


def without_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is registered until the test ends, not even what packages announce and modules bring."""
    monkeypatch.setattr(registry, "register_modules", lambda modules=(), **_: None)
    monkeypatch.setattr(registry, "_SOURCES", {})


def parse(*files: str) -> None:
    gin.clear_config()
    folder = "hyperflax_gin_configs"
    evaluated = ["MIXTURE_OR_TASK_NAME = 'x'"] if "runs/evaluate.gin" in files else []  # training runs say which
    gin.parse_config_files_and_bindings([f"{folder}/{file}" for file in files], [*REQUIRED, *evaluated])


def described(*files: str, load: registry.Loader = stand_in) -> tuple[Trainable, Batches]:
    """Model and batches of a training run, as training has them; what it loads by name is of `load`, in bytes."""
    parse(*files)
    with gin.unlock_config():
        gin.parse_config(STAND_INS)
    job = gin.get_bindings("hyperflax.train.train", resolve_references=False)
    with registry.standing_in(load):
        return made(job["model"]), made(job["batches"])
