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
from hyperflax.errors import AdapterError
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
    slots = _slots(adapters, spec)
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


def squared_norm(adapters: PyTree, spec: AdapterSpec) -> Array:
    """Returns the squared Frobenius norm of everything that one task's adapters stand for, a float32 scalar.

    Raises:
      AdapterError: the tree does not fit the spec.
    """
    slots = _slots(adapters, spec)
    grams = (kind_of(leaves[0]).gram(slots[path]) for path, leaves in groups(spec).items())
    return sum(map(jnp.trace, grams), jnp.float32(0.0))


def squared_distance(first: PyTree, second: PyTree, spec: AdapterSpec) -> Array:
    """Returns the squared Frobenius norm of the difference between what two adapters stand for, a float32 scalar.

    Of LoRA that is `||a b - a' b'||^2`: it does not see by which factors a product is written. It is computed from
    matrices of twice the rank.

    Raises:
      AdapterError: a tree that does not fit the spec, or has optional leaves (masks).
    """
    ours, theirs = _slots(first, spec), _slots(second, spec)
    total = jnp.float32(0.0)
    for path, leaves in groups(spec).items():
        kind, pair = kind_of(leaves[0]), (ours[path], theirs[path])
        if any(len(slot) > len(leaves) for slot in pair):
            raise AdapterError(f"adapters at '{path}': expected no masks to compare, got some")
        if "interpolate" in kind.refuses:  # what it stands for is its leaves
            difference = {name: value.astype(jnp.float32) - pair[1][name] for name, value in pair[0].items()}
        else:
            difference = kind.mix_slots(pair, (1.0, -1.0))
        total += jnp.trace(kind.gram(difference))
    return total


def _slots(adapters: PyTree, spec: AdapterSpec) -> dict[str, dict[str, Array]]:
    """The leaves of each slot by their names. Raises AdapterError where the tree does not fit the spec."""
    spec.validate(adapters)
    slots: dict[str, dict[str, Array]] = {}
    for path, value in spec.flatten(adapters).items():
        slot, _, name = path.rpartition("/")
        slots.setdefault(slot, {})[name] = value
    return slots


def effective_rank(squares: Array, fourths: Array) -> Array:
    """Returns `squares^2 / fourths`, sums over singular values of their second and fourth powers; 0 if all are 0."""
    some = fourths > 0
    return jnp.where(some, jnp.square(squares) / jnp.where(some, fourths, 1.0), 0.0)
