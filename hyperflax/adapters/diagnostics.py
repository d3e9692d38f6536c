"""How large an adapter is and of how many directions it makes use, layer by layer.

A generator can fail in ways that no score names: adapters that vanish, that grow without bound, or whose ranks all say
the same. Both figures follow from the singular values of what a slot stands for (a LoRA's `a b`, a prefix's keys and
values):

    norm = sqrt(sum s^2)                          over all slots of the layer
    effective rank = (sum s^2)^2 / sum s^4        the participation ratio, mean over the layer's slots

Both sums are traces of a small matrix, so nothing is decomposed: many batched decompositions in one program have
stopped XLA's thread pool for good on a machine with two cores (jax 0.10).

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
    sums: dict[str, list[tuple[Array, Array]]] = {}
    for path, leaves in groups(spec).items():
        layer = f"{leaves[0].stack}_{leaves[0].layer}"
        gram = kind_of(leaves[0]).gram(slots[path])
        sums.setdefault(layer, []).append((jnp.trace(gram), jnp.sum(gram * gram.T)))
    return {
        layer: LayerDiagnostics(
            jnp.sqrt(sum(squares for squares, _ in found)),
            sum((effective_rank(*one) for one in found), jnp.float32(0.0)) / len(found),
        )
        for layer, found in sums.items()
    }


def effective_rank(squares: Array, fourths: Array) -> Array:
    """Returns `squares^2 / fourths`, sums over singular values of their second and fourth powers; 0 if all are 0."""
    some = fourths > 0
    return jnp.where(some, jnp.square(squares) / jnp.where(some, fourths, 1.0), 0.0)
