"""Vocabularies without TensorFlow: T5's SentencePiece and bytes, with the same ids as seqio's.

Ids 0, 1, 2 are padding, end of sequence and unknown. `extra_ids` sentinels stand at the end of the vocabulary,
counted backwards: `sentinel(0)` is the last id, `<extra_id_0>` in text (Raffel et al. 2020, section 3.1.4).

>>> Bytes().encode("ab")
[100, 101]
>>> Bytes().decode([100, 101, 1, 100])
'ab'
"""

from __future__ import annotations

import hashlib
import pathlib
import struct
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import sentencepiece

from hyperflax.buckets import locate_file
from hyperflax.errors import CheckpointError, ConfigError, DataError

PAD_ID = 0
EOS_ID = 1
UNK_ID = 2
MAX_EXTRA_IDS = 10_000


class Vocabulary(Protocol):
    """What the rest of hyperflax asks of a vocabulary; `Bytes` and `SentencePiece` are the two that exist."""

    pad_id: int
    eos_id: int
    unk_id: int
    extra_ids: int

    @property
    def vocab_size(self) -> int:
        """Number of ids, sentinels included."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without end of sequence."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids before the first end of sequence."""

    def sentinel(self, number: int) -> int:
        """Id of `<extra_id_NUMBER>`."""

    def to_json(self) -> dict[str, Any]:
        """A description from which `from_json` makes an equal vocabulary."""

    def write_files(self, directory: pathlib.Path | str) -> None:
        """Writes what `from_json(description, directory)` needs beside the description."""


def as_written(text: str, vocabulary: Vocabulary) -> str:
    """Returns a text as a model of this vocabulary can write it; as it stands where none can, for an unknown character.

    T5's has no double spaces, no line ends and no full-width letters, and no token at all for a brace.

    >>> as_written("New  York ", SentencePiece("spiece.model"))    # doctest: +SKIP
    'New York'
    """
    tokens = vocabulary.encode(text)
    return text if vocabulary.unk_id in tokens else vocabulary.decode(tokens)


def check_room(name: str, vocab_size: int, vocabulary: Vocabulary) -> None:
    """Raises ConfigError, naming `name`, if a model has no embedding for some id: it would take another one's."""
    if vocab_size < vocabulary.vocab_size:
        raise ConfigError(
            f"{name}.vocab_size: expected at least the vocabulary's {vocabulary.vocab_size}, got {vocab_size}"
        )


def _sentinel(number: int, extra_ids: int, vocab_size: int) -> int:
    if not 0 <= number < extra_ids:
        raise ConfigError(f"sentinel {number}: expected 0 to {extra_ids - 1}, the vocabulary has {extra_ids} extra ids")
    return vocab_size - 1 - number


