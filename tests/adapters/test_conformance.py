"""Every kind of adapter, every promise: one row per configuration in `micro.KINDS`, every check for each row.

The reference is `oracle.py`, T5 with adapters in plain numpy float64: dense matrices and Python loops.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperflax import trees
from hyperflax.adapters import (
    AdapterSpec,
    arrange,
    build_spec,
    check_spec,
    interpolate,
    merge,
    pad,
    stack,
    stack_padded,
)
from hyperflax.errors import AdapterError
from hyperflax.models import stacking
from hyperflax.models.session import Session
from hyperflax.models.t5 import T5
from tests.adapters import oracle
from tests.adapters.micro import KINDS, random_tree, tokens
from tests.adapters.micro import SHALLOW as CONFIG

SCANNED = CONFIG.replace(scan_layers=True)
ENCODER, DECODER = tokens()
# These tests compile for most of their time; what runs once need not run fast.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def frozen() -> dict:
    """Frozen parameters with norm scales other than one and position biases that matter."""
    params = jax.jit(T5(CONFIG).init)(jax.random.key(0), ENCODER, DECODER)["params"]
    rng = np.random.default_rng(0)

    def stir(path, x):
        if path.endswith("/scale"):
            return jnp.asarray(rng.uniform(0.5, 1.5, x.shape), jnp.float32)
        return x * 3 if path.endswith("/rel_embedding") else x

    return trees.map_with_path(stir, params)


@jax.jit
def run(params, adapters, encoder=ENCODER, decoder=DECODER):
    """Logits [example, length, vocab] of unrolled layers."""
    return T5(CONFIG).apply({"params": params, "adapters": adapters}, encoder, decoder)


@functools.cache
def bare() -> np.ndarray:
    """Logits without an `adapters` collection at all."""
    return np.asarray(jax.jit(T5(CONFIG).apply)({"params": frozen()}, ENCODER, DECODER))


def close(first, second, tolerance: float = 1e-5) -> None:
    """Equal to `tolerance` of the largest logit."""
    largest = np.abs(np.asarray(second)).max()
    np.testing.assert_allclose(np.asarray(first), np.asarray(second), rtol=0, atol=tolerance * largest)


@pytest.fixture(params=KINDS)
def spec(request: pytest.FixtureRequest) -> AdapterSpec:
    return build_spec(KINDS[request.param], CONFIG)


def refusal(spec: AdapterSpec, operation: str) -> str | None:
    """Pattern of the message by which one of the spec's kinds refuses the operation; None where none does."""
    refusing = [kind.kind for kind in spec.kinds if operation in kind.refuses]
    return rf"({'|'.join(refusing)}) at '(en|de)coder/.*' refuses to {operation}: \w+" if refusing else None


def test_bare_model_is_the_oracle():
    close(bare(), oracle.logits(trees.flatten(frozen()), {}, CONFIG, ENCODER, DECODER))


def test_absent_slots_are_the_bare_model_bit_for_bit():
    np.testing.assert_array_equal(run(frozen(), {}), bare())


def test_adapted_model_is_the_oracle(spec):
    adapters = random_tree(spec, 1)
    expected = oracle.logits(trees.flatten(frozen()), trees.flatten(adapters), CONFIG, ENCODER, DECODER)
    assert np.abs(expected - bare()).max() > 0.05 * np.abs(bare()).max(), "the adapter must matter for this to say much"
    close(run(frozen(), adapters), expected)


@pytest.mark.parametrize("row", [row for row, kinds in KINDS.items() if build_spec(kinds, CONFIG).optional])
def test_partly_masked_is_the_oracle(row):
    spec = build_spec(KINDS[row], CONFIG)
    flat = dict(trees.flatten(random_tree(spec, 2)))
    for number, leaf in enumerate(spec.optional):
        flat[leaf.path] = (np.arange(*leaf.shape) != number % leaf.slots).astype(np.float32)
    expected = oracle.logits(trees.flatten(frozen()), flat, CONFIG, ENCODER, DECODER)
    close(run(frozen(), trees.unflatten(flat)), expected)


