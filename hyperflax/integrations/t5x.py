"""Hypermodels that T5X trains: a subclass of `t5x.models.BaseModel` for `python -m t5x.train`.

    PYTHONPATH=/path/to/t5x python -m t5x.train --gin_file=hyperflax_gin_configs/t5x/hypermodel.gin ...

The parameter tree has two branches, `base` (the frozen T5, with T5X's names) and `hypernetwork`. What is trained is
said as T5X says it: a `MultiOptimizer` that sees the second branch alone (`hypernetwork_only`), an `assignment_map`
that fills the first from an ordinary T5 checkpoint, `fallback_to_scratch` for the rest, and `additional_rules` for the
logical axes that T5X does not know. A batch is [task, example, length], T5X's batch axis being the task; see
`t5x_episodes`.

The loss is that of `training.step`, token for token: the same batches from the same start give the same losses.

>>> model = HypermodelForT5X(config, hypernetwork_only(adafactor.Adafactor(), config))
>>> loss, metrics = model.loss_fn(params, batch, dropout_rng=None)
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from flax.linen.partitioning import AxisMetadata

from hyperflax import trees
from hyperflax.data import registry
from hyperflax.data.seqio_source import convert_vocabulary, import_seqio
from hyperflax.data.vocabularies import Vocabulary
from hyperflax.errors import ConfigError, DataError, MissingExtraError
from hyperflax.hypermodel import HypermodelConfig
from hyperflax.integrations.t5x_export import BASE, HYPERNETWORK
from hyperflax.models.decoding import GREEDY, Method, decode
from hyperflax.models.scoring import score_options
from hyperflax.objectives.episode import HypermodelObjective
from hyperflax.objectives.normalisation import (
    PER_SEQUENCE,
    REAL_TOKENS,
    LossNormalizingFactor,
    check_factor,
    normalise,
    weighted,
)
from hyperflax.training.partitioning import t5_axes
from hyperflax.types import Array, Batch, PyTree

try:
    from clu.metrics import Average
    from t5x import adafactor, models, optimizers
    from t5x import metrics as t5x_metrics

    from hyperflax.integrations.t5x_episodes import EpisodeFeatureConverter
except ModuleNotFoundError as error:
    raise MissingExtraError(
        error.name or "t5x",
        "seqio",
        "T5X is on no package index: put a copy of its repository, and of airio and jestimator, which it imports, on "
        "PYTHONPATH, and install 'hyperflax[seqio]' tensorboard fiddle cached_property (docs/interop.md)",
    ) from error

seqio = import_seqio()


class HypermodelForT5X(models.BaseModel):
    """A hypermodel as T5X sees a model.

    Args:
      config: base model, adapters, hypernetwork, episodes and vocabulary.
      optimizer_def: of T5X, see `hypernetwork_only`.
      z_loss, label_smoothing: of the token loss.
      loss_normalizing_factor: what the loss sum is divided by, see `objectives.normalisation`. T5X adds up its
        microbatches' losses: with `num_microbatches`, a number or None keeps the meaning of the sum.
      method: how predictions are decoded.
    """

    def __init__(
        self,
        config: HypermodelConfig,
        optimizer_def: optimizers.OptimizerDef,
        *,
        z_loss: float = 0.0,
        label_smoothing: float = 0.0,
        loss_normalizing_factor: LossNormalizingFactor = REAL_TOKENS,
        method: Method = GREEDY,
    ):
        super().__init__(optimizer_def)
        base, hypernetwork = config.build()
        self.config, self.method = config, method
        self.objective = HypermodelObjective(base, hypernetwork, z_loss=z_loss, label_smoothing=label_smoothing)
        self.loss_normalizing_factor = check_factor(loss_normalizing_factor)
        self.FEATURE_CONVERTER_CLS = functools.partial(
            EpisodeFeatureConverter, config=config.episodes, vocabulary=config.vocabulary
        )

    def loss_fn(self, params: PyTree, batch: Batch, dropout_rng: Array | None) -> tuple[Array, dict[str, Any]]:
        """Returns the loss [] and T5X's metrics; no gradient reaches the base."""
        factor = self.loss_normalizing_factor
        _, divisor = normalise(factor, batch)
        batch = weighted(factor, dict(batch))
        frozen = jax.lax.stop_gradient(params[BASE])
        loss_sum, weight_sum, pairs = self.objective.loss(params[HYPERNETWORK], frozen, batch, dropout_rng)
        if factor in (REAL_TOKENS, PER_SEQUENCE):
            divisor = weight_sum
        metrics = {name: Average(total=total, count=weight) for name, (total, weight) in pairs.items()}
        metrics["timing/seconds"] = t5x_metrics.Time()
        metrics["timing/steps_per_second"] = t5x_metrics.StepsPerTime.from_model_output()
        return loss_sum / jnp.where(divisor > 0, divisor, 1.0), metrics

    def predict_batch_with_aux(
        self, params: PyTree, batch: Batch, rng: Array | None = None, **options: Any
    ) -> tuple[Array, dict[str, Array]]:
        """Returns the decoded tokens [task, example, targets_length] and their scores [task, example].

        Raises:
          ConfigError: options of another model's decoder.
        """
        if options:
            raise ConfigError(f"predict_batch_with_aux: expected no further options, got {sorted(options)}")
        result = decode(
            self.objective.model,
            params[BASE],
            batch["encoder_input_tokens"],
            adapters=self.objective.generate(params[HYPERNETWORK], dict(batch)),
            method=self.method,
            max_length=self.config.episodes.targets_length,
            rng=rng,
        )
        return result.tokens, {"scores": result.scores}

    def score_batch(self, params: PyTree, batch: Batch, return_intermediates: bool = False) -> Array:
        """Returns the log-likelihood of every example's targets, [task, example].

        Raises:
          ConfigError: intermediates are asked for.
        """
        if return_intermediates:
            raise ConfigError("score_batch: expected return_intermediates=False, got True")
        adapters = self.objective.generate(params[HYPERNETWORK], dict(batch))
        options = batch["decoder_target_tokens"][..., None, :]
        return score_options(
            self.objective.model, params[BASE], batch["encoder_input_tokens"], options, adapters
        ).squeeze(-1)

    def get_initial_variables(
        self, rng: Array, input_shapes: Mapping[str, Any], input_types: Mapping[str, Any] | None = None
    ) -> flax.core.FrozenDict:
        """Returns fresh `params` and their logical axes, `params_axes`; a checkpoint then replaces what it holds."""
        types = input_types or {}
        batch = {name: jnp.zeros(shape, types.get(name, jnp.int32)) for name, shape in input_shapes.items()}
        base_rng, rng = jax.random.split(rng)
        tokens = jnp.zeros((1, 1), jnp.int32)
        base = nn.unbox(self.objective.model.init(base_rng, tokens, tokens)["params"])
        params = {BASE: base, HYPERNETWORK: self.objective.init(rng, batch)}
        declared = trees.flatten(self.objective.logical_axes(batch))

        def axes(path: str) -> AxisMetadata:
            names = declared.get(path.removeprefix(f"{HYPERNETWORK}/")) if path.startswith(HYPERNETWORK) else None
            names = names or t5_axes(path)
            if names is None:
                raise ConfigError(f"parameter '{path}': no logical axis names are known for it")
            return AxisMetadata(names=tuple(names))

        flat = {f"{path}_axes": axes(path) for path in trees.flatten(params)}
        return flax.core.freeze({"params": params, "params_axes": trees.unflatten(flat)})


