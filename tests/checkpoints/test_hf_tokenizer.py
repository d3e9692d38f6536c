"""Vocabularies in Hugging Face's form."""

from __future__ import annotations

import json

import pytest

from hyperflax.checkpoints.hf_tokenizer import read_vocabulary, vocabulary_files
from hyperflax.data.vocabularies import Bytes, SentencePiece
from hyperflax.errors import CheckpointError, DataError


def test_sentencepiece_there_and_back(data_dir, tmp_path):
    vocabulary = SentencePiece(data_dir / "vocab" / "spiece.model")
    for name, content in vocabulary_files(vocabulary).items():
        (tmp_path / name).write_bytes(content)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "T5Tokenizer"
    found = read_vocabulary(tmp_path)
    assert found == vocabulary
    assert found.encode("The house is wonderful.") == [37, 629, 19, 1627, 5]
    (tmp_path / "tokenizer_config.json").unlink()
    assert read_vocabulary(tmp_path) == vocabulary


@pytest.mark.parametrize("extra_ids", [125, 0])
def test_bytes_there_and_back(extra_ids, tmp_path):
    files = vocabulary_files(Bytes(extra_ids))
    assert files.keys() == {"tokenizer_config.json"}
    (tmp_path / "tokenizer_config.json").write_bytes(files["tokenizer_config.json"])
    assert read_vocabulary(tmp_path) == Bytes(extra_ids)


@pytest.mark.parametrize("extra_ids", ["100", True, -1, 2**40])
def test_absurd_sentinels_are_refused(extra_ids, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"extra_ids": extra_ids}))
    with pytest.raises(CheckpointError, match="extra_ids"):
        read_vocabulary(tmp_path)


def test_what_is_no_vocabulary_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"spiece\.model"):
        read_vocabulary(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"no model")
    with pytest.raises(DataError, match=r"spiece\.model"):
        read_vocabulary(tmp_path)
