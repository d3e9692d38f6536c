"""Decoding with a key/value cache: greedy, sampled, or by beam search; for many tasks with an adapter each.

>>> result = decode(model, frozen, tokens, max_length=32)                      # tokens [example, source]
>>> result = decode(model, frozen, tokens, max_length=32, adapters=stacked)    # tokens [task, example, source]
>>> result.tokens                                                              # [task, example, 32], zeros after eos

Differences from T5X, in speed alone: cross-attention keys and values are computed once and shared by an input's beams;
the cache is written in place; beams are reordered by index; the loop ends as soon as no row can change. Rows without an
input token, which fill a batch up, are not decoded: an empty text is a row, too, but it holds its end of sequence.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hyperflax.errors import ConfigError, HyperflaxError
from hyperflax.models.beam import Beam, beam_search
from hyperflax.models.inputs import check_inputs
from hyperflax.models.sampling import Greedy, Sample, sample
from hyperflax.models.session import Session
from hyperflax.models.t5 import T5
from hyperflax.types import Array, PyTree

Method = Greedy | Sample | Beam
GREEDY = Greedy()


class DecodeResult(NamedTuple):
    """What was decoded for inputs [..., source].

    Attributes:
      tokens: int32 [..., max_length], the best sequence; zeros after the end-of-sequence token, and for inputs that are
        padding alone.
      scores: float32 [...], its score; 0 for those.
      all_tokens: int32 [..., num_decodes, max_length], all sequences by increasing score.
      all_scores: float32 [..., num_decodes]. A beam search that ends with some sequences, and fewer than beams, has
        zeros with a score of -1e7 in the other places.
    """

    tokens: Array
    scores: Array
    all_tokens: Array
    all_scores: Array


def decode(
    model: T5,
    params: PyTree,
    encoder_input_tokens: Array,
    *,
    max_length: int,
    adapters: PyTree | None = None,
    method: Method = GREEDY,
    rng: Array | None = None,
    prompt_tokens: Array | None = None,
    eos_id: int = 1,
) -> DecodeResult:
    """Decodes from encoder inputs. Compiled once per model, shapes and settings.

    Args:
      model, params: the base model.
      encoder_input_tokens: int [..., source], 0 is padding. With adapters: [example, source] for one adapter, or
        [task, example, source] for adapters whose leaves have a task axis in front.
      max_length: tokens decoded at most, the end-of-sequence token included.
      adapters: tree that fits the model, see above.
      method: `Greedy()`, `Sample(...)` or `Beam(...)`.
      rng: key, for `Sample`.
      prompt_tokens: int [..., n], n <= max_length: the output's first tokens, as far as they are not 0. An `eos_id`
        among them is left out, as T5X does, so that prompts can be cut from targets.
      eos_id: the token that ends a sequence.

    Raises:
      HyperflaxError: shapes that do not fit, or adapters that the model does not read; the message says which.
    """
    tokens = jnp.asarray(encoder_input_tokens)
    check_inputs(model.config, tokens, adapters)
    if max_length < 1:
        raise ConfigError(f"decode: expected max_length >= 1, got {max_length}")
    if isinstance(method, Beam) and 2 * method.num_decodes > model.config.vocab_size:
        raise ConfigError(f"decode: {method} needs a vocabulary of at least {2 * method.num_decodes}")
    lead = tokens.shape[:-1]
    if adapters is None:
        tokens = tokens.reshape(-1, tokens.shape[-1])
    prompt = jnp.zeros((*lead, max_length), jnp.int32)
    if prompt_tokens is not None:
        given = jnp.asarray(prompt_tokens, jnp.int32)
        if given.shape[:-1] != lead or given.shape[-1] > max_length:
            raise HyperflaxError(f"prompt_tokens: expected {lead} and at most {max_length} tokens, got {given.shape}")
        prompt = prompt.at[..., : given.shape[-1]].set(jnp.where(given == eos_id, 0, given))
    if rng is None:
        if isinstance(method, Sample):
            raise ConfigError("decode: Sample needs a key, got rng=None")
        rng = jax.random.key(0)
    prompt = prompt.reshape(-1, max_length)
    sequences, scores = _decode(model, params, adapters, tokens, prompt, rng, method=method, eos_id=eos_id)
    sequences, scores = sequences.reshape(*lead, *sequences.shape[1:]), scores.reshape(*lead, -1)
    return DecodeResult(sequences[..., -1, :], scores[..., -1], sequences, scores)


@functools.partial(jax.jit, static_argnames=("model", "method", "eos_id"))
def _decode(
    model: T5,
    params: PyTree,
    adapters: PyTree,
    tokens: Array,
    prompt: Array,
    rng: Array,
    *,
    method: Method,
    eos_id: int,
) -> tuple[Array, Array]:
    """Returns [examples, decodes, length] and [examples, decodes]."""
    decodes = 1 if isinstance(method, Greedy) else method.num_decodes
    shared = isinstance(method, Beam)
    session = Session(model, params, adapters, tokens, length=prompt.shape[1], decodes=decodes, shared=shared)
    if isinstance(method, Beam):
        return beam_search(session, prompt, method, eos_id)
    return sample(session, prompt, method, rng, eos_id)
