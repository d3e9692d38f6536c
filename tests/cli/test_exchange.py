"""convert, export, import and inspect, as a user types them."""

from __future__ import annotations

import json
import pathlib
import re

import ml_dtypes
import numpy as np
import pytest

from hyperflax import trees
from hyperflax.adapters import Full, LoRA, Prefix, build_spec
from hyperflax.checkpoints import Adapter, AdapterMetadata, fingerprint, forms, load_adapter
from hyperflax.checkpoints.convert import behaviour, certify
from hyperflax.checkpoints.forms import read_model, write_model
from hyperflax.checkpoints.huggingface import read_huggingface, write_huggingface
from hyperflax.checkpoints.peft import read_peft
from hyperflax.checkpoints.shapes import expected_shapes
from hyperflax.checkpoints.t5_directory import save_t5
from hyperflax.cli.main import main
from hyperflax.data.vocabularies import Bytes
from hyperflax.errors import CheckpointError
from hyperflax.hypermodel import load
from tests.adapters.micro import random_tree
from tests.checkpoints.directories import CONFIG, base
from tests.checkpoints.directories import random_tree as random_tree_of
from tests.interop.test_models import MODELS
from tests.interop.test_peft import GOLDENS


@pytest.fixture
def model(tmp_path) -> pathlib.Path:
    write_huggingface(tmp_path / "model", base(), CONFIG, files={"spiece.model": b"pieces"})
    return tmp_path / "model"


def write_adapter(folder: pathlib.Path, *kinds, base_fingerprint: str | None = None) -> None:
    spec = build_spec(kinds, CONFIG)
    Adapter(random_tree(spec, 0), spec, AdapterMetadata(base_fingerprint or fingerprint(base()))).save(folder)


def equal(found, expected) -> bool:
    found, expected = trees.flatten(found), trees.flatten(expected)
    return found.keys() == expected.keys() and all(np.array_equal(found[path], expected[path]) for path in found)


def test_a_model_goes_through_every_form_and_comes_back(model, tmp_path, capsys):
    way = [model, tmp_path / "t5x", tmp_path / "orbax", tmp_path / "back"]
    for source, destination, form in zip(way, way[1:], ("t5x", "orbax", "huggingface"), strict=False):
        assert main(["convert", str(source), str(destination), "--to", form]) == 0
    assert read_model(way[1]).form == "t5x"
    assert read_model(way[2]).form == "orbax"
    assert equal(read_huggingface(way[3])[0], base())
    assert "huggingface, from orbax" in capsys.readouterr().out


def test_check_writes_a_certificate_beside_the_result(model, tmp_path, capsys):
    assert main(["convert", str(model), str(tmp_path / "out"), "--check"]) == 0
    certificate = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert certificate["passed"]
    assert certificate["source"] == "huggingface"
    assert certificate["result"] == "t5x"
    assert certificate["logits_max_relative_error"] == 0.0
    assert set(certificate["differences"]) >= {"encoder/layers_0", "decoder/layers_0", "logits"}
    assert "parity.json" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["huggingface", "t5x", "t5"])
def test_check_is_of_the_values_that_a_dtype_keeps(form, model, tmp_path):
    """Rounding to bfloat16 is asked for; what is compared is the rounded model."""
    source = {"huggingface": model, "t5x": tmp_path / "t5x", "t5": tmp_path / "t5"}[form]
    if form == "t5x":
        write_model(source, read_model(model), "t5x")
    elif form == "t5":
        save_t5(source, base(), CONFIG, Bytes())
    command = ["convert", str(source), str(tmp_path / "out"), "--to", "huggingface", "--check", "--dtype", "bfloat16"]
    assert main(command) == 0
    assert json.loads((tmp_path / "out" / "parity.json").read_text())["logits_max_relative_error"] == 0.0
    found, exact = trees.flatten(read_huggingface(tmp_path / "out")[0]), trees.flatten(base())
    assert all(found[path].dtype == ml_dtypes.bfloat16 for path in exact)
    assert all(np.array_equal(found[path], leaf.astype(ml_dtypes.bfloat16)) for path, leaf in exact.items())


def test_the_vocabulary_goes_along(model, tmp_path):
    assert main(["convert", str(model), str(tmp_path / "copy"), "--to", "huggingface", "--dtype", "bfloat16"]) == 0
    assert (tmp_path / "copy" / "spiece.model").read_bytes() == b"pieces"
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_a_model_with_a_bias_per_layer_needs_the_scalable_layout(tmp_path, capsys):
    config = CONFIG.replace(num_decoder_layers=2, relative_bias="per_layer")
    write_huggingface(tmp_path / "umt5", random_tree_of(expected_shapes(config), 0), config)
    umt5 = str(tmp_path / "umt5")
    assert main(["convert", umt5, str(tmp_path / "minimal"), "--to", "t5x"]) == 2
    assert "scalable_t5" in capsys.readouterr().err
    assert not (tmp_path / "minimal").exists()
    assert main(["convert", umt5, str(tmp_path / "scalable"), "--to", "t5x", "--scalable"]) == 0
    assert equal(read_model(tmp_path / "scalable").params, read_model(umt5).params)


