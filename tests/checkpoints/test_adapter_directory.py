"""Adapter directories: round trips, damage, and the wrong base model."""

from __future__ import annotations

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyperflax import trees
from hyperflax.adapters import LoRA, Prefix, build_spec
from hyperflax.checkpoints import Adapter, check_base, fingerprint, load_adapter, rounded, save_tree
from hyperflax.checkpoints.artefacts import read_origin
from hyperflax.errors import AdapterError, CheckpointError
from tests.checkpoints.directories import CONFIG, adapter_tree, base, edit_json, metadata, random_tree, spec
from tests.checkpoints.test_tensors import same


@pytest.fixture
def saved(tmp_path):
    Adapter(adapter_tree(), spec(), metadata()).save(tmp_path / "adapter")
    return tmp_path / "adapter"


def refused(folder, *told: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_adapter(folder)
    for text in told:
        assert text in str(caught.value), str(caught.value)


def test_round_trip(saved):
    adapter = load_adapter(saved)
    assert same(adapter.tree, adapter_tree())
    assert adapter.spec == spec()
    assert adapter.metadata == metadata()
    assert sorted(path.name for path in saved.iterdir()) == ["adapter.json", "adapter.safetensors"]
    document = json.loads((saved / "adapter.json").read_text())
    assert document["format"] == "hyperflax-adapter"
    assert document["base_fingerprint"] == fingerprint(base())
    assert set(document["versions"]) >= {"hyperflax", "jax", "numpy", "python"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(
    st.integers(1, 4), st.integers(1, 4), st.sampled_from(["zero", "preceding"]), st.sampled_from([None, "bfloat16"]),
    st.integers(0, 100), st.booleans(),
)  # fmt: skip
def test_round_trip_of_any_adapter(tmp_path, rank, length, bias, dtype, steps, on_device):
    made_for = build_spec(
        (LoRA(rank=rank, sites=("*/query", "*/wi_0")), Prefix(length=length, position_bias=bias)), CONFIG
    )
    tree = random_tree({leaf.path: leaf.shape for leaf in made_for.leaves}, seed=steps)
    given_tree = trees.map_with_path(lambda _, leaf: jnp.asarray(leaf), tree) if on_device else tree
    Adapter(given_tree, made_for, metadata(refine_steps=steps)).save(tmp_path / "a", dtype=dtype, overwrite=True)
    adapter = load_adapter(tmp_path / "a")
    assert same(adapter.tree, rounded(tree, dtype))
    assert adapter.spec == made_for
    assert adapter.metadata == metadata(refine_steps=steps)


def test_optional_leaves_are_kept(tmp_path):
    with_mask = trees.flatten(adapter_tree())
    masks = {leaf.path: np.ones(leaf.shape, np.float32) for leaf in spec().optional}
    assert masks
    Adapter(trees.unflatten({**with_mask, **masks}), spec(), metadata()).save(tmp_path / "a")
    assert same(load_adapter(tmp_path / "a").tree, trees.unflatten({**with_mask, **masks}))


def test_saving_a_tree_that_does_not_fit(tmp_path):
    flat = trees.flatten(adapter_tree())
    path = next(iter(flat))
    for broken in (
        {key: value for key, value in flat.items() if key != path},
        {**flat, path: flat[path][..., :1]},
        {**flat, "encoder/layers_0/attention/qeury/lora/a": flat[path]},
    ):
        with pytest.raises(AdapterError, match=r"layers_0"):
            Adapter(trees.unflatten(broken), spec(), metadata()).save(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"base_fingerprint": "md5:abc"}, "base_fingerprint"),
        ({"support_hash": "sha256:" + "g" * 64}, "support_hash"),
        ({"refine_steps": -1}, "refine_steps"),
        ({"created_with": 7}, "created_with"),
        ({"provenance": {"x": object()}}, "metadata"),
        ({"provenance": {"x": float("nan")}}, "not written"),
    ],
)
def test_saving_metadata_that_could_not_be_read(tmp_path, changes, told):
    with pytest.raises(CheckpointError, match=told):
        Adapter(adapter_tree(), spec(), metadata(**changes)).save(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_overwriting(saved):
    with pytest.raises(CheckpointError, match="already exists"):
        Adapter(adapter_tree(2), spec(), metadata()).save(saved)
    assert same(load_adapter(saved).tree, adapter_tree())
    Adapter(adapter_tree(2), spec(), metadata()).save(saved, overwrite=True)
    assert same(load_adapter(saved).tree, adapter_tree(2))


# The base model


def test_base_model(saved):
    adapter = load_adapter(saved)
    check_base(adapter, fingerprint(base()))
    other = fingerprint(base(seed=9))
    with pytest.raises(AdapterError) as caught:
        check_base(adapter, other)
    assert other in str(caught.value)
    assert fingerprint(base()) in str(caught.value)


def test_unknown_base_model(tmp_path):
    Adapter(adapter_tree(), spec(), metadata(base_fingerprint=None, hypermodel=None)).save(tmp_path / "a")
    adapter = load_adapter(tmp_path / "a")
    with pytest.raises(AdapterError, match="does not say") as caught:
        check_base(adapter, fingerprint(base()))
    assert fingerprint(base()) in str(caught.value)
    check_base(adapter, fingerprint(base()), allow_unknown=True)


def test_where_it_comes_from_is_read_without_its_values(saved):
    whole = load_adapter(saved)
    (saved / "adapter.safetensors").unlink()
    found = read_origin(saved)
    assert (found.spec, found.metadata, found.tree) == (whole.spec, whole.metadata, {})
    (saved / "adapter.json").unlink()
    with pytest.raises(CheckpointError, match=r"adapter\.json"):
        read_origin(saved)


# Damage


def test_missing_files(saved, tmp_path):
    refused(tmp_path / "nothing", "adapter.json", "nothing")
    for name in ("adapter.safetensors", "adapter.json"):
        (saved / name).rename(tmp_path / name)
        refused(saved, name, "expected a file")
        (tmp_path / name).rename(saved / name)


def test_truncated_weights_and_json(saved):
    for name in ("adapter.safetensors", "adapter.json"):
        data = (saved / name).read_bytes()
        for length in (0, 1, len(data) // 2, len(data) - 2):
            (saved / name).write_bytes(data[:length])
            refused(saved, name)
        (saved / name).write_bytes(data)


@pytest.mark.parametrize("key", ["format", "schema_version", "base_fingerprint", "spec", "fingerprint", "versions"])
def test_json_without_a_key_or_with_another_type(saved, key):
    original = (saved / "adapter.json").read_text()
    edit_json(saved / "adapter.json", lambda value: value.pop(key))
    refused(saved, "adapter.json", key)
    (saved / "adapter.json").write_text(original)
    edit_json(saved / "adapter.json", lambda value: value.update({key: ["wrong"]}))
    refused(saved, "adapter.json", key)


def test_json_with_an_unknown_key(saved):
    edit_json(saved / "adapter.json", lambda value: value.update(colour="red"))
    refused(saved, "adapter.json", "colour")


def test_spec_that_is_none(saved):
    edit_json(saved / "adapter.json", lambda value: value["spec"]["leaves"][0].update(path="../../etc/passwd"))
    refused(saved, "adapter.json", "spec", "path")


def test_leaves_that_do_not_fit_the_spec(saved):
    flat = trees.flatten(adapter_tree())
    path = next(iter(flat))
    for change, told in (
        ({"encoder/layers_0/extra": flat[path]}, "encoder/layers_0/extra"),
        ({path: flat[path].T}, path),
        ({path: flat[path].astype(np.int32)}, path),
    ):
        save_tree(saved / "adapter.safetensors", trees.unflatten({**flat, **change}))
        refused(saved, "adapter.safetensors", told)
    safetensors.numpy.save_file({"x": np.zeros(1)}, saved / "adapter.safetensors")
    refused(saved, "adapter.safetensors", "'x'")


def test_two_adapters_mixed_up(saved, tmp_path):
    Adapter(adapter_tree(5), spec(), metadata()).save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "adapter.safetensors", saved)
    refused(saved, "adapter.safetensors", fingerprint(adapter_tree()), fingerprint(adapter_tree(5)))


def test_a_model_is_no_adapter(saved):
    edit_json(saved / "adapter.json", lambda value: value.update(format="hyperflax-hypermodel"))
    refused(saved, "'hyperflax-adapter'", "'hyperflax-hypermodel'")
