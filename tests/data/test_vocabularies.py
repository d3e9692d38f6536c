"""Ids and texts of the two vocabularies; equality with seqio's is in test_seqio_source.py."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperflax.data.vocabularies import Bytes, SentencePiece, as_written, from_json
from hyperflax.errors import ConfigError, DataError
from tests.checkpoints.bucket_server import serve


@pytest.fixture(scope="module")
def t5(data_dir: pathlib.Path) -> SentencePiece:
    return SentencePiece(data_dir / "vocab" / "spiece.model")


@given(st.text())
def test_bytes_round_trip(text: str) -> None:
    ids = Bytes().encode(text)
    assert ids == [byte + 3 for byte in text.encode()]
    assert Bytes().decode(ids) == text


def test_bytes_layout() -> None:
    vocabulary = Bytes()
    assert vocabulary.vocab_size == 384
    assert vocabulary.sentinel(0) == 383
    assert vocabulary.sentinel(124) == 259
    with pytest.raises(ConfigError, match="expected 0 to 124"):
        vocabulary.sentinel(125)


def test_bytes_decode_stops_at_the_end_and_drops_what_is_no_text() -> None:
    assert Bytes().decode([100, 0, 383, 101, 1, 102]) == "ab"
    assert Bytes().decode([0xC3 + 3]) == ""  # half of a two-byte character


def test_sentencepiece_is_t5s(t5: SentencePiece) -> None:
    # T5's published tokenisation of this sentence; end of sequence is not added here.
    assert t5.encode("The house is wonderful.") == [37, 629, 19, 1627, 5]
    assert t5.decode([37, 629, 19, 1627, 5, 1, 37]) == "The house is wonderful."
    assert t5.vocab_size == 32_100


def test_sentencepiece_sentinels_stand_at_the_end(t5: SentencePiece) -> None:
    assert [t5.sentinel(n) for n in (0, 1, 99)] == [32_099, 32_098, 32_000]
    assert t5.encode("<extra_id_0> b <extra_id_99>") == [32_099, *t5.encode("b"), 32_000]
    assert t5.decode([32_099]) == "<extra_id_0>"


@settings(deadline=None)
@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,'", min_size=1))
def test_sentencepiece_round_trip_of_plain_words(data_dir: pathlib.Path, text: str) -> None:
    t5 = _cached(data_dir)
    assert t5.decode(t5.encode(text)) == text


_CACHE: dict[pathlib.Path, SentencePiece] = {}


def _cached(data_dir: pathlib.Path) -> SentencePiece:
    return _CACHE.setdefault(data_dir, SentencePiece(data_dir / "vocab" / "spiece.model"))


def test_what_a_model_can_write_of_a_text(t5: SentencePiece, data_dir: pathlib.Path) -> None:
    vocabulary = SentencePiece(data_dir / "vocab" / "spiece.model")
    for text, written in (("Paris ", "Paris"), ("New  York", "New York"), ("\uff21\uff22", "AB"), ("{x}  y", "{x}  y")):
        assert as_written(text, vocabulary) == written
        assert as_written(text, Bytes()) == text


def test_json_round_trip(t5: SentencePiece, tmp_path: pathlib.Path) -> None:
    assert from_json(Bytes(extra_ids=7).to_json()) == Bytes(extra_ids=7)
    t5.write_files(tmp_path)
    assert from_json(t5.to_json(), tmp_path) == t5


def test_json_refuses_another_file(t5: SentencePiece, data_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    others = [p for p in (data_dir / "vocab").glob("*.model") if p.name != "spiece.model"]
    (tmp_path / "spiece.model").write_bytes(others[0].read_bytes())
    with pytest.raises(DataError, match=r"spiece\.model: expected sha256"):
        from_json(t5.to_json(), tmp_path)
    with pytest.raises(DataError, match="expected a plain file name"):
        from_json({**t5.to_json(), "file": "../spiece.model"}, tmp_path)
    with pytest.raises(DataError, match="'bytes' or 'sentencepiece', got 'wordpiece'"):
        from_json({"kind": "wordpiece"})


def test_a_model_may_lie_in_a_bucket(t5: SentencePiece, tmp_path: pathlib.Path) -> None:
    """T5X's own does; TensorStore takes the server's address when it starts, so the reader is a process of its own."""
    t5.write_files(tmp_path)
    reader = """if True:
        from hyperflax.data.vocabularies import SentencePiece
        from hyperflax.errors import DataError
        print(repr(SentencePiece("s3://bucket/spiece.model")), SentencePiece("s3://bucket/spiece.model").sha256)
        try:
            SentencePiece("s3://bucket/absent.model")
        except DataError as error:
            print(error)
        """
    with serve(tmp_path) as server:
        environment = {**os.environ, **server.environment, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", reader]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    there, absent = done.stdout.splitlines()
    assert there == f"SentencePiece(file='s3://bucket/spiece.model', extra_ids=100) {t5.sha256}"
    assert absent.startswith("s3://bucket/absent.model: expected a sentencepiece model, cannot read it (")


def test_unreadable_models_are_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r"absent\.model: expected a sentencepiece model"):
        SentencePiece(tmp_path / "absent.model")
    (tmp_path / "broken.model").write_bytes(b"not a model")
    with pytest.raises(DataError, match=r"broken\.model: expected a sentencepiece model"):
        SentencePiece(tmp_path / "broken.model")
