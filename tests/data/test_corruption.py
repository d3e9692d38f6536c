"""Span corruption and LM adaptation lose nothing, and their statistics are T5's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflax.data.corruption import MixedPairs, PrefixLM, SpanCorruption, Windows, corrupt, noise_mask
from hyperflax.data.examples import Example, InMemorySource, TaskExamples
from hyperflax.data.vocabularies import Bytes
from hyperflax.errors import ConfigError, DataError

SENTINELS = np.arange(1000, 900, -1, dtype=np.int32)


def rebuild(inputs: np.ndarray, targets: np.ndarray) -> list[int]:
    """The window again: every sentinel in the inputs stands for what follows it in the targets."""
    spans: dict[int, list[int]] = {}
    for token in targets.tolist():
        if token > 900:
            spans[token] = current = []
        else:
            current.append(token)
    return [piece for token in inputs.tolist() for piece in (spans[token] if token > 900 else [token])]


@given(st.integers(2, 200), st.floats(0.05, 0.6), st.floats(1.0, 6.0), st.integers(0, 10_000))
def test_corrupted_windows_can_be_rebuilt(length: int, density: float, mean_span: float, seed: int) -> None:
    tokens = np.random.default_rng(seed).integers(1, 900, length).astype(np.int32)
    mask = noise_mask(length, np.random.default_rng(seed), density=density, mean_span=mean_span)
    assert mask.sum() == min(max(round(length * density), 1), length - 1)
    assert not mask[0]
    inputs, targets = corrupt(tokens, mask, SENTINELS)
    assert rebuild(inputs, targets) == tokens.tolist()
    assert len(inputs) + len(targets) == length + 2 * int((mask & ~np.roll(mask, 1)).sum())


def test_mean_span_is_as_asked() -> None:
    rng = np.random.default_rng(0)
    masks = [noise_mask(256, rng) for _ in range(200)]
    spans = sum(int((mask & ~np.roll(mask, 1)).sum()) for mask in masks)
    assert sum(int(mask.sum()) for mask in masks) / spans == pytest.approx(38 / 13)  # round(.15 * 256) in round(38 / 3)


def test_too_many_spans_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most 1 spans"):
        corrupt(np.arange(4, dtype=np.int32), np.array([False, True, False, True]), SENTINELS[:1])


def test_too_few_sentinels_for_the_longest_window_are_told_at_once() -> None:
    """However rare it is, and not where texts are shorter than a window may be."""
    texts = {"text": [*[("", "x" * 40)] * 50, ("", "y" * 300)]}
    with pytest.raises(ConfigError, match=r"expected at most 10 spans \(sentinels\), got 13"):
        SpanCorruption(InMemorySource.from_strings(texts, Bytes(extra_ids=10)), length=256)
    SpanCorruption(InMemorySource.from_strings({"text": texts["text"][:50]}, Bytes(extra_ids=10)), length=256)


@pytest.fixture(scope="module")
def texts() -> InMemorySource:
    words = "the quick brown fox jumps over the lazy dog and runs away"
    return InMemorySource.from_strings({"text": [("", words[: 20 + i]) for i in range(30)]}, Bytes())


def test_span_corruption_source_uses_the_vocabularys_sentinels(texts: InMemorySource) -> None:
    pairs = SpanCorruption(texts, length=32)
    whole = {texts.vocabulary.decode(texts.example(0, i).targets) for i in range(30)}
    for seed in range(20):
        ((inputs, targets),) = pairs(np.random.default_rng(seed))
        assert targets[0] == texts.vocabulary.sentinel(0)
        lookup = {texts.vocabulary.sentinel(i): 1000 - i for i in range(100)}
        renamed = [np.array([lookup.get(int(t), int(t)) for t in side]) for side in (inputs, targets)]
        window = texts.vocabulary.decode(rebuild(*renamed))
        assert any(window in text for text in whole)


def test_prefix_lm_cuts_once(texts: InMemorySource) -> None:
    for seed in range(20):
        ((front, rest),) = PrefixLM(texts, length=32, shortest=4)(np.random.default_rng(seed))
        assert min(len(front), len(rest)) >= 4
        window = texts.vocabulary.decode(np.concatenate([front, rest]))
        assert any(window in texts.vocabulary.decode(texts.example(0, i).targets) for i in range(30))


def test_windows_of_a_mixture_keep_its_rates() -> None:
    """However long the texts of its components are; within one, by their lengths, which are 1 to 3 here."""
    texts = {"a": ["a" * 20], "b": ["b" * 300, "c" * 900]}
    tasks = [
        TaskExamples(name, [Example.from_text("", text, Bytes()) for text in texts[name]], group=group)
        for group, name in enumerate(texts)
    ]
    windows = Windows(InMemorySource(tasks, Bytes(), group_rates=[3.0, 1.0]), length=16)
    assert windows.longest == 16
    rng = np.random.default_rng(0)
    drawn = [chr(windows.draw(rng)[0] - 3) for _ in range(4000)]
    for letter, share in (("a", 3 / 4), ("b", 1 / 16), ("c", 3 / 16)):
        assert drawn.count(letter) / 4000 == pytest.approx(share, abs=0.02)
    with pytest.raises(DataError, match="expected a positive mixing rate"):
        Windows(InMemorySource(tasks, Bytes(), group_rates=[0.0, 0.0]), length=16)


def test_texts_that_are_all_too_short_are_refused() -> None:
    with pytest.raises(DataError, match="at least one of 16 tokens"):
        SpanCorruption(InMemorySource.from_strings({"text": [("", "short")]}, Bytes()), length=32)


def test_mixed_pairs_keep_their_rates() -> None:
    mixed = MixedPairs((lambda rng: ["a"], lambda rng: ["b"]), (3.0, 1.0))
    rng = np.random.default_rng(0)
    share = np.mean([mixed(rng) == ["a"] for _ in range(4000)])
    assert share == pytest.approx(0.75, abs=3 * np.sqrt(0.75 * 0.25 / 4000))
    with pytest.raises(ConfigError, match="positive rate"):
        MixedPairs((), ())


def test_a_window_too_short_to_be_cut_is_refused() -> None:
    texts = InMemorySource.from_strings({"a": [("", 40 * "x")]}, Bytes())
    assert PrefixLM(texts, length=32, shortest=16)(np.random.default_rng(0))
    with pytest.raises(ConfigError, match=r"PrefixLM.shortest: expected 1 to 10, half of length, got 16"):
        PrefixLM(texts, length=20, shortest=16)
