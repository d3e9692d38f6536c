"""Properties and closed forms of the forward pass."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperflax import trees
from hyperflax.errors import HyperflaxError
from hyperflax.models.attention import Attention
from hyperflax.models.cache import write_position
from hyperflax.models.layers import RMSNorm
from hyperflax.models.relative_bias import PositionBias, bucket
from hyperflax.models.t5 import T5
from tests.models import t5_cases as cases

MODEL = T5(cases.MICRO)


@functools.cache
def params() -> Any:
    return cases.random_params(cases.MICRO)


@functools.partial(jax.jit, static_argnames=("model", "method"))
def apply(model: T5, variables: Any, *args: Any, method: str = "__call__", **options: Any) -> jax.Array:
    return model.apply(variables, *args, method=method, **options)


def ids(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(2, 64, shape).astype(np.int32)


def test_packed_examples_do_not_see_each_other() -> None:
    source, target = ids(3, 5), ids(3, 4, seed=1)
    apart = apply(MODEL, {"params": params()}, source, target, target)
    together = apply(
        MODEL,
        {"params": params()},
        source.reshape(1, -1),
        target.reshape(1, -1),
        target.reshape(1, -1),
        encoder_segment_ids=np.repeat([[1, 2, 3]], 5, axis=1),
        decoder_segment_ids=np.repeat([[1, 2, 3]], 4, axis=1),
    )
    np.testing.assert_allclose(together.reshape(apart.shape), apart, rtol=1e-4, atol=1e-4)


def test_padding_and_the_future_do_not_matter() -> None:
    source, target = ids(2, 6), ids(2, 5, seed=1)
    plain = apply(MODEL, {"params": params()}, source, target, target)
    wide = [np.pad(x, ((0, 0), (0, 3))) for x in (source, target, target)]
    np.testing.assert_allclose(apply(MODEL, {"params": params()}, *wide)[:, :5], plain, rtol=1e-4, atol=1e-5)
    later = target.copy()
    later[:, 3:] = 7
    np.testing.assert_allclose(
        apply(MODEL, {"params": params()}, source, later, target)[:, :3], plain[:, :3], rtol=1e-4, atol=1e-5
    )


def test_decoder_rows_may_share_an_input() -> None:
    source, target = ids(2, 6), ids(6, 5, seed=1)
    encoded = apply(MODEL, {"params": params()}, source, method="encode")
    shared = apply(MODEL, {"params": params()}, encoded, source, target, target, method="decode")
    repeated = apply(MODEL, {"params": params()}, np.repeat(source, 3, axis=0), target, target)
    np.testing.assert_allclose(shared, repeated, rtol=1e-4, atol=1e-5)


def test_slots_see_all_slots() -> None:
    source = ids(1, 6)
    encoded = apply(MODEL, {"params": params()}, source, method="encode")
    slots = np.random.default_rng(0).normal(size=(1, 4, 16)).astype(np.float32)
    changed = slots.copy()
    changed[:, -1] += 1.0

    @functools.partial(jax.jit, static_argnames="bidirectional")
    def run(slots: jax.Array, **options: bool) -> jax.Array:
        return MODEL.apply({"params": params()}, slots, encoded, source, method="decode_embeddings", **options)

    assert (np.abs(run(changed) - run(slots)).max((0, 2)) > 1e-6).all()
    # Without a position bias a permutation of the slots permutes their states.
    straight = run(slots, bidirectional=False)
    np.testing.assert_allclose(run(slots[:, ::-1], bidirectional=False), straight[:, ::-1], rtol=1e-4, atol=1e-5)
    assert np.abs(run(slots[:, ::-1]) - run(slots)[:, ::-1]).max() > 1e-3


def bias_and_its_closed_form(bidirectional: bool, **options: Any) -> tuple[PositionBias, Any]:
    table = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    bias = PositionBias.create(jnp.asarray(table), length=11, bidirectional=bidirectional, max_distance=6, **options)

    def expected(keys: np.ndarray, queries: np.ndarray) -> np.ndarray:
        distance = keys[None, :] - queries[:, None]
        return table[:, bucket(distance, bidirectional=bidirectional, num_buckets=8, max_distance=6)]

    return bias, expected


@pytest.mark.parametrize("bidirectional", [True, False])
def test_position_bias_is_the_table_at_each_bucket(bidirectional: bool) -> None:
    bias, expected = bias_and_its_closed_form(bidirectional)
    for keys, got in ((np.arange(11), bias.own), (np.arange(-5, 0), bias.preceding(5))):
        np.testing.assert_array_equal(got, expected(keys, np.arange(11)))


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("index", "place"), [(0, None), (4, None), (10, None), (0, 7), (10, 3)])
def test_position_bias_while_decoding_is_that_of_the_keys_written_before(
    bidirectional: bool, index: int, place: int | None
) -> None:
    """Key `index - age` stands `age` places before the query's in the ring; none was written below position 0."""
    at = None if place is None else jnp.int32(place)
    bias, expected = bias_and_its_closed_form(bidirectional, index=jnp.int32(index), place=at)
    keys = np.arange(index + 1)
    places = ((index if place is None else place) - (index - keys)) % 11
    np.testing.assert_array_equal(bias.own[:, :, places], expected(keys, np.array([index])))
    np.testing.assert_array_equal(bias.preceding(5), expected(np.arange(-5, 0), np.array([index])))


