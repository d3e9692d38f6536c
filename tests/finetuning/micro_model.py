"""A hypermodel small enough to fine-tune in a test, and a task for it."""

from __future__ import annotations

import json
import pathlib

import jax
import numpy as np
from flax import linen as nn

from hyperflax.adapters import LoRA, Prefix, build_spec
from hyperflax.data.episode_config import EpisodeConfig
from hyperflax.data.vocabularies import Bytes
from hyperflax.hypermodel import Hypermodel, HypermodelConfig
from hyperflax.hypernets.heads import HeadsConfig
from hyperflax.hypernets.hyper_t5 import HyperT5Config
from hyperflax.types import T5Config

T5 = T5Config(
    vocab_size=384, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1, num_decoder_layers=1
)
LORA = LoRA(rank=2, alpha=4.0, sites=("*/query", "*/wo"))


def micro_model(kind: LoRA | Prefix = LORA) -> Hypermodel:
    """A model that generates adapters of a kind, LoRA by default, with parameters drawn at random."""
    config = HypermodelConfig(
        base=T5,
        spec=build_spec(kind, T5),
        hypernetwork=HyperT5Config(t5=T5, heads=HeadsConfig(hidden=8)),
        episodes=EpisodeConfig(shots=2, examples=2, support_length=16, inputs_length=8, targets_length=8),
        vocabulary=Bytes(),
    )
    base, hypernetwork = config.build()
    tokens = np.ones((1, 4), np.int32)
    frozen = jax.jit(base.init)(jax.random.key(0), tokens, tokens)["params"]
    params = nn.unbox(
        jax.jit(hypernetwork.init)(jax.random.key(1), {"support_tokens": np.ones((2, 8), np.int32)})["params"]
    )
    # Away from the start, where adapters do nothing that could be seen.
    noise = jax.tree.map(lambda x: 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    return Hypermodel(config, frozen, jax.tree.map(lambda a, b: a + b, params, noise), name="micro")


def write_task(path: pathlib.Path, first: int = 0, count: int = 24) -> pathlib.Path:
    """Two letters in, the first one twice out."""
    words = [a + b for a in "abcdefgh" for b in "pqrstuvw"][first : first + count]
    path.write_text("".join(json.dumps({"input": word, "target": word[0] * 2}) + "\n" for word in words))
    return path
