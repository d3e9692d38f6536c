"""Metrics: from a task's predictions and references to one score between 0 and 1.

A metric sees one task at a time, all of its predictions together, because macro-F1 is no mean over examples. What a
report calls a task's score is what `Metric.score` returns; the report's mean is the mean of those over tasks.

>>> METRICS["exact_match"].score(["a", "b"], [["a"], ["x", "y"]])
0.5

Sources: Super-NaturalInstructions (Wang et al. 2022, and Tk-Instruct's evaluation script) for ROUGE-L and the
normalised exact match; MetaICL (Min et al. 2022, and its evaluation code) for accuracy and macro-F1; T0 (Sanh et al.
2022) for rank classification. ROUGE is google's `rouge-score` package itself, the implementation that the published
figures were computed with.
"""

from __future__ import annotations

import dataclasses
import functools
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hyperflax.errors import ConfigError, DataError

References = Sequence[Sequence[str]]

# Super-NaturalInstructions reports exact match for these categories and ROUGE-L for all others.
NI_EXACT_MATCH_CATEGORIES = (
    "Textual Entailment",
    "Cause Effect Classification",
    "Coreference Resolution",
    "Dialogue Act Recognition",
    "Answerability Classification",
    "Word Analogy",
)

_DROP_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_answer(text: str) -> str:
    """Lower case, no ASCII punctuation, single spaces; articles stay (unlike SQuAD's normalisation).

    >>> normalise_answer("  The  U.S.-born\\nman ")
    'the usborn man'
    """
    return " ".join(text.lower().translate(_DROP_PUNCTUATION).split())


@functools.cache
def _rouge_scorer() -> Any:
    from rouge_score import rouge_scorer  # imports nltk, which takes seconds: only where a ROUGE score is asked for

    return rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=True)


def rouge(prediction: str, references: Sequence[str], kind: str = "rougeL") -> float:
    """F-measure of `rouge1` or `rougeL` with Porter stemming, the maximum over the references.

    Only a-z and 0-9 count after lower-casing: texts without any (another script, a bare "+") score 0 even when equal,
    as they do officially.

    >>> rouge("the cat", ["a cat sat", "dogs"], "rouge1")
    0.4
    """
    return max(float(_rouge_scorer().score(reference, prediction)[kind].fmeasure) for reference in references)


def _mean(per_example: Callable[[str, Sequence[str]], float]) -> Callable[[Sequence[str], References], float]:
    def score(predictions: Sequence[str], references: References) -> float:
        return float(np.mean([per_example(p, r) for p, r in zip(predictions, references, strict=True)]))

    return score


def _normalised_match(prediction: str, references: Sequence[str]) -> bool:
    return normalise_answer(prediction) in [normalise_answer(reference) for reference in references]


def _label_match(prediction: str, references: Sequence[str]) -> bool:
    return prediction.strip() in [reference.strip() for reference in references]


def macro_f1(predictions: Sequence[str], references: References) -> float:
    """Mean over classes of F1 = 2 hits / (times predicted + times true), one reference per example.

    The classes are those that occur among the references, as in MetaICL's evaluation: a label that is predicted and
    never true costs recall elsewhere and adds no class of its own.

    Raises:
      DataError: an example has more than one reference, so that its class is not defined.
    """
    for index, answers in enumerate(references):
        if len(answers) != 1:
            raise DataError(f"macro_f1: example {index} has {len(answers)} references, expected exactly one label")
    guesses = np.array([prediction.strip() for prediction in predictions], dtype=object)
    labels = np.array([answers[0].strip() for answers in references], dtype=object)
    scores = []
    for label in sorted(set(labels)):
        guessed, true = guesses == label, labels == label
        scores.append(2.0 * np.sum(guessed & true) / (np.sum(guessed) + np.sum(true)))
    return float(np.mean(scores))