def test_nothing_is_the_bare_model(spec):
    """Zeros bit for bit, whatever they are multiplied with; what is masked up to the order of summation."""
    flat = dict(trees.flatten(spec.identity()))
    for path, x in trees.flatten(random_tree(spec, 3, std=3.0)).items():
        if path.endswith(("/lora/a", "prefix/key", "prefix/value", "soft_prompt/embedding", "parallel_mlp/down")):
            flat[path] = x
    for adapters in (trees.unflatten(flat), spec.identity()):
        spec.validate(adapters)
        logits = run(frozen(), adapters)
        if spec.optional:
            close(logits, bare())
        else:
            np.testing.assert_array_equal(logits, bare())


@pytest.mark.parametrize("row", [row for row, kinds in KINDS.items() if all(kind.starts_at_identity for kind in kinds)])
def test_the_start_of_a_kind_that_starts_at_the_identity_is_the_bare_model(row):
    spec = build_spec(KINDS[row], CONFIG)
    adapters = spec.materialise(spec.init(jax.random.key(0)))
    np.testing.assert_array_equal(run(frozen(), adapters), bare())


def test_merged_is_factored_or_refused_by_name(spec):
    adapters = random_tree(spec, 4)
    if message := refusal(spec, "merge"):
        with pytest.raises(AdapterError, match=message):
            merge(frozen(), adapters, spec)
        return
    merged = merge(frozen(), adapters, spec)
    close(run(merged, {}), run(frozen(), adapters))
    scanned = merge(stacking.stack_layers(frozen(), CONFIG), adapters, spec)
    jax.tree.map(np.testing.assert_array_equal, scanned, stacking.stack_layers(merged, CONFIG))


def test_interpolated_is_the_mean_of_merged_kernels_or_refused_by_name(spec):
    first, second = random_tree(spec, 5), random_tree(spec, 6)
    if message := refusal(spec, "interpolate"):
        with pytest.raises(AdapterError, match=message):
            interpolate([first, second], [0.5, 0.5], spec)
        return
    mixed, wide = interpolate([first, second], [0.25, 0.75], spec)
    wide.validate(mixed)
    if refusal(spec, "merge"):  # test_kinds.py has the sum; here is its fixed point, through the whole model
        same, _ = interpolate([first, first], [0.25, 0.75], spec)
        close(run(frozen(), same), run(frozen(), first))
        return
    kernels = [trees.flatten(merge(frozen(), adapters, spec)) for adapters in (first, second)]
    mean = trees.unflatten({path: 0.25 * x + 0.75 * kernels[1][path] for path, x in kernels[0].items()})
    close(run(frozen(), mixed), run(mean, {}))


def test_gradient_reaches_every_slot_of_every_leaf(spec):
    """At a random point: at b = 0 the gradient of LoRA's `a` is zero, as it must be."""
    raw = random_tree(spec, 7)
    direction = np.random.default_rng(0).normal(size=bare().shape).astype(np.float32)
    gradient = quick(jax.grad(lambda raw: jnp.sum(direction * run(frozen(), spec.materialise(raw)))))(raw)
    spec.validate(gradient)
    flat = trees.flatten(gradient)
    for leaf in spec.leaves:
        per_slot = np.abs(np.moveaxis(flat[leaf.path], leaf.slot_axis, 0).reshape(leaf.slots, -1)).max(-1)
        assert np.isfinite(per_slot).all(), leaf.path
        assert (per_slot > 1e-6).all(), leaf.path


