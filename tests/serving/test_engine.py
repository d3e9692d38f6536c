"""Continuous batching gives every request what it would get alone, whoever comes and goes beside it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Hashable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperflax.adapters.algebra import union
from hyperflax.adapters.kind_config import KindConfig
from hyperflax.adapters.kinds import build_spec
from hyperflax.adapters.lora import LoRA
from hyperflax.adapters.parallel_mlp import ParallelMLP
from hyperflax.adapters.prefix import Prefix
from hyperflax.adapters.soft_prompt import SoftPrompt
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.errors import AdapterError, ConfigError, DataError
from hyperflax.models.beam import Beam
from hyperflax.models.decoding import decode
from hyperflax.models.sampling import choose_each, keep_topk, keep_topp
from hyperflax.models.scoring import score_options
from hyperflax.models.t5 import T5
from hyperflax.serving.bounds import lane_lengths
from hyperflax.serving.engine import MAX_TEMPERATURE, MAX_TOPK, Engine, EngineConfig, Request
from tests.models import t5_cases as cases

MODEL = T5(cases.MICRO)
LENGTH, EOS = 6, 31
KINDS: dict[str, tuple[KindConfig, ...]] = {
    "lora": (LoRA(rank=2),),
    "lora everywhere": (LoRA(rank=3, sites=("*",)),),
    "lora in one layer": (LoRA(rank=1, layers=(1,)),),
    "prefix": (Prefix(length=3),),
    "short preceding prefix": (Prefix(length=2, position_bias="preceding"),),
    "preceding prefix": (Prefix(length=4, position_bias="preceding"),),
    "soft prompt": (SoftPrompt(length=2),),
    "parallel": (ParallelMLP(bottleneck=2),),
    "several": (LoRA(rank=2), Prefix(length=2, position_bias="preceding")),
}
ROOM = union([build_spec(kinds, cases.MICRO) for kinds in KINDS.values()])
LORA = build_spec(KINDS["lora"], cases.MICRO)
SIZES = EngineConfig(sources=(5, 9), max_length=LENGTH, rows=4, steps=2, resident=4, eos_id=EOS)


@functools.cache
def params() -> Any:
    return cases.random_params(cases.MICRO)


def adapter(name: str, seed: int = 0) -> tuple[Any, AdapterSpec]:
    spec = build_spec(KINDS[name], cases.MICRO)
    rng = np.random.default_rng(seed)
    return spec.unflatten({leaf.path: rng.normal(0, 0.4, leaf.shape).astype(np.float32) for leaf in spec.leaves}), spec


def engine(room: AdapterSpec = ROOM, **sizes: int) -> Engine:
    return Engine(MODEL, params(), room, dataclasses.replace(SIZES, **sizes))


@functools.cache
def everybody() -> Engine:
    """An engine that knows an adapter of every kind, shared by tests that leave it idle."""
    made = engine()
    for name in KINDS:
        made.add(name, *adapter(name))
    made.compile()
    return made


def source(length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(2, cases.MICRO.vocab_size, length).astype(np.int32)


def alone(request: Request, seed: int = 0) -> tuple[list[int], float]:
    """What plain decoding makes of the request: its tokens and their log-probability."""
    tree = None if request.key is None else adapter(str(request.key), seed)[0]
    inputs = np.pad(request.source, (0, SIZES.sources[-1] - len(request.source)))[None]
    result = decode(MODEL, params(), inputs, max_length=LENGTH, adapters=tree, eos_id=-1)
    tokens = np.asarray(result.tokens)
    log_probs = np.asarray(_log_probs(tree, inputs, tokens))[: request.limit]
    tokens = tokens[0, : request.limit]
    ends = np.flatnonzero(tokens == EOS)
    length = ends[0] + 1 if len(ends) else len(tokens)
    return tokens[:length].tolist(), float(log_probs[:length].sum())


@jax.jit
def _log_probs(adapters: Any, inputs: jax.Array, tokens: jax.Array) -> jax.Array:
    variables = {"params": params()} | ({} if adapters is None else {"adapters": adapters})
    logits = MODEL.apply(variables, inputs, jnp.pad(tokens, ((0, 0), (1, 0)))[:, :-1])
    return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[0, :, 0]


def check(request: Request, seed: int = 0) -> None:
    tokens, log_prob = alone(request, seed)
    assert request.done
    assert request.tokens == tokens
    np.testing.assert_allclose(request.log_prob, log_prob, rtol=1e-4)


def test_all_kinds_at_once_are_each_alone() -> None:
    keys: list[Hashable | None] = [None, *KINDS, None, *reversed(KINDS)]
    requests = [
        everybody().submit(source(2 + number % 8, number), key, max_length=1 + number % LENGTH)
        for number, key in enumerate(keys)
    ]
    everybody().run()
    for request in requests:
        check(request)
    assert any(request.tokens[-1] == EOS for request in requests), "no row ended by itself"
    assert any(len(request.tokens) == LENGTH for request in requests), "no row went on to the end"


@pytest.mark.parametrize("seed", range(4))
def test_arrivals_at_any_time(seed: int) -> None:
    """Rows of all ages share the ring, which goes round many times."""
    rng = np.random.default_rng(seed)
    requests = []
    while len(requests) < 30 or not everybody().idle:
        for _ in range(rng.integers(0, 4) if len(requests) < 30 else 0):
            key = rng.choice([None, *KINDS])
            tokens = source(int(rng.integers(1, 10)), int(rng.integers(1000)))
            requests.append(everybody().submit(tokens, key, max_length=int(rng.integers(1, LENGTH + 1))))
        everybody().turn()
    for request in requests:
        check(request)


@contextlib.contextmanager
def programs() -> Iterator[list[str]]:
    """What XLA compiles meanwhile, the smallest operation included."""
    seen: list[str] = []

    def see(event: str, seconds: float, **about: Any) -> None:
        if event.endswith("backend_compile_duration"):
            seen.append(str(about))

    jax.monitoring.register_event_duration_secs_listener(see)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(see)


def test_nothing_is_compiled_for_new_adapters() -> None:
    # Of sizes that no other test has: what is compiled for them is compiled here.
    served = engine(build_spec((LoRA(rank=7), Prefix(length=6)), cases.MICRO), rows=5)
    with programs() as ahead:
        served.compile()
    assert ahead
    small = [build_spec(kind, cases.MICRO) for kind in (LoRA(rank=5), Prefix(length=5))]
    with programs() as seen:
        for number in range(6):
            spec = small[number % 2]
            tree = {leaf.path: np.full(leaf.shape, 0.1 * number, np.float32) for leaf in spec.leaves}
            served.add(number, spec.unflatten(tree), spec)
            requests = [served.submit(source(1 + number, row), number) for row in range(number)]
            served.turn()
            for request in requests[::2]:
                served.cancel(request)
        served.run()
    assert seen == []


def test_more_adapters_than_slots() -> None:
    served = engine(LORA)
    for seed in range(9):
        served.add(seed, *adapter("lora", seed))
    requests = [served.submit(source(4, seed), seed) for seed in [*range(9), *range(9)]]
    served.run()
    for request in requests:
        request_key = request.key
        request.key = "lora"
        check(request, int(request_key))


def test_those_who_share_an_adapter_or_have_none_join_together() -> None:
    served = engine(LORA, resident=1)
    for seed in (1, 2):
        served.add(seed, *adapter("lora", seed))
    requests = [served.submit(source(4, number), key) for number, key in enumerate((None, 1, 1, 2))]
    served.turn()
    assert [len(request.tokens) for request in requests] == [2, 2, 2, 0]
    served.turn()
    assert [len(request.tokens) for request in requests] == [4, 4, 4, 2]


def test_a_replaced_adapter_counts_for_those_who_join_later() -> None:
    served = engine(LORA)
    served.add("lora", *adapter("lora", 1))
    before = served.submit(source(4, 0), "lora")
    served.turn()
    served.add("lora", *adapter("lora", 2))
    after = served.submit(source(4, 0), "lora")
    served.run()
    check(before, seed=1)
    check(after, seed=2)
    assert before.tokens != after.tokens


def test_outputs_are_seen_while_they_grow() -> None:
    served = everybody()
    request = served.submit(source(4, 3), None)
    seen = []
    while not request.done:
        served.turn()
        seen.append(list(request.tokens))
    assert [len(tokens) for tokens in seen] == [2, 4, 6]
    assert all(request.tokens[: len(tokens)] == tokens for tokens in seen)


def test_draws_depend_on_the_seed_alone() -> None:
    served = everybody()
    settings = {"temperature": 1.5, "seed": 7}
    request = served.submit(source(4, 0), "lora", **settings)
    served.run()
    company = [served.submit(source(3, number), None, temperature=1.0, seed=number) for number in range(3)]
    served.turn()
    again, other = (served.submit(source(4, 0), "lora", **settings | {"seed": seed}) for seed in (7, 8))
    served.run()
    assert again.tokens == request.tokens != other.tokens
    assert all(other.done for other in company)


def test_rows_choose_each_in_its_own_way() -> None:
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(0, 2, 12).astype(np.float32))
    draws = 20_000
    ways = {"free": (0.7, 0, 0.0), "topk": (1.0, 3, 0.0), "topp": (1.3, 0, 0.6), "greedy": (0.0, 0, 0.0)}
    expected = {
        "free": jax.nn.softmax(logits / 0.7),
        "topk": jax.nn.softmax(keep_topk(logits, 3)),
        "topp": jax.nn.softmax(keep_topp(logits / 1.3, 0.6)),
        "greedy": jax.nn.one_hot(jnp.argmax(logits), 12),
    }
    settings = [jnp.repeat(jnp.asarray(column), draws) for column in zip(*ways.values(), strict=True)]
    rows = draws * len(ways)
    every = (jnp.broadcast_to(logits, (rows, 12)), *settings, jnp.arange(rows, dtype=jnp.uint32), jnp.full(rows, 5))
    tokens, log_probs = jax.jit(choose_each)(*every)
    np.testing.assert_allclose(log_probs, jax.nn.log_softmax(logits)[tokens], rtol=1e-5)
    for number, name in enumerate(ways):
        part = np.asarray(tokens[number * draws : (number + 1) * draws])
        share = np.bincount(part, minlength=12) / draws
        # Five standard deviations of a share of `draws` draws.
        tolerance = 5 * np.sqrt(np.asarray(expected[name]) * (1 - np.asarray(expected[name])) / draws)
        assert np.all(np.abs(share - expected[name]) <= tolerance + 1e-6), name


def test_a_sampled_row_that_has_ended_costs_the_others_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all rows that go on are greedy, none is sorted or drawn, whoever had the free rows before."""
    seen = []

    def watched(logits: Any, temperature: Any, *others: Any) -> Any:
        jax.debug.callback(lambda values: seen.append(np.asarray(values)), temperature)
        return choose_each(logits, temperature, *others)

    monkeypatch.setattr("hyperflax.serving.lane.choose_each", watched)
    served = engine()
    greedy = served.submit(source(5, 0), None, max_length=LENGTH)
    served.submit(source(4, 1), None, max_length=1, temperature=1.0)
    served.run()
    jax.effects_barrier()
    assert greedy.done
    assert any(values.any() for values in seen)
    assert not seen[-1].any()


