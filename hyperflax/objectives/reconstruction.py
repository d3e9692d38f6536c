"""Reconstruction: what is generated for a task should be near the adapter that training on the task itself has found.

    ||W - W*||^2 / ||W*||^2        W generated, W* trained, over all that the two write

W is what a slot stands for, not its factors: `a b` of a LoRA is the same for many `a` and `b`, and two trainings find
two of them. The quotient is 0 where the two agree and 1 for an adapter that does nothing, whatever the model's size, so
one weight suits all. Used beside the token loss with a small weight: 0.2 helps, 1.2 diverges, is what HyperLoRA found
(Lv et al. 2024); TAGI (Liao et al. 2024) aligns the parameters themselves.

>>> reconstruction(generated, trained, spec)    # of one task
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from hyperflax.adapters.diagnostics import squared_distance, squared_norm
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.types import Array, PyTree


def reconstruction(generated: PyTree, trained: PyTree, spec: AdapterSpec) -> Array:
    """Returns the relative squared distance, a float32 scalar; 0 where `trained` is all zero. It gets no gradient.

    Args:
      generated, trained: adapters of one task, as layers read them.
      spec: which both fit.

    Raises:
      AdapterError: one that does not fit.
    """
    trained = jax.lax.stop_gradient(trained)
    size = squared_norm(trained, spec)
    some = size > 0
    return jnp.where(some, squared_distance(generated, trained, spec) / jnp.where(some, size, 1.0), 0.0)
