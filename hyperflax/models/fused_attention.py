"""Attention over whole sequences as one kernel of cuDNN, which keeps scores and weights out of the GPU's memory.

Written out, a layer stores scores and weights [rows, heads, queries, keys] for its gradient and goes over them some ten
times; at 512 tokens that was more than a quarter of a training step at the width of T5 1.1 large, on an H200
(docs/peers.md). The kernel takes the position bias as T5 has it, one for all rows, and gives its gradient. A mask for
each row would be a bias for each row and as large as the scores, so only what lengths can say is fused
(`masks.Trailing`): no packed rows, no prefixes.

>>> if fits(q, k):
...     y = attend(q, k, v, bias, Trailing(lengths))
"""

from __future__ import annotations

import functools
import re
from typing import Literal

import jax
import jax.numpy as jnp

from hyperflax.models.masks import Trailing
from hyperflax.types import Array

IMPLEMENTATION: Literal["cudnn", "xla"] = "cudnn"  # of `jax.nn.dot_product_attention`
SMALLEST = 128 * 128  # queries times keys; the shortest that was measured
CAPABILITY = (8, 0)  # of the GPU, least for this kernel


def fits(q: Array, k: Array) -> bool:
    """Whether there is a kernel that takes q [rows, queries, heads, head_dim] and k [rows, keys, heads, head_dim].

    Its gradient wants even lengths where there is a bias, and channels by eights.
    """
    queries, keys, head_dim = q.shape[1], k.shape[1], q.shape[-1]
    shape = queries * keys >= SMALLEST and not queries % 2 and not keys % 2 and not head_dim % 8 and head_dim <= 128
    return shape and q.dtype == jnp.bfloat16 and available()


@functools.cache
def available() -> bool:
    """Whether JAX computes on GPUs that have the kernel."""
    if jax.default_backend() != "gpu":
        return False
    found = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(jax.local_devices()[0], "compute_capability", "")))
    return found is not None and tuple(map(int, found.groups())) >= CAPABILITY


def attend(q: Array, k: Array, v: Array, bias: Array | None, trailing: Trailing) -> Array:
    """T5's attention: `softmax(q k + bias) v` over the keys that `trailing` allows.

    Args:
      q: [rows, queries, heads, head_dim].
      k, v: [rows, keys, heads, head_dim].
      bias: [heads, queries, keys], or None.
      trailing: see `masks.py`.

    Returns:
      The shape of q. Rows of padding hold anything finite.
    """
    queries = keys = None
    if trailing.keys is not None:
        # A row without any key would be NaN. Where tasks are mapped over, both lengths have to have their axis.
        keys = jnp.maximum(trailing.keys, 1)
        queries = 0 * keys + q.shape[1]
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        None if bias is None else bias.astype(q.dtype)[None],
        scale=1.0,
        is_causal=trailing.causal,
        query_seq_lengths=queries,
        key_value_seq_lengths=keys,
        implementation=IMPLEMENTATION,
    )
