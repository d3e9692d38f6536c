"""The parity certificate: two sets of parameters on the same random tokens, compared layer by layer.

What one of them computes is traced by running our T5 on it: the output of every layer, the logits, and a greedy decode.
A conversion is checked by tracing what was read and what was written; the tests trace the same against arrays that
transformers and PEFT computed.

>>> compare(trace(params, config, *random_tokens(config)), trace(others, config, *random_tokens(config))).max_error
0.0
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from hyperflax.adapters.sites import STACKS
from hyperflax.errors import CheckpointError
from hyperflax.models.decoding import decode
from hyperflax.models.stacks import Layer
from hyperflax.models.t5 import T5
from hyperflax.types import PyTree, T5Config

SHALLOW, SHALLOW_ERROR, DEEP_ERROR = 4, 1e-5, 1e-4
DECISIVE = 10.0
"""A greedy token counts where the two best logits differ by more than this many times the error that is allowed."""
DECODED = 16

_ROWS, _SOURCE, _TARGET = 2, 48, 24


def random_tokens(config: T5Config, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns encoder tokens [2, 48], the second row padded, and decoder inputs [2, 24] that begin with 0."""
    rng = np.random.default_rng(seed)
    encoder = rng.integers(2, config.vocab_size, (_ROWS, _SOURCE)).astype(np.int32)
    encoder[1, 2 * _SOURCE // 3 :] = 0
    decoder = rng.integers(2, config.vocab_size, (_ROWS, _TARGET)).astype(np.int32)
    decoder[:, 0] = 0
    return encoder, decoder


def trace(
    params: PyTree,
    config: T5Config,
    encoder_tokens: np.ndarray,
    decoder_tokens: np.ndarray,
    adapters: PyTree | None = None,
    *,
    decoded: int = DECODED,
) -> dict[str, np.ndarray]:
    """Runs a T5 in float32.

    Args:
      params: unrolled layers.
      config: theirs.
      encoder_tokens: int [batch, source]; 0 is padding.
      decoder_tokens: int [batch, length].
      adapters: what the layers read besides.
      decoded: number of tokens to decode.

    Returns:
      `encoder/layers_0`, ..., `decoder/layers_0`, ... [batch, length, emb], zeros at padding, a soft prompt's positions
        first;
      `logits` [batch, length, vocab]; `greedy` int [batch, decoded], zeros after the end of sequence;
      `margin` [batch, decoded], the best logit's lead over the next at each of these steps.
    """
    model = T5(config.replace(dtype="float32", remat=False, dropout_rate=0.0))
    variables = {"params": params} if adapters is None else {"params": params, "adapters": adapters}
    # Not compiled as a whole: at real depth that takes longer than the run, and every layer shares the small programs.
    logits, state = model.apply(
        variables,
        encoder_tokens,
        decoder_tokens,
        capture_intermediates=lambda module, method: isinstance(module, Layer) and method == "__call__",
        mutable=["intermediates"],
    )
    found = {}
    for stack in STACKS:
        for name, layer in state["intermediates"][stack].items():
            found[f"{stack}/{name}"] = np.asarray(layer["__call__"][0][0])
            if stack == "encoder":
                found[f"{stack}/{name}"] = without_padding(found[f"{stack}/{name}"], encoder_tokens)
    found["logits"] = np.asarray(logits)
    greedy = decode(model, params, jnp.asarray(encoder_tokens), adapters=adapters, max_length=decoded)
    greedy = np.asarray(greedy.tokens)
    steps = model.apply(variables, encoder_tokens, np.pad(greedy, ((0, 0), (1, 0)))[:, :-1])
    best = np.sort(np.asarray(steps), axis=-1)
    return {**found, "greedy": greedy, "margin": best[..., -1] - best[..., -2]}


def without_padding(hidden: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Returns [batch, length, emb] with zeros where the tokens are padding: what stands there is read by nobody.

    `hidden` may begin with a soft prompt's positions, which stay.
    """
    prompt = hidden.shape[1] - tokens.shape[1]
    return hidden * np.pad(tokens > 0, ((0, 0), (prompt, 0)), constant_values=True)[:, :, None]


@dataclasses.dataclass(frozen=True)
class Difference:
    """Largest and mean absolute difference, and the largest magnitude of the reference."""

    max: float
    mean: float
    scale: float


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What `compare` found.

    Attributes:
      differences: by the names of `trace`, `greedy` apart.
      allowed: largest difference of logits, relative to their largest magnitude, that may be.
      greedy_equal: whether all greedy tokens are equal.
    """

    differences: Mapping[str, Difference]
    allowed: float
    greedy_equal: bool

    @property
    def max_error(self) -> float:
        """Largest difference of logits relative to the largest magnitude."""
        logits = self.differences["logits"]
        return logits.max / logits.scale if logits.scale else logits.max

    @property
    def passed(self) -> bool:
        return self.max_error <= self.allowed and self.greedy_equal

    def to_json(self) -> dict[str, Any]:
        """Plain data, as it is written beside a conversion's result."""
        return {
            "passed": self.passed,
            "logits_max_relative_error": self.max_error,
            "allowed": self.allowed,
            "greedy_equal": self.greedy_equal,
            "differences": {name: dataclasses.asdict(found) for name, found in self.differences.items()},
        }


def compare(reference: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> Certificate:
    """Compares two traces of the same tokens.

    The logits may differ by 1e-5 of their largest magnitude in models of up to four layers a stack, by 1e-4 in deeper
    ones. Greedy tokens must be equal up to the first step that was undecided: where the best logits lie so near each
    other that the error allowed could have turned them.

    Args:
      reference: from `trace`, or arrays of the same names computed by other software.
      other: from `trace`.

    Raises:
      CheckpointError: arrays of one name have two shapes.
    """
    names = [name for name in reference if name in other and name not in ("greedy", "margin")]
    for name in names:
        if reference[name].shape != other[name].shape:
            raise CheckpointError(f"{name}: expected shape {reference[name].shape}, got {other[name].shape}")
    differences = {name: _difference(reference[name], other[name]) for name in names}
    depth = max(1 + int(name.rpartition("_")[2]) for name in names if "/layers_" in name)
    allowed = SHALLOW_ERROR if depth <= SHALLOW else DEEP_ERROR
    undecided = DECISIVE * allowed * differences["logits"].scale
    return Certificate(differences, allowed, _same_decodes(reference, other, undecided))


def _same_decodes(reference: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], undecided: float) -> bool:
    width = min(reference["greedy"].shape[1], other["greedy"].shape[1])
    for row, differs in enumerate(reference["greedy"][:, :width] != other["greedy"][:, :width]):
        if differs.any() and other["margin"][row, np.argmax(differs)] > undecided:
            return False
    return True


def _difference(reference: np.ndarray, other: np.ndarray) -> Difference:
    gap = np.abs(reference.astype(np.float64) - other.astype(np.float64))
    return Difference(float(gap.max()), float(gap.mean()), float(np.abs(reference).max()))
