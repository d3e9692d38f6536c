"""The projection's primitive is `x @ w`, with its gradients, under every transformation."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperflax.models.matmul import project

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 2, 5, 4)).astype(np.float32)
W = RNG.normal(size=(3, 4, 6)).astype(np.float32)


def plain(x: jax.Array, w: jax.Array) -> jax.Array:
    return x @ w


def over_rows(f: Callable) -> Callable:
    return lambda: jax.value_and_grad(lambda x, w: jnp.sum(jax.vmap(f, (0, None))(x, w) ** 3), (0, 1))(X, W[0])


def over_both(f: Callable) -> Callable:
    return lambda: jax.value_and_grad(lambda x, w: jnp.sum(jax.vmap(f)(x, w) ** 3), (0, 1))(X, W)


def over_weights(f: Callable) -> Callable:
    return lambda: jax.value_and_grad(lambda x, w: jnp.sum(jax.vmap(f, (None, 0))(x, w) ** 3), (0, 1))(X[0], W)


def gradient_of_each(f: Callable) -> Callable:
    return lambda: jax.vmap(jax.grad(lambda x, w: jnp.sum(f(x, w) ** 3), (0, 1)), (1, None), 1)(X, W[0])


def twice(f: Callable) -> Callable:
    return lambda: jax.grad(lambda w: jnp.sum(jax.grad(lambda x: jnp.sum(f(x, w) ** 3))(X) ** 2))(W[0])


def forward_mode(f: Callable) -> Callable:
    return lambda: jax.jvp(jax.vmap(f, (1, None), 2), (X, W[0]), (X + 1, W[1]))


def recomputed(f: Callable) -> Callable:
    return lambda: jax.grad(jax.checkpoint(lambda w: jnp.sum(f(X, w) ** 3)))(W[0])


@pytest.mark.parametrize("use", [over_rows, over_both, over_weights, gradient_of_each, twice, forward_mode, recomputed])
@pytest.mark.parametrize("compiled", [False, True])
def test_it_is_the_matrix_product(use: Callable, compiled: bool) -> None:
    got, expected = (jax.jit(use(f)) if compiled else use(f) for f in (project, plain))
    for a, b in zip(jax.tree.leaves(got()), jax.tree.leaves(expected()), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_the_weights_gradient_is_one_flat_product_under_vmap() -> None:
    """Contracting two axes instead is what costs time on CPU."""
    grad = jax.grad(lambda w: jnp.sum(jax.vmap(lambda x: project(x, w))(X) ** 2))
    contracted = [
        eqn.params["dimension_numbers"][0][0]
        for eqn in jax.make_jaxpr(grad)(W[0]).eqns
        if eqn.primitive.name == "dot_general"
    ]
    assert contracted == [(0,)]
