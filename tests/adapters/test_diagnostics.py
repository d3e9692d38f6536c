"""Norm and effective rank: singular values against numpy's of the dense matrix, and closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperflax import trees
from hyperflax.adapters.diagnostics import diagnostics, effective_rank, squared_distance, squared_norm
from hyperflax.adapters.kinds import build_spec
from hyperflax.adapters.lora import LoRA
from hyperflax.adapters.prefix import Prefix
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.errors import AdapterError
from tests.adapters.micro import CONFIG, KINDS, random_tree

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def squares_of(gram: jnp.ndarray) -> np.ndarray:
    """Squared singular values, largest first."""
    return np.sort(np.linalg.eigvals(np.asarray(gram, np.float64)).real)[::-1]


@pytest.mark.parametrize(("rows", "rank", "columns"), [(12, 3, 8), (12, 8, 8), (4, 6, 9), (5, 1, 5)])
def test_lora_has_the_singular_values_of_its_product(rows: int, rank: int, columns: int) -> None:
    slot = {"a": normal(rows, rank), "b": normal(rank, columns)}
    wanted = np.linalg.svd(slot["a"].astype(np.float64) @ slot["b"], compute_uv=False) ** 2
    wanted = np.pad(wanted, (0, max(rank - len(wanted), 0)))[:rank]
    np.testing.assert_allclose(squares_of(LoRA.gram(slot)), wanted, rtol=1e-4, atol=1e-4 * wanted[0])


def test_a_prefix_has_the_singular_values_of_its_unmasked_positions() -> None:
    key, value = normal(5, 2, 4), normal(5, 2, 4)
    mask = np.array([0, 1, 1, 0, 1], np.float32)
    dense = np.concatenate([key.reshape(5, 8), value.reshape(5, 8)], axis=1)
    wanted = np.linalg.svd(dense, compute_uv=False) ** 2
    np.testing.assert_allclose(squares_of(Prefix.gram({"key": key, "value": value})), wanted, rtol=1e-4)
    masked = squares_of(Prefix.gram({"key": key, "value": value, "mask": mask}))
    np.testing.assert_allclose(masked[:3], np.linalg.svd(dense[mask > 0], compute_uv=False) ** 2, rtol=1e-4)
    np.testing.assert_allclose(masked[3:], 0, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [([2.0, 2.0, 2.0], 3.0), ([7.0, 0.0, 0.0], 1.0), ([0.0, 0.0], 0.0), ([3.0, 1.0], 100 / 82)],
)
def test_effective_rank_in_closed_form(values: list[float], wanted: float) -> None:
    powers = [jnp.sum(jnp.array(values) ** power) for power in (2, 4)]
    assert float(effective_rank(*powers)) == pytest.approx(wanted, rel=1e-6)


def dense(slot: dict[str, np.ndarray]) -> np.ndarray:
    """What a slot stands for, as one vector."""
    first, *rest = (np.asarray(slot[name], np.float64) for name in sorted(slot))  # a, b; down, up; key, value
    if set(slot) in ({"a", "b"}, {"down", "up"}):
        return (first @ rest[0]).ravel()
    if set(slot) in ({"key", "value"}, {"embedding"}):
        return np.concatenate([leaf.ravel() for leaf in (first, *rest)])
    assert not rest  # full: a sum of terms
    return first.sum(axis=0).ravel()


def slots_of(tree: dict, spec: AdapterSpec) -> dict[str, dict[str, np.ndarray]]:
    slots: dict[str, dict[str, np.ndarray]] = {}
    for path, value in spec.flatten(tree).items():
        slots.setdefault(path.rpartition("/")[0], {})[path.rpartition("/")[2]] = value
    return slots


@pytest.mark.parametrize("name", KINDS)
def test_the_distance_is_that_of_what_adapters_stand_for(name: str) -> None:
    spec = build_spec(KINDS[name], CONFIG)
    first, second = random_tree(spec, 0), random_tree(spec, 1)
    ours, theirs = slots_of(first, spec), slots_of(second, spec)
    wanted = sum(np.sum((dense(ours[slot]) - dense(theirs[slot])) ** 2) for slot in ours)
    np.testing.assert_allclose(jax.jit(squared_distance, static_argnums=2)(first, second, spec), wanted, rtol=1e-4)
    sizes = sum(np.sum(dense(slot) ** 2) for slot in ours.values())
    np.testing.assert_allclose(squared_norm(first, spec), sizes, rtol=1e-4)
    np.testing.assert_allclose(squared_distance(first, first, spec), 0, atol=1e-5 * sizes)
    np.testing.assert_allclose(squared_distance(first, spec.unflatten(
        {path: 0 * value for path, value in spec.flatten(first).items()}), spec), sizes, rtol=1e-4)  # fmt: skip


def test_the_distance_does_not_see_by_which_factors_a_product_is_written() -> None:
    spec = build_spec(LoRA(rank=2), CONFIG)
    tree = spec.flatten(random_tree(spec, 0))
    turn = np.array([[2.0, 1.0], [1.0, 1.0]], np.float32)
    turned = {path: leaf @ turn if path.endswith("/a") else np.linalg.inv(turn) @ leaf for path, leaf in tree.items()}
    other, same = spec.unflatten(turned), spec.unflatten(tree)
    assert float(squared_distance(same, other, spec)) < 1e-5 * float(squared_norm(same, spec))
    plain = sum(np.sum((turned[path] - tree[path]) ** 2) for path in tree)
    assert plain > 1.0


def test_a_distance_between_masked_prefixes_is_refused() -> None:
    spec = build_spec(Prefix(length=2), CONFIG)
    tree = random_tree(spec, 0)
    with pytest.raises(AdapterError, match="expected no masks to compare"):
        squared_distance(tree, spec.identity(), spec)


def test_layers_are_told_apart() -> None:
    spec = build_spec(LoRA(rank=2, sites=("*/query", "*/value")), CONFIG)
    tree = spec.flatten(random_tree(spec, 0))
    for path in tree:
        if path.startswith("encoder/layers_0") and path.endswith("/b"):
            tree[path] = np.zeros_like(tree[path])
    found = diagnostics(trees.unflatten(tree), spec)
    assert set(found) == {f"{stack}_{layer}" for stack, layer in spec.layers()}
    assert (float(found["encoder_0"].norm), float(found["encoder_0"].effective_rank)) == (0.0, 0.0)
    squares = 0.0
    for path, leaf in tree.items():
        if path.startswith("decoder/layers_0") and path.endswith("/a"):
            squares += np.sum((np.asarray(leaf, np.float64) @ tree[path[:-1] + "b"]) ** 2)
    assert float(found["decoder_0"].norm) == pytest.approx(squares**0.5, rel=1e-4)
    assert 1.0 < float(found["decoder_0"].effective_rank) <= 2.0 + 1e-5


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_has_them_under_jit_and_vmap(name: str) -> None:
    spec = build_spec(KINDS[name], CONFIG)
    one = random_tree(spec, 0)
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), one)
    found = jax.jit(jax.vmap(lambda tree: diagnostics(tree, spec)))(many)
    alone = diagnostics(one, spec)
    for layer, (norm, rank) in found.items():
        np.testing.assert_allclose(norm[0], alone[layer].norm, rtol=1e-3)
        np.testing.assert_allclose(rank[0], alone[layer].effective_rank, rtol=1e-3)
        assert float(norm[1]) > 1.5 * float(norm[0])
        assert float(rank[0]) >= 1.0


def test_a_tree_of_another_spec_is_refused() -> None:
    spec = build_spec(LoRA(rank=2), CONFIG)
    with pytest.raises(AdapterError):
        diagnostics(random_tree(build_spec(LoRA(rank=3), CONFIG), 0), spec)