class _HypernetworkOnly(optimizers.MultiOptimizer):
    """Saves and restores the states of what it trains alone.

    `MultiOptimizer` has None for every other parameter. Orbax writes down that it was None, and T5X then looks for an
    array of that name: it could not go on from its own checkpoint.
    """

    def state_dict(self, target: PyTree, state: Any) -> dict[str, Any]:
        found = super().state_dict(target, state)
        found["state"]["param_states"].pop(BASE)
        return found

    def restore_state(self, opt_target: PyTree, opt_state: Any, state_dict: Mapping[str, Any]) -> Any:
        untrained = super().state_dict(opt_target, opt_state)["state"]["param_states"][BASE]
        param_states = {**state_dict["state"]["param_states"], BASE: untrained}
        state = {**state_dict["state"], "param_states": param_states}
        return super().restore_state(opt_target, opt_state, {**state_dict, "state": state})


def hypernetwork_only(optimizer: optimizers.OptimizerDef, config: HypermodelConfig) -> optimizers.MultiOptimizer:
    """Returns an optimizer that leaves the base as it is and keeps no state for it.

    An Adafactor without factor rules gets some: T5X wants them for every parameter of more than two dimensions, such as
    the heads of all layers in one array. They say what hyperflax's Adafactor does, the two largest dimensions.

    Args:
      optimizer: one of T5X's that keep a state for each parameter, such as Adafactor; those that it takes from optax
        do not, and T5X's `MultiOptimizer` cannot split them.
      config: of the model.

    Raises:
      ConfigError: such a one.
    """
    if isinstance(optimizer, optimizers.OptaxWrapper):
        raise ConfigError("hypernetwork_only: expected an optimizer of T5X, got one of optax, whose state has no paths")
    if isinstance(optimizer, adafactor.Adafactor):
        settings = optimizer.hyper_params
        if settings.factor_map is None and settings.logical_factor_rules is None:
            rules = _factor_rules(config, settings.min_dim_size_to_factor)
            optimizer.hyper_params = settings.replace(factor_map=rules)
    trained = traverse_util.ModelParamTraversal(lambda path, _: path.strip("/").split("/")[0] == HYPERNETWORK)
    return _HypernetworkOnly(((trained, optimizer),))


