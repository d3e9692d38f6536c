"""Prompt tuning between our soft prompt and PEFT's one matrix.

PEFT keeps `prompt_embeddings` [rows, token_dim]. On a T5 it puts the first `num_virtual_tokens` rows before the
embedded input, lets everybody attend to them, and gives the decoder nothing: our soft prompt, position for position. By
its own default for an encoder-decoder, `num_transformer_submodules` = 2, a matrix has as many rows again, which nothing
reads; with 1 there are none of those. That is what is written here, and both are read.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hyperflax.adapters.soft_prompt import SoftPrompt
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.checkpoints.peft_content import CONFIG, TASK, Content
from hyperflax.errors import AdapterError
from hyperflax.types import T5Config

_WEIGHT = "prompt_embeddings"
_SLOT = "encoder/soft_prompt"


def export_prompt(flat: Mapping[str, np.ndarray], spec: AdapterSpec, decoder_layers: int | None) -> Content:
    """Returns one soft prompt in PEFT's form. Raises AdapterError if positions are masked, which it cannot express."""
    if not np.all(flat.get(f"{_SLOT}/mask", np.ones(1)) == 1):
        raise AdapterError(f"PEFT cannot express the soft prompt at '{_SLOT}': it has no mask, some are masked")
    embedding = flat[f"{_SLOT}/embedding"]
    settings = {
        "num_virtual_tokens": embedding.shape[0],
        "token_dim": embedding.shape[1],
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
    }
    return Content(settings, {_WEIGHT: embedding})


def import_prompt(content: Content, decoder_layers: int | None) -> tuple[dict[str, np.ndarray], AdapterSpec]:
    """Returns our leaf by path, and its spec; the decoder has no part in it.

    Raises:
      AdapterError: settings or shapes that contradict each other, or that T5 does not run with.
    """
    rows, task = content.only(_WEIGHT), content.settings.get("task_type")
    if task != TASK:
        raise AdapterError(f"{CONFIG}: key 'task_type': expected {TASK!r}, got {task!r:.100}")
    length, width = content.size("num_virtual_tokens"), content.size("token_dim")
    expected = (length * content.size("num_transformer_submodules"), width)
    if rows.shape != expected:
        raise AdapterError(f"weight '{_WEIGHT}': expected shape {expected}, found {rows.shape}")
    spec = SoftPrompt(length=length).spec(T5Config(vocab_size=1, emb_dim=width))  # it asks for the width alone
    return {f"{_SLOT}/embedding": np.ascontiguousarray(rows[:length])}, spec
