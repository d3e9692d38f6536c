"""Where a kernel stands for attention written out, loss and gradients are the same; else nothing calls it.

The kernel of cuDNN needs a GPU. Here JAX's own code stands in its place, under the same call: what is held is what the
call says about lengths, masks and bias, and when it is made.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperflax import trees
from hyperflax.adapters.full import Full
from hyperflax.adapters.kind_config import KindConfig
from hyperflax.adapters.kinds import build_spec
from hyperflax.adapters.lora import LoRA
from hyperflax.adapters.prefix import Prefix
from hyperflax.adapters.soft_prompt import SoftPrompt
from hyperflax.models import fused_attention
from hyperflax.models.t5 import T5
from hyperflax.types import Batch, PyTree, T5Config
from tests.models.t5_cases import random_params

CONFIG = T5Config(
    vocab_size=64,
    emb_dim=32,
    num_heads=2,
    head_dim=16,
    mlp_dim=32,
    num_encoder_layers=2,
    num_decoder_layers=2,
)
TASKS = 3
# Kernel: compute dtype. On a machine with a GPU the kernel itself as well, which takes no float32.
KERNELS = {"xla": "float32", "cudnn": "bfloat16"} if fused_attention.available() else {"xla": "float32"}
EXACT = 1e-4  # of the norm of a gradient, in float32


class Fused(NamedTuple):
    """The model that a test computes with, and [queries, keys] of the kernel's calls so far."""

    config: T5Config
    calls: list[tuple[int, int]]


@pytest.fixture(params=KERNELS)
def fused(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fused]:
    """Lets the kernel have every size."""
    calls: list[tuple[int, int]] = []
    attend = fused_attention.attend

    def counted(q: jax.Array, k: jax.Array, *others: Any) -> jax.Array:
        calls.append((q.shape[1], k.shape[1]))
        return attend(q, k, *others)

    monkeypatch.setattr(fused_attention, "IMPLEMENTATION", request.param)
    monkeypatch.setattr(fused_attention, "fits", lambda q, k: True)
    monkeypatch.setattr(fused_attention, "attend", counted)
    jax.clear_caches()  # layers are traced once for all models of a shape
    yield Fused(CONFIG.replace(dtype=KERNELS[request.param]), calls)
    jax.clear_caches()