def test_a_check_that_fails_says_so(model, tmp_path):
    source = read_model(model)
    expected = behaviour(source)
    source.params["encoder"]["encoder_norm"]["scale"] = source.params["encoder"]["encoder_norm"]["scale"] * 1.01
    write_model(tmp_path / "out", source, "t5x")
    with pytest.raises(CheckpointError, match=r"parity\.json.*not the one read"):
        certify(expected, tmp_path / "out")
    assert not json.loads((tmp_path / "out" / "parity.json").read_text())["passed"]


def test_position_buckets_that_t5x_does_not_have_are_refused(tmp_path, capsys):
    assert main(["convert", str(MODELS / "t5_1_1"), str(tmp_path / "out"), "--to", "orbax"]) == 2
    assert "num_buckets: expected 32" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_no_model_is_refused_and_nothing_is_written(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["convert", str(tmp_path / "empty"), str(tmp_path / "out")]) == 2
    assert "config.json" in capsys.readouterr().err
    write_adapter(tmp_path / "adapter", LoRA(rank=2))
    assert main(["convert", str(tmp_path / "adapter"), str(tmp_path / "out")]) == 2
    assert "found an adapter" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_adapter_goes_to_peft_and_back(tmp_path, capsys):
    write_adapter(tmp_path / "adapter", LoRA(rank=2, sites=("*",)))
    assert main(["export", str(tmp_path / "adapter"), "--format", "peft", "--out", str(tmp_path / "peft")]) == 0
    capsys.readouterr()
    assert main(["export", str(tmp_path / "peft"), "--format", "peft", "--out", str(tmp_path / "twice")]) == 2
    assert "expected adapter.json, found an adapter of PEFT; `hyperflax import` reads it" in capsys.readouterr().err
    assert main(["import", str(tmp_path / "peft"), "--out", str(tmp_path / "back")]) == 0
    assert load_adapter(tmp_path / "back").metadata.created_with == "hyperflax import"
    went, came = load_adapter(tmp_path / "adapter"), load_adapter(tmp_path / "back")
    assert equal(came.tree, went.tree)
    assert came.spec == went.spec
    assert came.metadata.base_fingerprint == fingerprint(base())


def test_merged_is_the_model_with_the_adapter_in_its_weights(model, tmp_path, capsys):
    write_adapter(tmp_path / "adapter", LoRA(rank=2, sites=("*/wo",)))
    command = ["export", str(tmp_path / "adapter"), "--format", "merged", "--out", str(tmp_path / "merged")]
    assert main(command) == 2
    assert "--base" in capsys.readouterr().err
    assert main([*command, "--base", str(model)]) == 0
    slot = load_adapter(tmp_path / "adapter").tree["encoder"]["layers_0"]["mlp"]["wo"]["lora"]
    expected = base()["encoder"]["layers_0"]["mlp"]["wo"]["kernel"] + slot["a"] @ slot["b"]
    found = read_huggingface(tmp_path / "merged")[0]["encoder"]["layers_0"]["mlp"]["wo"]["kernel"]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_another_base_model_is_refused_with_both_fingerprints(model, tmp_path, capsys, form):
    other = "sha256:" + "12" * 32
    write_adapter(tmp_path / "adapter", LoRA(rank=2), base_fingerprint=other)
    command = ["export", str(tmp_path / "adapter"), "--format", form, "--out", str(tmp_path / "out")]
    assert main([*command, "--base", str(model)]) == 2
    told = capsys.readouterr().err
    assert other in told
    assert fingerprint(base()) in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        ((Prefix(length=2),), r"prefix at 'encoder/layers_0/attention/prefix'.*decoder's self-attention only"),
        ((Prefix(length=2, sites=("decoder/self_attention",)),), r"self_attention/prefix'.*'preceding'"),
        ((Prefix(length=2, sites=("decoder/encoder_decoder_attention",)),), r"encoder_decoder_attention/prefix'"),
        ((LoRA(rank=2), Prefix(length=2)), "one kind"),
    ],
)
def test_what_peft_cannot_express_is_refused_by_site(kinds, told, tmp_path, capsys):
    write_adapter(tmp_path / "adapter", *kinds)
    assert main(["export", str(tmp_path / "adapter"), "--format", "peft", "--out", str(tmp_path / "out")]) == 2
    assert re.search(told, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("form", "kinds", "told"),
    [
        ("merged", (Prefix(length=2),), "prefix at 'encoder/layers_0/attention/prefix' refuses to merge"),
        ("peft", (Prefix(length=2, sites=("decoder/self_attention",)),), "'preceding'"),
        ("peft", (Full(),), "refuses to export to PEFT"),
        ("peft", (LoRA(rank=2), Prefix(length=2)), "one kind"),
    ],
)
def test_what_no_base_could_change_is_refused_before_it_is_read(form, kinds, told, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(forms, "read_model", lambda *given, **options: pytest.fail("read"))
    write_adapter(tmp_path / "adapter", *kinds)
    command = ["export", str(tmp_path / "adapter"), "--format", form, "--out", str(tmp_path / "out"), "--base", "base"]
    assert main(command) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_layout_that_the_form_lacks_is_refused_before_the_model_is_read(model, tmp_path, monkeypatch, capsys):
    write_model(tmp_path / "t5x", read_model(model), "t5x")
    monkeypatch.setattr(forms, "read_model", lambda *given, **options: pytest.fail("read"))
    for given in ([str(tmp_path / "t5x")], [str(model), "--to", "huggingface"]):
        assert main(["convert", *given[:1], str(tmp_path / "out"), *given[1:], "--scalable"]) == 2
        assert "--scalable: expected --to t5x or orbax" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["huggingface", "t5x"])
