"""Optimizers as optax transformations, with the schedule kept beside them so that a step can report its learning rate.

>>> optimizer = make_optimizer("adamw", learning_rate=warmup_cosine(1e-3, 30, 1500), clip_norm=1.0)
>>> opt_state = optimizer.init(params)

In a gin file:

    make_optimizer.name = 'adafactor'
    make_optimizer.learning_rate = @learning_rate_schedule()
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from hyperflax import trees
from hyperflax.errors import ConfigError
from hyperflax.models.stacking import LAYER_AXIS
from hyperflax.training.adafactor import scale_by_adafactor
from hyperflax.types import Array, PyTree

Schedule: TypeAlias = Callable[[Any], Array]
LearningRate: TypeAlias = float | Schedule


@runtime_checkable
class Transformation(Protocol):
    """Any optax transformation, or an `Optimizer`."""

    @property
    def init(self) -> Callable[[PyTree], PyTree]: ...

    @property
    def update(self) -> Callable[..., tuple[PyTree, PyTree]]: ...


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optax transformation and the learning rate that is in it.

    Attributes:
      init, update: as of `optax.GradientTransformation`; the updates are added to the parameters.
      schedule: step -> learning rate, what a training step reports.
    """

    init: Callable[[PyTree], PyTree]
    update: Callable[..., tuple[PyTree, PyTree]]
    schedule: Schedule


