"""Adapters between PEFT and hyperflax, held to what PEFT computes with the very files.

`peft/` was saved by PEFT and is read here; `exported/` was written by hyperflax, loaded by `PeftModel.from_pretrained`
and run. Every layer of every adapter has values of its own, so that a layer which got another one's would show.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from hyperflax import trees
from hyperflax.adapters.kinds import check_spec
from hyperflax.checkpoints.huggingface import read_huggingface
from hyperflax.checkpoints.parity import compare, trace
from hyperflax.checkpoints.peft import read_peft, write_peft
from tests.interop import adapters
from tests.interop.families import FAMILIES
from tests.interop.test_models import MODELS, outputs, reference

GOLDENS = MODELS.parent
MADE_BY_PEFT = {
    "lora_patterns": "t5_1_1",
    "lora_rslora": "t5_1_0",
    "prefix_odd": "umt5",
    "prefix_even": "byt5",
    "prompt": "umt5",
}


def certify(folder: pathlib.Path, family: str) -> None:
    """Compares what our T5 computes with the adapter in a folder to what PEFT computed."""
    params, config = read_huggingface(MODELS / family)
    adapter = read_peft(folder, decoder_layers=config.num_decoder_layers)
    check_spec(adapter.spec, config)
    expected = outputs(folder)
    bare = reference(family)
    if FAMILIES[family]["model_type"] == "umt5":
        expected["logits"] = expected["logits"] * np.sqrt(config.emb_dim)
    tokens = expected.pop("encoder_input_tokens"), expected.pop("decoder_input_tokens")
    found = trace(params, config, *tokens, adapter.tree, decoded=expected["greedy"].shape[1])
    certificate = compare(expected, found)
    assert certificate.passed, certificate.to_json()
    # It is the adapter that was compared, not two bare models.
    assert np.abs(expected["logits"] - bare["logits"]).max() > 1e-2 * np.abs(bare["logits"]).max()


@pytest.mark.parametrize("name", MADE_BY_PEFT)
def test_an_adapter_of_peft_does_here_what_it_does_there(name):
    certify(GOLDENS / "peft" / name, MADE_BY_PEFT[name])


@pytest.mark.parametrize("name", adapters.EXPORTED)
def test_an_exported_adapter_does_in_peft_what_it_does_here(name):
    certify(GOLDENS / "exported" / name, adapters.EXPORTED[name][0])


@pytest.mark.parametrize("name", adapters.EXPORTED)
def test_the_files_that_peft_ran_are_those_written_today(name, tmp_path):
    adapters.EXPORTED[name][1](tmp_path / name)
    for file in ("adapter_config.json", "adapter_model.safetensors", "hyperflax.json"):
        assert (tmp_path / name / file).read_bytes() == (GOLDENS / "exported" / name / file).read_bytes(), file


@pytest.mark.parametrize("name", adapters.EXPORTED)
def test_an_adapter_comes_back_as_it_went_out(name, tmp_path):
    adapters.EXPORTED[name][1](tmp_path / name)
    went, came = adapters.adapter(name), read_peft(tmp_path / name)
    assert came.spec == went.spec
    for name in ("base_fingerprint", "hypermodel", "support_hash", "refine_steps"):
        assert getattr(came.metadata, name) == getattr(adapters.METADATA, name)
    for path, leaf in trees.flatten(went.tree).items():
        np.testing.assert_array_equal(trees.flatten(came.tree)[path], leaf, err_msg=path)


def test_where_an_adapter_was_trained_is_not_lost_on_the_way(tmp_path):
    """Evaluations refuse tasks that it names."""
    seen = {"training_tasks": ["0a"], "sources": {"dates": "sha256:12"}, "results": [{"loss": 0.5}]}
    adapter = adapters.adapter("lora_everywhere")
    metadata = dataclasses.replace(adapter.metadata, provenance=seen)
    write_peft(tmp_path / "peft", dataclasses.replace(adapter, metadata=metadata))
    once = read_peft(tmp_path / "peft")
    assert once.metadata.provenance == {**seen, "imported_from": "PEFT", "base_model": None}
    write_peft(tmp_path / "twice", once)
    assert read_peft(tmp_path / "twice").metadata.provenance == once.metadata.provenance


def test_weights_changed_since_the_export_have_no_known_base(tmp_path):
    other = tmp_path / "other"
    adapters.EXPORTED["lora_everywhere"][1](tmp_path / "one")
    adapters.EXPORTED["lora_everywhere"][1](other)
    origin = json.loads((other / "hyperflax.json").read_text())
    origin["fingerprint"] = "sha256:" + "0" * 64
    (other / "hyperflax.json").write_text(json.dumps(origin))
    assert read_peft(tmp_path / "one").metadata.base_fingerprint == adapters.BASE
    assert read_peft(other).metadata.base_fingerprint is None


@pytest.mark.parametrize("name", MADE_BY_PEFT)
def test_an_adapter_from_elsewhere_says_that_its_base_is_unknown(name):
    metadata = read_peft(GOLDENS / "peft" / name, decoder_layers=2).metadata
    assert metadata.base_fingerprint is None
    assert metadata.provenance == {"imported_from": "PEFT", "base_model": MADE_BY_PEFT[name]}