def test_peft_is_told_of_a_base_that_its_users_can_load(form, model, tmp_path):
    """Of any other name transformers would ask a hub."""
    base = model
    if form == "t5x":
        base = tmp_path / "t5x"
        write_model(base, read_model(model), "t5x")
    write_adapter(tmp_path / "adapter", LoRA(rank=2))
    command = ["export", str(tmp_path / "adapter"), "--format", "peft", "--out", str(tmp_path / "out")]
    assert main([*command, "--base", str(base)]) == 0
    told = json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert told == (str(model) if form == "huggingface" else None)


def test_a_base_makes_an_adapter_from_elsewhere_usable(tmp_path, capsys):
    theirs = str(GOLDENS / "peft" / "prefix_even")
    assert main(["import", theirs, "--out", str(tmp_path / "unknown")]) == 0
    assert "unknown" in capsys.readouterr().out
    assert load_adapter(tmp_path / "unknown").metadata.base_fingerprint is None
    assert main(["import", theirs, "--out", str(tmp_path / "known"), "--base", str(MODELS / "byt5")]) == 0
    known = load_adapter(tmp_path / "known")
    assert known.metadata.base_fingerprint == fingerprint(read_huggingface(MODELS / "byt5")[0])
    assert known.spec.layers() == [("decoder", 0), ("decoder", 1)]
    assert main(["import", theirs, "--out", str(tmp_path / "other"), "--base", str(MODELS / "umt5_tied")]) == 0
    assert (
        main(["import", theirs, "--out", str(tmp_path / "never"), "--base", str(GOLDENS / "peft" / "prefix_odd")]) == 2
    )


@pytest.mark.parametrize(("name", "other"), [("prefix_odd", "byt5"), ("prefix_even", "umt5")])
def test_an_exported_prefix_keeps_its_base_before_one_of_another_depth(name, other, tmp_path, capsys):
    made_for = read_peft(GOLDENS / "exported" / name).metadata.base_fingerprint
    given = fingerprint(read_huggingface(MODELS / other)[0])
    command = ["import", str(GOLDENS / "exported" / name), "--out", str(tmp_path / "out")]
    assert main([*command, "--base", str(MODELS / other)]) == 2
    assert f"made for the base model {made_for}; this base model is {given}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_inspect_tells_form_origin_and_every_array(model, tmp_path, capsys):
    write_adapter(tmp_path / "adapter", LoRA(rank=2))
    assert main(["convert", str(model), str(tmp_path / "t5x")]) == 0
    assert main(["convert", str(model), str(tmp_path / "orbax"), "--to", "orbax"]) == 0
    capsys.readouterr()
    for path, form, told in [
        (model, "huggingface", "shared.weight"),
        (tmp_path / "adapter", "adapter", fingerprint(base())),
        (tmp_path / "adapter", "adapter", "created_with: unknown"),
        (tmp_path / "t5x", "t5x", "target/token_embedder/embedding"),
        (tmp_path / "orbax", "orbax", "target/token_embedder/embedding"),
        (GOLDENS / "peft" / "lora_rslora", "peft", "base_fingerprint: unknown"),
        (GOLDENS / "exported" / "lora_two_ranks", "peft", "base_fingerprint: sha256:0123"),
    ]:
        assert main(["inspect", str(path)]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"{path}: {form}\n")
        assert told in out
    table = next(line for line in out.splitlines() if "arrays" in line)
    assert "bytes" in table
    assert main(["inspect", str(tmp_path / "nothing")]) == 2


def test_a_shipped_model_goes_by_its_name_unless_something_here_has_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", "strings"]) == 0
    assert capsys.readouterr().out.startswith("strings: hypermodel\n")
    assert main(["convert", "strings", "strings_t5"]) == 0
    copied, _ = read_huggingface("strings_t5", dtype="float32")
    assert fingerprint(copied) == load("strings", hypernetwork=False).base_fingerprint
    (tmp_path / "strings").write_text("mine")
    assert main(["inspect", "strings"]) == 2