def test_cancelled_requests_make_room() -> None:
    served = everybody()
    requests = [served.submit(source(4, number), None) for number in range(6)]
    served.turn()
    partial = list(requests[0].tokens)
    served.cancel(requests[0])
    served.cancel(requests[5])
    served.run()
    assert requests[0].done
    assert requests[0].tokens == partial
    assert requests[5].done
    assert requests[5].tokens == []
    for request in requests[1:5]:
        check(request)


def test_an_adapter_that_is_removed_fails_those_who_wait_for_it() -> None:
    served = engine(LORA)
    served.add("lora", *adapter("lora"))
    first = [served.submit(source(4, number), "lora") for number in range(SIZES.rows)]
    served.turn()
    late = served.submit(source(4, 9), "lora")
    served.pool.remove("lora")
    served.run()
    for request in first:
        check(request)
    assert late.done
    assert str(late.error) == "the adapter 'lora' was removed"


def test_an_adapter_that_makes_no_numbers_is_an_error_of_its_own_inputs() -> None:
    served = engine(LORA)
    tree, spec = adapter("lora")
    served.add("lora", tree, spec)
    served.add("broken", jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), tree), spec)
    keys = ["lora", "broken", None, "broken", "lora", "lora"]
    requests = [served.submit(source(4, number), key) for number, key in enumerate(keys)]
    served.run()
    for request in requests:
        if request.key == "broken":
            assert (request.done, request.tokens) == (True, [])
            assert str(request.error) == "the base model's logits are not finite with the adapter 'broken'"
        else:
            check(request)


