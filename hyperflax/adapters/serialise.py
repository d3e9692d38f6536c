"""Specs as json.

The reader trusts nothing: a spec may have been written by another version, another program or somebody with bad
intentions. It accepts exactly the keys below, checks each value's type and range, and builds frozen dataclasses.

    {"version": 1,
     "kinds": [{"kind": "lora", "rank": 8, ...}],
     "leaves": [{"path": "encoder/layers_0/attention/query/lora/a", "shape": [512, 8], ...}],
     "optional": []}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hyperflax.adapters.checks import nearest
from hyperflax.adapters.kind_config import KindConfig
from hyperflax.adapters.kinds import KINDS
from hyperflax.adapters.spec import AdapterSpec, Leaf
from hyperflax.errors import AdapterError, ConfigError

VERSION = 1
_MAX_ENTRIES = 100_000
_LEAF_FIELDS = tuple(field.name for field in dataclasses.fields(Leaf))


def spec_to_json(spec: AdapterSpec) -> dict[str, Any]:
    """Returns plain dicts, lists, strings and numbers."""
    return {
        "version": VERSION,
        "kinds": [kind_to_json(kind) for kind in spec.kinds],
        "leaves": [_plain(leaf) for leaf in spec.leaves],
        "optional": [_plain(leaf) for leaf in spec.optional],
    }


def spec_from_json(data: Any) -> AdapterSpec:
    """Returns the spec that `spec_to_json` wrote. Raises AdapterError naming the entry that is wrong."""
    fields = _mapping(data, "spec", required=("version", "kinds", "leaves", "optional"))
    if fields["version"] != VERSION or isinstance(fields["version"], bool):
        raise AdapterError(f"spec: version: expected {VERSION}, got {fields['version']!r}")
    kinds = [kind_from_json(entry, f"spec: kinds[{i}]") for i, entry in enumerate(_list(fields["kinds"], "kinds"))]
    leaves, optional = (
        tuple(_leaf(entry, f"spec: {name}[{i}]") for i, entry in enumerate(_list(fields[name], name)))
        for name in ("leaves", "optional")
    )
    return AdapterSpec(leaves, tuple(kinds), optional=optional)


def kind_to_json(config: KindConfig) -> dict[str, Any]:
    """Returns `{"kind": name, field: value ...}`."""
    return {"kind": config.kind, **_plain(config)}


def kind_from_json(data: Any, where: str = "kind") -> KindConfig:
    """Returns the settings that `kind_to_json` wrote; absent fields take their defaults. Raises AdapterError."""
    name = data.get("kind") if isinstance(data, Mapping) else None
    if not isinstance(name, str) or name not in KINDS:
        raise AdapterError(f"{where}: kind: expected one of {sorted(KINDS)}, got {name!r}")
    known = tuple(field.name for field in dataclasses.fields(KINDS[name]))  # type: ignore[arg-type]
    fields = _mapping(data, where, required=("kind",), optional=known)
    try:
        return KINDS[name](**{key: value for key, value in fields.items() if key != "kind"})
    except ConfigError as error:
        raise AdapterError(f"{where}: {error}") from error


def _leaf(data: Any, where: str) -> Leaf:
    fields = dict(_mapping(data, where, required=_LEAF_FIELDS))
    for name in ("shape", "axes"):
        fields[name] = tuple(_list(fields[name], f"{where}: {name}"))
    try:
        return Leaf(**fields)
    except AdapterError as error:
        raise AdapterError(f"{where}: {error}") from error


def _plain(instance: Any) -> dict[str, Any]:
    """A dataclass's own fields, tuples as lists."""
    values = {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _mapping(data: Any, where: str, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise AdapterError(f"{where}: expected a json object, got {type(data).__name__}")
    known = (*required, *optional)
    for key in data:
        if key not in known:
            raise AdapterError(f"{where}: unknown key {key!r}{nearest(str(key), known)}; the keys are {list(known)}")
    for key in required:
        if key not in data:
            raise AdapterError(f"{where}: missing key {key!r}")
    return data


def _list(data: Any, where: str) -> list[Any]:
    if not isinstance(data, list) or len(data) > _MAX_ENTRIES:
        raise AdapterError(
            f"{where}: expected a json list of at most {_MAX_ENTRIES} entries, got {type(data).__name__}"
        )
    return data
