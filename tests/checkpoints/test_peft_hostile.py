"""PEFT directories that hyperflax does not take, and why it says so."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import pickle
import shutil
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from hyperflax.adapters import AdapterSpec, Full, LoRA, ParallelMLP, Prefix, SoftPrompt, build_spec
from hyperflax.checkpoints.artefacts import Adapter, AdapterMetadata
from hyperflax.checkpoints.peft import read_peft, write_peft
from hyperflax.checkpoints.peft_prefix import pair_of
from hyperflax.errors import AdapterError, CheckpointError
from tests.adapters.micro import CONFIG, random_tree
from tests.checkpoints.directories import edit_json

PRECEDING = {"position_bias": "preceding", "sites": ("decoder/self_attention",)}
QUERY = "base_model.model.encoder.block.0.layer.0.SelfAttention.q"


def adapter(*kinds) -> Adapter:
    spec = build_spec(kinds, CONFIG)
    return Adapter(random_tree(spec, 0), spec, AdapterMetadata(None))


@pytest.fixture
def lora(tmp_path) -> pathlib.Path:
    write_peft(tmp_path / "lora", adapter(LoRA(rank=2)))
    return tmp_path / "lora"


@pytest.fixture
def prefix(tmp_path) -> pathlib.Path:
    write_peft(tmp_path / "prefix", adapter(Prefix(length=3, **PRECEDING)))
    return tmp_path / "prefix"


@pytest.fixture
def prompt(tmp_path) -> pathlib.Path:
    write_peft(tmp_path / "prompt", adapter(SoftPrompt(length=3)))
    return tmp_path / "prompt"


@pytest.mark.parametrize("kind", [LoRA(rank=2, alpha=2.0, sites=("*",)), Prefix(length=3, **PRECEDING)])
def test_an_adapter_from_elsewhere_has_the_leaves_of_its_kind(kind, tmp_path):
    """To be refined or trained on, it starts where one of ours does."""
    write_peft(tmp_path / "peft", adapter(kind))
    (tmp_path / "peft" / "hyperflax.json").unlink()
    assert read_peft(tmp_path / "peft").spec == dataclasses.replace(adapter(kind).spec, kinds=())


def edit_weights(folder: pathlib.Path, change) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    change(weights)
    save_file(weights, folder / "adapter_model.safetensors")


@pytest.mark.parametrize("depth", range(1, 30))
def test_every_decoder_layer_has_a_pair_of_its_own(depth):
    num_layers = depth if depth % 2 else depth + 1
    assert len({pair_of(layer, num_layers) for layer in range(depth)}) == depth


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"peft_type": "IA3"}, "peft_type.*IA3"),
        ({"peft_type": ["LORA"]}, "peft_type"),
        ({"use_dora": True}, "use_dora"),
        *(
            ({"init_lora_weights": start}, f"init_lora_weights.*expected.*True.*gaussian.*, got '{start}'.*conversion=")
            for start in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "unheard_of")
        ),
        ({"init_lora_weights": None}, "init_lora_weights.*None"),
        ({"bias": "all"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"r": 3}, "expected rank 3.*found 2"),
        ({"r": "two"}, "rank.*two"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"use_rslora": "yes"}, "use_rslora"),
        ({"rank_pattern": [2]}, "rank_pattern"),
        ({"rank_pattern": {"[": 2}}, "rank_pattern"),
        ({"rank_pattern": {"q": 0}}, "positive int"),
        ({"alpha_pattern": {"(.*)*x": 2}}, "simple pattern"),
    ],
)
def test_settings_that_two_matrices_do_not_express(lora, change, told):
    edit_json(lora / "adapter_config.json", lambda config: config.update(change))
    with pytest.raises(CheckpointError, match=told):
        read_peft(lora)


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", "orthogonal", "mica"])
def test_where_lora_started_does_not_matter_if_the_base_kept_its_weights(lora, start):
    edit_json(lora / "adapter_config.json", lambda config: config.update(init_lora_weights=start))
    read_peft(lora)


def test_a_pattern_cannot_search_for_years(lora):
    edit_json(lora / "adapter_config.json", lambda config: config.update(alpha_pattern={".*.*.*.*.*.*.*.*z": 1}))
    start = time.monotonic()
    with pytest.raises(CheckpointError, match="simple pattern"):
        read_peft(lora)
    assert time.monotonic() - start < 60


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda w: w.pop(f"{QUERY}.lora_A.weight"), "lora_A.weight': missing"),
        (lambda w: w.update({f"{QUERY}.lora_A.weight": np.zeros((5, 12), np.float32)}), "expected rank 2"),
        (lambda w: w.update({f"{QUERY}.lora_A.weight": np.zeros(12, np.float32)}), "expected a matrix"),
        (lambda w: w.update({"base_model.model.lm_head.lora_A.weight": np.zeros((2, 12), np.float32)}), "lm_head"),
        (
            lambda w: w.update({"base_model.model.shared.lora_embedding_A": np.zeros((2, 12), np.float32)}),
            "embedding_A",
        ),
        (lambda w: w.update({f"{QUERY}.bias": np.zeros(8, np.float32)}), "bias"),
        (lambda w: w.update({f"{QUERY}.lora_magnitude_vector": np.zeros(8, np.float32)}), "magnitude"),
        (lambda w: w.update({f"{QUERY}.lora_A.weight": np.zeros((2, 12), np.int64)}), "floating"),
        (lambda w: w.clear() or w.update({"x": np.zeros(1, np.float32)}), "'x'"),
    ],
)
def test_weights_that_are_no_lora_of_a_t5(lora, change, told):
    edit_weights(lora, change)
    with pytest.raises(CheckpointError, match=told):
        read_peft(lora)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"num_transformer_submodules": 1}, "num_transformer_submodules"),
        ({"num_virtual_tokens": 4}, "expected shape"),
        ({"token_dim": 7}, "expected shape"),
        ({"num_attention_heads": 3}, "3 heads"),
        ({"num_layers": 2**70}, "num_layers"),
        ({"num_layers": None}, "num_layers"),
        ({"num_virtual_tokens": True}, "num_virtual_tokens"),
    ],
)
def test_prefix_settings_that_contradict_the_weights(prefix, change, told):
    edit_json(prefix / "adapter_config.json", lambda config: config.update(change))
    with pytest.raises(CheckpointError, match=told):
        read_peft(prefix)


def test_a_decoder_deeper_than_the_pairs_is_refused(prefix):
    (prefix / "hyperflax.json").unlink()
    with pytest.raises(CheckpointError, match=r"num_layers.*at least 5"):
        read_peft(prefix, decoder_layers=5)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"task_type": "CAUSAL_LM"}, "task_type.*SEQ_2_SEQ_LM"),
        ({"task_type": None}, "task_type"),
        ({"num_transformer_submodules": 2}, r"expected shape \(6, 12\)"),
        ({"num_transformer_submodules": None}, "num_transformer_submodules"),
        ({"num_virtual_tokens": 2**70}, "num_virtual_tokens"),
        ({"num_virtual_tokens": 4}, "expected shape"),
        ({"token_dim": 7}, "expected shape"),
        ({"token_dim": True}, "token_dim"),
        ({"peft_type": "P_TUNING"}, "peft_type"),
    ],
)
def test_prompt_settings_that_contradict_the_weights(prompt, change, told):
    edit_json(prompt / "adapter_config.json", lambda config: config.update(change))
    with pytest.raises(CheckpointError, match=told):
        read_peft(prompt)


def test_rows_of_a_prompt_that_nothing_reads_are_left_out(prompt):
    rows = np.arange(72, dtype=np.float32).reshape(6, 12)  # PEFT's own default: as many again, for the decoder
    edit_json(prompt / "adapter_config.json", lambda config: config.update(num_transformer_submodules=2))
    edit_weights(prompt, lambda weights: weights.update(prompt_embeddings=rows))
    read = read_peft(prompt)
    np.testing.assert_array_equal(read.tree["encoder"]["soft_prompt"]["embedding"], rows[:3])
    assert read.spec == build_spec(SoftPrompt(length=3), CONFIG)


def test_a_masked_prompt_is_refused_and_a_mask_of_ones_is_none(tmp_path):
    masked = adapter(SoftPrompt(length=3))
    masked.tree["encoder"]["soft_prompt"]["mask"] = np.ones(3, np.float32)
    write_peft(tmp_path / "ones", masked)
    assert read_peft(tmp_path / "ones").spec == masked.spec
    masked.tree["encoder"]["soft_prompt"]["mask"][1] = 0
    with pytest.raises(AdapterError, match=r"encoder/soft_prompt.*mask"):
        write_peft(tmp_path / "out", masked)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        ((Prefix(length=3, **PRECEDING, layers=(1, 2)),), "every decoder layer, and layers"),
        (
            (Prefix(length=3, **PRECEDING, layers=(0, 1)), Prefix(length=2, **PRECEDING, layers=(2,))),
            "layers_2.*one length",
        ),
        ((Prefix(length=3, position_bias="preceding"),), "encoder/layers_0/attention"),
        ((Prefix(length=3, sites=("decoder/self_attention",)),), "'zero'"),
        (
            (ParallelMLP(),),
            "parallel_mlp at 'encoder/layers_0/mlp/parallel_mlp' refuses to export to PEFT: PEFT has no",
        ),
        ((LoRA(rank=2), Full()), "full at '.*' refuses to export to PEFT: .* export it merged"),
    ],
)
def test_adapters_that_are_not_written_for_peft(kinds, told, tmp_path):
    with pytest.raises(AdapterError, match=told):
        write_peft(tmp_path / "out", adapter(*kinds))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", ["encoder/layers_0/convolution/query", "encoder/layers_0/relpos_bias"])
def test_a_module_that_no_t5_has_is_refused(module, tmp_path):
    made = adapter(LoRA(rank=2, sites=("encoder/attention/query",), layers=(0,)))
    told = json.dumps(made.spec.to_json()).replace("encoder/layers_0/attention/query", module)
    spec = AdapterSpec.from_json(json.loads(told))
    with pytest.raises(AdapterError, match=rf"module '{module}': expected a projection"):
        write_peft(tmp_path / "out", Adapter(random_tree(spec, 0), spec, AdapterMetadata(None)))
    assert not list(tmp_path.iterdir())


def test_layers_without_a_prefix_are_looked_for_in_the_base_model(tmp_path):
    some, all_of_them = (adapter(Prefix(length=3, **PRECEDING, layers=layers)) for layers in ((0, 1), (0, 1, 2)))
    with pytest.raises(AdapterError, match=r"every decoder layer, and layers \[2\] have none"):
        write_peft(tmp_path / "out", some, decoder_layers=3)
    for unknown in (some, all_of_them):
        with pytest.raises(AdapterError, match=r"--base\) tells whether it has more"):
            write_peft(tmp_path / "out", unknown)
    write_peft(tmp_path / "out", all_of_them, decoder_layers=3)
    assert read_peft(tmp_path / "out", decoder_layers=3).spec == all_of_them.spec


def test_masked_positions_are_refused_and_a_mask_of_ones_is_none(tmp_path):
    masked = adapter(Prefix(length=3, **PRECEDING))
    for layer in range(3):
        masked.tree["decoder"][f"layers_{layer}"]["self_attention"]["preceding_prefix"]["mask"] = np.ones(3, np.float32)
    write_peft(tmp_path / "ones", masked)
    assert read_peft(tmp_path / "ones").spec == masked.spec  # it is known again without them
    masked.tree["decoder"]["layers_1"]["self_attention"]["preceding_prefix"]["mask"][0] = 0
    with pytest.raises(AdapterError, match=r"layers_1.*mask"):
        write_peft(tmp_path / "out", masked)


def test_a_pickle_is_never_opened(lora, tmp_path):
    class Trap:
        def __reduce__(self):
            return (pathlib.Path.touch, (tmp_path / "sprung",))

    (lora / "adapter_model.safetensors").unlink()
    (lora / "adapter_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match="pickle"):
        read_peft(lora)
    assert not (tmp_path / "sprung").exists()


def test_a_spec_of_other_leaves_is_refused(lora, prefix):
    shutil.copy(prefix / "hyperflax.json", lora / "hyperflax.json")
    fingerprint = json.loads((prefix / "hyperflax.json").read_text())["fingerprint"]
    assert read_peft(lora).metadata.base_fingerprint is None  # it speaks of other weights, so it counts for nothing
    assert fingerprint != ""
    (lora / "hyperflax.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"hyperflax.json"):
        read_peft(lora)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.sampled_from(["r", "lora_alpha", "rank_pattern", "use_rslora", "bias", "peft_type", "target_modules"]),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    ),
)
def test_any_setting_is_read_or_refused(lora, key, value):
    edit_json(lora / "adapter_config.json", lambda config: config.update({key: value}))
    try:
        read_peft(lora)
    except CheckpointError:
        pass
    finally:
        edit_json(lora / "adapter_config.json", lambda config: config.update({key: 2, "peft_type": "LORA"}))
        (lora / "adapter_config.json").unlink()
        (lora / "adapter_model.safetensors").unlink()
        (lora / "hyperflax.json").unlink()
        lora.rmdir()
        write_peft(lora, adapter(LoRA(rank=2)))