def test_misspelt_paths_wrong_shapes_and_wrong_bases_are_refused_with_the_leaf_named(spec):
    check_spec(spec, CONFIG)
    for leaf in (spec.leaves[0], spec.leaves[-1]):
        flat = trees.flatten(random_tree(spec, 0))
        wrong = f"{leaf.module}/{leaf.reader}x/{leaf.name}"
        misspelt = {wrong if path == leaf.path else path: x for path, x in flat.items()}
        with pytest.raises(AdapterError, match=f"unknown leaf '{wrong}' .did you mean '{leaf.path}'"):
            spec.validate(trees.unflatten(misspelt))
        with pytest.raises(AdapterError, match=f"leaf '{leaf.path}': expected shape"):
            spec.validate(trees.unflatten({**flat, leaf.path: flat[leaf.path][..., :-1]}))
        base = CONFIG.replace(emb_dim=20, num_heads=3, mlp_dim=20)
        with pytest.raises(AdapterError, match=r"leaf '.*': this base model expects shape"):
            check_spec(AdapterSpec((leaf,)), base)
    if ("decoder", 1) not in spec.layers():
        return  # on fewer layers it is the same adapter
    shallow = CONFIG.replace(num_decoder_layers=1)
    with pytest.raises(AdapterError, match=r"leaf 'decoder/layers_1/.*': nothing in this base model reads it"):
        check_spec(spec, shallow)


def test_different_adapters_in_one_batch_are_each_alone(spec):
    """Two of this kind, and some of others, all of them widened to the same leaves."""
    others = [build_spec(KINDS[name], CONFIG) for name in ("lora_two_ranks", "soft_prompt", "prefix_preceding")]
    specs = [spec, spec, *others]
    adapters = [random_tree(own, 8 + number) for number, own in enumerate(specs)]
    stacked, room = stack_padded(adapters, specs)
    check_spec(room, CONFIG)
    encoder, decoder = tokens(1, batch=(len(specs), 3))
    together = quick(jax.vmap(run, in_axes=(None, 0, 0, 0)))(frozen(), stacked, encoder, decoder)
    for task, alone in enumerate(adapters):
        close(together[task], run(frozen(), alone, encoder[task], decoder[task]))


def test_scanned_layers_are_unrolled_layers_for_each_task_of_a_batch(spec):
    params = stacking.stack_layers(frozen(), CONFIG)
    adapters = [random_tree(spec, seed) for seed in (10, 11)]
    scanned = arrange(stack(adapters, spec), spec, SCANNED, batch_dims=1)

    def one(tree):
        return T5(SCANNED).apply({"params": params, "adapters": tree}, ENCODER, DECODER)

    together = quick(jax.vmap(one))(scanned)
    for task, alone in enumerate(adapters):
        close(together[task], run(frozen(), alone))


def test_decoding_with_a_cache_is_teacher_forcing(spec):
    """Logits of every step, for two tasks at once; the second one's prefixes are partly masked."""
    first, second = random_tree(spec, 12), dict(trees.flatten(random_tree(spec, 13)))
    for leaf in spec.optional:
        second[leaf.path] = (np.arange(*leaf.shape) != 1).astype(np.float32)
    adapters = [first, trees.unflatten(second)]
    encoder, decoder = tokens(2, batch=(2, 3))
    length = decoder.shape[-1]

    @quick
    def cached(adapters):
        session = Session(T5(CONFIG), frozen(), adapters, encoder, length=length, decodes=1, shared=False)

        def step(caches, index):
            logits, caches = session.step(caches, jnp.asarray(decoder).reshape(-1, length)[:, index, None], index)
            return caches, logits[:, 0]

        return jax.lax.scan(step, session.start, jnp.arange(length))[1]

    stepwise = np.moveaxis(cached(stack(adapters, spec)), 0, 1).reshape(*decoder.shape, -1)
    for task, alone in enumerate(adapters):
        close(stepwise[task], run(frozen(), alone, encoder[task], decoder[task]))


@pytest.mark.parametrize("row", ["lora_two_ranks", "prefix_zero", "prefix_preceding", "lora_and_prefix"])
def test_padded_is_the_same_adapter(row):
    """A preceding prefix that grew at its end would move away from the sequence."""
    spec = build_spec(KINDS[row], CONFIG)
    adapters = random_tree(spec, 14)
    padded, wide = pad(adapters, spec, rank=5, length=6)
    wide.validate(padded)
    check_spec(wide, CONFIG)
    close(run(frozen(), padded), run(frozen(), adapters))
