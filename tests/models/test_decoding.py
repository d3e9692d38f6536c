"""What must hold of decoding and scoring whatever the weights: cache, rows, tasks and adapters make no difference."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperflax import trees
from hyperflax.adapters.algebra import merge
from hyperflax.adapters.full import Full
from hyperflax.adapters.kinds import KINDS as KIND_CLASSES
from hyperflax.adapters.kinds import build_spec
from hyperflax.adapters.layers import arrange
from hyperflax.adapters.lora import LoRA
from hyperflax.adapters.prefix import Prefix
from hyperflax.adapters.spec import AdapterSpec
from hyperflax.errors import AdapterError, ConfigError, HyperflaxError
from hyperflax.models.beam import Beam, beam_search
from hyperflax.models.decoding import decode
from hyperflax.models.inputs import check_inputs
from hyperflax.models.sampling import Greedy, Sample, keep_topk, keep_topp, sample
from hyperflax.models.scoring import score_options
from hyperflax.models.session import Session, cast_kernels
from hyperflax.models.stacking import stack_layers
from hyperflax.models.t5 import T5
from tests.models import t5_cases as cases

LENGTH = 7
TASKS, EXAMPLES, SOURCE = 3, 2, 9
CONFIG = cases.MICRO
MODEL = T5(CONFIG)
KINDS = {
    "lora": (LoRA(rank=2, sites=("*",)),),
    "prefix": (Prefix(length=3),),
    "preceding": (Prefix(length=3, position_bias="preceding"),),
    "both": (LoRA(rank=2), Prefix(length=2, position_bias="preceding")),
}


@functools.cache
def params() -> Any:
    return cases.random_params(CONFIG)


def source(*lead: int, seed: int = 0) -> np.ndarray:
    """Tokens [*lead, SOURCE] with padding of differing lengths."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, CONFIG.vocab_size, (*lead, SOURCE)).astype(np.int32)
    lengths = rng.integers(3, SOURCE + 1, (*lead, 1))
    return np.where(np.arange(SOURCE) < lengths, tokens, 0)


def random_adapters(kind: str, *lead: int, seed: int = 0, mask: bool = False) -> Any:
    return random_tree(build_spec(KINDS[kind], CONFIG), *lead, seed=seed, mask=mask)


def random_tree(spec: AdapterSpec, *lead: int, seed: int = 0, mask: bool = False) -> Any:
    rng = np.random.default_rng(seed)
    flat = {leaf.path: rng.normal(0, 0.3, (*lead, *leaf.shape)).astype(np.float32) for leaf in spec.leaves}
    if mask:
        flat |= {leaf.path: np.broadcast_to(np.arange(leaf.slots) > 0, (*lead, leaf.slots)) for leaf in spec.optional}
    return spec.unflatten(flat)


def teacher_forced(tokens: np.ndarray, output: np.ndarray, adapters: Any = None) -> np.ndarray:
    """Log-probabilities [example, length, vocab] of the whole sequence at once."""
    variables = {"params": params()} | ({} if adapters is None else {"adapters": adapters})
    inputs = np.pad(output, ((0, 0), (1, 0)))[:, :-1]
    return np.asarray(_log_probs(MODEL, variables, tokens, inputs))


