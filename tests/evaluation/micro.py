"""A hypermodel of a few thousand random parameters over bytes, and tasks with answer choices for it."""

from __future__ import annotations

import functools

import jax
import numpy as np
from flax import linen as nn

from hyperflax.adapters.kinds import build_spec
from hyperflax.adapters.lora import LoRA
from hyperflax.data.episode_config import EpisodeConfig
from hyperflax.data.examples import Example, InMemorySource, TaskExamples, TaskInfo, tokenise
from hyperflax.data.vocabularies import Bytes
from hyperflax.hypermodel import Hypermodel, HypermodelConfig
from hyperflax.hypernets.heads import HeadsConfig
from hyperflax.hypernets.hyper_t5 import HyperT5Config
from hyperflax.types import T5Config

T5 = T5Config(
    vocab_size=384, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1, num_decoder_layers=1
)


@functools.cache
def hypermodel() -> Hypermodel:
    """Its adapters move predictions: the hypernetwork stands far from its start, where they do nothing."""
    config = HypermodelConfig(
        base=T5,
        spec=build_spec(LoRA(rank=2), T5),
        hypernetwork=HyperT5Config(t5=T5, heads=HeadsConfig(hidden=8)),
        episodes=EpisodeConfig(shots=2, examples=2, support_length=32, inputs_length=16, targets_length=8),
        vocabulary=Bytes(),
    )
    base, hypernetwork = config.build()
    tokens = np.ones((1, 4), np.int32)
    frozen = nn.unbox(jax.jit(base.init)(jax.random.key(0), tokens, tokens)["params"])
    params = nn.unbox(jax.jit(hypernetwork.init)(jax.random.key(1), {"support_tokens": np.ones((2, 8), np.int32)}))
    noise = jax.tree.map(lambda x: 0.5 * jax.random.normal(jax.random.key(x.size), x.shape), params["params"])
    return Hypermodel(config, frozen, jax.tree.map(lambda a, b: a + b, params["params"], noise), name="micro")


def choice_source(tasks: dict[str, list[tuple[str, str, list[str]]]], **infos: TaskInfo) -> InMemorySource:
    """A source of `{task: [(input, target, answer choices), ...]}`; keywords are what is known of some tasks."""
    vocabulary = Bytes()

    def example(source: str, target: str, choices: list[str]) -> Example:
        options = tuple(tokenise(choice, vocabulary) for choice in choices)
        return Example(tokenise(source, vocabulary), tokenise(target, vocabulary), options)

    return InMemorySource(
        (
            TaskExamples(name, [example(*row) for row in rows], infos.get(name, TaskInfo()))
            for name, rows in tasks.items()
        ),
        vocabulary,
    )
