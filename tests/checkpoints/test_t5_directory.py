"""The T5 directory, and finding a base model in any of its forms."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from hyperflax import trees
from hyperflax.checkpoints.fingerprint import fingerprint
from hyperflax.checkpoints.forms import load_base, read_model, write_model
from hyperflax.checkpoints.hf_tokenizer import read_vocabulary
from hyperflax.checkpoints.huggingface import write_huggingface
from hyperflax.checkpoints.layouts import to_scalable
from hyperflax.checkpoints.orbax_form import write_orbax
from hyperflax.checkpoints.t5_directory import save_t5
from hyperflax.checkpoints.t5x_writer import write_t5x_checkpoint
from hyperflax.data.vocabularies import Bytes
from hyperflax.errors import CheckpointError
from hyperflax.models.stacking import stack_layers
from hyperflax.models.t5 import T5
from hyperflax.types import T5Config
from tests.checkpoints.directories import edit_json

CONFIG = T5Config(
    vocab_size=384, emb_dim=8, num_heads=1, head_dim=8, mlp_dim=8, num_encoder_layers=1, num_decoder_layers=1
)


@pytest.fixture(scope="module")
def params():
    tokens = np.ones((1, 2), np.int32)
    return jax.tree.map(np.asarray, jax.jit(T5(CONFIG).init)(jax.random.key(0), tokens, tokens)["params"])


def test_what_is_saved_is_loaded(params, tmp_path) -> None:
    save_t5(tmp_path / "t5", params, CONFIG, Bytes(), results={"loss": 1.5})
    loaded = trees.flatten(load_base(tmp_path / "t5", CONFIG))
    for path, leaf in trees.flatten(params).items():
        np.testing.assert_array_equal(loaded[path], leaf)


def test_another_shape_lists_the_leaves_that_differ(params, tmp_path) -> None:
    save_t5(tmp_path / "t5", params, CONFIG, Bytes())
    with pytest.raises(CheckpointError, match="mlp/wi_0/kernel") as error:
        load_base(tmp_path / "t5", CONFIG.replace(mlp_dim=16))
    assert "mlp/wo/kernel" in str(error.value)
    with pytest.raises(CheckpointError, match="mlp"):
        save_t5(tmp_path / "other", params, CONFIG.replace(mlp_dim=16), Bytes())
    assert not (tmp_path / "other").exists()


def test_another_vocabulary_is_refused(params, tmp_path) -> None:
    """The shapes are the same, and every id means something else."""
    save_t5(tmp_path / "t5", params, CONFIG, Bytes(extra_ids=100))
    load_base(tmp_path / "t5", CONFIG, Bytes(extra_ids=100))
    with pytest.raises(
        CheckpointError, match=r"t5: vocabulary: expected Bytes\(extra_ids=125\), found Bytes\(extra_ids=100\)"
    ):
        load_base(tmp_path / "t5", CONFIG, Bytes())
    write_model(tmp_path / "orbax", read_model(tmp_path / "t5"), "orbax")
    load_base(tmp_path / "orbax", CONFIG, Bytes())  # which tells nothing of it


def test_overwriting_takes_the_old_vocabulary_away_but_nobody_elses_file(params, tmp_path) -> None:
    folder = tmp_path / "t5"
    save_t5(folder, params, CONFIG, Bytes())
    edit_json(folder / "t5.json", lambda value: value.update(vocabulary={"kind": "sentencepiece", "file": "old.model"}))
    (folder / "old.model").write_bytes(b"pieces")
    (folder / "notes").write_text("mine")
    with pytest.raises(CheckpointError, match=r"it holds other files: notes;"):
        save_t5(folder, params, CONFIG, Bytes(), overwrite=True)
    (folder / "notes").unlink()
    save_t5(folder, params, CONFIG, Bytes(), overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == ["t5.json", "t5.safetensors"]


def test_scanned_layers_are_read_unrolled(params, tmp_path) -> None:
    scanned = CONFIG.replace(scan_layers=True)
    save_t5(tmp_path / "t5", stack_layers(params, CONFIG), scanned, Bytes())
    model = read_model(tmp_path / "t5")
    assert (model.config, fingerprint(model.params)) == (CONFIG, fingerprint(params))
    assert fingerprint(load_base(tmp_path / "t5", scanned)) == fingerprint(params)


def test_a_form_refuses_what_it_does_not_have(params, tmp_path) -> None:
    save_t5(tmp_path / "t5", params, CONFIG, Bytes())
    with pytest.raises(CheckpointError, match="t5: step: expected none, t5 holds one T5, got 7"):
        read_model(tmp_path / "t5", step=7)
    with pytest.raises(CheckpointError, match="scalable: expected t5x or orbax, which have such a layout, got hugging"):
        write_model(tmp_path / "hf", read_model(tmp_path / "t5"), "huggingface", scalable=True)
    assert not (tmp_path / "hf").exists()


def test_a_step_chooses_among_the_checkpoints_of_a_run_in_both_forms(params, tmp_path) -> None:
    run = tmp_path / "run"
    write_t5x_checkpoint(run, params, step=1)
    write_orbax(tmp_path / "later", params, step=2).rename(run / "checkpoint_2")
    found = [read_model(run, step=step) for step in (1, 2, None)]
    assert [(model.form, model.step) for model in found] == [("t5x", 1), ("orbax", 2), ("orbax", 2)]
    with pytest.raises(CheckpointError, match=r"run: expected checkpoint_7, found steps \[1, 2\]"):
        read_model(run, step=7)
    for own in (1, 2):
        assert read_model(run / f"checkpoint_{own}", step=own).step == own
        with pytest.raises(CheckpointError, match=f"checkpoint_{own}: step: expected none, this is one checkpoint"):
            read_model(run / f"checkpoint_{own}", step=3 - own)
    (run / "checkpoint_1").rename(run / "checkpoint_3")
    assert read_model(run).form == "t5x"


def test_damaged_weights_are_refused(params, tmp_path) -> None:
    save_t5(tmp_path / "t5", params, CONFIG, Bytes())
    file = tmp_path / "t5" / "t5.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"t5\.safetensors"):
        load_base(tmp_path / "t5", CONFIG)


def test_a_t5x_checkpoint_is_a_base(materialised) -> None:
    folder = materialised / "t5x" / "checkpoints"
    micro = T5Config(
        vocab_size=64, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=2, num_decoder_layers=2
    )
    found = [path for path in folder.rglob("checkpoint") if path.is_file() and "micro_legacy_f32" in str(path)]
    params = load_base(found[0].parent, micro)
    assert trees.flatten(params)["token_embedder/embedding"].shape == (64, 16)


@pytest.mark.parametrize("dtype", ["fp32", "int32"])
def test_a_dtype_that_is_none_is_refused(params, tmp_path, dtype) -> None:
    save_t5(tmp_path / "t5", params, CONFIG, Bytes())
    with pytest.raises(CheckpointError, match=f"dtype: expected a floating dtype.*{dtype}"):
        read_model(tmp_path / "t5", dtype=dtype)


def test_nothing_there_is_said(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="expected a T5 directory"):
        load_base(tmp_path / "nothing", CONFIG)


def test_a_base_comes_from_hugging_face_and_from_orbax_too(params, tmp_path) -> None:
    write_huggingface(tmp_path / "hf", params, CONFIG)
    write_orbax(tmp_path / "orbax", params, step=3)
    write_orbax(tmp_path / "scalable", to_scalable(params, CONFIG), step=3)
    for name in ("hf", "orbax"):
        assert fingerprint(load_base(tmp_path / name, CONFIG)) == fingerprint(params)
    per_layer = CONFIG.replace(relative_bias="per_layer")
    assert "relpos_bias" in load_base(tmp_path / "scalable", per_layer)["encoder"]["layers_0"]
    with pytest.raises(CheckpointError, match=r"mlp_activations.*silu.*gelu"):
        load_base(tmp_path / "hf", CONFIG.replace(mlp_activations=("silu", "linear")))


def test_a_t5_directory_goes_to_hugging_face_with_its_vocabulary(params, tmp_path) -> None:
    save_t5(tmp_path / "t5", params, CONFIG, Bytes())
    found = read_model(tmp_path / "t5")
    assert found.form == "t5"
    write_model(tmp_path / "hf", found, "huggingface")
    assert read_vocabulary(tmp_path / "hf") == Bytes()
    assert fingerprint(read_model(tmp_path / "hf").params) == fingerprint(params)