@functools.partial(jax.jit, static_argnums=0)
def _log_probs(model: T5, variables: Any, tokens: jax.Array, inputs: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(model.apply(variables, tokens, inputs))


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_greedy_decoding_is_the_argmax_of_teacher_forcing(kind: str | None) -> None:
    adapters = None if kind is None else random_adapters(kind, mask=kind == "prefix")
    tokens = source(4)
    result = decode(MODEL, params(), tokens, max_length=LENGTH, adapters=adapters)
    output = np.asarray(result.tokens)
    log_probs = teacher_forced(tokens, output, adapters)
    ended = np.cumsum(output == 1, axis=1) - (output == 1) > 0
    np.testing.assert_array_equal(output, np.where(ended, 0, log_probs.argmax(-1)))
    np.testing.assert_allclose(result.scores, np.sum(log_probs.max(-1) * ~ended, axis=1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", [Greedy(), Sample(num_decodes=2), Beam(3)], ids=["greedy", "sample", "beam"])
def test_nobody_waits_for_rows_that_are_padding(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come back empty, the others as they are without them, and the loop ends with the last of the others."""
    tokens = source(4, seed=3)
    filled = np.concatenate([tokens, np.zeros((3, SOURCE), np.int32)])
    options = {"max_length": LENGTH, "method": method, "rng": jax.random.key(0)}
    found = decode(MODEL, params(), filled, **options)
    assert not np.any(found.all_tokens[4:])
    assert not np.any(found.all_scores[4:])
    if not isinstance(method, Sample):  # a draw depends on its place among all
        np.testing.assert_array_equal(found.all_tokens[:4], decode(MODEL, params(), tokens, **options).all_tokens)
    nothing = Session(MODEL, params(), None, np.zeros((2, SOURCE), np.int32), LENGTH, 1, shared=False)
    monkeypatch.setattr(nothing, "step", None)  # a step would raise
    monkeypatch.setattr(jax.lax, "while_loop", lambda going, body, state: body(state) if going(state) else state)
    prompt = np.zeros((2, LENGTH), np.int32)
    for run in (lambda: sample(nothing, prompt, Greedy(), None, 1), lambda: beam_search(nothing, prompt, Beam(1), 1)):
        assert not np.any(run()[0])


@pytest.mark.parametrize("kind", ["both"])
def test_beam_scores_are_those_of_teacher_forcing(kind: str) -> None:
    """A wrong history of a reordered beam would show in the score of what it found."""
    adapters = random_adapters(kind)
    tokens = source(4)
    result = decode(MODEL, params(), tokens, max_length=LENGTH, adapters=adapters, method=Beam(4, 0.6))
    for beam in range(4):
        output = np.asarray(result.all_tokens[:, beam])
        log_probs = np.take_along_axis(teacher_forced(tokens, output, adapters), output[..., None], -1)[..., 0]
        total = np.sum(log_probs * (output > 0), axis=1)
        ends = (output == 1).any(1)
        score = np.where(ends, total / ((5 + (output > 0).sum(1)) / 6) ** 0.6, total)
        real = np.asarray(result.all_scores[:, beam]) > -1e6
        np.testing.assert_allclose(result.all_scores[real, beam], score[real], rtol=1e-4)
        assert real.all() or ends.any()


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_beam_search_is_what_its_definition_says(alpha: float) -> None:
    """Against a search written out for one input, over a table of the log-probabilities after every prefix."""
    vocab, length, beams = 8, 4, 3
    config = CONFIG.replace(vocab_size=vocab)
    model, weights, tokens = T5(config), cases.random_params(config, seed=2), source(3) % vocab
    result = decode(model, weights, tokens, max_length=length, method=Beam(beams, alpha))
    prefixes = np.array(list(itertools.product(range(vocab), repeat=length - 1)), np.int32)
    ended = 0
    for row in range(len(tokens)):
        repeated = np.repeat(tokens[row : row + 1], len(prefixes), axis=0)
        table = np.asarray(_log_probs(model, {"params": weights}, repeated, np.pad(prefixes, ((0, 0), (1, 0)))))
        after = {tuple(p[:n].tolist()): lp[n] for p, lp in zip(prefixes, table, strict=True) for n in range(length)}
        expected = written_out_beam_search(after, length, beams, alpha)
        ended += len(expected) < beams or any(1 in sequence for _, sequence in expected)
        for place, (score, sequence) in enumerate(expected):  # best first
            np.testing.assert_array_equal(result.all_tokens[row, beams - 1 - place], sequence)
            np.testing.assert_allclose(result.all_scores[row, beams - 1 - place], score, rtol=1e-4)
        assert not result.all_tokens[row, : beams - len(expected)].any()
        assert (result.all_scores[row, : beams - len(expected)] == -1e7).all()
    assert ended >= 2  # otherwise the weights test little


def written_out_beam_search(
    after: dict[tuple[int, ...], np.ndarray], length: int, beams: int, alpha: float
) -> list[tuple[float, tuple[int, ...]]]:
    live: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    finished: list[tuple[float, tuple[int, ...]]] = []
    for step in range(1, length + 1):
        longer = [(s + after[seq][v], (*seq, v)) for s, seq in live for v in range(len(after[()]))]
        longer = sorted(longer, reverse=True)[: 2 * beams]
        normalised = [(s / ((5 + step) / 6) ** alpha, seq) for s, seq in longer if seq[-1] == 1]
        finished = sorted(finished + normalised, reverse=True)[:beams]
        live = [(s, seq) for s, seq in longer if seq[-1] != 1][:beams]
    return [(s, seq + (0,) * (length - len(seq))) for s, seq in finished or live]


@pytest.mark.parametrize(
    ("kind", "method"), [("both", Greedy()), ("both", Beam(3)), ("prefix", Sample(temperature=0.0, num_decodes=2))]
)
def test_adapters_of_many_tasks_at_once_are_each_alone(kind: str, method: Any) -> None:
    adapters, tokens = random_adapters(kind, TASKS), source(TASKS, EXAMPLES)
    key = jax.random.key(3)
    together = decode(MODEL, params(), tokens, max_length=LENGTH, adapters=adapters, method=method, rng=key)
    assert together.tokens.shape == (TASKS, EXAMPLES, LENGTH)
    for task in range(TASKS):
        own = jax.tree.map(lambda x, task=task: x[task], adapters)
        alone = decode(MODEL, params(), tokens[task], max_length=LENGTH, adapters=own, method=method, rng=key)
        np.testing.assert_array_equal(together.all_tokens[task], alone.all_tokens)
        np.testing.assert_allclose(together.all_scores[task], alone.all_scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", [Greedy(), Beam(3)])
def test_a_row_does_not_depend_on_the_others(method: Any) -> None:
    tokens = source(5)
    all_rows = decode(MODEL, params(), tokens, max_length=LENGTH, method=method)
    some = decode(MODEL, params(), np.pad(tokens[3:], ((0, 0), (0, 4))), max_length=LENGTH, method=method)
    np.testing.assert_array_equal(some.all_tokens, all_rows.all_tokens[3:])
    np.testing.assert_allclose(some.all_scores, all_rows.all_scores[3:], rtol=1e-4, atol=1e-4)


def test_scanned_layers_decode_the_same() -> None:
    spec = build_spec(KINDS["both"], CONFIG)
    config = CONFIG.replace(scan_layers=True)
    adapters, tokens = random_adapters("both", TASKS), source(TASKS, EXAMPLES)
    unrolled = decode(MODEL, params(), tokens, max_length=LENGTH, adapters=adapters, method=Beam(2))
    scanned = decode(
        T5(config),
        stack_layers(params(), config),
        tokens,
        max_length=LENGTH,
        adapters=arrange(adapters, spec, config, batch_dims=1),
        method=Beam(2),
    )
    np.testing.assert_array_equal(scanned.all_tokens, unrolled.all_tokens)
    np.testing.assert_allclose(scanned.all_scores, unrolled.all_scores, rtol=1e-4)


def test_a_prompt_is_kept_and_continued() -> None:
    tokens = source(3)
    free = decode(MODEL, params(), tokens, max_length=LENGTH, eos_id=-1)
    for method in (Greedy(), Beam(3, 0.0)):
        whole = decode(MODEL, params(), tokens, max_length=LENGTH, eos_id=-1, method=method, prompt_tokens=free.tokens)
        np.testing.assert_array_equal(whole.tokens, free.tokens)
    half = decode(MODEL, params(), tokens, max_length=LENGTH, eos_id=-1, prompt_tokens=free.tokens[:, :3])
    np.testing.assert_array_equal(half.tokens, free.tokens)
    assert (half.scores > free.scores).all()


@pytest.mark.parametrize("kind", [None, "both"])
def test_scores_of_options_are_those_of_each_alone(kind: str | None) -> None:
    rng = np.random.default_rng(5)
    options = rng.integers(2, CONFIG.vocab_size, (TASKS, EXAMPLES, 4, 5)).astype(np.int32)
    options[:, :, 1, 3:] = 0
    options[:, :, 2, :] = 0
    tokens = source(TASKS, EXAMPLES)
    adapters = None if kind is None else random_adapters(kind, TASKS)
    scores = score_options(MODEL, params(), tokens, options, adapters)
    assert scores.shape == (TASKS, EXAMPLES, 4)
    for task in range(TASKS):
        own = None if adapters is None else jax.tree.map(lambda x, task=task: x[task], adapters)
        for option in range(4):
            target = options[task, :, option]
            log_probs = np.take_along_axis(teacher_forced(tokens[task], target, own), target[..., None], -1)[..., 0]
            expected = np.sum(log_probs * (target > 0), axis=1)
            np.testing.assert_allclose(scores[task, :, option], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [LoRA(rank=2, sites=("*",)), Full()], ids=["lora", "full"])
@pytest.mark.parametrize("tied", [False, True])
def test_casting_kernels_beforehand_changes_nothing(tied: bool, kind: Any) -> None:
    config = CONFIG.replace(dtype="bfloat16", logits_via_embedding=tied)
    weights, adapters = cases.random_params(config), random_tree(build_spec(kind, config))
    before = cast_kernels(weights, config, adapters)
    expected = jnp.float32 if isinstance(kind, Full) else jnp.bfloat16
    assert before["encoder"]["layers_0"]["mlp"]["wo"]["kernel"].dtype == expected
    logits = [
        _log_probs(T5(config), {"params": p, "adapters": adapters}, source(2), source(2, seed=1))
        for p in (weights, before)
    ]
    np.testing.assert_array_equal(*logits)


def test_a_fully_tuned_model_decodes_in_bfloat16_as_its_sum() -> None:
    """Decoding and scoring see one model: the parameters' sums with the deltas, rounded afterwards."""
    config = CONFIG.replace(dtype="bfloat16")
    spec, weights = build_spec(Full(), config), cases.random_params(config)
    adapters = random_tree(spec)
    alone = decode(T5(config), merge(weights, adapters, spec), source(4), max_length=LENGTH)
    added = decode(T5(config), weights, source(4), max_length=LENGTH, adapters=adapters)
    np.testing.assert_array_equal(added.tokens, alone.tokens)
    np.testing.assert_array_equal(added.scores, alone.scores)


def test_excluding_tokens() -> None:
    logits = jnp.log(jnp.array([[0.05, 0.4, 0.3, 0.05, 0.2]]))
    kept = {k: (keep_topk(logits, k) > -1e6)[0].tolist() for k in (1, 3, 4)}
    assert kept[1] == [False, True, False, False, False]
    assert kept[3] == [False, True, True, False, True]
    assert kept[4] == [True] * 5  # a tie with the fourth is kept
    for p, count in ((0.3, 1), (0.5, 2), (0.69, 2), (0.85, 3), (1.0, 5)):
        assert int((keep_topp(logits, p) > -1e6).sum()) == count, p


def test_samples_follow_the_distribution() -> None:
    """Frequencies of the first token of 4,000 draws against its probabilities, within five standard errors."""
    tokens = source(1)
    temperature = 2.0
    method = Sample(temperature=temperature, num_decodes=4000)
    drawn = decode(MODEL, params(), tokens, max_length=1, method=method, rng=jax.random.key(0)).all_tokens[0, :, 0]
    log_probs = teacher_forced(tokens, np.zeros((1, 1), np.int32))[0, 0]
    expected = np.exp(log_probs / temperature) / np.sum(np.exp(log_probs / temperature))
    frequency = np.bincount(np.asarray(drawn), minlength=CONFIG.vocab_size) / 4000
    assert np.all(np.abs(frequency - expected) < 5 * np.sqrt(expected * (1 - expected) / 4000) + 1e-3)


def test_what_does_not_fit_is_named() -> None:
    tokens = source(TASKS, EXAMPLES)
    adapters = random_adapters("lora", TASKS + 1)
    with pytest.raises(AdapterError, match=r"key/lora/a': expected shape \(3, 16, rank\) beside .*, got \(4, 16, 2\)"):
        decode(MODEL, params(), tokens, max_length=LENGTH, adapters=adapters)
    with pytest.raises(HyperflaxError, match=r"\[task, example, source\], got shape"):
        decode(MODEL, params(), tokens[None], max_length=LENGTH, adapters=adapters)
    with pytest.raises(HyperflaxError, match=r"prompt_tokens: expected \(3, 2\) and at most 7 tokens"):
        decode(MODEL, params(), tokens, max_length=LENGTH, prompt_tokens=np.zeros((TASKS, EXAMPLES, 8)))
    with pytest.raises(HyperflaxError, match=r"option_tokens: expected \[3, 2, option, length\]"):
        score_options(MODEL, params(), tokens, np.ones((TASKS, 4, 5), np.int32))
    with pytest.raises(AdapterError, match=r"expected shape \(length, 2, 8\) beside .*\(2, 9\), got \(3, 3, 2, 8\)"):
        score_options(MODEL, params(), tokens[0], np.ones((2, 4, 5), np.int32), random_adapters("prefix", TASKS))
    with pytest.raises(ConfigError, match="Sample needs a key"):
        decode(MODEL, params(), tokens, max_length=LENGTH, method=Sample())
    with pytest.raises(ConfigError, match="at most one of topk and topp"):
        Sample(topk=2, topp=0.5)
    with pytest.raises(ConfigError, match=r"Sample: temperature, topk >= 0, .* got .*temperature=nan"):
        Sample(temperature=math.nan)
    with pytest.raises(ConfigError, match=r"Beam: num_decodes >= 1 and alpha >= 0 expected, got .*alpha=nan"):
        Beam(alpha=math.nan)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_adapters_that_nothing_reads_are_refused(scan_layers: bool) -> None:
    """Flax ignores them, and what came out would be the bare model."""
    config = CONFIG.replace(scan_layers=scan_layers)
    tokens, options = source(EXAMPLES), np.ones((EXAMPLES, 4, 5), np.int32)
    flat = trees.flatten(arrange(random_adapters("both"), build_spec(KINDS["both"], CONFIG), config))
    misspelt = trees.unflatten({path.replace("attention/", "atention/"): leaf for path, leaf in flat.items()})
    for refused in (
        lambda: score_options(T5(config), {}, tokens, options, misspelt),
        lambda: decode(T5(config), {}, tokens, max_length=LENGTH, adapters=misspelt),
    ):
        with pytest.raises(AdapterError, match=r"reads the leaf '.*_atention/.* \(did you mean '.*_attention/.*more$"):
            refused()


@pytest.mark.parametrize("scan_layers", [False, True])
def test_adapters_of_every_kind_are_taken(scan_layers: bool) -> None:
    """Optional leaves, such as the mask of a prefix, included."""
    config = CONFIG.replace(scan_layers=scan_layers)
    for kind in KIND_CLASSES.values():
        for settings in kind.catalogue():
            spec = settings.spec(CONFIG)
            made = spec.init(jax.random.key(0))
            for tree in (made, spec.identity()):
                check_inputs(config, source(EXAMPLES), arrange(tree, spec, config))