def test_a_batch_with_an_adapter_that_makes_no_numbers_is_an_error_that_names_it() -> None:
    served = engine(LORA)
    tree, spec = adapter("lora")
    served.add("lora", tree, spec)
    for key in ("broken", "too"):
        served.add(key, jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), tree), spec)
    keys = ["lora", None, "too", "broken", "lora", "broken"]  # of more rows than one part has
    sources = [source(4, number) for number in range(len(keys))]
    told = "the base model's logits are not finite with the adapter 'too', the adapter 'broken'$"
    with pytest.raises(AdapterError, match=told):
        served.search(sources, keys, Beam(num_decodes=2), max_length=2)
    with pytest.raises(AdapterError, match=told):
        served.score(sources, keys, np.full((len(keys), 2, 3), 5))
    assert np.isfinite(served.score(sources[:2], keys[:2], np.full((2, 2, 3), 5))).all()


def test_an_adapter_is_fetched_when_its_row_is_free() -> None:
    fetched: list[Hashable] = []

    def fetch(key: Hashable) -> None:
        if key == "broken":
            raise OSError("no such disk")
        fetched.append(key)
        served.add(key, *adapter("lora", int(str(key))))
        if len(served.pool) > 2:
            served.pool.remove(fetched[-3])

    served = Engine(MODEL, params(), LORA, dataclasses.replace(SIZES, rows=1, resident=1), fetch)
    keys = ["1", "2", "broken", "3", "4"]
    requests = [served.submit(source(4, number), key) for number, key in enumerate(keys)]
    assert fetched == []
    served.turn()
    assert fetched == ["1"]
    served.run()
    assert fetched == ["1", "2", "3", "4"]
    assert len(served.pool) == 2
    for request in requests:
        assert request.done
        if request.key == "broken":
            assert str(request.error) == "no such disk"
            assert request.tokens == []
        else:
            seed, request.key = int(str(request.key)), "lora"
            check(request, seed)


