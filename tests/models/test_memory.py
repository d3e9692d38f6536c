"""Bytes kept of a forward pass, against what XLA needs for the gradient of adapters."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import linen as nn

from hyperflax.adapters.kinds import build_spec
from hyperflax.adapters.lora import LoRA
from hyperflax.models.memory import AT_ONCE, filled_microbatches, kept_bytes
from hyperflax.models.t5 import T5
from hyperflax.training.refine import refine
from hyperflax.types import T5Config

WIDE = T5Config(
    vocab_size=384, emb_dim=256, num_heads=4, head_dim=64, mlp_dim=512, num_encoder_layers=3, num_decoder_layers=3
)
NARROW = WIDE.replace(emb_dim=64, num_heads=2, head_dim=32, mlp_dim=128, vocab_size=8192)


def test_filled_parts_are_as_few_as_fit() -> None:
    for examples in range(1, 41):
        for at_once in range(1, examples + 1):
            parts = filled_microbatches(AT_ONCE * examples // at_once, examples)
            assert -(-examples // parts) <= at_once
            assert parts == 1 or -(-examples // (parts - 1)) > at_once
    assert filled_microbatches(9 * AT_ONCE, 9) == filled_microbatches(90 * AT_ONCE, 9) == 9


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_logits_are_float32_whatever_the_dtype(dtype: str, size: int) -> None:
    """One example of 3 and 5 tokens: all values of a layer in the dtype, and three of every logit in float32."""
    config = T5Config(
        vocab_size=100,
        emb_dim=7,
        num_heads=2,
        head_dim=3,
        mlp_dim=11,
        num_encoder_layers=1,
        num_decoder_layers=1,
        mlp_activations=("gelu", "linear"),
        dtype=dtype,
    )
    token = 4 * 7 + 4 * 6 + 4 * 11
    encoder = 3 * token + 2 * 2 * 3 * 3
    decoder = 5 * token + 2 * 2 * 5 * (5 + 3) + (4 * 5 + 2 * 3) * 6
    assert kept_bytes(config, rows=2, inputs=3, targets=5) == 2 * (size * (encoder + decoder) + 4 * 3 * 5 * 100)


@pytest.mark.parametrize(
    ("config", "tasks", "examples", "inputs", "targets"),
    [(WIDE, 1, 16, 256, 16), (WIDE, 8, 8, 32, 32), (NARROW, 1, 32, 16, 64), (NARROW, 2, 8, 512, 8)],
)
def test_kept_bytes_are_what_refining_takes(
    config: T5Config, tasks: int, examples: int, inputs: int, targets: int
) -> None:
    model, spec = T5(config), build_spec(LoRA(rank=4), config)
    tokens = jax.ShapeDtypeStruct((1, 4), np.int32)
    params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)["params"])
    keys = jax.random.split(jax.random.key(0), tasks)
    adapters = jax.eval_shape(jax.vmap(lambda key: spec.materialise(spec.init(key))), keys)
    batch = {
        f"{side}_tokens": jax.ShapeDtypeStruct((tasks, examples, length), np.int32)
        for side, length in (("encoder_input", inputs), ("decoder_input", targets), ("decoder_target", targets))
    }
    batch["decoder_loss_weights"] = jax.ShapeDtypeStruct((tasks, examples, targets), np.float32)
    run = jax.jit(lambda *given: refine(model, *given, steps=2))
    used = run.lower(params, adapters, batch).compile().memory_analysis().temp_size_in_bytes
    assert 0.6 <= used / kept_bytes(config, tasks * examples, inputs, targets) <= 1.6
