"""Prompt tuning between our soft prompt and PEFT's one matrix.

PEFT keeps `prompt_embeddings` [rows, token_dim]. On a T5 it puts the first `num_virtual_tokens` rows before the
embedded input, lets everybody attend to them, and gives the decoder nothing: our soft prompt, position for position. By
its own default for an encoder-decoder, `num_transformer_submodules` = 2, a matrix has as many rows again, which nothing
reads; with 1 there are none of those. That is what is written here, and both are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hyperflax.adapters.checks import is_int
from hyperflax.adapters.soft_prompt import SoftPrompt
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.errors import AdapterError
from hyperflax.types import T5Config

_WEIGHT = "prompt_embeddings"
_SLOT = "encoder/soft_prompt"
_TASK = "SEQ_2_SEQ_LM"


def export_prompt(flat: Mapping[str, np.ndarray], spec: AdapterSpec) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns PEFT's settings and weights.

    Args:
      flat: float32 leaves by path.
      spec: theirs; one soft prompt.

    Raises:
      AdapterError: positions are masked, which PEFT cannot express.
    """
    if not np.all(flat.get(f"{_SLOT}/mask", np.ones(1)) == 1):
        raise AdapterError(f"PEFT cannot express the soft prompt at '{_SLOT}': it has no mask, some are masked")
    embedding = flat[f"{_SLOT}/embedding"]
    settings = {
        "peft_type": "PROMPT_TUNING",
        "num_virtual_tokens": embedding.shape[0],
        "token_dim": embedding.shape[1],
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
    }
    return settings, {_WEIGHT: embedding}


def import_prompt(
    weights: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], AdapterSpec]:
    """Returns our leaves by path, and their spec.

    Args:
      weights: float32, by PEFT's names.
      config: the content of adapter_config.json.

    Raises:
      AdapterError: settings or shapes that contradict each other, or that T5 does not run with.
    """
    if set(weights) != {_WEIGHT}:
        raise AdapterError(f"expected the one weight '{_WEIGHT}', found {sorted(weights)[:5]}")
    if config.get("task_type") != _TASK:
        raise AdapterError(
            f"adapter_config.json: key 'task_type': expected {_TASK!r}, got {config.get('task_type')!r:.100}"
        )
    sizes: list[int] = []
    for key in ("num_virtual_tokens", "token_dim", "num_transformer_submodules"):
        size: Any = config.get(key)
        if not is_int(size) or not 0 < size < 2**20:
            raise AdapterError(f"adapter_config.json: key '{key}': expected a positive int, got {size!r:.100}")
        sizes.append(size)
    length, width, submodules = sizes
    found = weights[_WEIGHT].shape
    if found != (length * submodules, width):
        raise AdapterError(f"weight '{_WEIGHT}': expected shape {(length * submodules, width)}, found {found}")
    spec = SoftPrompt(length=length).spec(T5Config(vocab_size=1, emb_dim=width))  # it asks for the width alone
    return {f"{_SLOT}/embedding": np.ascontiguousarray(weights[_WEIGHT][:length])}, spec
