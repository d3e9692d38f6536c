"""Hypertuning: a hypernetwork is scored by how well the adapters that it writes make a frozen T5 do the task.

    support [task, rows, length] -> hypernetwork -> adapters of each task
    inputs/targets [task, example, length] -> T5 with that task's adapters -> token loss

(Phang et al. 2022, HyperTuning, section 3; the split of a task's examples into support and scored ones is the data's
business.) The code below is written for one task; `vmap` adds the task axis, so one generated adapter serves all of
its task's examples. The frozen parameters are an argument and no gradient is ever asked for in them.

>>> objective = HypermodelObjective(T5(config), HyperT5(hyper_config, spec))
>>> params = objective.init(rng, batch)
>>> loss_sum, weight_sum, metrics = objective.loss(params, frozen, batch, rng)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hyperflax.adapters.layers import arrange
from hyperflax.errors import ConfigError, DataError
from hyperflax.hypernets.heads import normalise
from hyperflax.hypernets.protocol import SupportReader
from hyperflax.models import flops
from hyperflax.objectives.consistency import between_tasks, distance
from hyperflax.objectives.distillation import token_divergence
from hyperflax.objectives.generated import adapter_metrics
from hyperflax.objectives.language_model import apply_t5, axes_of
from hyperflax.objectives.normalisation import target_weights
from hyperflax.objectives.protocol import (
    SCORED,
    LossOutput,
    Metrics,
    check_batch,
    mesh_batch_axes,
    mesh_batch_shards,
    scored_metrics,
)
from hyperflax.objectives.reconstruction import reconstruction
from hyperflax.types import Array, Batch, PyTree

EPISODE = ("support_tokens", "task_index")
TEACHER = "teacher_input_tokens"
OTHERS = "other_support_tokens"
TASK_ADAPTERS = "task_adapters/"  # and the path of a leaf
TASK_ADAPTERS_KNOWN = "task_adapters_known"


@dataclasses.dataclass(frozen=True)
class HypermodelObjective:
    """Token loss of a frozen base model under generated adapters; only the hypernetwork is trained.

    Attributes:
      model: the base `T5`; its parameters are `loss`'s `frozen`.
      hypernetwork: a linen module with a `spec`, called with one task's episode (see `hypernets.protocol`).
      z_loss, label_smoothing: of the token loss.
      distillation: weight of the divergence from the base model that reads a batch's `teacher_input_tokens`, beside the
        token loss; see `objectives.distillation` and `EpisodeConfig.teacher`.
      consistency: weight of the squared distance between what is generated from a task's first support and from its
        `other_support_tokens`, a mean over target tokens like the token loss beside it; see `objectives.consistency`
        and `EpisodeConfig.supports`.
      consistency_of: `states` of the slots, each at a mean square of one, or the `adapters`.
      reconstruction: weight of the distance from the adapters that training on each task itself has found, the batch's
        `task_adapters/...`, a mean over target tokens as well; see `objectives.reconstruction` and
        `training.task_adapters.WithTaskAdapters`.
      base_dropout: dropout inside the frozen model, too; by default only the hypernetwork's.
    """

    model: nn.Module
    hypernetwork: nn.Module
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    distillation: float = 0.0
    consistency: float = 0.0
    consistency_of: Literal["states", "adapters"] = "states"
    reconstruction: float = 0.0
    base_dropout: bool = False

    def __post_init__(self) -> None:
        if self.consistency_of not in ("states", "adapters"):
            raise ConfigError(f"consistency_of: expected 'states' or 'adapters', got {self.consistency_of!r}")
        if self.consistency and self.consistency_of == "states" and not isinstance(self.hypernetwork, SupportReader):
            name = type(self.hypernetwork).__name__
            raise ConfigError(f"consistency_of: {name} has no slot states, expected consistency_of='adapters'")

    def init(self, rng: Array, batch: Batch) -> PyTree:
        """Returns a hypernetwork's parameters from scratch."""
        return nn.unbox(self._init(rng, batch))

    def logical_axes(self, batch: Batch) -> PyTree:
        """Returns the tree of logical axis names."""
        return axes_of(jax.eval_shape(self._init, jax.random.key(0), batch))

    def generate(self, params: PyTree, batch: Batch, rng: Array | None = None) -> PyTree:
        """Returns the adapters of every task of the batch: the spec's tree with a leading task axis."""
        episodes = episodes_of(batch)
        return self._over_tasks(lambda episode, key: self._adapters(params, episode, key))(
            episodes, _keys(rng, episodes)
        )

    def loss(self, params: PyTree, frozen: PyTree, batch: Batch, rng: Array | None) -> LossOutput:
        """Returns (loss sum, weight sum, metrics) of a batch [task, example, length].

        The metric `loss` is the token loss alone. Beside it stand `divergence` with distillation, `reconstruction` with
        that (of the tasks that have an adapter), and with consistency `within_task_distance` and, if there are two
        tasks or more, `between_task_distance`. A microbatch has neighbours of its own: where a step is split, the
        latter is the mean over other pairs of tasks.

        Raises:
          DataError: a feature is missing or has the wrong number of dimensions.
        """
        check_batch(batch, SCORED, 3)
        episodes = episodes_of(batch)

        def one_task(
            episode: Batch, others: Array | None, trained: PyTree, scored: Batch, key: Array | None
        ) -> tuple[Array, Any, Array | None]:
            generated, adapters = self._generated(params, episode, key)
            away = None if trained is None else reconstruction(adapters, trained, self.hypernetwork.spec)
            arranged = arrange(adapters, self.hypernetwork.spec, self.model.config)
            base_key = _fold(key, 1) if self.base_dropout else None
            logits = apply_t5(self.model, {"params": frozen, "adapters": arranged}, scored, base_key)
            if others is None:
                return logits, None, away
            again = [
                self._generated(params, {**episode, "support_tokens": tokens}, _fold(key, 2 + number))[0]
                for number, tokens in enumerate(others)
            ]
            within = distance(generated, jax.tree.map(lambda *leaves: jnp.stack(leaves), *again))
            return logits, (generated, within), away

        scored = {name: batch[name] for name in SCORED}
        if self.consistency:
            check_batch(batch, (OTHERS,), 4)
        others = batch[OTHERS] if self.consistency else None
        trained = self._trained(batch) if self.reconstruction else None
        logits, compared, away = self._over_tasks(one_task)(episodes, others, trained, scored, _keys(rng, episodes))
        loss_sum, weight_sum, metrics = self._score(logits, batch)
        if self.distillation:
            check_batch(batch, (*SCORED, TEACHER), 3)
            teacher = self._without_adapters(frozen, {**scored, "encoder_input_tokens": batch[TEACHER]})
            divergence = token_divergence(teacher, logits, target_weights(batch))
            loss_sum += self.distillation * divergence
            metrics["divergence"] = (divergence, weight_sum)
        # A task counts by its own tokens: a mean over the tasks at hand would be another one in each microbatch.
        tokens = jnp.sum(target_weights(batch), axis=(1, 2))
        if self.reconstruction:
            known = batch[TASK_ADAPTERS_KNOWN]
            loss_sum += self.reconstruction * jnp.sum(away * known * tokens)
            metrics["reconstruction"] = (jnp.sum(away * known), jnp.sum(known))
        if self.consistency:
            generated, within = compared
            loss_sum += self.consistency * jnp.sum(within * tokens)
            tasks = jnp.float32(within.size)
            metrics["within_task_distance"] = (jnp.sum(within), tasks)
            if within.size > 1:
                metrics["between_task_distance"] = (between_tasks(generated) * tasks, tasks)
        return loss_sum, weight_sum, metrics

    def flops(self, batch: Batch) -> int:
        """Returns the operations of a training step on a batch of this shape: 6 N tokens for the hypernetwork, 4 N for
        the frozen base and 2 N for a teacher, with attention; the products with the adapters themselves not counted.
        """
        (tasks, examples, inputs), targets = np.shape(batch[SCORED[0]]), np.shape(batch[SCORED[2]])[2]
        rows, length = np.shape(batch["support_tokens"])[1:] if "support_tokens" in batch else (0, 0)
        supports = 1 + (np.shape(batch[OTHERS])[1] if self.consistency else 0)
        config = self.model.config
        one = supports * self.hypernetwork.flops(rows, length).trained
        one += flops.t5(config, examples, inputs, targets).frozen
        if self.distillation:
            one += flops.t5(config, examples, np.shape(batch[TEACHER])[2], targets).total
        return tasks * one

    def bare(self, frozen: PyTree, batch: Batch) -> Metrics:
        """Returns the metrics of the base model without adapters on the same scored examples."""
        check_batch(batch, SCORED, 3)
        return self._score(self._without_adapters(frozen, batch), batch)[2]

    def initial_metrics(self, params: PyTree, frozen: PyTree, batch: Batch) -> Metrics:
        """Returns the bare model's metrics as `bare/*`: a fresh generator should cost about the same."""
        return {f"bare/{name}": pair for name, pair in self.bare(frozen, batch).items()}

    def validation_metrics(self, params: PyTree, frozen: PyTree, batch: Batch) -> Metrics:
        """Returns the figures of the generated adapters as `adapters/*`, see `objectives.generated`.

        The distance within tasks is among them where the batch has `other_support_tokens`.
        """
        others = None
        if OTHERS in batch:
            check_batch(batch, (OTHERS,), 4)
            tokens = batch[OTHERS]
            again = [self.generate(params, {**batch, "support_tokens": tokens[:, i]}) for i in range(tokens.shape[1])]
            others = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *again)
        metrics = adapter_metrics(self.generate(params, batch), self.hypernetwork.spec, others)
        return {f"adapters/{name}": pair for name, pair in metrics.items()}

    def _init(self, rng: Array, batch: Batch) -> PyTree:
        episode = jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], episodes_of(batch))
        return self.hypernetwork.init(rng, episode)["params"]

    def _generated(self, params: PyTree, episode: Batch, key: Array | None) -> tuple[PyTree, PyTree]:
        """Returns what consistency compares and the adapters."""
        if not self.consistency or self.consistency_of == "adapters":
            adapters = self._adapters(params, episode, key)
            return adapters, adapters
        states = self._apply(params, episode, key, method="slot_states")
        # Heads read their direction alone. Compared as they are, they would come closer by growing smaller.
        return normalise(states), self._checked(self.hypernetwork.apply({"params": params}, states, method="write"))

    def _adapters(self, params: PyTree, episode: Batch, key: Array | None) -> PyTree:
        return self._checked(self._apply(params, episode, key))

    def _apply(self, params: PyTree, episode: Batch, key: Array | None, method: str | None = None) -> PyTree:
        rngs = None if key is None else {"dropout": key}
        return self.hypernetwork.apply(
            {"params": params}, episode, enable_dropout=key is not None, rngs=rngs, method=method
        )

    def _checked(self, adapters: PyTree) -> PyTree:
        # Shapes only, so free under jit; flax would ignore a leaf that no layer reads.
        self.hypernetwork.spec.validate(adapters)
        if mesh_batch_axes():
            # Adapters lie where their task's examples do. Left to itself, XLA's partitioner has split them over the
            # model axis and got the gradient of the heads wrong (jax 0.10, one task per shard).
            adapters = jax.lax.with_sharding_constraint(adapters, jax.sharding.PartitionSpec())
        return adapters

    def _trained(self, batch: Batch) -> PyTree:
        """The batch's `task_adapters/...` as the spec's tree; DataError where they are not of these leaves."""
        leaves = {leaf.path for leaf in self.hypernetwork.spec.leaves}
        found = {
            name.removeprefix(TASK_ADAPTERS): value for name, value in batch.items() if name.startswith(TASK_ADAPTERS)
        }
        if wrong := sorted(leaves ^ found.keys()):
            raise DataError(
                f"batch: expected '{TASK_ADAPTERS}' of {len(leaves)} leaves, which the hypernetwork writes, got "
                f"{len(found)}: '{wrong[0]}' is {'missing' if wrong[0] in leaves else 'none of them'}"
            )
        return self.hypernetwork.spec.unflatten(found)

    def _without_adapters(self, frozen: PyTree, batch: Batch) -> Array:
        """Logits [task, example, length, vocab] of the base model."""
        flat = {name: jnp.reshape(batch[name], (-1, batch[name].shape[-1])) for name in SCORED}
        logits = apply_t5(self.model, {"params": frozen}, flat, None)
        return logits.reshape(*batch["decoder_target_tokens"].shape, -1)

    def _score(self, logits: Array, batch: Batch) -> LossOutput:
        return scored_metrics(
            logits, batch, target_weights(batch), z_loss=self.z_loss, label_smoothing=self.label_smoothing
        )

    def _over_tasks(self, fn: Any) -> Any:
        """Returns `fn` of one task, mapped over the leading axis of its arguments."""
        axes, shards = mesh_batch_axes(), mesh_batch_shards()
        mapped = jax.vmap(fn, spmd_axis_name=axes or None)

        def over(*arguments: Any) -> Any:
            if shards > 1 or {leaf.shape[0] for leaf in jax.tree.leaves(arguments)} != {1}:
                return mapped(*arguments)
            # A task alone, as in fine-tuning: with an axis of one in front, XLA on CPU takes ten times as long over
            # the gradient of a norm.
            made = fn(*jax.tree.map(lambda leaf: leaf[0], arguments))
            return jax.tree.map(lambda leaf: leaf[None], made)

        return over


def episodes_of(batch: Mapping[str, Array]) -> dict[str, Array]:
    """Returns what a hypernetwork may read of a batch: the support and the task's index, never the scored examples."""
    episodes = {name: batch[name] for name in EPISODE if name in batch}
    if not episodes:
        raise DataError(f"batch: an episode has 'support_tokens' or 'task_index', got {sorted(batch)}")
    return episodes


def _fold(key: Array | None, number: int) -> Array | None:
    return None if key is None else jax.random.fold_in(key, number)


def _keys(rng: Array | None, episodes: Mapping[str, Array]) -> Array | None:
    """One dropout key per task, or None (which vmap passes on as None)."""
    return None if rng is None else jax.random.split(rng, next(iter(episodes.values())).shape[0])
