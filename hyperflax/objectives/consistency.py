"""Consistency: what is generated for one task should not depend on which of its examples were shown.

    mean over the task's other supports s of  mean((g(first support) - g(s))^2)

g is the hypernetwork's slot states, each at a mean square of one, or the adapters themselves. (Liang et al. 2023, HART:
parameters generated from different demonstrations of a task are pulled together. The distance is not published; mean
squared differences are ours, of states at one length: two that have nothing in common are at 2.) The same distance
between different tasks, each and the next one (`between_tasks`), stands beside it in the metrics: a generator that
ignores its support is perfectly consistent, and its distance between tasks is zero.

>>> distance(first, others)    # trees of leaves [...] and [others, ...]
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from hyperflax.types import Array, PyTree


def distance(first: PyTree, others: PyTree) -> Array:
    """Returns the mean squared difference over all values, a float32 scalar.

    Args:
      first: a tree of arrays.
      others: the same tree, each leaf with leading axes more; the mean goes over those as well.
    """
    squares = jax.tree.map(lambda a, b: jnp.sum(jnp.square(a.astype(jnp.float32) - b)), first, others)
    sizes = sum(leaf.size for leaf in jax.tree.leaves(others))
    return jax.tree.reduce(jnp.add, squares) / float(sizes)  # of a large model they are more than an int32 holds


def between_tasks(generated: PyTree) -> Array:
    """Returns the mean distance of every task's values from the next task's; leaves [task, ...].

    Training batches hold tasks as they were drawn. A report has its source's order, mostly that of names, in which the
    next task is often of a task's kin, as another prompt of its data set: the distance is less than that of two drawn
    at random, and the distance within tasks, divided by it, reads high, for all generators alike.
    """
    return distance(generated, jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=0), generated))