def test_beams_and_options_fetch_their_adapters() -> None:
    def fetch(key: Hashable) -> None:
        if key == "broken":
            raise OSError("no such disk")
        if key not in served.pool:
            served.add(key, *adapter("lora", int(str(key))))

    served = Engine(MODEL, params(), LORA, SIZES, fetch)
    keys: list[Hashable | None] = [None, "1", "2", "1"]
    sources = [source(length, length) for length in (3, 5, 6, 4)]
    options = np.random.default_rng(0).integers(2, 60, (4, 2, 4)).astype(np.int32)
    scores = served.score(sources, keys, options)
    for number, (tokens, key) in enumerate(zip(sources, keys, strict=True)):
        tree = None if key is None else adapter("lora", int(str(key)))[0]
        own = score_options(MODEL, params(), tokens[None], options[number][None], tree)
        np.testing.assert_allclose(scores[number], own[0], rtol=1e-4)
    with pytest.raises(OSError, match="no such disk"):
        served.search(sources[:1], ["broken"], Beam(num_decodes=2), max_length=2)


def test_beams_and_options_of_a_mixed_batch() -> None:
    served = everybody()
    keys: list[Hashable | None] = [None, "several", "soft prompt"]
    sources = [source(length, length) for length in (3, 8, 6)]
    beams = served.search(sources, keys, Beam(num_decodes=3), max_length=4)
    options = np.random.default_rng(0).integers(2, 60, (3, 2, 4)).astype(np.int32)
    scores = served.score(sources, keys, options)
    for number, (tokens, key) in enumerate(zip(sources, keys, strict=True)):
        tree = None if key is None else adapter(str(key))[0]
        expected = decode(
            MODEL, params(), tokens[None], max_length=4, adapters=tree, method=Beam(num_decodes=3), eos_id=EOS
        )
        np.testing.assert_array_equal(beams.all_tokens[number], expected.all_tokens[0])
        np.testing.assert_allclose(beams.all_scores[number], expected.all_scores[0], rtol=1e-4)
        own = score_options(MODEL, params(), tokens[None], options[number][None], tree)
        np.testing.assert_allclose(scores[number], own[0], rtol=1e-4)


FEW = dataclasses.replace(SIZES, sources=(5,), rows=2, resident=1, max_length=5)
BEAM = Beam(num_decodes=2, alpha=0.1)


