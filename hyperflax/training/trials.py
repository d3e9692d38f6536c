"""Many fine-tuning runs of adapters at once, with other learning rates, schedules, starts and seeds in each.

What changes the program (`Recipe`) is equal for all runs of a call; all else is an array with a run axis. One run is a
plain function of its state, and `vmap` adds the axis, so a run takes the steps that it would take alone, up to the
order of summation. Runs stop at any step and go on from their state.

    params: raw leaves [run, ...]     rows: int [run, steps, batch], examples of each step
    data: encoder_input_tokens, decoder_* [run, example, length], the last example padding of weight 0

The learning rate at step t (from 0) of T, with w = warmup T and x = (t - w) / (T - w):

    peak min(1, (t + 1) / w)         t < w
    peak (1 | 1 - x | (1 + cos pi x) / 2)     constant | linear | cosine

>>> trials = Trials(model, frozen, Recipe(spec, "adamw"))
>>> state = trials.start(raw)
>>> state, losses = trials.run(state, hyper, data, rows)
>>> exact, loss = trials.score(state.params, held_out)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hyperflax import trees
from hyperflax.adapters.kinds import kind_of
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.errors import ConfigError
from hyperflax.models import memory
from hyperflax.models.t5 import T5
from hyperflax.objectives.normalisation import target_weights
from hyperflax.objectives.token_loss import TokenLoss, correct_tokens, token_loss
from hyperflax.padding import blocks, rounded_up
from hyperflax.training.adafactor import scale_by_adafactor
from hyperflax.training.step import sum_over_microbatches
from hyperflax.types import Array, Batch, PyTree

SCHEDULES = ("constant", "linear", "cosine")
OPTIMIZERS = ("adamw", "adafactor", "lion")
CLIP_NORM = 1.0
PROMPT = "soft_prompt"
ROWS = 1024  # most runs x examples that are scored at once
ELEMENTS = 2**27  # most logits, and most attention weights of a layer, that are there at once while scoring
GAINS = 32  # most examples whose gains are predicted at once: as many as the largest batch of a step


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is compiled into the program of a run.

    Attributes:
      spec: of the adapter.
      optimizer: one of `OPTIMIZERS`.
      dropout: of the frozen T5 while training.
      prompt_first: a soft prompt of the spec is trained alone at first, all else afterwards (`Hyper.prompt_steps`).
    """

    spec: AdapterSpec
    optimizer: str = "adamw"
    dropout: float = 0.0
    prompt_first: bool = False

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"Recipe.optimizer: expected one of {', '.join(OPTIMIZERS)}, got '{self.optimizer}'")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"Recipe.dropout: expected a number in [0, 1), got {self.dropout!r}")
        prompts = [kind_of(leaf).kind == PROMPT for leaf in self.spec.leaves]
        if self.prompt_first and (not any(prompts) or all(prompts)):
            raise ConfigError("Recipe.prompt_first: expected a spec with a soft prompt and something else")


class Hyper(NamedTuple):
    """Numbers of a run, each [run].

    Attributes:
      learning_rate: peak. schedule: place in `SCHEDULES`. warmup: share of the steps.
      total_steps: of the whole run. prompt_steps: how many of them train the soft prompt alone.
      weight_decay: decoupled, times the learning rate, on raw values.
      seed: of dropout.
    """

    learning_rate: np.ndarray | Array
    schedule: np.ndarray | Array
    warmup: np.ndarray | Array
    total_steps: np.ndarray | Array
    prompt_steps: np.ndarray | Array
    weight_decay: np.ndarray | Array
    seed: np.ndarray | Array


class TrialState(NamedTuple):
    """A run under way: raw adapter, state of the optimizer, steps taken."""

    params: PyTree
    opt_state: PyTree
    step: Array


