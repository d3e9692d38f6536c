"""How large an adapter is and of how many directions it makes use, layer by layer.

A generator can fail in ways that no score names: adapters that vanish, that grow without bound, or whose ranks all say
the same. Both figures follow from the singular values of what a slot stands for (a LoRA's `a b`, a prefix's keys and
values):

    norm = sqrt(sum s^2)                                 over all slots of the layer
    effective rank = exp(-sum p log p),  p = s / sum s   mean over the layer's slots (Roy and Vetterli 2007)

>>> diagnostics(adapter.tree, adapter.spec)["decoder_3"].effective_rank    # between 1 and the rank
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from hyperflax.adapters.kinds import groups, kind_of
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.types import Array, PyTree


class LayerDiagnostics(NamedTuple):
    """Two float32 scalars.

    Attributes:
      norm: Frobenius norm of everything that is written for the layer.
      effective_rank: 1 where one direction does all, at most the rank or length; 0 where a slot is all zero.
    """

    norm: Array
    effective_rank: Array


def diagnostics(adapters: PyTree, spec: AdapterSpec) -> dict[str, LayerDiagnostics]:
    """Returns the figures of every layer, `encoder_0` ..., of one task's adapters; `vmap` it over many.

    Raises:
      AdapterError: the tree does not fit the spec.
    """
    spec.validate(adapters)
    slots: dict[str, dict[str, Array]] = {}
    for path, value in spec.flatten(adapters).items():
        slot, _, name = path.rpartition("/")
        slots.setdefault(slot, {})[name] = value
    values: dict[str, list[Array]] = {}
    for path, leaves in groups(spec).items():
        layer = f"{leaves[0].stack}_{leaves[0].layer}"
        values.setdefault(layer, []).append(kind_of(leaves[0]).singular_values(slots[path]))
    return {
        layer: LayerDiagnostics(
            jnp.sqrt(sum(jnp.sum(jnp.square(s)) for s in found)),
            sum(effective_rank(s) for s in found) / len(found),
        )
        for layer, found in values.items()
    }


def effective_rank(singular_values: Array) -> Array:
    """Returns exp of the entropy of the values' shares; 0 if all are 0."""
    total = jnp.sum(singular_values)
    shares = singular_values / jnp.where(total > 0, total, 1.0)
    entropy = -jnp.sum(jnp.where(shares > 0, shares * jnp.log(jnp.where(shares > 0, shares, 1.0)), 0.0))
    return jnp.where(total > 0, jnp.exp(entropy), 0.0)