@dataclasses.dataclass(frozen=True)
class Metric:
    """A named score. `fn(predictions, references)` gets lists of equal, non-zero length and returns a float in 0..1.

    `per_example` says that it is the mean of its values for every example alone.
    """

    name: str
    description: str
    fn: Callable[[Sequence[str], References], float]
    per_example: bool = True

    def score(self, predictions: Sequence[str], references: References) -> float:
        """The task's score.

        Args:
          predictions: one string per example.
          references: for each example its acceptable answers, at least one.

        Raises:
          DataError: lengths differ, nothing to score, or an example without references.
        """
        if len(predictions) != len(references):
            raise DataError(f"{self.name}: {len(predictions)} predictions for {len(references)} lists of references")
        if not predictions:
            raise DataError(f"{self.name}: no predictions to score")
        for index, (prediction, answers) in enumerate(zip(predictions, references, strict=True)):
            if isinstance(answers, str) or not answers:
                raise DataError(
                    f"{self.name}: references of example {index}: expected a list of strings, got {answers!r}"
                )
            if not isinstance(prediction, str):
                raise DataError(f"{self.name}: prediction {index}: expected a string, got {type(prediction).__name__}")
        return self.fn(predictions, references)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("exact_match", "equal to a reference, character by character", _mean(lambda p, r: p in r)),
        Metric(
            "exact_match_normalised",
            "equal to a reference but for case, ASCII punctuation and white space (Super-NaturalInstructions)",
            _mean(_normalised_match),
        ),
        Metric("rouge_l", "ROUGE-L F-measure with stemming, best reference", _mean(rouge)),
        Metric(
            "rouge_1", "ROUGE-1 F-measure with stemming, best reference", _mean(functools.partial(rouge, kind="rouge1"))
        ),
        Metric("accuracy", "share of chosen labels that are right", _mean(_label_match)),
        Metric("macro_f1", "F1 averaged over the classes of a task (MetaICL)", macro_f1, per_example=False),
    )
}


def get_metric(name: str) -> Metric:
    """The metric of that name, or a ConfigError that lists them."""
    if name not in METRICS:
        raise ConfigError(f"metric: expected one of {', '.join(METRICS)}, got {name!r}")
    return METRICS[name]


def example_metric(name: str, where: str = "metric") -> Metric:
    """The metric of that name, if it scores an example alone.

    Raises:
      ConfigError: there is none, or it is no mean over examples; it names `where` the name stood, and lists those.

    >>> example_metric("rouge_l").per_example
    True
    """
    known = [metric.name for metric in METRICS.values() if metric.per_example]
    if name not in known:
        raise ConfigError(f"{where}: expected one that scores an example alone ({', '.join(known)}), got {name!r}")
    return METRICS[name]


def best_options(option_scores: npt.ArrayLike, mask: npt.ArrayLike | None = None) -> npt.NDArray[np.int64]:
    """Rank classification: the index of the option that the model finds likeliest.

    Args:
      option_scores: [..., option] summed log-probabilities of each option's tokens (T0) or their means (MetaICL).
      mask: [..., option], true where the option exists; examples with fewer options are padded.

    Returns:
      [...] index of the best option; of equally good ones the first.

    Raises:
      DataError: a NaN among the scores of existing options, or an example without any option.

    >>> best_options([[-3.0, -1.0, -2.0]]).tolist()
    [1]
    """
    scores = np.asarray(option_scores, dtype=np.float64)
    if scores.ndim == 0 or scores.shape[-1] == 0:
        raise DataError(f"option_scores: expected shape [..., option] with options, got {scores.shape}")
    exists = np.ones(scores.shape, bool) if mask is None else np.broadcast_to(np.asarray(mask, bool), scores.shape)
    if not exists.any(axis=-1).all():
        raise DataError("option_scores: an example has no option at all")
    if np.isnan(scores[exists]).any():
        raise DataError("option_scores: NaN among the scores of existing options")
    # An impossible option (-inf) still beats one that does not exist, hence the two-step choice.
    best = np.max(scores, axis=-1, keepdims=True, where=exists, initial=-np.inf)
    return np.argmax(exists & (scores == best), axis=-1)