def test_attention_with_equal_scores_is_a_mean() -> None:
    """A zero query weighs all keys alike: the output is the mean of the values it may see, prefix included."""
    attention = Attention(cases.MICRO)
    x = np.random.default_rng(0).normal(size=(1, 5, 16)).astype(np.float32)
    kernels = {name: {"kernel": np.eye(16, dtype=np.float32)} for name in ("key", "value", "out")}
    variables = {"params": kernels | {"query": {"kernel": np.zeros((16, 16), np.float32)}}}
    mask = np.array([1, 1, 1, 0, 0], bool)[None, None, None]
    mean = x[0, :3].mean(0)
    np.testing.assert_allclose(attention.apply(variables, x, x, mask, None)[0, 2], mean, rtol=1e-5)
    prefix = np.random.default_rng(1).normal(size=(2, 2, 8)).astype(np.float32)
    slot = {"key": prefix, "value": prefix, "mask": np.array([0.0, 1.0])}
    got = attention.apply(variables | {"adapters": {"prefix": slot}}, x, x, mask, None)[0, 2]
    np.testing.assert_allclose(got, (3 * mean + prefix[1].reshape(-1)) / 4, rtol=1e-4, atol=1e-6)


def test_rms_norm_gives_unit_mean_square() -> None:
    x = np.random.default_rng(0).normal(3.0, 2.0, (4, 64)).astype(np.float32)
    y = RMSNorm().apply({"params": {"scale": np.full(64, 2.0, np.float32)}}, x)
    np.testing.assert_allclose(np.mean(np.square(y), axis=-1), 4.0, rtol=1e-4)


def test_initial_values_have_t5x_spreads() -> None:
    config = cases.MICRO.replace(vocab_size=4096, emb_dim=256, num_heads=8, head_dim=32, mlp_dim=512)
    tokens = jnp.ones((1, 2), jnp.int32)
    flat = trees.flatten(jax.jit(T5(config).init)(jax.random.key(0), tokens, tokens)["params"])
    fan_in = 1 / math.sqrt(256)
    expected = {
        "token_embedder/embedding": 1.0,
        "encoder/layers_0/attention/query/kernel": fan_in / math.sqrt(32),
        "encoder/layers_1/attention/key/kernel": fan_in,
        "decoder/layers_0/encoder_decoder_attention/out/kernel": fan_in,
        "decoder/layers_0/mlp/wi_0/kernel": fan_in,
        "decoder/layers_1/mlp/wo/kernel": 1 / math.sqrt(512),
        "decoder/logits_dense/kernel": fan_in,
        "encoder/relpos_bias/rel_embedding": math.sqrt(1 / ((8 + 32) / 2)),
    }
    for path, spread in expected.items():
        np.testing.assert_allclose(
            np.std(flat[path]), spread, rtol=0.1 if flat[path].size < 1000 else 0.03, err_msg=path
        )
    assert all((flat[path] == 1).all() for path in flat if path.endswith("scale"))


