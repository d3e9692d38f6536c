"""A vocabulary in Hugging Face's form: `spiece.model`, or byT5's bytes, told by tokenizer_config.json.

>>> read_vocabulary("flan-t5-small").encode("The house is wonderful.")
[37, 629, 19, 1627, 5]
"""

from __future__ import annotations

import json
import pathlib

from hyperflax.checkpoints.model_directory import collect_files
from hyperflax.data.vocabularies import MAX_EXTRA_IDS, Bytes, SentencePiece, Vocabulary
from hyperflax.errors import CheckpointError
from hyperflax.json_files import read_json

PIECES, CONFIG = "spiece.model", "tokenizer_config.json"
_BYTES = "ByT5Tokenizer"
_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def read_vocabulary(path: pathlib.Path | str) -> Vocabulary:
    """Returns the vocabulary of a model's directory.

    Raises:
      CheckpointError: no vocabulary that hyperflax reads: neither byT5's bytes nor a sentencepiece model. A
        tokenizer.json alone is not enough.
      DataError: a damaged sentencepiece model.
    """
    folder = pathlib.Path(path)
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    bytes_only = config.get("tokenizer_class") == _BYTES
    extra_ids = config.get("extra_ids", 125 if bytes_only else 100)
    if not isinstance(extra_ids, int) or isinstance(extra_ids, bool) or not 0 <= extra_ids <= MAX_EXTRA_IDS:
        raise CheckpointError(
            f"{folder / CONFIG}: key 'extra_ids': expected 0 to {MAX_EXTRA_IDS:,}, got {extra_ids!r:.100}"
        )
    if bytes_only:
        return Bytes(extra_ids)
    if not (folder / PIECES).is_file():
        raise CheckpointError(f"{folder}: expected {PIECES}, or {CONFIG} with tokenizer_class {_BYTES}; found neither")
    return SentencePiece(folder / PIECES, extra_ids)


def vocabulary_files(vocabulary: Vocabulary) -> dict[str, bytes]:
    """Returns the files, content by name, from which transformers makes the same vocabulary."""
    own = list(collect_files(vocabulary.write_files).values())
    settings = {
        "tokenizer_class": "T5Tokenizer" if own else _BYTES,
        "extra_ids": vocabulary.extra_ids,
        **_TOKENS,
    }
    files = {CONFIG: (json.dumps(settings, indent=1) + "\n").encode()}
    return {**files, PIECES: own[0]} if own else files
