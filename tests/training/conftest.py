"""Objectives small enough to train in a test, with a source of batches that is pure in its step."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperflax.models.t5 import T5
from hyperflax.objectives import T5Objective
from hyperflax.objectives.normalisation import target_weights
from hyperflax.objectives.protocol import scored_metrics
from hyperflax.types import T5Config

VOCAB = 32


@dataclasses.dataclass(frozen=True)
class CopyBatches:
    """Random strings to be copied; lengths vary, so that rows and microbatches have different weights."""

    rows: int = 8
    length: int = 10
    seed: int = 0

    def batch(self, step: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([self.seed, step])
        targets = rng.integers(2, VOCAB, (self.rows, self.length)).astype(np.int32)
        targets[np.arange(self.length) >= rng.integers(3, self.length + 1, (self.rows, 1))] = 0
        shifted = np.zeros_like(targets)
        shifted[:, 1:] = targets[:, :-1]
        return {
            "encoder_input_tokens": targets,
            "decoder_input_tokens": shifted,
            "decoder_target_tokens": targets,
            "decoder_loss_weights": (targets > 0).astype(np.float32),
        }


@dataclasses.dataclass(frozen=True)
class TableObjective:
    """Logits are a looked-up row: a language model without a network, that compiles at once."""

    dropout: float = 0.0

    def init(self, rng, batch):
        return {"table": {"embedding": 0.1 * jax.random.normal(rng, (VOCAB, VOCAB)), "bias": jnp.zeros((VOCAB,))}}

    def logical_axes(self, batch):
        return {"table": {"embedding": ("embed", "vocab"), "bias": ("vocab",)}}

    def initial_metrics(self, params, frozen, batch):
        return {}

    def validation_metrics(self, params, frozen, batch):
        return {}

    def flops(self, batch):
        return 1000 * batch["encoder_input_tokens"].size

    def loss(self, params, frozen, batch, rng):
        logits = params["table"]["embedding"][batch["encoder_input_tokens"]] + params["table"]["bias"]
        if rng is not None and self.dropout:
            logits = logits * jax.random.bernoulli(rng, 1 - self.dropout, logits.shape)
        return scored_metrics(logits, batch, target_weights(batch), z_loss=1e-4, label_smoothing=0.0)


MICRO = T5Config(
    vocab_size=VOCAB, emb_dim=16, num_heads=2, num_encoder_layers=1, num_decoder_layers=1, head_dim=8, mlp_dim=32
)


@pytest.fixture(scope="session")
def copy_batches() -> CopyBatches:
    return CopyBatches()


@pytest.fixture(scope="session")
def table() -> TableObjective:
    return TableObjective()


@pytest.fixture(scope="session")
def table_params(table: TableObjective):
    return table.init(jax.random.key(0), {})


@pytest.fixture(scope="session")
def micro() -> T5Objective:
    """The objective of a micro T5, without dropout."""
    return T5Objective(T5(MICRO), z_loss=1e-4)