def test_dropout_only_on_request() -> None:
    model = T5(cases.MICRO.replace(dropout_rate=0.5))
    source, target = ids(2, 6), ids(2, 5, seed=1)
    plain = apply(MODEL, {"params": params()}, source, target)
    np.testing.assert_array_equal(apply(model, {"params": params()}, source, target), plain)
    run = jax.jit(
        lambda key: model.apply({"params": params()}, source, target, enable_dropout=True, rngs={"dropout": key})
    )
    one, same, other = run(jax.random.key(0)), run(jax.random.key(0)), run(jax.random.key(1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3
    assert np.abs(one - plain).max() > 1e-3


def test_layers_that_differ_in_their_variables_only_are_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    config = cases.MICRO.replace(mlp_dim=24, num_encoder_layers=3, num_decoder_layers=4, dropout_rate=0.1)
    model, variables = T5(config), {"params": cases.random_params(config)}
    traced: list[str] = []
    attend = Attention._attend

    def counted(self: Attention, *args: Any) -> jax.Array:
        traced.append("/".join(self.path))
        return attend(self, *args)

    monkeypatch.setattr(Attention, "_attend", counted)
    source, target = ids(2, 6), ids(2, 5, seed=1)
    once = jax.jit(model.apply)(variables, source, target)
    assert len(traced) == 1 + 2
    traced.clear()
    # Activations that are captured have the names of their layers, so each of them runs for itself.
    captured = jax.jit(functools.partial(model.apply, capture_intermediates=True, mutable=["intermediates"]))
    every, seen = captured(variables, source, target)
    assert len(traced) == 3 + 2 * 4
    assert {"layers_0", "layers_1", "layers_2"} <= set(seen["intermediates"]["encoder"])
    np.testing.assert_allclose(once, every, rtol=1e-5, atol=1e-5)
    traced.clear()
    dropped = functools.partial(model.apply, enable_dropout=True)
    jax.eval_shape(dropped, variables, source, target, rngs={"dropout": jax.random.key(0)})
    assert len(traced) == 3 + 2 * 4


def test_wrong_shapes_are_named() -> None:
    source, target = ids(2, 6), ids(2, 5)
    with pytest.raises(HyperflaxError, match=r"encoder_input_tokens: expected \[batch, length\], got shape"):
        MODEL.apply({"params": params()}, source[None], target)
    with pytest.raises(HyperflaxError, match="expected a multiple of the 2 encoded rows"):
        MODEL.apply({"params": params()}, source, ids(3, 5))
    with pytest.raises(HyperflaxError, match="decoder_segment_ids"):
        MODEL.apply({"params": params()}, source, target, encoder_segment_ids=np.ones_like(source))


@pytest.mark.parametrize("shared_index", [True, False])
def test_cache_writes_under_vmap(shared_index: bool) -> None:
    cache = np.zeros((3, 2, 5, 4), np.float32)
    update = np.random.default_rng(0).normal(size=(3, 2, 1, 4)).astype(np.float32)
    index = np.int32(3) if shared_index else np.array([3, 0, 4], np.int32)
    write = jax.vmap(lambda c, u, i: write_position(c, u, i, axis=1), in_axes=(0, 0, None if shared_index else 0))
    expected = cache.copy()
    for task in range(3):
        expected[task, :, index if shared_index else index[task]] = update[task, :, 0]
    np.testing.assert_array_equal(write(cache, update, index), expected)
    assert ("scatter" in str(jax.make_jaxpr(write)(cache, update, index))) != shared_index
