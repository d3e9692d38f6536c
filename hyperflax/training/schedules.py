"""Learning-rate schedules: T5X's products of named factors, and the warm-up with cosine that hypernetworks like.

A factors string multiplies its factors; with t = max(0, step - step_offset) and w = warmup_steps they are

| factor | value |
|---|---|
| constant | base_learning_rate |
| linear_warmup | min(1, t / w) |
| linear_decay | base_learning_rate min(t / w, 1 + decay_factor (w - t)); has its own constant and warm-up |
| rsqrt_decay | 1 / sqrt(max(t, w)) |
| rsqrt_normalized_decay | sqrt(w) / sqrt(max(t, w)) |
| decay_every | decay_factor ^ floor(t / steps_per_decay) |
| cosine_decay | (1 + cos(pi frac(max(0, t - w) / steps_per_cycle))) / 2, starting anew every cycle |

>>> schedule = learning_rate_schedule("constant * rsqrt_decay", base_learning_rate=1.0, warmup_steps=10_000)
>>> float(schedule(0)), float(schedule(40_000))
(0.01, 0.005)
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from hyperflax.errors import ConfigError
from hyperflax.types import Array


def learning_rate_schedule(
    factors: str = "constant * linear_warmup * rsqrt_decay",
    base_learning_rate: float = 0.5,
    warmup_steps: int = 1000,
    decay_factor: float = 0.5,
    steps_per_decay: int = 20000,
    steps_per_cycle: int = 100000,
    step_offset: int = 0,
    min_learning_rate: float = 1e-8,
) -> Callable[[Array], Array]:
    """Returns step -> learning rate, a float32 scalar; arguments, names and defaults are T5X's.

    Args:
      factors: names of the module's table, joined by '*'.
      base_learning_rate: of `constant` and `linear_decay`.
      warmup_steps: w; 0 switches a warm-up off.
      decay_factor: slope per step of `linear_decay`, ratio of `decay_every`.
      steps_per_decay, steps_per_cycle: of `decay_every` and `cosine_decay`.
      step_offset: the step that counts as 0.
      min_learning_rate: the schedule never falls below it.

    Raises:
      ConfigError: an unknown factor.
    """
    w = warmup_steps
    known: dict[str, Callable[[Array], Array]] = {
        "constant": lambda t: jnp.float32(base_learning_rate),
        "linear_warmup": lambda t: jnp.minimum(1.0, _ratio(t, w)),
        "linear_decay": lambda t: base_learning_rate * jnp.minimum(_ratio(t, w), 1.0 + decay_factor * (w - t)),
        "rsqrt_decay": lambda t: 1.0 / jnp.sqrt(jnp.maximum(t, max(w, 1))),
        "rsqrt_normalized_decay": lambda t: jnp.sqrt(max(w, 1) / jnp.maximum(t, max(w, 1))),
        "decay_every": lambda t: decay_factor ** jnp.floor(t / steps_per_decay),
        "cosine_decay": lambda t: 0.5 * (1.0 + jnp.cos(jnp.pi * (jnp.maximum(0.0, (t - w) / steps_per_cycle) % 1.0))),
    }
    names = [name.strip() for name in factors.split("*")]
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"schedule factors '{factors}': unknown '{unknown[0]}', expected some of {', '.join(known)}")

    def schedule(step: Array) -> Array:
        t = jnp.maximum(0.0, jnp.asarray(step, jnp.float32) - step_offset)
        rate = jnp.float32(1.0)
        for name in names:
            rate = rate * known[name](t)
        return jnp.maximum(rate, min_learning_rate).astype(jnp.float32)

    return schedule


def warmup_cosine(
    peak: float = 1e-3, warmup_steps: int = 30, total_steps: int = 1500, final_fraction: float = 0.05
) -> Callable[[Array], Array]:
    """Returns step -> learning rate: linear from 0 to `peak`, then half a cosine down to `final_fraction * peak`.

    The first step already moves: the rate at step t of the warm-up is peak (t + 1) / warmup_steps.

    Raises:
      ConfigError: `total_steps` does not reach beyond the warm-up.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ConfigError(f"warmup_cosine: expected 0 <= warmup_steps < total_steps, got {warmup_steps}, {total_steps}")

    def schedule(step: Array) -> Array:
        t = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((t - warmup_steps) / (total_steps - warmup_steps), 0.0, 1.0)
        cosine = final_fraction + (1.0 - final_fraction) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        return jnp.float32(peak) * jnp.minimum((t + 1.0) / max(warmup_steps, 1), cosine)

    return schedule


def _ratio(t: Array, warmup_steps: int) -> Array:
    return t / warmup_steps if warmup_steps else jnp.float32(1.0)