def test_nothing_is_compiled_for_beams_and_options_that_were_named() -> None:
    served = Engine(MODEL, params(), LORA, FEW)
    with programs() as ahead:
        served.compile(beams=[BEAM], options=[(3, 7)])
    assert ahead
    for key in range(3):
        served.add(key, *adapter("lora", key))
    options = np.random.default_rng(0).integers(2, 60, (6, 5, 8)).astype(np.int32)
    with programs() as seen:
        for inputs in range(1, 7):
            keys = [[None, 0, 1, 2][row % 4] for row in range(inputs)]
            sources = [source(1 + (row + inputs) % 5, row) for row in range(inputs)]
            served.search(sources, keys, BEAM)
            served.score(sources, keys, options[:inputs, : 4 - inputs % 2, : 8 - inputs % 3])
    assert seen == []
    with programs() as seen:
        served.score([source(4, 0)], [None], options[:1])  # one option more than was named
    assert seen


def test_an_adapter_that_cannot_be_had_is_looked_for_once_a_turn() -> None:
    """Its many inputs take no rows: read again for each of them, a damaged file would keep everybody else waiting."""
    fetched: list[Hashable] = []

    def fetch(key: Hashable) -> None:
        fetched.append(key)
        if key == "damaged":
            raise OSError("cut short")
        served.add(key, *adapter("lora", 1))

    served = Engine(MODEL, params(), LORA, SIZES, fetch)
    lost = [served.submit(source(4, number), "damaged") for number in range(20)]
    kept = served.submit(source(4, 0), "1")
    assert served.turn() == lost
    assert fetched == ["damaged", "1"]
    assert {str(request.error) for request in lost} == {"cut short"}
    served.submit(source(4, 0), "damaged")
    served.run()
    assert fetched == ["damaged", "1", "damaged"]
    kept.key = "lora"
    check(kept, 1)


def test_batches_of_more_rows_and_adapters_than_there_are() -> None:
    held: list[Hashable] = []

    def fetch(key: Hashable) -> None:
        """Keeps no more adapters than it must."""
        if key not in held:
            served.add(key, *adapter("lora", int(str(key))))
            held.append(key)
        if len(held) > FEW.resident:
            served.pool.remove(held.pop(0))

    served = Engine(MODEL, params(), LORA, FEW, fetch)
    keys: list[Hashable | None] = [None, "1", None, "1", "1", "1", "2", "3", "3", None, "1"]
    sources = [source(1 + row % 5, row) for row in range(len(keys))]
    options = np.random.default_rng(1).integers(2, 60, (len(keys), 3, 5)).astype(np.int32)
    beams, scores = served.search(sources, keys, BEAM), served.score(sources, keys, options)
    assert scores.shape == (len(keys), 3)
    for number, (tokens, key) in enumerate(zip(sources, keys, strict=True)):
        alone = served.search([tokens], [key], BEAM)
        np.testing.assert_array_equal(beams.all_tokens[number], alone.all_tokens[0])
        np.testing.assert_allclose(beams.all_scores[number], alone.all_scores[0], rtol=1e-4)
        np.testing.assert_allclose(scores[number], served.score([tokens], [key], options[number][None])[0], rtol=1e-4)


def test_a_batch_may_be_an_array() -> None:
    sources, options = np.array([[5, 6, 1], [7, 8, 1]]), np.full((2, 2, 3), 5)
    scores = everybody().score(sources, [None, "lora"], options)
    np.testing.assert_array_equal(scores, everybody().score([*sources], [None, "lora"], options))
    beams = everybody().search(sources, [None, "lora"], BEAM)
    np.testing.assert_array_equal(beams.tokens, everybody().search([*sources], [None, "lora"], BEAM).tokens)


