"""hyperflax beside torch, transformers and PEFT, on fresh random models and adapters: both directions, by logits.

Not collected by `make test`, which has no torch; `make test-interop` runs it by name. HYPERFLAX_INTEROP_SEED draws
other models than the usual ones.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib

import numpy as np
import pytest
import torch
from peft import PeftModel

from benchmarks.peers.case import quick
from benchmarks.peers.cases import CASES
from benchmarks.peers.measure import Workers, measure
from hyperflax import trees
from hyperflax.adapters import LoRA, Prefix, SoftPrompt, build_spec, merge
from hyperflax.checkpoints.artefacts import Adapter, AdapterMetadata
from hyperflax.checkpoints.huggingface import read_huggingface, write_huggingface
from hyperflax.checkpoints.parity import Certificate, compare, trace, without_padding
from hyperflax.checkpoints.peft import write_peft
from hyperflax.checkpoints.shapes import expected_shapes
from tests.adapters.micro import random_tree
from tests.interop.families import FAMILIES
from tests.interop.make_goldens import CLASSES, build, run

SEED = int(os.environ.get("HYPERFLAX_INTEROP_SEED", "1000"))
KINDS = {
    "lora": LoRA(rank=3, alpha=2.0, sites=("*",)),
    "prefix": Prefix(length=5, position_bias="preceding", sites=("decoder/self_attention",)),
    "prompt": SoftPrompt(length=5),
}


def certify(model, base, family: str, params, config, adapters=None) -> Certificate:
    """Compares what torch computes with `model`, which is `base` or wraps it, to what our T5 computes."""
    expected = run(model, base)
    tokens = expected.pop("encoder_input_tokens"), expected.pop("decoder_input_tokens")
    for name in expected:
        if name.startswith("encoder/"):
            expected[name] = without_padding(expected[name], tokens[0])
    if config.relative_bias == "per_layer" and not config.logits_via_embedding:
        expected["logits"] = expected["logits"] * math.sqrt(config.emb_dim)  # see hf_config.py
    certificate = compare(expected, trace(params, config, *tokens, adapters, decoded=expected["greedy"].shape[1]))
    print(f"{family}: logits differ by {certificate.max_error:.1e} of their largest")
    return certificate


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


def load(folder: pathlib.Path, family: str):
    model_class = CLASSES[FAMILIES[family]["model_type"]][1]
    return model_class.from_pretrained(folder, attn_implementation="eager").eval()


def test_what_transformers_saves_computes_the_same_here(family, tmp_path):
    build(family, SEED).save_pretrained(tmp_path, safe_serialization=True)
    model = load(tmp_path, family)
    assert certify(model, model, family, *read_huggingface(tmp_path)).passed


@pytest.mark.parametrize("shard_bytes", [10**9, 4000])
def test_what_hyperflax_writes_computes_the_same_there(family, shard_bytes, tmp_path):
    build(family, SEED + 1).save_pretrained(tmp_path / "theirs", safe_serialization=True)
    _, config = read_huggingface(tmp_path / "theirs")
    rng = np.random.default_rng(SEED)
    params = trees.unflatten(
        {path: rng.normal(0, 0.3, shape).astype(np.float32) for path, shape in expected_shapes(config).items()}
    )
    write_huggingface(tmp_path / "ours", params, config, shard_bytes=shard_bytes)
    model_class = CLASSES["umt5" if config.relative_bias == "per_layer" else "t5"][1]
    model, told = model_class.from_pretrained(tmp_path / "ours", attn_implementation="eager", output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    # transformers 5 cannot generate with a cache from a decoder deeper than the encoder.
    model.config.use_cache = FAMILIES[family].get("use_cache", True)
    assert certify(model.eval(), model, family, params, config).passed


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_adapter_computes_the_same_in_peft(family, kind, tmp_path):
    build(family, SEED + 2).save_pretrained(tmp_path / "base", safe_serialization=True)
    params, config = read_huggingface(tmp_path / "base")
    spec = build_spec(KINDS[kind], config)
    tree = random_tree(spec, SEED)
    write_peft(tmp_path / "adapter", Adapter(tree, spec, AdapterMetadata(None)))
    base = load(tmp_path / "base", family)
    # A prefix is handed over in a cache, which PEFT makes itself.
    base.config.use_cache = base.config.use_cache or kind == "prefix"
    model = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert certify(model, base, family, params, config, tree).passed


def test_a_merged_export_computes_what_peft_computes(tmp_path):
    build("t5_1_1", SEED + 3).save_pretrained(tmp_path / "base", safe_serialization=True)
    params, config = read_huggingface(tmp_path / "base")
    spec = build_spec(KINDS["lora"], config)
    tree = random_tree(spec, SEED)
    write_huggingface(tmp_path / "merged", merge(params, tree, spec), config)
    write_peft(tmp_path / "adapter", Adapter(tree, spec, AdapterMetadata(None)))
    merged = load(tmp_path / "merged", "t5_1_1")
    base = load(tmp_path / "base", "t5_1_1")
    with_adapter = run(PeftModel.from_pretrained(base, tmp_path / "adapter").eval(), base)
    found = run(merged, merged)
    assert np.abs(found["logits"] - with_adapter["logits"]).max() <= 1e-5 * np.abs(with_adapter["logits"]).max()
    assert torch.is_tensor(merged.shared.weight)


@pytest.mark.parametrize("family", ["t5_1_1", "umt5"], indirect=True)
def test_at_real_depth(family, tmp_path, monkeypatch):
    """Twenty-four layers a stack: the bound is 1e-4."""
    monkeypatch.setitem(FAMILIES, family, {**FAMILIES[family], "num_layers": 24, "num_decoder_layers": 24})
    build(family, SEED + 4).save_pretrained(tmp_path, safe_serialization=True)
    model = load(tmp_path, family)
    assert certify(model, model, family, *read_huggingface(tmp_path)).passed


@pytest.mark.parametrize(
    "name", ["train_full", "train_lora", "decode_beam", "decode_lora", "decode_prefix", "decode_mixed"]
)
def test_both_sides_of_the_comparison_do_the_same(name, tmp_path):
    """Of `python -m benchmarks.peers`, at a toy size: losses before and after a step of the optimizer, and tokens."""
    case = quick(CASES[name])
    names = ("lora8", "transformers_lora8") if name == "decode_mixed" else ("hyperflax", "transformers")
    case = dataclasses.replace(case, rounds=1, entries={entry: case.entries[entry] for entry in names})
    with Workers(tmp_path) as workers:
        (found,) = measure(case, ("hyperflax", "transformers"), workers)["agreement"]
    if name.startswith("train"):
        assert found["loss_difference"] < 1e-5
        before, after = found["losses"]
        assert after < before
    else:
        assert found["tokens_equal"] == 1.0