class Bytes:
    """UTF-8 bytes plus three (ByT5, Xue et al. 2022): ids 3 to 258, then the sentinels. 384 ids by default.

    Bytes that are not valid UTF-8, and sentinels, vanish in `decode`.
    """

    pad_id, eos_id, unk_id = PAD_ID, EOS_ID, UNK_ID

    def __init__(self, extra_ids: int = 125):
        if extra_ids < 0:
            raise ConfigError(f"Bytes.extra_ids: expected 0 or more, got {extra_ids}")
        self.extra_ids = extra_ids

    @property
    def vocab_size(self) -> int:
        return 259 + self.extra_ids

    def encode(self, text: str) -> list[int]:
        return [byte + 3 for byte in text.encode("utf-8")]

    def decode(self, ids: Iterable[int]) -> str:
        data = bytearray()
        for i in ids:
            if i == EOS_ID:
                break
            if 3 <= i < 259:
                data.append(int(i) - 3)
        return data.decode("utf-8", errors="ignore")

    def sentinel(self, number: int) -> int:
        return _sentinel(number, self.extra_ids, self.vocab_size)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "bytes", "extra_ids": self.extra_ids, "vocab_size": self.vocab_size}

    def write_files(self, directory: pathlib.Path | str) -> None:
        """Bytes need no file."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bytes) and other.extra_ids == self.extra_ids

    def __hash__(self) -> int:
        return hash(("bytes", self.extra_ids))

    def __repr__(self) -> str:
        return f"Bytes(extra_ids={self.extra_ids})"


class SentencePiece:
    """A sentencepiece model with `extra_ids` sentinels behind its pieces, as T5's vocabulary.

    Args:
      file: path of the `.model` file, or its address in a bucket; T5's own is `spiece.model`, 32,000 pieces.
      extra_ids: sentinels; T5 has 100, which makes 32,100 ids.

    Raises:
      DataError: the file is absent or no sentencepiece model.
    """

    pad_id, eos_id, unk_id = PAD_ID, EOS_ID, UNK_ID

    def __init__(self, file: pathlib.Path | str, extra_ids: int = 100):
        self.file = locate_file(file)
        self.extra_ids = extra_ids
        try:
            self._model = self.file.read_bytes()
        except (OSError, CheckpointError) as error:
            told = error.strerror if isinstance(error, OSError) else error
            raise DataError(f"{self.file}: expected a sentencepiece model, cannot read it ({told})") from error
        self.sha256 = hashlib.sha256(self._model).hexdigest()
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(self._model + _extra_pieces(extra_ids))
        except (RuntimeError, OSError) as error:
            raise DataError(f"{self.file}: expected a sentencepiece model, cannot parse it ({error})") from error
        found = (self._processor.pad_id(), self._processor.eos_id(), self._processor.unk_id())
        if found[1:] != (EOS_ID, UNK_ID) or found[0] not in (PAD_ID, -1):
            raise DataError(f"{self.file}: expected pad, eos, unk to be 0, 1, 2 as T5 has them, got {found}")

    @property
    def vocab_size(self) -> int:
        return self._processor.GetPieceSize()

    def encode(self, text: str) -> list[int]:
        return self._processor.EncodeAsIds(text)

    def decode(self, ids: Iterable[int]) -> str:
        kept = []
        for i in ids:
            if i == EOS_ID:
                break
            kept.append(int(i) if i < self.vocab_size else UNK_ID)
        return self._processor.DecodeIds(kept)

    def sentinel(self, number: int) -> int:
        return _sentinel(number, self.extra_ids, self.vocab_size)

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "sentencepiece",
            "file": self.file.name,
            "sha256": self.sha256,
            "extra_ids": self.extra_ids,
            "vocab_size": self.vocab_size,
        }

    def write_files(self, directory: pathlib.Path | str) -> None:
        (pathlib.Path(directory) / self.file.name).write_bytes(self._model)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SentencePiece) and (other.sha256, other.extra_ids) == (self.sha256, self.extra_ids)

    def __hash__(self) -> int:
        return hash((self.sha256, self.extra_ids))

    def __repr__(self) -> str:
        return f"SentencePiece(file={str(self.file)!r}, extra_ids={self.extra_ids})"


def _extra_pieces(count: int) -> bytes:
    """Serialised `ModelProto.pieces` for the sentinels, to be appended to a model.

    Concatenated protocol buffers merge, and repeated fields add up, so no protobuf runtime is needed: field 1 of the
    model holds a piece {1: text, 2: score (float), 3: type (4 = USER_DEFINED)}.
    """
    out = bytearray()
    for number in reversed(range(count)):
        text = f"▁<extra_id_{number}>".encode()
        piece = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", 0.0) + b"\x18\x04"
        out += b"\x0a" + bytes([len(piece)]) + piece
    return bytes(out)


def from_json(description: Mapping[str, Any], directory: pathlib.Path | str = ".") -> Vocabulary:
    """Makes the vocabulary that `to_json` described.

    Args:
      description: the result of `to_json`.
      directory: where `write_files` put the vocabulary's files.

    Raises:
      DataError: unknown kind, absent file, or a file with another content than described.
    """
    kind, extra_ids = description.get("kind"), description.get("extra_ids")
    if kind not in ("bytes", "sentencepiece"):
        raise DataError(f"vocabulary: expected kind 'bytes' or 'sentencepiece', got {kind!r:.100}")
    if type(extra_ids) is not int or not 0 <= extra_ids <= MAX_EXTRA_IDS:
        raise DataError(f"vocabulary: key 'extra_ids': expected 0 to {MAX_EXTRA_IDS:,}, got {extra_ids!r:.100}")
    if kind == "bytes":
        return Bytes(extra_ids=extra_ids)
    name = description.get("file")
    if not isinstance(name, str) or pathlib.PurePath(name).name != name or name in ("", "..") or "\0" in name:
        raise DataError(f"vocabulary file {name!r:.100}: expected a plain file name")
    vocabulary = SentencePiece(pathlib.Path(directory) / name, extra_ids=extra_ids)
    if vocabulary.sha256 != description.get("sha256"):
        raise DataError(
            f"{vocabulary.file}: expected sha256 {description.get('sha256')}, the file has {vocabulary.sha256}"
        )
    return vocabulary
