"""Starting from an adapter of another size: the same effect, the nearest one, or a refusal."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperflax import trees
from hyperflax.adapters import Full, LoRA, ParallelMLP, Prefix, SoftPrompt, build_spec
from hyperflax.adapters.start import start_from
from hyperflax.errors import AdapterError
from tests.adapters.micro import KINDS, random_tree
from tests.adapters.micro import SHALLOW as CONFIG

KEY = jax.random.key(0)
FEW = ("encoder/attention/query", "decoder/mlp/wo")
places = st.sampled_from(["encoder/attention/query", "decoder/*/value", "*/mlp/wi_0", "*/wo"])


def dense(tree, spec) -> dict[str, np.ndarray]:
    """`{module: a b}` in float64."""
    flat = {path: np.asarray(x, np.float64) for path, x in spec.flatten(tree).items()}
    modules = {leaf.module for leaf in spec.leaves if leaf.reader == "lora"}
    return {module: flat[f"{module}/lora/a"] @ flat[f"{module}/lora/b"] for module in modules}


def started(tree, spec, target):
    out = target.materialise(start_from(tree, spec, target, KEY))
    target.validate(out)
    return out


@pytest.mark.parametrize("row", KINDS)
def test_the_same_spec_starts_where_the_adapter_is(row):
    spec = build_spec(KINDS[row], CONFIG)
    tree = random_tree(spec, 0)
    for path, x in trees.flatten(started(tree, spec, spec)).items():
        # Dividing by alpha / rank and multiplying by it again rounds where that is no power of two.
        np.testing.assert_allclose(x, trees.flatten(tree)[path], rtol=1e-6, err_msg=path)


@given(st.lists(places, min_size=1, max_size=2, unique=True), st.lists(places, max_size=2),
       st.integers(1, 4), st.integers(0, 4), st.floats(0.5, 8), st.floats(0.5, 8))  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_more_ranks_and_more_places_do_the_same_and_can_all_learn(sites, more, rank, further, alpha, other_alpha):
    spec = build_spec(LoRA(rank=rank, alpha=alpha, sites=tuple(sites)), CONFIG)
    wide = build_spec(LoRA(rank=rank + further, alpha=other_alpha, sites=(*sites, *more)), CONFIG)
    tree = random_tree(spec, 1)
    out, before = started(tree, spec, wide), dense(tree, spec)
    for module, product in dense(out, wide).items():
        expected = before.get(module, np.zeros_like(product))
        np.testing.assert_allclose(product, expected, rtol=1e-5, atol=1e-6)
    for path, x in trees.flatten(out).items():
        if path.endswith("/a"):
            assert (np.abs(x).max(axis=0) > 0).all(), f"{path}: a column of zeros would never get a gradient"


@pytest.mark.parametrize("known", [0, 1])
def test_what_a_lower_rank_has_too_much_can_learn(known):
    """A start whose `b` is zero, as of training that has not reached a place, or of a product of rank 1."""
    spec, narrow = (build_spec(LoRA(rank=rank, alpha=rank, sites=FEW), CONFIG) for rank in (5, 3))
    flat = trees.flatten(random_tree(spec, 0))
    tree = trees.unflatten(
        {path: x * (np.arange(5)[:, None] < known) if path.endswith("/b") else x for path, x in flat.items()}
    )
    out = started(tree, spec, narrow)
    for module, product in dense(out, narrow).items():
        np.testing.assert_allclose(product, dense(tree, spec)[module], rtol=1e-4, atol=1e-5)
    fresh = trees.flatten(narrow.init(KEY))
    for path, x in trees.flatten(out).items():
        if path.endswith("/a"):
            np.testing.assert_array_equal(x[:, known:], fresh[path][:, known:])
        else:
            assert not x[known:].any()


@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 100))
@settings(max_examples=15, deadline=None)
def test_fewer_ranks_are_the_best_there_are(rank, fewer, seed):
    """Eckart and Young: what is lost is the norm of the singular values left out."""
    lower = max(1, rank - fewer)
    spec = build_spec(LoRA(rank=rank, sites=FEW), CONFIG)
    narrow = build_spec(LoRA(rank=lower, alpha=3.0, sites=FEW), CONFIG)
    tree = random_tree(spec, seed)
    before, after = dense(tree, spec), dense(started(tree, spec, narrow), narrow)
    for module, product in before.items():
        values = np.linalg.svd(product, compute_uv=False)
        lost = np.sqrt((values[lower:] ** 2).sum())
        assert np.linalg.norm(product - after[module]) == pytest.approx(lost, rel=1e-3, abs=1e-5)


def test_a_rank_beyond_the_projection_loses_nothing():
    wide = build_spec(LoRA(rank=14, sites=FEW), CONFIG)  # projections of 12 x 8 and 16 x 12
    tree = random_tree(wide, 3)
    narrow = build_spec(LoRA(rank=13, sites=FEW), CONFIG)
    for module, product in dense(started(tree, wide, narrow), narrow).items():
        np.testing.assert_allclose(product, dense(tree, wide)[module], rtol=1e-3, atol=1e-4)


def test_what_is_added_beside_lora_starts_at_the_identity():
    spec, more = build_spec(LoRA(rank=2), CONFIG), build_spec((LoRA(rank=2), ParallelMLP(), Full()), CONFIG)
    out = trees.flatten(started(random_tree(spec, 0), spec, more))
    assert not any(x.any() for path, x in out.items() if path.endswith("/up") or "/full/" in path)


@pytest.mark.parametrize(
    ("kinds", "target", "told"),
    [
        (LoRA(), Prefix(), r"the start has lora at 'encoder/layers_0/attention/query/lora' \(10 such places\), where"),
        (
            LoRA(),
            LoRA(sites=FEW),
            r"the start has lora at '.*/value/lora'.* where what is to be trained has nothing",
        ),
        (LoRA(), (LoRA(), Prefix()), r"prefix at '.*/prefix': the start has nothing there, and no prefix is without"),
        (LoRA(), (LoRA(), SoftPrompt()), r"soft_prompt at 'encoder/soft_prompt': the start has nothing there"),
        (Prefix(length=3), Prefix(length=4), r"prefix at '.*/prefix': expected length 3 as the start has, got 4"),
        (SoftPrompt(length=3), SoftPrompt(length=2), r"soft_prompt at '.*': expected length 3"),
        (ParallelMLP(bottleneck=3), ParallelMLP(bottleneck=4), r"parallel_mlp at '.*': expected bottleneck 3"),
        (LoRA(rank=2), LoRA(rank=2, alpha=0.0), r"leaf '.*/b': a scale of 0 undoes every start"),
    ],
)
def test_anything_else_is_refused_with_the_place(kinds, target, told):
    spec = build_spec(kinds, CONFIG)
    with pytest.raises(AdapterError, match=told):
        start_from(random_tree(spec, 0), spec, build_spec(target, CONFIG), KEY)


def test_an_adapter_of_another_base_or_with_masked_positions_is_refused():
    spec = build_spec(LoRA(rank=2), CONFIG)
    with pytest.raises(AdapterError, match=r"lora/a': shapes \(16, 2\) and \(12, 2\) are of different base models"):
        start_from(random_tree(spec, 0), spec, build_spec(LoRA(rank=2), CONFIG.replace(emb_dim=16)), KEY)
    prompt = build_spec(SoftPrompt(length=2), CONFIG)
    tree = random_tree(prompt, 0)
    tree["encoder"]["soft_prompt"]["mask"] = np.array([0, 1], np.float32)
    with pytest.raises(AdapterError, match="mask': masked positions are not trained"):
        start_from(tree, prompt, prompt, KEY)
