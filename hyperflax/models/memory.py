"""What a T5 keeps of a forward pass for its gradient, in closed form, and how few examples at once that leaves.

Counted are, without rematerialisation, a layer's input, what it normalises, its queries, keys, values and scores, and
the parts of its feed-forward; and the logits. XLA fuses some of it and copies some: `tests/models/test_memory.py` holds
the figure against XLA's own.

>>> kept = kept_bytes(T5Config(...), rows=16, inputs=512, targets=64)
>>> microbatches(kept, 16)
4
"""

from __future__ import annotations

import math

import jax.numpy as jnp

from hyperflax.types import T5Config

AT_ONCE = 4 << 30
"""Bytes that are kept at once, where it can be chosen: what a laptop has beside the model."""


def kept_bytes(config: T5Config, rows: int, inputs: int, targets: int) -> int:
    """Bytes that are kept of `rows` examples of so many tokens, the parameters not counted."""
    width = 4 * config.emb_dim + 4 * config.joined_kv + (len(config.mlp_activations) + 2) * config.mlp_dim
    scores = 2 * config.num_heads  # and the weights that become of them, of a query and a key
    encoder = inputs * (width + scores * inputs)
    cross = 4 * targets * config.joined_kv + 2 * inputs * config.joined_kv
    decoder = targets * (width + scores * (targets + inputs)) + cross
    values = config.num_encoder_layers * encoder + config.num_decoder_layers * decoder
    logits = 3 * targets * config.vocab_size * 4  # float32 whatever the dtype
    return rows * (values * jnp.dtype(config.dtype).itemsize + logits)


def microbatches(kept: int, examples: int) -> int:
    """Into how many equal parts examples that keep so much are cut, for a part to keep at most `AT_ONCE`.

    It is a power of two, and stays below what it should be where the number of examples has no such part.
    """
    parts = 1
    while kept > parts * AT_ONCE and examples % (2 * parts) == 0:
        parts *= 2
    return parts


def filled_microbatches(kept: int, examples: int) -> int:
    """As `microbatches`, and as few as there can be: examples are filled up with padding to a multiple of the parts.

    >>> microbatches(15 * 2**30, 15), filled_microbatches(15 * 2**30, 15)
    (1, 4)
    """
    at_once = max(1, AT_ONCE * examples // max(kept, 1))
    return math.ceil(examples / at_once)
