"""Floating-point operations of a T5, in closed form: the numerator of MFU.

    trained   6 N tokens      forward, gradient of the activations, gradient of the weights
    frozen    4 N tokens      no gradient of the weights
    attention twelve per query, key and channel, in either (two products, three passes)

N counts the parameters of matrix products, a token meets each of them once. Counted are matrix products with padding in
them, as they are computed; not counted are element-wise work, embedding look-ups and rematerialised work.
`tests/models/test_flops.py` holds the forward pass against XLA's own cost analysis.

A forward pass is (projections, mixing): operations of products with weights, and of products of activations with each
other, because a frozen model repeats the former twice and the latter three times.

>>> t5(T5Config(...), rows=8, inputs=256, targets=64).trained
"""

from __future__ import annotations

from typing import NamedTuple

from hyperflax.types import T5Config


class Forward(NamedTuple):
    """Operations of one forward pass."""

    projections: int
    mixing: int

    def __add__(self, other: Forward) -> Forward:  # type: ignore[override]
        return Forward(self.projections + other.projections, self.mixing + other.mixing)

    def times(self, factor: int) -> Forward:
        return Forward(self.projections * factor, self.mixing * factor)

    @property
    def trained(self) -> int:
        """Of forward and backward with all gradients."""
        return 3 * (self.projections + self.mixing)

    @property
    def frozen(self) -> int:
        """Of forward and backward without gradients of the weights."""
        return 2 * self.projections + 3 * self.mixing

    @property
    def total(self) -> int:
        return self.projections + self.mixing


def encoder(config: T5Config, rows: int, length: int) -> Forward:
    """The encoder over `rows` rows of `length` tokens."""
    tokens = rows * length
    layer = Forward(tokens * (_attention(config) + _mlp(config)), rows * _mixing(config, length, length))
    return layer.times(config.num_encoder_layers)


def decoder(config: T5Config, rows: int, length: int, source: int, passes: int = 1) -> Forward:
    """The decoder over `rows` rows of `length` queries with `source` encoded tokens each, without the logits.

    Several passes over the same source compute its keys and values once.
    """
    queries = rows * length * (_attention(config) + _attention(config) // 2 + _mlp(config))
    mixing = rows * (_mixing(config, length, length) + _mixing(config, length, source))
    layer = Forward(passes * queries + rows * source * _attention(config) // 2, passes * mixing)
    return layer.times(config.num_decoder_layers)


def t5(config: T5Config, rows: int, inputs: int, targets: int) -> Forward:
    """The whole T5 with teacher forcing, logits included, without adapters."""
    logits = Forward(2 * rows * targets * config.emb_dim * config.vocab_size, 0)
    return encoder(config, rows, inputs) + decoder(config, rows, targets, inputs) + logits


def _attention(config: T5Config) -> int:
    """Of the four projections of one token."""
    return 8 * config.emb_dim * config.joined_kv


def _mlp(config: T5Config) -> int:
    return 2 * config.emb_dim * config.mlp_dim * (len(config.mlp_activations) + 1)


def _mixing(config: T5Config, queries: int, keys: int) -> int:
    """Of scores and of the weighted sum of values."""
    return 4 * queries * keys * config.joined_kv
