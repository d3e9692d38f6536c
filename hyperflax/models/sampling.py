"""Greedy decoding and sampling: one loop over positions, all rows at once, until every row has ended.

Semantics are those of T5X's `temperature_sample`: after an end-of-sequence token come zeros; forced prompt tokens cost
no log-probability and do not end a row; a temperature of (almost) zero takes the largest logit; top-k and top-p keep
ties with the last one kept. Random numbers are drawn as T5X draws them, so equal keys give equal samples.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hyperflax.errors import ConfigError
from hyperflax.models.session import Session
from hyperflax.types import Array

EXCLUDED = -1e7
MIN_TEMPERATURE = 1e-4


@dataclasses.dataclass(frozen=True)
class Greedy:
    """The most probable token at every position. Scores are sums of the model's log-probabilities."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """Independent draws.

    Attributes:
      temperature: logits are divided by it; 0 is greedy.
      topk: draw among the k largest logits (and ties); 0 is all.
      topp: draw among the fewest tokens that hold this probability (Holtzman et al. 2019); 0 is all. Not with topk.
      num_decodes: draws per input.
      rescale_log_probs: scores are log-probabilities of the distribution that was drawn from (T5X's default);
        otherwise of the model's own.
    """

    temperature: float = 1.0
    topk: int = 0
    topp: float = 0.0
    num_decodes: int = 1
    rescale_log_probs: bool = True

    def __post_init__(self) -> None:
        if self.topk and self.topp:
            raise ConfigError(f"Sample: expected at most one of topk and topp, got {self.topk} and {self.topp}")
        if not (self.temperature >= 0 and self.topk >= 0 and 0 <= self.topp <= 1 and self.num_decodes >= 1):
            raise ConfigError(f"Sample: temperature, topk >= 0, topp in [0, 1], num_decodes >= 1 expected, got {self}")


class State(NamedTuple):
    """Of the loop; rows are [examples, decodes]."""

    index: Array
    tokens: Array
    """int32 [examples, decodes, length], zeros where nothing has been decoded yet."""
    last: Array
    """int32 [examples, decodes], the next step's input."""
    ended: Array
    log_probs: Array
    caches: Any
    rng: Array


def sample(session: Session, prompt: Array, method: Greedy | Sample, rng: Array, eos_id: int) -> tuple[Array, Array]:
    """Runs the loop.

    Args:
      session: with `length` and `decodes` set.
      prompt: int32 [examples, length], 0 where the model is free.
      method: how a token is chosen.
      rng: a key; unused by greedy decoding.
      eos_id: ends a row.

    Returns:
      tokens int32 [examples, decodes, length] and scores float32 [examples, decodes], by increasing score.
    """
    rows = (session.examples, session.decodes)

    def unfinished(state: State) -> Array:
        return (state.index < session.length) & ~jnp.all(state.ended)

    def body(state: State) -> State:
        now, later = jax.random.split(state.rng)
        logits, caches = session.step(state.caches, state.last, state.index)
        token, log_prob = choose(logits, method, now)
        forced = jax.lax.dynamic_index_in_dim(prompt, state.index, axis=1)
        free = forced == 0
        token = jnp.where(state.ended, 0, jnp.where(free, token, forced))
        return State(
            index=state.index + 1,
            tokens=jax.lax.dynamic_update_index_in_dim(state.tokens, token, state.index, axis=2),
            last=token,
            ended=state.ended | ((token == eos_id) & free),
            log_probs=state.log_probs + jnp.where(free & ~state.ended, log_prob, 0.0),
            caches=caches,
            rng=later,
        )

    start = State(
        index=jnp.int32(0),
        tokens=jnp.zeros((*rows, session.length), jnp.int32),
        last=jnp.zeros(rows, jnp.int32),
        ended=jnp.broadcast_to(session.empty, rows),
        log_probs=jnp.zeros(rows, jnp.float32),
        caches=session.start,
        rng=rng,
    )
    end = jax.lax.while_loop(unfinished, body, start)
    order = jnp.argsort(end.log_probs, axis=-1)
    return jnp.take_along_axis(end.tokens, order[..., None], axis=1), jnp.take_along_axis(end.log_probs, order, axis=1)


def choose(logits: Array, method: Greedy | Sample, rng: Array) -> tuple[Array, Array]:
    """Chooses a token from each row of logits [..., vocab]: (int32 [...], log-probability float32 [...])."""
    greedy = isinstance(method, Greedy) or method.temperature <= MIN_TEMPERATURE
    rescale = isinstance(method, Sample) and method.rescale_log_probs
    if greedy:
        largest = jnp.max(logits, axis=-1)
        # The first of the largest, in two plain reductions: `argmax` is a scalar loop on CPU.
        places = jnp.where(
            logits == largest[..., None], jnp.arange(logits.shape[-1], dtype=jnp.int32), logits.shape[-1]
        )
        token = jnp.min(places, axis=-1)
        if rescale:  # the distribution drawn from is certain
            return token, jnp.zeros(token.shape, jnp.float32)
        return token, largest - jax.nn.logsumexp(logits, axis=-1)
    scaled = logits / method.temperature
    if method.topk:
        scaled = keep_topk(scaled, method.topk)
    if method.topp:
        scaled = keep_topp(scaled, method.topp)
    flat = scaled.reshape(-1, scaled.shape[-1])
    token = jax.random.categorical(rng, flat).astype(jnp.int32).reshape(logits.shape[:-1])
    log_probs = jax.nn.log_softmax(scaled if rescale else logits)
    return token, jnp.take_along_axis(log_probs, token[..., None], axis=-1)[..., 0]


def choose_each(
    logits: Array, temperature: Array, topk: Array, topp: Array, seed: Array, index: Array
) -> tuple[Array, Array]:
    """Chooses a token from each row, every row in its own way; for rows that have nothing to do with each other.

    A row's draws depend on its seed and on how many it has made, never on its neighbours. With temperature 0 a row is
    greedy, and as long as all are, nothing is sorted or drawn.

    Args:
      logits: [rows, vocab].
      temperature, topk, topp: [rows], see `Sample`; 0 sets no limit. With both limits a token must be within each.
      seed: uint32 [rows].
      index: int32 [rows], how many tokens the row has.

    Returns:
      tokens int32 [rows] and their log-probabilities by the model's own distribution, float32 [rows].
    """
    best, best_log_prob = choose(logits, Greedy(), jax.random.key(0))
    greedy = temperature <= MIN_TEMPERATURE

    def draw() -> tuple[Array, Array]:
        scaled = logits / jnp.where(greedy, 1.0, temperature)[:, None]
        falling = -jnp.sort(-scaled, axis=-1)
        last = jnp.where(topk > 0, jnp.minimum(topk, logits.shape[-1]), logits.shape[-1]) - 1
        probs = jax.nn.softmax(falling)
        needed = jnp.sum(jnp.cumsum(probs, axis=-1) < topp[:, None], axis=-1)
        last = jnp.where(topp > 0, jnp.minimum(last, needed), last)
        limited = jnp.where(scaled >= jnp.take_along_axis(falling, last[:, None], axis=-1), scaled, EXCLUDED)
        keys = jax.vmap(lambda seed, index: jax.random.fold_in(jax.random.key(seed), index))(seed, index)
        drawn = jax.vmap(jax.random.categorical)(keys, limited).astype(jnp.int32)
        token = jnp.where(greedy, best, drawn)
        chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
        return token, chosen - jax.nn.logsumexp(logits, axis=-1)

    return jax.lax.cond(jnp.all(greedy), lambda: (best, best_log_prob), draw)


def keep_topk(logits: Array, k: int) -> Array:
    """Excludes what is smaller than the k-th largest of [..., vocab]."""
    threshold = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][..., -1:]
    return jnp.where(logits >= threshold, logits, EXCLUDED)


def keep_topp(logits: Array, p: float) -> Array:
    """Excludes what is less probable than the last of the fewest tokens of [..., vocab] that together hold p."""
    probs = jax.nn.softmax(logits)
    falling = -jnp.sort(-probs, axis=-1)
    needed = jnp.sum(jnp.cumsum(falling, axis=-1) < p, axis=-1, keepdims=True)
    threshold = jnp.take_along_axis(falling, jnp.minimum(needed, logits.shape[-1] - 1), axis=-1)
    return jnp.where(probs >= threshold, logits, EXCLUDED)