def written_out(function: Callable[..., PyTree], *arguments: Any) -> PyTree:
    """Returns what the function does without the kernel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_attention, "fits", lambda q, k: False)
        jax.clear_caches()
        result = function(*arguments)
    jax.clear_caches()
    return result


def batch() -> Batch:
    """Rows of 12 inputs and 8 targets, full and padded; one without any input."""
    random = np.random.default_rng(0)

    def rows(lengths: tuple[int, ...], width: int) -> np.ndarray:
        tokens = random.integers(2, CONFIG.vocab_size, (len(lengths), width))
        return np.where(np.arange(width) < np.array(lengths)[:, None], tokens, 0).astype(np.int32)

    targets = rows((8, 3, 6, 0), 8)
    return {
        "encoder_input_tokens": rows((12, 5, 1, 0), 12),
        "decoder_input_tokens": np.pad(targets, [(0, 0), (1, 0)])[:, :-1],
        "decoder_target_tokens": targets,
    }


PARAMS = random_params(CONFIG)


def loss(config: T5Config, params: PyTree, adapters: PyTree, features: Batch, **settings: Any) -> jax.Array:
    logits = T5(config).apply({"params": params, "adapters": adapters}, **features, **settings)
    targets = features["decoder_target_tokens"]
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
    return -jnp.sum(picked * (targets > 0))


def assert_as_written_out(function: Callable[..., PyTree], config: T5Config, *arguments: Any) -> None:
    """Asserts that `function(config, *arguments)` is as exact as without the kernel, leaf by leaf.

    In float32 both are the same but for the order of sums; in bfloat16 neither may be much further than the other from
    what float32 makes of it.
    """
    found = trees.flatten(function(config, *arguments))
    exact = trees.flatten(written_out(function, config.replace(dtype="float32"), *arguments))
    plain = trees.flatten(written_out(function, config, *arguments))

    def off(tree: dict[str, jax.Array], path: str) -> float:
        return float(jnp.linalg.norm(jnp.ravel(tree[path] - exact[path])) / jnp.linalg.norm(jnp.ravel(exact[path])))

    assert found.keys() == exact.keys()
    for path in exact:
        allowed = EXACT + 2 * off(plain, path)
        assert off(found, path) <= allowed, path


def drawn(kind: KindConfig, *lead: int) -> PyTree:
    """Returns an adapter, or one for each task."""
    random = np.random.default_rng(1)
    spec = build_spec(kind, CONFIG)
    return trees.unflatten(
        {leaf.path: random.normal(0, 0.1, (*lead, *leaf.shape)).astype(np.float32) for leaf in spec.leaves}
    )


def test_loss_and_gradients_are_those_of_attention_written_out(fused: Fused) -> None:
    def graded(config: T5Config, params: PyTree, features: Batch) -> PyTree:
        value, gradient = jax.value_and_grad(functools.partial(loss, config))(params, {}, features)
        return {"loss": value, "gradient": gradient}

    assert_as_written_out(graded, fused.config, PARAMS, batch())
    assert sorted(fused.calls) == [(8, 8), (8, 12), (12, 12)]


def test_every_task_may_have_its_own_adapter(fused: Fused) -> None:
    adapters = drawn(LoRA(rank=2, sites=("*",)), TASKS)
    features = {name: np.stack([rows, rows[::-1], np.roll(rows, 1, axis=0)]) for name, rows in batch().items()}

    def gradients(config: T5Config, params: PyTree, adapters: PyTree) -> PyTree:
        def total(both: dict[str, PyTree]) -> jax.Array:
            one = functools.partial(loss, config, both["params"])
            return jnp.sum(jax.vmap(one)(both["adapters"], features))

        return jax.grad(total)({"params": params, "adapters": adapters})

    assert_as_written_out(gradients, fused.config, PARAMS, adapters)
    assert len(fused.calls) == 3


def packed() -> Batch:
    features = batch()
    ids = {side: np.minimum(features[f"{side}_tokens"], 1) for side in ("encoder_input", "decoder_target")}
    return features | {
        "encoder_segment_ids": ids["encoder_input"],
        "decoder_segment_ids": ids["decoder_target"],
    }


@pytest.mark.parametrize(
    ("adapters", "features", "changes", "kept"),
    [
        pytest.param({}, packed(), {}, 0, id="packed rows"),
        pytest.param({}, batch(), {"float32_attention_logits": True}, 0, id="float32 scores"),
        pytest.param(drawn(Prefix(length=2)), batch(), {}, 0, id="prefix"),
        pytest.param(drawn(SoftPrompt(length=2)), batch(), {}, 1, id="soft prompt"),
        pytest.param(drawn(Full()), batch(), {}, 1, id="a bias of the task's own"),
    ],
)
def test_what_lengths_cannot_say_is_written_out(
    adapters: PyTree, features: Batch, changes: dict[str, Any], kept: int, fused: Fused
) -> None:
    """`kept` calls remain: a soft prompt is the encoder's, and cross-attention has no bias."""
    config = fused.config.replace(**changes)
    assert_as_written_out(lambda config: {"loss": loss(config, PARAMS, adapters, features)}, config)
    assert len(fused.calls) == kept


def test_dropout_of_the_weights_is_written_out(fused: Fused) -> None:
    config = fused.config.replace(dropout_rate=0.1)
    loss(config, PARAMS, {}, batch(), enable_dropout=True, rngs={"dropout": jax.random.key(0)})
    assert not fused.calls
    loss(config, PARAMS, {}, batch())
    assert len(fused.calls) == 3


@pytest.mark.parametrize(
    ("queries", "keys", "head_dim", "dtype", "fits"),
    [
        (128, 128, 64, "bfloat16", True),
        (512, 32, 64, "bfloat16", True),
        (64, 128, 64, "bfloat16", False),
        (129, 128, 64, "bfloat16", False),
        (128, 129, 64, "bfloat16", False),
        (128, 128, 60, "bfloat16", False),
        (128, 128, 136, "bfloat16", False),
        (128, 128, 64, "float32", False),
    ],
)
def test_shapes_that_the_kernel_takes(
    queries: int, keys: int, head_dim: int, dtype: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k = (jax.ShapeDtypeStruct((2, size, 4, head_dim), dtype) for size in (queries, keys))
    monkeypatch.setattr(fused_attention, "available", lambda: True)
    assert fused_attention.fits(q, k) == fits
    monkeypatch.setattr(fused_attention, "available", lambda: False)
    assert not fused_attention.fits(q, k)


@pytest.mark.parametrize(
    ("backend", "capability", "there"),
    [
        ("gpu", "9.0", True),
        ("gpu", "10.0", True),
        ("gpu", "7.5", False),
        ("gpu", "gfx90a", False),
        ("cpu", None, False),
    ],
)
def test_gpus_that_have_the_kernel(
    backend: str, capability: str | None, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = types.SimpleNamespace(**({} if capability is None else {"compute_capability": capability}))
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert fused_attention.available.__wrapped__() == there
