"""What the tests of the models share: T5X's golden models and batches."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hyperflax import trees
from hyperflax.models.t5 import T5
from hyperflax.types import T5Config

TINY = T5Config(
    vocab_size=384, emb_dim=64, num_heads=4, head_dim=16, mlp_dim=128, num_encoder_layers=2, num_decoder_layers=2
)
MICRO = TINY.replace(vocab_size=64, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32)
MICRO_1_0 = MICRO.replace(mlp_activations=("relu",), logits_via_embedding=True)

TOKENS = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
SEGMENTS = ("encoder_segment_ids", "decoder_segment_ids", "encoder_positions", "decoder_positions")


def load(folder: pathlib.Path, name: str) -> dict[str, np.ndarray]:
    """Returns the arrays of one golden file."""
    with np.load(folder / f"{name}.npz") as arrays:
        return dict(arrays)


def subtree(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, Any]:
    """Returns the nested dict under `prefix/`."""
    return trees.unflatten({key[len(prefix) + 1 :]: x for key, x in arrays.items() if key.startswith(prefix + "/")})


def model_inputs(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the part of a batch that the model reads."""
    return {key: batch[key] for key in (*TOKENS, *SEGMENTS) if key in batch}


def assert_close(actual: Any, expected: Any) -> None:
    """The tolerance stated beside the goldens: |d| <= 1e-3 * (1e-3 + |x|)."""
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=1e-3, atol=1e-6)


def random_params(config: T5Config, seed: int = 0) -> dict[str, Any]:
    """Parameters with no zero and no one among them."""
    tokens = jnp.ones((1, 4), jnp.int32)
    shapes = jax.eval_shape(T5(config).init, jax.random.key(0), tokens, tokens)["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)
