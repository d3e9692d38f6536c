"""Directories in Hugging Face's form that are damaged, foreign or meant to harm: a clear error each."""

from __future__ import annotations

import json
import pathlib
import pickle
import shutil
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyperflax import trees
from hyperflax.checkpoints.hf_config import from_hf, to_hf
from hyperflax.checkpoints.huggingface import read_huggingface, write_huggingface
from hyperflax.checkpoints.inspection import Entry, inspect_path
from hyperflax.checkpoints.safetensors_files import Tensor, write_tensors
from hyperflax.checkpoints.shapes import expected_shapes
from hyperflax.errors import CheckpointError
from hyperflax.types import T5Config
from tests.checkpoints.directories import CONFIG, base, edit_json

TIED = CONFIG.replace(mlp_activations=("relu",), logits_via_embedding=True)


@pytest.fixture
def model(tmp_path) -> pathlib.Path:
    write_huggingface(tmp_path / "model", base(), CONFIG)
    return tmp_path / "model"


@pytest.fixture
def sharded(tmp_path) -> pathlib.Path:
    write_huggingface(tmp_path / "sharded", base(), CONFIG, shard_bytes=1500)
    return tmp_path / "sharded"


def tensors_of(params: dict, config: T5Config, folder: pathlib.Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    write_huggingface(folder, params, config)
    return load_file(folder / "model.safetensors")


def rewrite(folder: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    (folder / "model.safetensors").unlink()
    write_tensors(
        folder / "model.safetensors",
        [Tensor(name, x.shape, x.dtype, lambda x=x: x) for name, x in tensors.items()],
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "bart"}, "model_type.*'bart'"),
        ({"model_type": None}, "model_type.*None"),
        ({"feed_forward_proj": "gated-tanh"}, "feed_forward_proj.*gated-tanh"),
        ({"feed_forward_proj": "gelu"}, "feed_forward_proj"),  # the exact gelu, which no T5 of ours computes
        ({"feed_forward_proj": 3}, "feed_forward_proj"),
        (  # the exact gelu again
            {"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"},
            "dense_act_fn.*expected 'gelu_new', as feed_forward_proj 'gated-gelu' has it, got 'gelu'",
        ),
        ({"feed_forward_proj": "relu", "dense_act_fn": "silu"}, "dense_act_fn.*expected 'relu'"),
        ({"feed_forward_proj": "relu", "is_gated_act": True}, "is_gated_act.*expected False.*got True"),
        ({"feed_forward_proj": "gated-silu", "is_gated_act": False}, "is_gated_act.*expected True.*got False"),
        ({"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon.*1e-06.*1e-05"),
        ({"decoder_start_token_id": 5}, "decoder_start_token_id"),
        ({"eos_token_id": 2}, "eos_token_id.*1.*2"),
        ({"eos_token_id": [1, 2]}, "eos_token_id"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
        ({"d_model": -1}, "emb_dim"),
        ({"num_heads": 2.5}, "num_heads"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"num_layers": 10**9}, "num_layers.*at most"),
        ({"num_layers": True}, "num_encoder_layers"),
        ({"num_decoder_layers": [3]}, "num_decoder_layers"),
        ({"dropout_rate": "x"}, "config.json"),
        ({"d_ff": 10**12}, r"wi_0.weight'.*1000000000000"),
        ({"num_layers": 3}, r"encoder.block.2.*missing"),
        ({"tie_word_embeddings": True}, "lm_head.weight.*they differ"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(model, change, told):
    edit_json(model / "config.json", lambda content: content.update(change))
    with pytest.raises(CheckpointError, match=told):
        read_huggingface(model)


@pytest.mark.parametrize(
    ("data", "config"),
    [
        ({"model_type": "t5"}, {"emb_dim": 512, "mlp_activations": ("relu",), "logits_via_embedding": True}),
        ({"model_type": "t5", "tie_word_embeddings": False}, {"num_decoder_layers": 6, "logits_via_embedding": False}),
        ({"model_type": "t5", "eos_token_id": [1]}, {"vocab_size": 32128}),
        ({"model_type": "mt5"}, {"vocab_size": 250112, "mlp_dim": 1024, "logits_via_embedding": False}),
        ({"model_type": "umt5", "tie_word_embeddings": False}, {"relative_bias": "per_layer", "num_heads": 6}),
        # Version 5 of transformers writes the first key as true for every model.
        (
            {"model_type": "t5", "tie_word_embeddings": True, "scale_decoder_outputs": False},
            {"logits_via_embedding": False},
        ),
        ({"model_type": "mt5", "tie_word_embeddings": True}, {"logits_via_embedding": False}),
    ],
)
def test_what_a_file_leaves_out_takes_the_default_of_its_family(data, config):
    found = from_hf(data, "config.json")
    assert {name: getattr(found, name) for name in config} == config


@pytest.mark.parametrize("config", [CONFIG, TIED, CONFIG.replace(relative_bias="per_layer", max_distance=64)])
def test_a_configuration_comes_back(config):
    assert from_hf(json.loads(json.dumps(to_hf(config))), "config.json") == config


def test_swish_is_silu_for_transformers_and_back():
    gated = CONFIG.replace(mlp_activations=("swish", "linear"))
    assert to_hf(gated)["feed_forward_proj"] == "gated-silu"
    assert from_hf(to_hf(gated), "config.json") == gated.replace(mlp_activations=("silu", "linear"))
    assert to_hf(CONFIG.replace(mlp_activations=("swish",)))["feed_forward_proj"] == "silu"


def test_activations_that_transformers_lacks_are_refused():
    with pytest.raises(CheckpointError, match=r"linear.*gelu"):
        to_hf(CONFIG.replace(mlp_activations=("linear", "gelu")))


def test_every_weight_that_does_not_fit_is_listed(model, tmp_path):
    tensors = tensors_of(base(), CONFIG, tmp_path / "copy")
    del tensors["encoder.final_layer_norm.weight"]
    tensors["decoder.block.0.layer.2.DenseReluDense.wo.weight"] = np.zeros((3, 5), np.float32)
    tensors["decoder.block.7.layer.0.layer_norm.weight"] = np.zeros(8, np.float32)
    rewrite(model, tensors)
    with pytest.raises(CheckpointError) as caught:
        read_huggingface(model)
    assert str(caught.value).splitlines()[1:] == [
        "  'decoder.block.0.layer.2.DenseReluDense.wo.weight': expected shape (8, 12), found (3, 5)",
        "  'decoder.block.7.layer.0.layer_norm.weight': unexpected weight, found shape (8,)",
        "  'encoder.final_layer_norm.weight': expected shape (8,), the weight is missing",
    ]


def test_a_table_under_any_of_its_names_is_found_and_copies_must_be_equal(tmp_path):
    params = trees.unflatten({path: np.full(shape, 0.5, np.float32) for path, shape in expected_shapes(TIED).items()})
    tensors = tensors_of(params, TIED, tmp_path / "model")
    table = tensors.pop("shared.weight")
    unread = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    rewrite(
        tmp_path / "model", {**tensors, "encoder.embed_tokens.weight": table, "lm_head.weight": table, unread: table}
    )
    found, _ = read_huggingface(tmp_path / "model")
    np.testing.assert_array_equal(found["token_embedder"]["embedding"], table)
    rewrite(tmp_path / "model", {**tensors, "encoder.embed_tokens.weight": table, "shared.weight": table + 1})
    with pytest.raises(CheckpointError, match=r"embed_tokens.*differ"):
        read_huggingface(tmp_path / "model")
    rewrite(tmp_path / "model", tensors)
    with pytest.raises(CheckpointError, match=r"'shared.weight'.*missing"):
        read_huggingface(tmp_path / "model")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_a_pickle_is_refused_with_advice_and_never_opened(model, name, tmp_path):
    class Trap:
        def __reduce__(self):
            return (pathlib.Path.touch, (tmp_path / "sprung",))

    (model / "model.safetensors").unlink()
    (model / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match=f"(?s){name}.*pickle.*safe_serialization=True"):
        read_huggingface(model)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "file", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", 3, None, "model.safetensors", "a\\b"]
)
def test_an_index_names_plain_files_only(sharded, file):
    edit_json(
        sharded / "model.safetensors.index.json", lambda index: index["weight_map"].update({"shared.weight": file})
    )
    with pytest.raises(CheckpointError, match=r"shared\.weight.*plain file name"):
        read_huggingface(sharded)


def test_an_index_and_its_files_must_agree(sharded):
    index = sharded / "model.safetensors.index.json"
    files = sorted(file.name for file in sharded.glob("*.safetensors"))
    content = json.loads(index.read_text())
    first = next(name for name, file in content["weight_map"].items() if file == files[0])
    edit_json(index, lambda content: content["weight_map"].update({first: files[1]}))
    with pytest.raises(CheckpointError, match=r"expected the weight|says nothing"):
        read_huggingface(sharded)
    edit_json(index, lambda content: content["weight_map"].pop(first))
    with pytest.raises(CheckpointError, match="says nothing of it"):
        read_huggingface(sharded)
    (sharded / files[-1]).unlink()
    with pytest.raises(CheckpointError, match=rf"{files[-1]}.*found nothing"):
        read_huggingface(sharded)
    edit_json(index, lambda content: content.update(weight_map=[]))
    with pytest.raises(CheckpointError, match="weight_map"):
        read_huggingface(sharded)


def test_integers_are_no_weights(model, tmp_path):
    from safetensors.numpy import save_file

    tensors = tensors_of(base(), CONFIG, tmp_path / "copy")
    tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(np.int32)
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight.*floating"):
        read_huggingface(model)


def test_integers_are_listed_with_their_size(model, tmp_path):
    from safetensors.numpy import save_file

    tensors = tensors_of(base(), CONFIG, tmp_path / "copy")
    save_file(
        {**tensors, "counts": np.zeros(10, np.int8), "ids": np.zeros((2, 3), np.int64)}, model / "model.safetensors"
    )
    found = {entry.path: entry for entry in inspect_path(model).leaves}
    assert found["counts"] == Entry("counts", (10,), "i8", 10)
    assert found["ids"] == Entry("ids", (2, 3), "i64", 48)
    assert found["shared.weight"].dtype == "float32"


def header(entries: dict) -> bytes:
    head = json.dumps(entries).encode()
    return struct.pack("<Q", len(head)) + head


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        b"PK\x03\x04" + b"\0" * 100,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**40) + b"{}",
        struct.pack("<Q", 4) + b"nope",
        header({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}) + b"\0" * 4,
        header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}) + b"\0" * 4,
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}) + b"\0" * 4,
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}),
        header({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}) + b"\0" * 4,
    ],
)
def test_files_that_are_no_safetensors(model, content):
    (model / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_huggingface(model)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_as_the_same_shapes(model, data, tmp_path_factory):
    content = bytearray((model / "model.safetensors").read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, 2000))] = data.draw(st.integers(0, 255))
    copy = tmp_path_factory.mktemp("damaged") / "model"
    shutil.copytree(model, copy)
    (copy / "model.safetensors").write_bytes(bytes(content))
    try:
        params, config = read_huggingface(copy)
    except CheckpointError:
        return
    assert {path: leaf.shape for path, leaf in trees.flatten(params).items()} == expected_shapes(config)


def test_an_interrupted_write_leaves_nothing(tmp_path):
    class Broken:
        shape, dtype = (8,), np.dtype(np.float32)

        def __array__(self, *args, **kwargs):
            raise RuntimeError("pulled the plug")

    params = base()
    params["encoder"]["encoder_norm"]["scale"] = Broken()
    with pytest.raises((RuntimeError, CheckpointError), match="plug"):
        write_huggingface(tmp_path / "model", params, CONFIG)
    assert not list(tmp_path.iterdir())