def test_batches_that_fit_nowhere_are_refused() -> None:
    one, options = [source(3, 0)], np.ones((1, 2, 3), np.int32)
    for shape in ((2, 2, 3), (1, 0, 3), (1, 2, 0), (1, 6)):
        with pytest.raises(DataError, match=r"options: expected int \[1, option, length\]"):
            everybody().score(one, [None], np.ones(shape, np.int32))
    with pytest.raises(DataError, match="one key per input"):
        everybody().score(one, [], options)
    for length in (0, 10):
        with pytest.raises(DataError, match=f"expected 1 to 9 input tokens, got {length}"):
            everybody().score([*one, source(length, 0)], [None, None], np.ones((2, 2, 3), np.int32))
    for given, told in (
        (np.ones((1, 2, 2), np.int32), r"sources\[0\]: expected the tokens of one input, \[length\]"),
        ([[3.7]], r"sources\[0\]: expected token ids in \[0, 64\), got float64"),
        ([[64]], r"sources\[0\]: expected token ids in \[0, 64\), got 64"),
    ):
        with pytest.raises(DataError, match=told):
            everybody().score(given, [None], options)
        with pytest.raises(DataError, match=told):
            everybody().search(given, [None])
    for ids, told in ((np.full((1, 2, 3), 3.7), "float64"), (np.full((1, 2, 3), -1), "-1")):
        with pytest.raises(DataError, match=rf"options: expected token ids in \[0, 64\), got {told}"):
            everybody().score(one, [None], ids)
    with pytest.raises(AdapterError, match="no adapter with the key 'nobody'"):
        everybody().score(one, ["nobody"], options)
    with pytest.raises(ConfigError, match="max_length: expected 1 to 6, got 7"):
        everybody().search(one, [None], max_length=LENGTH + 1)
    with pytest.raises(ConfigError, match="options: expected numbers and lengths of at least 1"):
        everybody().compile(options=[(2, 0)])


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "complaint"),
    [
        (([], None), {}, DataError, "expected 1 to 9 input tokens, got 0"),
        ((range(10), None), {}, DataError, "expected 1 to 9 input tokens, got 10"),
        (([[3, 4], [5, 6]], None), {}, DataError, r"tokens of one input, \[length\], got shape \[2, 2\]"),
        (([3], "nobody"), {}, AdapterError, "no adapter with the key 'nobody'"),
        (([3], None), {"max_length": 7}, ConfigError, "max_length: expected 1 to 6, got 7"),
        (([3], None), {"topp": 1.5}, ConfigError, "topp in"),
        ((range(58, 66), None), {}, DataError, r"source: expected token ids in \[0, 64\), got 64"),
        (([3, -1], None), {}, DataError, r"source: expected token ids in \[0, 64\), got -1"),
        (([3.0, 3.7], None), {}, DataError, r"source: expected token ids in \[0, 64\), got float64"),
        (([True], None), {}, DataError, r"source: expected token ids in \[0, 64\), got bool"),
        (([3], None), {"max_length": 2.5}, ConfigError, "max_length: expected a whole number of at least 1, got 2.5"),
        (([3], None), {"topk": 2.5}, ConfigError, "topk: expected a whole number of at least 0, got 2.5"),
        (([3], None), {"topk": -1}, ConfigError, "topk: expected a whole number of at least 0, got -1"),
        (([3], None), {"seed": 1.5}, ConfigError, "seed: expected a whole number of at least 0, got 1.5"),
        (([3], None), {"topk": 2**31}, ConfigError, "topk in"),
        (([3], None), {"temperature": float("nan")}, ConfigError, "a temperature in"),
        (([3], None), {"temperature": float("inf")}, ConfigError, "a temperature in"),
        (([3], None), {"temperature": 1e300}, ConfigError, "a temperature in"),
    ],
)
def test_bad_requests_are_refused(arguments: Any, settings: Any, error: type, complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        everybody().submit(*arguments, **settings)
    assert everybody().idle


def test_the_largest_settings_decode() -> None:
    served = everybody()
    request = served.submit(source(4, 0), temperature=MAX_TEMPERATURE, topk=MAX_TOPK, topp=1.0, seed=2**32 - 1)
    served.run()
    assert request.done
    assert np.isfinite(request.log_prob)


def test_a_lane_is_needed() -> None:
    with pytest.raises(ConfigError, match="sources: expected at least one length of inputs, got none"):
        EngineConfig(sources=())
    with pytest.raises(ConfigError, match=r"EngineConfig\.rows: expected a whole number of at least 1, got 0"):
        EngineConfig(rows=0)


def test_lanes_of_a_service_are_few_and_the_longest_takes_every_input() -> None:
    assert lane_lengths(512) == (64, 256, 512)
    assert lane_lengths(128) == (64, 128)
    for longest in (1, 2, 3, 40, 255, 256, 1024):
        lengths = lane_lengths(longest)
        assert lengths == tuple(sorted(set(lengths)))
        assert lengths[-1] == longest
        assert len(lengths) <= 3
