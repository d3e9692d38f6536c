"""Metrics against the reference package's values, published means, closed forms and brute force."""

from __future__ import annotations

import json
import lzma
import pathlib
from typing import Any

import numpy as np
import pytest

from hyperflax.errors import ConfigError, DataError
from hyperflax.evaluation.metrics import METRICS, best_options, get_metric, macro_f1, normalise_answer, rouge


@pytest.fixture(scope="module")
def oracle(data_dir: pathlib.Path) -> list[dict[str, Any]]:
    path = data_dir / "natural_instructions" / "rouge_oracle" / "rouge_score_pairs.json.xz"
    return json.loads(lzma.open(path).read())


def test_rouge_agrees_with_the_oracle_pair_by_pair(oracle: list[dict[str, Any]]) -> None:
    assert len(oracle) == 1000
    for kind, metric, published in (("rouge1", "rouge_1", 0.40524), ("rougeL", "rouge_l", 0.40275)):
        ours = np.array([rouge(pair["prediction"], [pair["target"]], kind) for pair in oracle])
        np.testing.assert_allclose(ours, [pair[f"{kind}_f"] for pair in oracle], atol=1e-4)
        # ROUGE-1.5.5 (the Perl original) printed these means for the same pairs; it resamples, hence the tolerance.
        predictions, references = [p["prediction"] for p in oracle], [[p["target"]] for p in oracle]
        assert METRICS[metric].score(predictions, references) == pytest.approx(ours.mean(), abs=1e-12)
        assert ours.mean() == pytest.approx(published, abs=1e-3)


@pytest.mark.parametrize(
    ("prediction", "references", "rouge1", "rouge_l"),
    [
        ("a b c d", ["a c d e"], 0.75, 0.75),  # 3 of 4 words either way, in order
        ("b a", ["a b"], 1.0, 0.5),  # both words, but only one in order
        ("a a a", ["a"], 0.5, 0.5),  # a word counts as often as the reference has it: P 1/3, R 1
        ("He was running!", ["he was  runs"], 1.0, 1.0),  # stems, case, punctuation, white space
        ("cat", ["dog", "the cat", "cat"], 1.0, 1.0),  # best reference
        ("cat", ["dog", "the cat"], 2 / 3, 2 / 3),  # P 1, R 1/2
        ("cat", ["dog"], 0.0, 0.0),
        ("", ["dog"], 0.0, 0.0),
        ("+", ["+"], 0.0, 0.0),  # no letter or digit: nothing to match, officially too
    ],
)
def test_rouge_closed_forms(prediction: str, references: list[str], rouge1: float, rouge_l: float) -> None:
    assert METRICS["rouge_1"].score([prediction], [references]) == pytest.approx(rouge1, abs=1e-12)
    assert METRICS["rouge_l"].score([prediction], [references]) == pytest.approx(rouge_l, abs=1e-12)


def test_normalisation_is_the_official_one() -> None:
    assert normalise_answer(" The  'U.S.'-born\tman?\n") == "the usborn man"
    assert normalise_answer("a cat") != normalise_answer("cat")  # articles stay
    assert normalise_answer("“Yes”") == "“yes”"  # only ASCII punctuation goes


def test_exact_match_raw_and_normalised() -> None:
    predictions, references = ["Yes.", "no", "42", " x"], [["yes"], ["yes", "no"], ["42"], ["x"]]
    assert METRICS["exact_match"].score(predictions, references) == 0.5
    assert METRICS["exact_match_normalised"].score(predictions, references) == 1.0
    assert METRICS["accuracy"].score(predictions, references) == 0.75


def test_macro_f1_by_hand() -> None:
    # class a: 2 of its 3 found, predicted 3 times: F1 = 4/6; class b: found once of 2, predicted 2 times: 2/4; c: 0.
    labels = [["a"], ["a"], ["a"], ["b"], ["b"], ["c"]]
    assert macro_f1(["a", "a", "b", "b", "a", "d"], labels) == pytest.approx((4 / 6 + 2 / 4 + 0) / 3)
    assert macro_f1(["a", "b"], [["a"], ["b"]]) == 1.0
    with pytest.raises(DataError, match="example 1 has 2 references"):
        macro_f1(["a", "b"], [["a"], ["b", "c"]])


def test_macro_f1_equals_precision_and_recall_worked_out_per_class() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth, guess = rng.choice(list("abc"), 30).tolist(), rng.choice(list("abcd"), 30).tolist()
        scores = []
        for label in set(truth):
            guessed = [t for t, g in zip(truth, guess, strict=True) if g == label]
            found = [g for t, g in zip(truth, guess, strict=True) if t == label]
            precision = guessed.count(label) / len(guessed) if guessed else 1.0
            recall = found.count(label) / len(found)
            scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
        assert macro_f1(guess, [[t] for t in truth]) == pytest.approx(sum(scores) / len(scores))


def test_rank_classification_agrees_with_brute_force() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(-5, 2, (4, 7, 5))
    counts = rng.integers(1, 6, (4, 7))
    mask = np.arange(5) < counts[..., None]
    scores[~mask] = rng.choice([0.0, np.nan, np.inf], (~mask).sum())  # padding must not matter
    best = best_options(scores, mask)
    assert best.shape == (4, 7)
    for index in np.ndindex(4, 7):
        options = scores[index][: counts[index]].tolist()
        assert best[index] == options.index(max(options))


def test_rank_classification_edges() -> None:
    assert best_options([-1.0, -1.0, -2.0]) == 0  # a tie goes to the first
    assert best_options([0.0, -np.inf], [False, True]) == 1  # impossible still beats absent
    with pytest.raises(DataError, match="NaN"):
        best_options([[0.0, np.nan]])
    with pytest.raises(DataError, match="no option"):
        best_options([[0.0, 1.0]], [[False, False]])
    with pytest.raises(DataError, match=r"\(3, 0\)"):
        best_options(np.zeros((3, 0)))


def test_bad_calls_are_named() -> None:
    metric = METRICS["exact_match"]
    with pytest.raises(DataError, match="1 predictions for 2"):
        metric.score(["a"], [["a"], ["b"]])
    with pytest.raises(DataError, match="no predictions"):
        metric.score([], [])
    with pytest.raises(DataError, match="example 1"):
        metric.score(["a", "b"], [["a"], []])
    with pytest.raises(DataError, match="'ab'"):  # a bare string would be searched for substrings
        metric.score(["a"], ["ab"])  # type: ignore[list-item]
    with pytest.raises(DataError, match="prediction 0"):
        metric.score([3], [["3"]])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match=r"exact_match.*'bleu'"):
        get_metric("bleu")
