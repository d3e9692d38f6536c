"""Small models of every family and shape that hyperflax exchanges with transformers: one table for all who need it.

heads * d_kv differs from d_model, the stacks differ in depth, and the few buckets reach their logarithmic half within
the 24 tokens of a test.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_SMALL = {
    "vocab_size": 40,
    "d_model": 12,
    "d_kv": 4,
    "d_ff": 16,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "t5_1_0": {**_SMALL, "model_type": "t5", "feed_forward_proj": "relu", "tie_word_embeddings": True},
    "t5_1_1": {**_SMALL, "model_type": "t5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    # The LM-adapted and Flan-T5 models have T5 1.1's form; byT5 too, with a deep encoder and a shallow decoder.
    "byt5": {
        **_SMALL,
        "model_type": "t5",
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "num_layers": 4,
    },
    # transformers 5 cannot generate with a cache from a decoder deeper than the encoder.
    "deep_decoder": {
        **_SMALL,
        "model_type": "t5",
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "num_layers": 1,
        "use_cache": False,
    },
    "mt5": {**_SMALL, "model_type": "mt5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "umt5": {
        **_SMALL,
        "model_type": "umt5",
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "num_decoder_layers": 3,
    },
    "umt5_tied": {**_SMALL, "model_type": "umt5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": True},
    "silu": {**_SMALL, "model_type": "t5", "feed_forward_proj": "gated-silu", "tie_word_embeddings": False},
}
"""The keys of config.json by the name of the model."""


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Returns encoder tokens [2, 24], the second row padded, and decoder inputs [2, 22], from the first token 0 on."""
    rng = np.random.default_rng(7)
    encoder = rng.integers(2, 40, (2, 24)).astype(np.int32)
    encoder[1, 17:] = 0
    decoder = rng.integers(2, 40, (2, 22)).astype(np.int32)
    decoder[:, 0] = 0
    return encoder, decoder
