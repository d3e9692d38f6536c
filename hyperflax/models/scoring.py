"""Scoring given answers: log-probabilities of options, as in rank classification.

An input is encoded once, and so are its cross-attention keys and values; its options are further rows of the decoder
that read them.

>>> scores = score_options(model, frozen, tokens, options)     # [example, source], [example, option, length]
>>> choice = scores.argmax(-1)                                 # [example]
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from hyperflax.errors import HyperflaxError
from hyperflax.models.inputs import check_inputs
from hyperflax.models.t5 import T5
from hyperflax.types import Array, PyTree


def score_options(
    model: T5, params: PyTree, encoder_input_tokens: Array, option_tokens: Array, adapters: PyTree | None = None
) -> Array:
    """Returns the log-probability of every option, summed over its tokens (to compare lengths, divide by them).

    Args:
      model, params: the base model.
      encoder_input_tokens: int [..., source], 0 is padding. With adapters: [example, source] for one adapter, or
        [task, example, source] for adapters whose leaves have a task axis in front.
      option_tokens: int [..., option, length], end-of-sequence token included, 0 is padding; an option that is all
        padding scores 0.
      adapters: tree that fits the model, see above.

    Returns:
      float32 [..., option].

    Raises:
      HyperflaxError: shapes that do not fit, or adapters that the model does not read; the message says which.
    """
    tokens, options = jnp.asarray(encoder_input_tokens), jnp.asarray(option_tokens)
    check_inputs(model.config, tokens, adapters)
    if options.shape[:-2] != tokens.shape[:-1]:
        raise HyperflaxError(
            f"option_tokens: expected [{', '.join(map(str, tokens.shape[:-1]))}, option, length], got {options.shape}"
        )
    lead = options.shape[:-1]
    if adapters is None:
        tokens, options = tokens.reshape(-1, tokens.shape[-1]), options.reshape(-1, *options.shape[-2:])
    return _score(model, params, adapters, tokens, options).reshape(lead)


@functools.partial(jax.jit, static_argnames=("model",))
def _score(model: T5, params: PyTree, adapters: PyTree | None, tokens: Array, options: Array) -> Array:
    def one_task(adapters: PyTree | None, tokens: Array, options: Array) -> Array:
        variables = {"params": params} if adapters is None else {"params": params, "adapters": adapters}
        targets = options.reshape(-1, options.shape[-1])
        inputs = jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1]
        encoded = model.apply(variables, tokens, method="encode")
        logits = model.apply(variables, encoded, tokens, inputs, targets, method="decode")
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        log_probs = chosen - jax.nn.logsumexp(logits, axis=-1)
        return jnp.sum(log_probs * (targets > 0), axis=-1).reshape(options.shape[:-1])

    return (jax.vmap(one_task) if tokens.ndim == 3 else one_task)(adapters, tokens, options)
