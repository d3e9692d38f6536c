"""Json files: written whole or not at all, and read as what nobody vouches for, every key and type checked.

>>> write_json(folder / "adapter.json", {"format": "hyperflax-adapter", "schema_version": 1})
>>> read_json(folder / "adapter.json")["schema_version"]
1
"""

from __future__ import annotations

import collections
import json
import math
import re
from typing import Any, TypeVar

from hyperflax import configs
from hyperflax.buckets import Location
from hyperflax.errors import CheckpointError, ConfigError
from hyperflax.files import atomic_file, read_bytes

Schema = TypeVar("Schema")

MAX_JSON_BYTES = 64 * 2**20
"""A spec of 100,000 leaves takes a third of it; anything larger was not written by hyperflax."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def write_json(path: Location | str, value: Any) -> None:
    """Writes readable json, atomically.

    Raises:
      CheckpointError: `value` holds something that json in UTF-8 cannot, such as NaN, an array or half a character.
    """
    try:
        text = f"{json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False)}\n".encode()
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not written, {error}") from error
    with atomic_file(path) as temporary:
        temporary.write_bytes(text)


def read_json(path: Location | str) -> dict[str, Any]:
    """Returns the json object in a file.

    Raises:
      CheckpointError: no file, no UTF-8, no json, no object at the top, a key given twice, a number that json lacks, or
        half a character.
    """
    return parse_json(read_bytes(path, limit=MAX_JSON_BYTES), path)


def parse_json(data: bytes, where: Any) -> dict[str, Any]:
    """Returns the json object in a file's content; `where` is the file's name for errors, those of `read_json`."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            counts = collections.Counter(name for name, _ in pairs)
            raise ValueError(f"key '{next(name for name, count in counts.items() if count > 1)}' is given twice")
        return found

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not json")

    def finite(number: str) -> float:
        if math.isinf(value := float(number)):
            raise ValueError(f"{number} is too large a number")
        return value

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse, parse_float=finite)
        if _SURROGATE.search(data):  # half a character could be neither printed nor written again
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise CheckpointError(f"{where}: expected json, got brackets nested too deep") from error
    except ValueError as error:
        raise CheckpointError(f"{where}: expected json, {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: expected a json object, got {type(value).__name__}")
    return value


def read_schema(path: Location | str, schema: type[Schema], *, file_format: str, version: int) -> Schema:
    """Returns the content of a json file as the frozen dataclass `schema`, every type and key checked.

    Args:
      path: the file.
      schema: a dataclass with at least the fields `format` and `schema_version`.
      file_format: what `format` has to be.
      version: the highest `schema_version` that can be read.

    Raises:
      CheckpointError: names the file and the key, what was expected and what came.
    """
    value = read_json(path)
    if value.get("format") != file_format:
        raise CheckpointError(f"{path}: key 'format': expected {file_format!r}, got {value.get('format')!r}")
    found = value.get("schema_version")
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise CheckpointError(f"{path}: key 'schema_version': expected an int from 1 to {version}, got {found!r}")
    if found > version:
        raise CheckpointError(
            f"{path}: key 'schema_version': written by a newer hyperflax ({found}), this one reads up to {version}"
        )
    try:
        return configs.from_json(schema, value, str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
