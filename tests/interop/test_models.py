"""Models saved by transformers, against what transformers computes with them: every layer, logits, greedy tokens.

The files and arrays are those of `make_goldens.py`. `make test-interop` holds the same on fresh models, with torch at
hand.
"""

from __future__ import annotations

import json
import math
import pathlib

import numpy as np
import pytest

from hyperflax import trees
from hyperflax.checkpoints.huggingface import read_huggingface, write_huggingface
from hyperflax.checkpoints.parity import compare, trace, without_padding
from hyperflax.checkpoints.safetensors_files import open_tensors
from tests.interop.families import FAMILIES

MODELS = pathlib.Path(__file__).resolve().parent / "goldens" / "models"


def outputs(folder: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(folder / "outputs.npz") as arrays:
        found = dict(arrays)
    for name in found:
        if name.startswith("encoder/"):
            found[name] = without_padding(found[name], found["encoder_input_tokens"])
    return found


def reference(family: str) -> dict[str, np.ndarray]:
    """What transformers computes; umT5's logits without the constant that version 5 multiplies them by."""
    found = outputs(MODELS / family)
    settings = FAMILIES[family]
    if settings["model_type"] == "umt5" and not settings["tie_word_embeddings"]:
        found["logits"] = found["logits"] * math.sqrt(settings["d_model"])
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_is_what_transformers_computes(family):
    expected = reference(family)
    params, config = read_huggingface(MODELS / family)
    tokens = expected.pop("encoder_input_tokens"), expected.pop("decoder_input_tokens")
    found = trace(params, config, *tokens, decoded=expected["greedy"].shape[1])
    certificate = compare(expected, found)
    depth = FAMILIES[family]["num_layers"] + FAMILIES[family]["num_decoder_layers"]
    assert len(certificate.differences) == depth + 1
    assert certificate.passed, certificate.to_json()
    for name, difference in certificate.differences.items():
        assert difference.max <= 1e-5 * difference.scale, name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shard_bytes", [10**9, 4000])
def test_written_again_every_weight_is_the_same(family, shard_bytes, tmp_path):
    params, config = read_huggingface(MODELS / family)
    write_huggingface(tmp_path / "again", params, config, shard_bytes=shard_bytes)
    again, config_again = read_huggingface(tmp_path / "again")
    assert config_again == config
    for path, leaf in trees.flatten(params).items():
        np.testing.assert_array_equal(trees.flatten(again)[path], leaf, err_msg=path)
    files = sorted((tmp_path / "again").glob("*.safetensors"))
    assert (len(files) > 1) == (shard_bytes == 4000)
    names: dict[str, tuple[int, ...]] = {}
    for file in files:
        with open_tensors(file) as tensors:
            names |= tensors.shapes
    with open_tensors(MODELS / family / "model.safetensors") as tensors:
        assert names == tensors.shapes  # not one name more or less than transformers writes


@pytest.mark.parametrize("family", FAMILIES)
def test_written_configuration_agrees_with_transformers_own(family, tmp_path):
    params, config = read_huggingface(MODELS / family)
    write_huggingface(tmp_path / "again", params, config)
    theirs = json.loads((MODELS / family / "config.json").read_text())
    ours = json.loads((tmp_path / "again" / "config.json").read_text())
    # Version 5 writes this one as true whatever the model, and says the truth in scale_decoder_outputs, for T5 alone.
    tied = ours.pop("tie_word_embeddings")
    assert tied == FAMILIES[family]["tie_word_embeddings"]
    assert theirs.get("scale_decoder_outputs", tied) == tied
    for key, value in ours.items():
        if key in theirs and key not in ("architectures", "model_type", "use_cache"):
            assert theirs[key] == value, key
