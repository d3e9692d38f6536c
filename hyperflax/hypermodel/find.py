"""Hypermodels by name or directory."""

from __future__ import annotations

import pathlib

from hyperflax.buckets import Location, locate
from hyperflax.checkpoints.model_directory import fetched_model, is_model_directory
from hyperflax.errors import CheckpointError
from hyperflax.hypermodel.text import Hypermodel

SHIPPED = pathlib.Path(__file__).resolve().parents[1] / "assets"


def load(name_or_directory: pathlib.Path | str, *, hypernetwork: bool = True) -> Hypermodel:
    """Loads a shipped hypermodel by name (`strings`) or any by its model directory, here or in a bucket.

    >>> model = hyperflax.load("strings")
    >>> model.predict(["grace hopper"], model.adapt([("ada lovelace", "Lovelace, A."), ("alan turing", "Turing, A.")]))
    ['Hopper, G.']

    Args:
      name_or_directory: which.
      hypernetwork: False leaves it where it is: half the time and memory, for predictions with adapters that are there.

    Returns:
      The hypermodel, its base model's parameters on the device.

    Raises:
      CheckpointError: there is no such model, or its files are damaged.
    """
    place = locate(shipped(str(name_or_directory)))
    _check(place)
    with fetched_model(place, hypernetwork=hypernetwork) as directory:
        return Hypermodel.from_directory(directory, hypernetwork=hypernetwork)


def shipped(name_or_path: str) -> str:
    """Returns the folder of a shipped model where this is its name and nothing here has it; else what was given."""
    inside = SHIPPED / pathlib.Path(name_or_path).name
    named = inside.name == name_or_path and inside.is_dir() and not pathlib.Path(name_or_path).exists()
    return str(inside) if named else name_or_path


def find(name_or_directory: pathlib.Path | str) -> pathlib.Path:
    """Returns the directory of a model on this machine that `load` takes. CheckpointError where there is none."""
    path = pathlib.Path(shipped(str(name_or_directory)))
    _check(path)
    return path


def _check(path: Location) -> None:
    """Raises CheckpointError unless a model directory, whole or damaged, stands there."""
    if not path.is_dir():
        names = sorted(p.name for p in SHIPPED.glob("*") if is_model_directory(p))
        shipping = f"one of {names}" if names else "(none ships with this version; docs/strings.md trains one)"
        raise CheckpointError(f"model '{path}': expected a model directory or {shipping}")
    if not is_model_directory(path):
        inside = next(filter(is_model_directory, path.iterdir()), None)
        hint = (
            f"one is {inside}"
            if inside
            else "`hyperflax inspect` says what this is, `hyperflax train` makes one of a T5"
        )
        raise CheckpointError(f"model '{path}': expected a hypermodel, with hypermodel.json; {hint}")
