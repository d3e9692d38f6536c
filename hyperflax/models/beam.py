"""Beam search as T5X has it (Wu et al. 2016, section 7, for the length penalty), without moving the cache.

The beams of one input share a cache row: beam j writes its token's key and value at place j of the current position,
and `ancestors` remembers, for every beam and position, at which place its own history stands. Choosing new beams
gathers a few integers; keys and values stay where they were written. Attention reads the row once for all beams and
masks what is not the beam's own.

Two sets of sequences are kept per input: `live` ones, to be continued, and `finished` ones, which ended with the
end-of-sequence token and have a length-normalised score. Both are sorted by increasing score.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hyperflax.errors import ConfigError
from hyperflax.models.session import Session
from hyperflax.types import Array

WORST = -1e7


@dataclasses.dataclass(frozen=True)
class Beam:
    """Beam search.

    Attributes:
      num_decodes: beams, and sequences returned.
      alpha: strength of the length penalty; 0 is none. Scores are log-probability / ((5 + length) / 6) ** alpha.
    """

    num_decodes: int = 4
    alpha: float = 0.6

    def __post_init__(self) -> None:
        if not (self.num_decodes >= 1 and self.alpha >= 0):
            raise ConfigError(f"Beam: num_decodes >= 1 and alpha >= 0 expected, got {self}")


class State(NamedTuple):
    """Of the loop; all arrays are [examples, beams] or [examples, beams, length]."""

    index: Array
    live: Array
    live_scores: Array
    """Log-probabilities, not normalised by length."""
    finished: Array
    finished_scores: Array
    is_finished: Array
    """Which places of `finished` are taken."""
    ancestors: Array
    caches: Any


def penalty(length: Array | int, alpha: float) -> Array:
    """Wu et al. (2016), equation 14."""
    return jnp.power((5.0 + length) / 6.0, alpha)


def beam_search(session: Session, prompt: Array, method: Beam, eos_id: int) -> tuple[Array, Array]:
    """Runs the search.

    Args:
      session: with `length`, `decodes` = the beams, and shared caches.
      prompt: int32 [examples, length], 0 where the model is free. While a prompt lasts one beam is alive.
      method: settings.
      eos_id: ends a sequence.

    Returns:
      tokens int32 [examples, beams, length] and scores float32 [examples, beams], by increasing score. An input
      without any finished sequence gives its live ones, with their log-probabilities.
    """
    examples, beams, length = session.examples, session.decodes, session.length
    places = jnp.arange(beams, dtype=jnp.int32)
    largest_penalty = penalty(length + 1, method.alpha)

    def unfinished(state: State) -> Array:
        best_live = state.live_scores[:, -1:] / largest_penalty
        worst_finished = jnp.where(state.is_finished, jnp.min(state.finished_scores, axis=1, keepdims=True), WORST)
        hopeless = jnp.all(best_live < WORST / largest_penalty) & (state.index > 0)
        return (state.index < length) & ~jnp.all((worst_finished > best_live) | session.empty) & ~hopeless

    def body(state: State) -> State:
        index = state.index
        own = jnp.broadcast_to(places, (examples, beams))
        ancestors = jax.lax.dynamic_update_index_in_dim(state.ancestors, own, index, axis=2)
        # Zeros before the first token, so that the decoder starts as it was trained.
        before = jax.lax.dynamic_index_in_dim(state.live, jnp.maximum(index - 1, 0), axis=2, keepdims=False)
        last = jnp.where(index > 0, before, 0)
        logits, caches = session.step(state.caches, last, index, ancestors if beams > 1 else None)

        scores, parents, tokens = candidates(logits, state.live_scores)
        forced = jax.lax.dynamic_index_in_dim(prompt, index, axis=1)
        only_first = jnp.where(jnp.arange(2 * beams) == 0, 0.0, WORST)
        scores, tokens = jnp.where(forced == 0, scores, only_first), jnp.where(forced == 0, tokens, forced)
        ends = tokens == eos_id
        sequences = jnp.take_along_axis(state.live, parents[..., None], axis=1)
        sequences = jax.lax.dynamic_update_index_in_dim(sequences, tokens, index, axis=2)

        live_scores = scores + ends * WORST
        kept = best(live_scores, beams)
        final_scores = scores / penalty(index + 1, method.alpha) + ~ends * WORST
        all_finished = jnp.concatenate([state.finished, sequences], axis=1)
        all_scores = jnp.concatenate([state.finished_scores, final_scores], axis=1)
        all_flags = jnp.concatenate([state.is_finished, ends], axis=1)
        chosen = best(all_scores, beams)
        survivors = jnp.take_along_axis(parents, kept, axis=1)
        return State(
            index=index + 1,
            live=jnp.take_along_axis(sequences, kept[..., None], axis=1),
            live_scores=jnp.take_along_axis(live_scores, kept, axis=1),
            finished=jnp.take_along_axis(all_finished, chosen[..., None], axis=1),
            finished_scores=jnp.take_along_axis(all_scores, chosen, axis=1),
            is_finished=jnp.take_along_axis(all_flags, chosen, axis=1),
            ancestors=jnp.take_along_axis(ancestors, survivors[..., None], axis=1),
            caches=caches,
        )

    none = jnp.zeros((examples, beams, length), jnp.int32)
    start = State(
        index=jnp.int32(0),
        live=none,
        live_scores=jnp.broadcast_to(jnp.where(places == 0, 0.0, WORST), (examples, beams)),
        finished=none,
        finished_scores=jnp.full((examples, beams), WORST),
        is_finished=jnp.zeros((examples, beams), bool),
        ancestors=none,
        caches=session.start,
    )
    end = jax.lax.while_loop(unfinished, body, start)
    any_finished = jnp.any(end.is_finished, axis=1, keepdims=True)
    tokens = jnp.where(any_finished[..., None], end.finished, end.live)
    scores = jnp.where(any_finished, end.finished_scores, end.live_scores)
    return jnp.where(session.empty[..., None], 0, tokens), jnp.where(session.empty, 0.0, scores)


def candidates(logits: Array, live_scores: Array) -> tuple[Array, Array, Array]:
    """The 2 x beams best continuations of an input, best first: enough should all beams end at once.

    The best of all beams are among the best of each, so logits [examples, beams, vocab] are searched beam by beam and
    never normalised as a whole.

    Returns:
      scores, parent beams and tokens, each [examples, 2 * beams].
    """
    examples, beams, _ = logits.shape
    top, tokens = jax.lax.top_k(logits, 2 * beams)
    scores = top - jax.nn.logsumexp(logits, axis=-1, keepdims=True) + live_scores[..., None]
    scores, chosen = jax.lax.top_k(scores.reshape(examples, -1), 2 * beams)
    tokens = jnp.take_along_axis(tokens.reshape(examples, -1), chosen, axis=1)
    return scores, chosen // (2 * beams), tokens


def best(scores: Array, count: int) -> Array:
    """Indices [examples, count] of the largest scores [examples, n], by increasing score."""
    return jnp.flip(jax.lax.top_k(scores, count)[1], axis=1)
