"""A base model small enough to run every check on every kind, and the kinds to run them on."""

from __future__ import annotations

import zlib

import numpy as np

from hyperflax import trees
from hyperflax.adapters import AdapterSpec, Full, LoRA, ParallelMLP, Prefix, SoftPrompt
from hyperflax.types import T5Config

# heads * head_dim differs from emb_dim, the stacks differ in depth, and the few buckets reach their logarithmic half.
CONFIG = T5Config(
    vocab_size=24,
    emb_dim=12,
    num_heads=2,
    head_dim=4,
    num_encoder_layers=2,
    num_decoder_layers=3,
    mlp_dim=16,
    num_buckets=8,
    max_distance=20,
)
# For what has to be compiled, and that is most of the time.
SHALLOW = CONFIG.replace(num_encoder_layers=1, num_decoder_layers=2)

KINDS = {
    "lora_query_value": (LoRA(rank=2, alpha=4.0),),
    "lora_all_sites": (LoRA(rank=3, alpha=2.0, sites=("*",)),),
    "lora_some_sites_and_layers": (LoRA(rank=2, sites=("decoder/*/out", "*/wo"), layers=(1,)),),
    "lora_two_ranks": (LoRA(rank=1, layers=(0,)), LoRA(rank=4, layers=(1,))),
    "prefix_zero": (Prefix(length=3),),
    "prefix_preceding": (Prefix(length=4, position_bias="preceding"),),
    "prefix_some_sites_and_layers": (
        Prefix(length=1, sites=("encoder/attention",), layers=(0,)),
        Prefix(length=2, position_bias="preceding", sites=("decoder/*",), layers=(1,)),
    ),
    "lora_and_prefix": (LoRA(rank=2, sites=("*/key", "*/mlp/*")), Prefix(length=3, position_bias="preceding")),
    # Self-attentions alone: cross-attention has one kind of prefix only.
    "both_position_biases": (
        Prefix(length=2, sites=("encoder/attention", "decoder/self_attention")),
        Prefix(length=3, position_bias="preceding", sites=("encoder/attention", "decoder/self_attention")),
    ),
    "soft_prompt": (SoftPrompt(length=3),),
    "parallel_mlp": (ParallelMLP(bottleneck=3),),
    "parallel_mlp_some_layers": (ParallelMLP(bottleneck=2, sites=("decoder/mlp",), layers=(1,)),),
    "full": (Full(),),
    "mam": (Prefix(length=2), ParallelMLP(bottleneck=2)),
    "full_beside_all_others": (Full(), LoRA(rank=2), Prefix(length=2), SoftPrompt(length=2), ParallelMLP(bottleneck=2)),
}


def random_tree(spec: AdapterSpec, seed: int, batch: tuple[int, ...] = (), std: float = 0.3) -> dict:
    """Values with no structure in every leaf: no zeros, no static part, scale included."""
    flat = {}
    for leaf in spec.leaves:
        rng = np.random.default_rng([seed, zlib.crc32(leaf.path.encode())])
        flat[leaf.path] = rng.normal(0, std, (*batch, *leaf.shape)).astype(np.float32)
    return trees.unflatten(flat)


def tokens(seed: int = 0, batch: tuple[int, ...] = (3,)) -> tuple[np.ndarray, np.ndarray]:
    """Encoder and decoder inputs; the last encoder positions of some rows are padding."""
    rng = np.random.default_rng(seed)
    encoder = rng.integers(2, CONFIG.vocab_size, (*batch, 9)).astype(np.int32)
    encoder[..., 1:, 6:] = 0
    decoder = rng.integers(2, CONFIG.vocab_size, (*batch, 7)).astype(np.int32)
    decoder[..., 0] = 0
    return encoder, decoder