def learning_rate(hyper: Hyper, step: Array) -> Array:
    """Returns the learning rate of a step, see the module's formula; float32, shape of the arguments."""
    warm = hyper.warmup * hyper.total_steps
    x = jnp.clip((step - warm) / jnp.maximum(hyper.total_steps - warm, 1.0), 0.0, 1.0)
    shapes = jnp.stack([jnp.ones_like(x), 1.0 - x, 0.5 * (1.0 + jnp.cos(jnp.pi * x))])
    shape = jnp.take_along_axis(shapes, jnp.asarray(hyper.schedule)[None], axis=0)[0]
    return jnp.where(step < warm, jnp.minimum(1.0, (step + 1) / jnp.maximum(warm, 1.0)), shape) * hyper.learning_rate


class Trials:
    """The compiled functions of a recipe; make one and use it for all of its runs.

    Args:
      model: the frozen T5. params: its parameters.
      recipe: see there.
    """

    def __init__(self, model: T5, params: PyTree, recipe: Recipe):
        self.recipe, self.params = recipe, params
        self._model = model
        self._training_model = T5(model.config.replace(dropout_rate=recipe.dropout))
        self._direction = _direction(recipe.optimizer)
        self._start = jax.jit(jax.vmap(self._start_one))
        self._run = jax.jit(self._run_all, donate_argnums=0)
        self._score = jax.jit(jax.vmap(self._score_one, in_axes=(0, None, 0)))
        self._slope = jax.jit(self._slope_one)
        self._gains = jax.jit(self._gains_one)

    def start(self, raw: PyTree) -> TrialState:
        """Returns the states before the first step of runs that start from raw adapters, leaves [run, ...]."""
        return self._start(raw)

    def run(
        self, state: TrialState, hyper: Hyper, data: Mapping[str, Array], rows: np.ndarray
    ) -> tuple[TrialState, np.ndarray]:
        """Takes the steps of `rows` [run, steps, batch] and returns the states and each run's mean loss over them.

        `state` is consumed. Rows are padded to one of few numbers of steps, so that few programs are compiled.
        """
        return self._padded(state, hyper, data, rows, rows.shape[1])

    def compile(self, state: TrialState, hyper: Hyper, data: Mapping[str, Array], rows: np.ndarray) -> None:
        """Compiles what `run` will call for arrays of these shapes, and takes no step; `state` stays."""
        self._padded(jax.tree.map(jnp.copy, state), hyper, data, rows, 0)

    def _padded(self, state, hyper, data, rows, steps):
        runs, length, batch = rows.shape
        padded = np.zeros((runs, rounded_up(length), batch), np.int32)
        padded[:, :length] = rows
        state, loss = self._run(state, self.params, Hyper(*map(jnp.asarray, hyper)), data, padded, jnp.int32(steps))
        return state, np.asarray(loss)

    def score(self, raw: PyTree, data: Mapping[str, Array]) -> tuple[np.ndarray, np.ndarray]:
        """Scores raw adapters [run, ...] on examples; the last row of `data`, padding, is left out.

        Rows are padded to one of few numbers, so that data sets of other sizes share what is compiled, and many of them
        are scored in blocks, so that their number does not decide whether they fit into memory.

        Returns:
          whether greedy decoding gives an example's target, bool [run, example]; the loss per token, in nats, [run].

        No decoding is needed: greedy decoding gives the target exactly if every token of it is the most likely one
        after the tokens before it.
        """
        runs, rows = data["encoder_input_tokens"].shape[:2]
        exact, losses = [], []
        for part in blocks(data, max(1, min(ROWS, ELEMENTS // self._elements(data)) // runs), axis=1):
            right, loss = jax.device_get(self._score(raw, self.params, part))
            exact.append(right)
            losses.append(loss)
        loss = jax.tree.map(lambda *parts: sum(parts), *losses)
        return np.concatenate(exact, axis=1)[:, : rows - 1], np.asarray(loss.mean)

    def _elements(self, data: Mapping[str, Array]) -> int:
        """The larger of an example's logits and its attention weights in a layer of the encoder."""
        config = self._model.config
        inputs, targets = (data[name].shape[-1] for name in ("encoder_input_tokens", "decoder_target_tokens"))
        return max(targets * config.vocab_size, config.num_heads * inputs**2)

    def gains(self, raw: PyTree, data: Mapping[str, Array], objective: Mapping[str, Array]) -> np.ndarray:
        """Returns the inner product of each example's gradient and the objective's, [example], without dropout.

        That is, to first order and up to the learning rate, how much the objective's loss falls by a step on the
        example alone. Losses are per token, gradients by the raw adapter of one run, without a run axis. The last row
        of `data` and of `objective`, padding, is left out; both are taken in blocks, as `score` does.
        """
        slopes = [self._slope(raw, self.params, part) for part in blocks(objective, GAINS)]
        slope, weight = jax.tree.map(lambda *parts: sum(parts), *slopes)
        towards = jax.tree.map(lambda leaf: leaf / jnp.maximum(weight, 1.0), slope)
        gains = [self._gains(raw, self.params, part, towards) for part in blocks(data, GAINS)]
        return np.concatenate(jax.device_get(gains))[: len(data["encoder_input_tokens"]) - 1]

    # One run

    def _start_one(self, raw: PyTree) -> TrialState:
        return TrialState(raw, self._direction.init(raw), jnp.int32(0))

    def _run_all(self, state, params, hyper, data, rows, steps):
        (runs, _, inputs), targets = data["encoder_input_tokens"].shape, data["decoder_target_tokens"].shape[-1]
        batch_size = rows.shape[-1]
        kept = memory.kept_bytes(self._model.config, runs * batch_size, inputs, targets)
        step = functools.partial(self._step, memory.microbatches(kept, batch_size))

        def body(number: Array, carry: tuple[TrialState, Array]) -> tuple[TrialState, Array]:
            state, total = carry
            batch = jax.vmap(lambda arrays, row: jax.tree.map(lambda array: array[row], arrays))(data, rows[:, number])
            state, loss = jax.vmap(step, in_axes=(0, None, 0, 0))(state, params, hyper, batch)
            return state, total + loss

        state, total = jax.lax.fori_loop(0, steps, body, (state, jnp.zeros(rows.shape[0], jnp.float32)))
        return state, total / jnp.maximum(steps, 1)

    def _step(self, microbatches: int, state: TrialState, params: PyTree, hyper: Hyper, batch: Batch):
        weight = target_weights(batch).sum()

        def of_part(part: Batch, key: Array | None) -> tuple[Array, PyTree]:
            """Its share in the mean over all of the batch, and the gradient of that."""
            return jax.value_and_grad(self._loss)(state.params, params, part, key, weight)

        key = jax.random.fold_in(jax.random.key(hyper.seed), state.step)
        loss, gradient = sum_over_microbatches(of_part, batch, key, microbatches)
        mask = self._mask(state.params, state.step < hyper.prompt_steps)
        gradient = jax.tree.map(jnp.multiply, gradient, mask)
        norm = optax.tree.norm(gradient)
        gradient = jax.tree.map(lambda leaf: leaf * jnp.minimum(1.0, CLIP_NORM / jnp.maximum(norm, 1e-9)), gradient)
        opt_state = self._opt_state(state, hyper)
        direction, opt_state = self._direction.update(gradient, opt_state, state.params)
        rate = learning_rate(hyper, state.step)
        new = jax.tree.map(
            lambda leaf, towards, on: leaf - rate * on * (towards + hyper.weight_decay * leaf),
            state.params,
            direction,
            mask,
        )
        return TrialState(new, opt_state, state.step + 1), loss

    def _opt_state(self, state: TrialState, hyper: Hyper) -> PyTree:
        """A new one where what follows a prompt begins: moments of no gradient must not pass for as old as its."""
        if not self.recipe.prompt_first:
            return state.opt_state
        begins, new = state.step == hyper.prompt_steps, self._direction.init(state.params)
        return jax.tree.map(lambda fresh, old: jnp.where(begins, fresh, old), new, state.opt_state)

    def _mask(self, raw: PyTree, prompting: Array) -> PyTree:
        """1 for what a step trains, 0 for what it leaves alone; all ones without a prompt of its own stage."""
        if not self.recipe.prompt_first:
            return jax.tree.map(lambda leaf: jnp.float32(1.0), raw)
        leaves = {leaf.path: kind_of(leaf).kind == PROMPT for leaf in self.recipe.spec.leaves}
        return trees.map_with_path(lambda path, leaf: jnp.float32(prompting == leaves[path]), raw)

    def _loss(self, raw: PyTree, params: PyTree, batch: Batch, key: Array | None, weight: Array) -> Array:
        return self._losses(self._training_model, raw, params, batch, key)[0]._replace(weight_sum=weight).mean

    def _score_one(self, raw: PyTree, params: PyTree, data: Mapping[str, Array]) -> tuple[Array, TokenLoss]:
        loss, logits = self._losses(self._model, raw, params, data, None)
        right = correct_tokens(logits, data["decoder_target_tokens"]) | (data["decoder_loss_weights"] == 0)
        return jnp.all(right, axis=-1), loss

    def _slope_one(self, raw, params, objective):
        """The gradient of a block's summed loss, and the weight that belongs to it."""

        def total(raw: PyTree) -> tuple[Array, Array]:
            loss = self._losses(self._model, raw, params, objective, None)[0]
            return loss.loss_sum, loss.weight_sum

        return jax.grad(total, has_aux=True)(raw)

    def _gains_one(self, raw, params, data, towards):
        def each(raw: PyTree) -> Array:
            logits = self._losses(self._model, raw, params, data, None)[1]
            return jax.vmap(token_loss)(logits, data["decoder_target_tokens"], data["decoder_loss_weights"]).mean

        # The derivative of every loss in the direction of the objective's gradient. The model has rules for reverse
        # mode alone, so it is the transpose of reverse mode: no example's gradient is ever formed.
        losses, pull = jax.vjp(each, raw)
        return jax.linear_transpose(lambda weights: pull(weights)[0], losses)(towards)[0]

    def _losses(self, model: T5, raw: PyTree, params: PyTree, batch: Mapping[str, Array], key: Array | None):
        dropping = key is not None and self.recipe.dropout > 0
        logits = model.apply(
            {"params": params, "adapters": self.recipe.spec.materialise(raw)},
            batch["encoder_input_tokens"],
            batch["decoder_input_tokens"],
            batch["decoder_target_tokens"],
            enable_dropout=dropping,
            rngs={"dropout": key} if dropping else None,
        )
        return token_loss(logits, batch["decoder_target_tokens"], batch["decoder_loss_weights"]), logits


def epoch_rows(examples: np.ndarray, batch_size: int, epochs: int, seed: int) -> np.ndarray:
    """Returns [steps, batch] example numbers: every epoch shuffles anew, steps run on across epochs.

    Args:
      examples: numbers of the examples to train on; at least one.
      batch_size: of a step; small sets are repeated within it.
      epochs: passes over `examples`. seed: of the order.
    """
    rng = np.random.default_rng(np.random.SeedSequence([0x74726961, seed]))
    order = np.concatenate([rng.permutation(examples) for _ in range(epochs)])
    steps = num_steps(len(examples), batch_size, epochs)
    return np.resize(order, steps * batch_size).reshape(steps, batch_size).astype(np.int32)


def num_steps(examples: int, batch_size: int, epochs: int) -> int:
    """Returns how many steps `epoch_rows` makes of so many examples."""
    return max(1, round(examples * epochs / batch_size))


@functools.cache
def _direction(name: str) -> optax.GradientTransformation:
    if name == "adafactor":
        return scale_by_adafactor()
    return optax.scale_by_adam() if name == "adamw" else optax.scale_by_lion()
