"""The pure part of continuous batching (Yu et al. 2022, Orca, section 3): rows that join, decode and leave.

A lane is a fixed number of rows for inputs of up to `source` tokens. Each row has its own adapter, its own caches, its
own position in its output and its own way to choose tokens; all arrays keep their shapes, so a lane compiles `advance`
once and `admit` once for each power of two of joining rows. Parameters are best given as `cast_kernels` returns them.

What rows share is the *place*: the caches are rings, and every step writes one place, the same for all rows, however
far each of them is. T5's position bias depends on distances alone, and the distance to a place is the number of steps
since it was written, so the bias is one array for all rows, too. A row looks back as far as it is old. So a step is as
cheap as if all rows had started together: one slice is written in place, nothing is scattered.

>>> lane = Lane(model, spec, rows=32, source=64, length=32)
>>> rows, progress = lane.empty(params)
>>> rows, progress = lane.admit(params, pool.leaves, rows, progress, newcomers)
>>> progress = lane.advance(params, rows, progress)
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hyperflax.adapters.spec import AdapterSpec
from hyperflax.models.sampling import choose_each
from hyperflax.models.session import Caches
from hyperflax.models.t5 import T5
from hyperflax.types import Array, PyTree


class Choice(NamedTuple):
    """How each row chooses its tokens; see `models.sampling.choose_each`."""

    temperature: Array
    topk: Array
    topp: Array
    seed: Array


class Newcomers(NamedTuple):
    """Inputs that join, [n].

    Attributes:
      row: int32, which rows they take; a number beyond the last one is padding.
      slot: int32, their adapters in the pool.
      tokens: int32 [n, source], 0 is padding.
      limit: int32, how many tokens each may decode.
      choice: how each chooses them.
    """

    row: Array
    slot: Array
    tokens: Array
    limit: Array
    choice: Choice


class Rows(NamedTuple):
    """What stays as it is while a row decodes; leaves [rows, ...]."""

    adapters: PyTree
    source: Array
    cross: Caches
    limit: Array
    choice: Choice


class Progress(NamedTuple):
    """What steps change.

    Attributes:
      place: int32 scalar, where the next step writes.
      caches: self-attention's keys and values, leaves [rows, ...].
      last: int32 [rows], the next step's input.
      age: int32 [rows], tokens decoded.
      ended: bool [rows]; rows that hold nothing have ended, too.
      tokens: int32 [rows, length], 0 where nothing has been decoded.
      log_probs: float32 [rows], of all tokens, by the model's own distribution.
    """

    place: Array
    caches: Caches
    last: Array
    age: Array
    ended: Array
    tokens: Array
    log_probs: Array


class Lane:
    """Functions for one shape of rows.

    Args:
      model: the base model.
      spec: of the pool that adapters come from.
      rows: inputs decoded at once.
      source: tokens of the longest input.
      length: tokens of the longest output.
      steps: tokens that `advance` decodes before it returns. The host looks at the rows in between.
      eos_id: ends a row.
    """

    def __init__(
        self, model: T5, spec: AdapterSpec, *, rows: int, source: int, length: int, steps: int = 8, eos_id: int = 1
    ):
        self.model, self.spec = model, spec
        self.rows, self.source, self.length, self.steps, self.eos_id = rows, source, length, steps, eos_id
        self.admit = jax.jit(self._admit, donate_argnums=(2, 3))
        self.advance = jax.jit(self._advance, donate_argnums=2)

    def empty(self, params: PyTree) -> tuple[Rows, Progress]:
        """Returns a lane in which nobody is."""
        adapters = jax.eval_shape(lambda: self.spec.identity())
        adapters = jax.tree.map(lambda leaf: jnp.zeros((self.rows, *leaf.shape), leaf.dtype), adapters)
        source = jnp.zeros((self.rows, self.source), jnp.int32)
        shapes = jax.eval_shape(self._start, params, adapters, source)
        caches = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        ints, floats = jnp.zeros(self.rows, jnp.int32), jnp.zeros(self.rows, jnp.float32)
        own, cross = _parts(caches)
        choice = Choice(temperature=floats, topk=ints, topp=jnp.copy(floats), seed=jnp.zeros(self.rows, jnp.uint32))
        rows = Rows(adapters, source, cross, limit=jnp.copy(ints), choice=choice)
        progress = Progress(
            place=jnp.int32(0),
            caches=own,
            last=jnp.copy(ints),
            age=jnp.copy(ints),
            ended=jnp.ones(self.rows, bool),
            tokens=jnp.zeros((self.rows, self.length), jnp.int32),
            log_probs=jnp.copy(floats),
        )
        return rows, progress

    def _admit(
        self, params: PyTree, leaves: PyTree, rows: Rows, progress: Progress, new: Newcomers
    ) -> tuple[Rows, Progress]:
        """Encodes the newcomers, each with its adapter, and puts them into their rows. `rows`, `progress` are donated.

        Args:
          params: of the base model.
          leaves: the pool's.
          rows, progress: the lane's.
          new: who joins; what was in these rows is lost.
        """
        adapters = jax.tree.map(lambda leaf: jnp.take(leaf, new.slot, axis=0, mode="clip"), leaves)
        own, cross = _parts(self._start(params, adapters, new.tokens))

        def put(held: PyTree, joined: PyTree) -> PyTree:
            return jax.tree.map(lambda old, x: old.at[new.row].set(x, mode="drop"), held, joined)

        none = jnp.zeros(new.row.shape, jnp.int32)
        rows = put(rows, Rows(adapters, new.tokens, cross, new.limit, new.choice))
        joined = progress._replace(
            caches=own,
            last=none,
            age=none,
            ended=new.limit <= 0,
            tokens=jnp.zeros((*none.shape, self.length), jnp.int32),
            log_probs=jnp.zeros(none.shape, jnp.float32),
        )
        place = progress.place
        progress = put(progress._replace(place=none), joined._replace(place=none))
        return rows, progress._replace(place=place)

    def _advance(self, params: PyTree, rows: Rows, progress: Progress) -> Progress:
        """Decodes up to `steps` tokens in every row that has not ended. `progress` is donated."""

        def one(adapters: PyTree, source: Array, cross: Caches, own: Caches, last: Array, age: Array, place: Array):
            caches = {name: {"self": own[name], "cross": cross[name]} for name in own}
            caches = jax.tree.map(lambda leaf: leaf[None], caches)
            variables = {"params": params, "adapters": adapters}
            inputs = (caches, source[None], last[None, None], age)
            logits, written = self.model.apply(variables, *inputs, length=self.length, place=place, method="step")
            return logits[0, 0], _only(written)

        def step(taken: Array, now: Progress) -> Progress:
            arguments = (rows.adapters, rows.source, rows.cross, now.caches, now.last, now.age)
            logits, caches = jax.vmap(one, in_axes=(*[0] * len(arguments), None))(*arguments, now.place)
            # A row that has ended chooses nothing: while those that go on are greedy, nothing is sorted or drawn.
            choice = rows.choice._replace(temperature=jnp.where(now.ended, 0.0, rows.choice.temperature))
            token, log_prob = choose_each(logits, *choice, now.age)
            token = jnp.where(now.ended, 0, token)
            age = jnp.where(now.ended, now.age, now.age + 1)
            here = (jnp.arange(self.length) == now.age[:, None]) & ~now.ended[:, None]
            return Progress(
                place=(now.place + 1) % self.length,
                caches=caches,
                last=token,
                age=age,
                ended=now.ended | (token == self.eos_id) | (age >= rows.limit),
                tokens=jnp.where(here, token[:, None], now.tokens),
                log_probs=now.log_probs + jnp.where(now.ended, 0.0, log_prob),
            )

        def unfinished(state: tuple[Array, Progress]) -> Array:
            return (state[0] < self.steps) & ~jnp.all(state[1].ended)

        start = (jnp.int32(0), progress)
        return jax.lax.while_loop(unfinished, lambda state: (state[0] + 1, step(*state)), start)[1]

    def _start(self, params: PyTree, adapters: PyTree, tokens: Array) -> Caches:
        """Caches [n, ...] of inputs [n, source], each encoded with its own adapter."""

        def one(adapters: PyTree, tokens: Array) -> Caches:
            variables = {"params": params, "adapters": adapters}
            return _only(self.model.apply(variables, tokens[None], length=self.length, method="start_cache"))

        return jax.vmap(one)(adapters, tokens)


def _only(caches: PyTree) -> PyTree:
    """Leaves of a batch of one, without its axis: XLA on CPU copies the caches at every step where it stays."""
    return jax.tree.map(lambda leaf: leaf[0], caches)


def _parts(caches: Caches) -> tuple[Caches, Caches]:
    own, cross = ({name: cache[part] for name, cache in caches.items()} for part in ("self", "cross"))
    return own, cross
