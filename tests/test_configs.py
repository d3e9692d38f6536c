"""Settings that count something: whole numbers, and nothing that merely compares like one."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hyperflax import configs
from hyperflax.adapters import LoRA
from hyperflax.errors import ConfigError
from hyperflax.hypernets.hart import HARTConfig
from hyperflax.hypernets.heads import HeadsConfig
from hyperflax.serving.bounds import ServiceConfig
from hyperflax.serving.engine import EngineConfig
from hyperflax.training.finetuning import FineTuning
from hyperflax.training.step import make_train_step
from hyperflax.training.stopping import EarlyStopping
from hyperflax.types import T5Config


def test_examples() -> None:
    result = doctest.testmod(configs, extraglobs={"T5Config": T5Config})
    assert (result.attempted, result.failed) == (2, 0)


@pytest.mark.parametrize("value", [2.0, "2", True, None])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda value: T5Config(vocab_size=value), "T5Config.vocab_size"),
        (lambda value: LoRA(rank=value), "LoRA.rank"),
        (lambda value: HeadsConfig(hidden=value), "HeadsConfig.hidden"),
        (lambda value: HARTConfig(T5Config(16), steps_per_layer=value), "HARTConfig.steps_per_layer"),
        (lambda value: FineTuning(steps=value), "FineTuning.steps"),
        (lambda value: EarlyStopping(patience=value, keep=print), "EarlyStopping.patience"),
        (lambda value: EngineConfig(sources=(32, value)), "EngineConfig.sources"),
        (lambda value: EngineConfig(rows=value), "EngineConfig.rows"),
        (lambda value: ServiceConfig(waiting=value), "ServiceConfig.waiting"),
        (lambda value: make_train_step(None, None, microbatches=value), "microbatches"),
    ],
)
def test_what_is_no_whole_number_is_refused_where_it_is_given(
    make: Callable[[Any], Any], name: str, value: object
) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: expected a whole number of at least 1, got {value!r}"):
        make(value)


def test_an_integer_of_numpy_s_is_one_that_json_can_hold() -> None:
    config = T5Config(vocab_size=np.int64(384))
    assert configs.from_json(T5Config, configs.to_json(config), "here") == config == T5Config(vocab_size=384)
    assert type(config.vocab_size) is int