def _factor_rules(config: HypermodelConfig, least: int) -> dict[str, Any]:
    """Adafactor's rule for every parameter of the hypernetwork, by path; T5X's own for vectors and matrices."""
    episode = {"support_tokens": jax.ShapeDtypeStruct((1, 1, 1), jnp.int32)}
    params = jax.eval_shape(HypermodelObjective(*config.build()).init, jax.random.key(0), episode)

    def rule(shape: tuple[int, ...]) -> Any:
        if len(shape) <= 2:
            return adafactor.HEURISTIC_RULE
        *_, smaller, larger = np.argsort(shape)
        if shape[smaller] < least:
            return None
        of_dimension = {smaller: adafactor.FactorDim.ROW, larger: adafactor.FactorDim.COLUMN}
        return tuple(of_dimension.get(number, adafactor.FactorDim.NONE) for number in range(len(shape)))

    return {f"{HYPERNETWORK}/{path}": rule(leaf.shape) for path, leaf in trees.flatten(params).items()}


def registered_task(name: str, module: str | None = None, vocabulary: Vocabulary | None = None) -> Any:
    """Returns the seqio Task or Mixture of that name, for `MIXTURE_OR_TASK_NAME`.

    Args:
      name: of the Task or Mixture.
      module: whose `register()` registers it.
      vocabulary: the one that its tokens must be of.

    Raises:
      DataError: there is none of that name, or it has another vocabulary.
    """
    registry.register_modules([module] if module else [])
    try:
        found = seqio.get_mixture_or_task(name)
    except ValueError as error:
        where = f"that {module} registers" if module else "that is registered"
        raise DataError(f"'{name}': expected a seqio Task or Mixture {where} ({error})") from error
    if vocabulary is not None:
        theirs = convert_vocabulary(found.output_features["inputs"].vocabulary, f"seqio Task '{name}'")
        if theirs != vocabulary:
            raise DataError(f"seqio Task '{name}': expected tokens of {vocabulary!r}, it has those of {theirs!r}")
    return found
