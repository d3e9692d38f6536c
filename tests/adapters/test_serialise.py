"""Specs as json: exact round trips, and nothing believed."""

from __future__ import annotations

import copy
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperflax.adapters import AdapterSpec, LoRA, Prefix, build_spec
from hyperflax.errors import AdapterError, HyperflaxError
from tests.adapters.micro import CONFIG, KINDS

finite = st.floats(0, 1e3, allow_nan=False)
layers = st.none() | st.sets(st.integers(0, 1), min_size=1).map(sorted).map(tuple)
loras = st.builds(
    LoRA,
    rank=st.integers(1, 64),
    alpha=finite,
    sites=st.sampled_from([("*",), ("*/query", "*/wo"), ("decoder/*attention/o*",)]),
    layers=layers,
    a_head_std=finite,
    b_head_std=finite,
)
prefixes = st.builds(
    Prefix,
    length=st.integers(1, 64),
    position_bias=st.sampled_from(["zero", "preceding"]),
    sites=st.sampled_from([("*",), ("*/self_attention", "encoder/*")]),
    layers=layers,
    init_std=finite,
    head_std=finite,
)


@given(st.one_of(loras.map(lambda x: (x,)), prefixes.map(lambda x: (x,)), st.tuples(loras, prefixes)))
@settings(max_examples=30, deadline=None)
def test_round_trip_through_text_is_exact(kinds):
    spec = build_spec(kinds, CONFIG)
    again = AdapterSpec.from_json(json.loads(json.dumps(spec.to_json(), allow_nan=False)))
    assert again == spec
    assert hash(again) == hash(spec)
    assert again.kinds == spec.kinds


@pytest.mark.parametrize("row", KINDS)
def test_every_row_of_the_conformance_table_survives(row):
    spec = build_spec(KINDS[row], CONFIG)
    assert AdapterSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


DATA = build_spec((LoRA(rank=2), Prefix(length=2)), CONFIG).to_json()


def _set(path, value):
    def edit(data):
        *parents, last = path
        for key in parents:
            data = data[key]
        data[last] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_set(["version"], 2), r"spec: version: expected 1, got 2"),
        (_set(["version"], True), r"spec: version"),
        (_set(["verzion"], 1), r"spec: unknown key 'verzion' \(did you mean 'version'\?\)"),
        (lambda data: data.pop("leaves"), r"spec: missing key 'leaves'"),
        (_set(["leaves"], {}), r"leaves: expected a json list .* got dict"),
        (
            _set(["kinds", 0, "kind"], "ia3"),
            r"kinds\[0\]: kind: expected one of \['full', 'lora', .*'soft_prompt'\], got 'ia3'",
        ),
        (_set(["kinds", 0, "kind"], ["lora"]), r"kinds\[0\]: kind"),
        (_set(["kinds", 0], "lora"), r"kinds\[0\]: kind"),
        (_set(["kinds", 0, "ranc"], 2), r"kinds\[0\]: unknown key 'ranc' \(did you mean 'rank'\?\)"),
        (_set(["kinds", 0, "rank"], "8"), r"kinds\[0\]: LoRA.rank: expected a whole number of at least 1, got '8'"),
        (_set(["kinds", 1, "length"], 1e9), r"kinds\[1\]: Prefix.length"),
        (_set(["leaves", 3, "path"], "../../etc"), r"leaves\[3\]: leaf '../../etc': path"),
        (_set(["leaves", 3, "shape"], 4), r"leaves\[3\]: shape: expected a json list"),
        (_set(["leaves", 3, "shape"], [12, -1]), r"leaves\[3\]: .*shape: expected"),
        (_set(["leaves", 3, "shape"], [2**40, 2]), r"leaves\[3\]: .*shape: expected"),
        (_set(["leaves", 3, "scale"], math.nan), r"leaves\[3\]: .*scale"),
        (_set(["leaves", 3, "init"], 0), r"leaves\[3\]: unknown key 'init'"),
        (lambda data: data["leaves"][3].pop("axes"), r"leaves\[3\]: missing key 'axes'"),
        (lambda data: data["leaves"].append(data["leaves"][0]), r"is given twice"),
        (_set(["optional", 0], None), r"optional\[0\]: expected a json object, got NoneType"),
    ],
)
def test_bad_json_is_refused_with_the_entry_named(edit, message):
    data = copy.deepcopy(DATA)
    edit(data)
    with pytest.raises(AdapterError, match=message):
        AdapterSpec.from_json(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def _places(node, prefix=()):
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield (*prefix, key)
        yield from _places(child, (*prefix, key))


# One leaf, one mask and two kinds have every field that there is.
SMALL = {**DATA, "leaves": DATA["leaves"][:1], "optional": DATA["optional"][:1]}


@given(st.sampled_from(list(_places(SMALL))), json_values)
@settings(max_examples=200, deadline=None)
def test_any_value_at_any_place_is_read_or_refused(path, value):
    data = copy.deepcopy(SMALL)
    _set(path, value)(data)
    try:
        spec = AdapterSpec.from_json(data)
    except HyperflaxError:
        return
    assert AdapterSpec.from_json(json.loads(json.dumps(spec.to_json(), allow_nan=False))) == spec


@given(json_values)
@settings(max_examples=50, deadline=None)
def test_anything_else_is_refused(data):
    with pytest.raises(AdapterError):
        AdapterSpec.from_json(data)
