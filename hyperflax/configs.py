"""Frozen-dataclass configurations to json and back, strictly.

Every configuration in hyperflax is a frozen dataclass. Model and adapter directories keep them as json, and json from
elsewhere is not trusted: an unknown key, a missing one or a value of the wrong type is refused with its place.

>>> from_json(T5Config, {"vocab_size": "many"}, "hypermodel.json: base")
Traceback (most recent call last):
hyperflax.errors.ConfigError: hypermodel.json: base: Expected `int`, got `str` - at `$.vocab_size`
"""

from __future__ import annotations

import numbers
from typing import Any, TypeVar

import msgspec

from hyperflax.errors import ConfigError

Config = TypeVar("Config")


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """Returns what counts something as an int, numpy's integers too.

    Raises:
      ConfigError: no whole number, such as 2.0, "2" or True, or one below `least`; names `name`.

    >>> whole_number("steps", 2.0)
    Traceback (most recent call last):
    hyperflax.errors.ConfigError: steps: expected a whole number of at least 1, got 2.0
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ConfigError(f"{name}: expected a whole number of at least {least}, got {value!r}")
    return int(value)


def check_sizes(config: Any, **least: int) -> None:
    """Checks the fields of a configuration that count something, and makes ints of them, which json can hold.

    Raises:
      ConfigError: see `whole_number`; names class and field.
    """
    for name, low in least.items():
        checked = whole_number(f"{type(config).__name__}.{name}", getattr(config, name), low)
        object.__setattr__(config, name, checked)


def to_json(config: Any) -> dict[str, Any]:
    """Returns a dataclass as json-ready dicts, lists, strings and numbers."""
    return msgspec.to_builtins(config, order="deterministic")


def from_json(cls: type[Config], data: Any, where: str) -> Config:
    """The inverse of `to_json`.

    Args:
      cls: the dataclass.
      data: what a json file held.
      where: the file and key it stood in, for the error.

    Raises:
      ConfigError: a value of the wrong type, a key that `cls` does not have, or one that `cls` refuses.
    """
    try:
        config = msgspec.convert(data, type=cls, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}") from error
    if unknown := _unknown_keys(data, to_json(config)):
        raise ConfigError(f"{where}: {cls.__name__} has no field {', '.join(sorted(unknown))}")
    return config


def _unknown_keys(given: Any, known: Any, prefix: str = "") -> set[str]:
    """Keys of `given` that did not survive the conversion (msgspec drops a dataclass's unknown fields silently)."""
    if isinstance(given, dict) and isinstance(known, dict):
        unknown = {f"'{prefix}{key}'" for key in given.keys() - known.keys()}
        for key in given.keys() & known.keys():
            unknown |= _unknown_keys(given[key], known[key], f"{prefix}{key}.")
        return unknown
    if isinstance(given, list) and isinstance(known, list):
        return set().union(*(_unknown_keys(a, b, prefix) for a, b in zip(given, known, strict=False)))
    return set()