def adamw(
    learning_rate: LearningRate = 1e-3,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2).

    Args:
      learning_rate: a number, or a function of the step.
      b1, b2, eps: of Adam.
      weight_decay: decoupled, multiplied by the learning rate; on every parameter.
      clip_norm: gradients are scaled down to this global norm; None leaves them.
    """
    schedule = as_schedule(learning_rate)
    decay = [optax.add_decayed_weights(weight_decay)] if weight_decay else []
    chain = optax.chain(
        *_clipping(clip_norm),
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        *decay,
        optax.scale_by_learning_rate(schedule),
    )
    return Optimizer(chain.init, chain.update, schedule)


def adafactor(
    learning_rate: LearningRate = 1e-3,
    *,
    decay_rate: float = 0.8,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: float | None = 1.0,
    min_dim_size_to_factor: int = 128,
    factored: bool = True,
    beta1: float | None = None,
    weight_decay_rate: float | None = None,
    clip_norm: float | None = None,
) -> Optimizer:
    """Adafactor (Shazeer and Stern 2018) as T5X runs it; the arguments are those of `scale_by_adafactor`.

    Scanned layers are factored, clipped and scaled one by one, so that a scanned model trains like an unrolled one.
    T5X's `step_offset`, the step of the checkpoint that a fine-tuning run starts from, is not here: our runs count
    their steps from 0, so that the decay schedule starts anew with each of them.

    Args:
      learning_rate: relative to each parameter's size where `multiply_by_parameter_scale`.
      beta1: momentum over the finished updates, learning rate included; None keeps none.
      weight_decay_rate: this share of each parameter is taken off every step, whatever the learning rate.
      clip_norm: global norm that gradients are scaled down to before anything else; None leaves them.
    """
    schedule = as_schedule(learning_rate)
    momentum = [optax.ema(beta1, debias=False)] if beta1 is not None else []
    decay = [optax.add_decayed_weights(-weight_decay_rate)] if weight_decay_rate else []
    chain = optax.chain(
        *_clipping(clip_norm),
        scale_by_adafactor(
            decay_rate=decay_rate,
            multiply_by_parameter_scale=multiply_by_parameter_scale,
            clipping_threshold=clipping_threshold,
            min_dim_size_to_factor=min_dim_size_to_factor,
            factored=factored,
            layer_axis=_scanned_layers,
        ),
        optax.scale_by_learning_rate(schedule),
        *momentum,
        *decay,
    )
    return Optimizer(chain.init, chain.update, schedule)


def muon(
    learning_rate: LearningRate = 1e-3,
    *,
    beta: float = 0.95,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
) -> Optimizer:
    """Muon (Jordan et al. 2024), optax's: matrices move by their orthogonalised momentum, all else by AdamW.

    Matrices are the kernels of a T5's layers, scanned or not, and the maps of a hypernetwork; embeddings, the output
    projection, biases, scales, slots and adapters are AdamW's. A matrix's update has the root mean square that AdamW's
    would have (Liu et al. 2025, section 2.2), so one learning rate, AdamW's, serves both.

    Args:
      learning_rate: a number, or a function of the step.
      beta: of the matrices' momentum.
      b1, b2: of Adam, with Nesterov's momentum as well.
      weight_decay: decoupled, multiplied by the learning rate; on every parameter.
      clip_norm: gradients are scaled down to this global norm; None leaves them.
    """
    schedule = as_schedule(learning_rate)
    chain = optax.chain(
        *_clipping(clip_norm),
        contrib.muon(
            schedule,
            beta=beta,
            adam_b1=b1,
            adam_b2=b2,
            weight_decay=weight_decay,
            adam_weight_decay=weight_decay,
            muon_weight_dimension_numbers=_matrices,
            consistent_rms=0.2,
        ),
    )
    return Optimizer(chain.init, chain.update, schedule)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"adamw": adamw, "adafactor": adafactor, "muon": muon}


def make_optimizer(name: str = "adamw", learning_rate: LearningRate = 1e-3, **options: Any) -> Optimizer:
    """Returns the optimizer of that name; options are the named function's.

    Raises:
      ConfigError: an unknown name or option.
    """
    if name not in OPTIMIZERS:
        raise ConfigError(f"make_optimizer.name: expected one of {sorted(OPTIMIZERS)}, got {name!r}")
    try:
        return OPTIMIZERS[name](learning_rate, **options)
    except TypeError as error:
        raise ConfigError(f"make_optimizer(name={name!r}): {error}") from error


def as_schedule(learning_rate: LearningRate) -> Schedule:
    """Returns the function of the step that a number stands for."""
    if callable(learning_rate):
        return learning_rate
    if not isinstance(learning_rate, int | float) or not learning_rate >= 0:
        raise ConfigError(f"learning_rate: expected a non-negative number or a schedule, got {learning_rate!r}")
    return lambda step: jnp.full((), learning_rate, jnp.float32)


def at_step(opt_state: PyTree, step: Array) -> PyTree:
    """Returns the state of an optimizer with its learning-rate schedule at `step`; all else stays as it is.

    A skipped step leaves the whole state alone: a schedule that counted updates would lag behind the run.
    """

    def is_schedule(node: object) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    return jax.tree.map(
        lambda node: node._replace(count=step) if is_schedule(node) else node, opt_state, is_leaf=is_schedule
    )


def _clipping(clip_norm: float | None) -> list[optax.GradientTransformation]:
    if clip_norm is None:
        return []
    if not clip_norm > 0:
        raise ConfigError(f"clip_norm: expected a positive number or None, got {clip_norm!r}")
    return [optax.clip_by_global_norm(clip_norm)]


def _matrices(params: PyTree) -> PyTree:
    """The axes of each matrix that are its input and its output; None for what is none."""

    def of_leaf(key_path: Any, leaf: Any) -> contrib.MuonDimensionNumbers | None:
        *folders, name = trees.path_of(key_path).split(trees.SEPARATOR)
        if name == "kernel" and "logits_dense" not in folders:
            return contrib.MuonDimensionNumbers(0, leaf.ndim - 1)  # between them may stand the layers of a scanned T5
        if "heads" in folders and name.endswith(("_in", "_out")):
            return contrib.MuonDimensionNumbers(1, 2)  # behind the layers
        return contrib.MuonDimensionNumbers(0, 1) if name == "feedback" else None  # HART's, of its states

    return jax.tree.map_with_path(of_leaf, params)


def _scanned_layers(path: tuple[str, ...], shape: tuple[int, ...]) -> int | None:
    """The axis over which a scanned T5 stacks its layers; unrolled ones are called layers_0, layers_1, ..."""
    return LAYER_AXIS if "layers" in path and len(shape) > LAYER_AXIS else None
