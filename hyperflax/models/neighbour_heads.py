"""Heads that look at the next-door tokens from the start: how a T5 trained from scratch learns to copy early.

To copy, a model must find the place where the last few tokens stood before, so some head must first learn to look one
token back. Until it does, the loss of a small T5 on text transformations stands still for thousands of steps. The
relative-position bias has a bucket of its own for every near distance, so such heads can be there from the start: one
number each, which training is free to change. (What induction heads need, Olsson et al. 2022, section "K-composition";
giving it to the initial values is ours.)

>>> params = start_neighbour_heads(params, T5Config(...), strength=3.0)
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from hyperflax import trees
from hyperflax.errors import ConfigError
from hyperflax.models.relative_bias import bucket
from hyperflax.types import PyTree, T5Config

# Distances (key minus query) that the first and the second head prefer.
DISTANCES = {"encoder": (-1, 1), "decoder": (-1, -2)}


def start_neighbour_heads(params: PyTree, config: T5Config, strength: float) -> PyTree:
    """Returns the parameters of an unrolled T5 with `strength` added to two entries of each relative-position table.

    In the encoder head 0 prefers the previous token and head 1 the next one; in the decoder they prefer the previous
    and the one before it. Everything else stays as it is.

    Args:
      params: freshly initialised.
      config: of the T5; at least two heads.
      strength: added to the attention logits of those distances, in nats.

    Raises:
      ConfigError: fewer than two heads.
    """
    if config.num_heads < 2:
        raise ConfigError(f"start_neighbour_heads: expected at least 2 heads, got {config.num_heads}")

    def bias(path: str, leaf: PyTree) -> PyTree:
        if not path.endswith("rel_embedding"):
            return leaf
        stack = path.split("/")[0]
        table = jnp.asarray(leaf)  # on several hosts none may hold all of it
        for head, distance in enumerate(DISTANCES[stack]):
            column = int(
                bucket(
                    np.asarray(distance),
                    bidirectional=stack == "encoder",
                    num_buckets=config.num_buckets,
                    max_distance=config.max_distance,
                )
            )
            table = table.at[head, column].add(strength)
        return table

    return trees.map_with_path(bias, params)
