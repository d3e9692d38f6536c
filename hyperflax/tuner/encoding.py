"""Pipelines as numbers: what surrogates learn from, and the points that other packages' optimisers propose.

    encode(pipelines) -> [n, columns] float32 in [0, 1]: numbers on their own (log) scale, choices one column each; what
    does not apply is 0, and its column `NAME?` is 0 as well

The columns are those of all pipelines that there are, whatever starts a hypermodel has. So a tuner that was learnt with
a bank of adapters serves who has none, and the other way round.

>>> encode([default_pipeline()])[0, columns().index("kind=lora")]
1.0
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from hyperflax.errors import ConfigError
from hyperflax.tuner.pipeline import Pipeline
from hyperflax.tuner.space import STARTS, combinations, hyperparameters, plain, range_of


def columns() -> tuple[str, ...]:
    """Returns the columns' names, `NAME=CHOICE` of a choice, `NAME?` and `NAME` of a number."""
    return tuple(name for hp in _hyperparameters() for name in _columns(hp))


def encode(pipelines: Sequence[Pipeline]) -> np.ndarray:
    """Returns [n, columns] float32 in [0, 1], see the module's text.

    Raises:
      ConfigError: a value that no pipeline of any space has.
    """
    places = {name: place for place, name in enumerate(columns())}
    rows = np.zeros((len(pipelines), len(places)), np.float32)
    for row, pipeline in zip(rows, pipelines, strict=True):
        values = pipeline.to_json()
        for hp in _hyperparameters():
            if hp.name not in values:
                continue
            value = values[hp.name]
            if not hp.legal_value(value):
                raise ConfigError(f"pipeline {pipeline.id}: {hp.name}: expected {range_of(hp)}, got {value!r}")
            if _is_choice(hp):
                row[places[f"{hp.name}={value}"]] = 1.0
            else:
                row[places[f"{hp.name}?"]] = 1.0
                row[places[hp.name]] = _unit(hp, value)
    return rows


@functools.cache
def _hyperparameters() -> tuple[Any, ...]:
    method, tuned, of_kinds = hyperparameters(STARTS, combinations())
    return method, *tuned, *(hp for hp, _ in of_kinds)


def _columns(hp: Any) -> list[str]:
    return [f"{hp.name}={plain(value)}" for value in hp.choices] if _is_choice(hp) else [f"{hp.name}?", hp.name]


def _is_choice(hp: Any) -> bool:
    return hasattr(hp, "choices")


def _unit(hp: Any, value: Any) -> float:
    """Where a value stands in its range, 0 to 1."""
    if hasattr(hp, "sequence"):
        return [plain(item) for item in hp.sequence].index(value) / (len(hp.sequence) - 1)
    return float(hp.to_vector(value))
