"""Which source task's adapter to start from: their fine-tuned embedding spaces, imitated by linear maps, ranked.

An embedding space map (Schulte, Hamborg and Akbik 2024, *Less is More: Parameter-Efficient Selection of Intermediate
Tasks*) carries the base model's embeddings of texts to those that the model with the source's adapter gives, so no
fine-tuned model has to read the new data. LogME (You, Liu, Wang and Long 2021) ranks the sources: the log evidence of
Bayesian linear regression from the mapped embeddings to the labels,

    y = F w + noise,   w ~ N(0, I / alpha),   noise ~ N(0, 1 / beta),   alpha and beta at the evidence's maximum

per example, averaged over the columns of y. A text has no class, so the labels are embeddings of the answers.

>>> matrix = fit_map(base, tuned)
>>> rank(embeddings, labels, {"dates": matrix, "names": other})
[('dates', -0.83), ('names', -1.12)]
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from hyperflax.errors import DataError

ROUNDS = 50
_TINY = 1e-12


def fit_map(base: np.ndarray, tuned: np.ndarray, strength: float = 1e-2) -> np.ndarray:
    """Returns the map [d + 1, d'] that carries base embeddings to tuned ones, by ridge regression; the last row shifts.

    Args:
      base: [n, d] embeddings of texts by the base model. tuned: [n, d'] by the model with an adapter.
      strength: of the penalty, relative to the mean square of the base embeddings; the shift is free.

    Raises:
      DataError: other numbers of rows, or none.
    """
    base, tuned = np.asarray(base, np.float64), np.asarray(tuned, np.float64)
    if base.ndim != 2 or tuned.ndim != 2 or len(base) != len(tuned) or not len(base):
        raise DataError(f"fit_map: expected [n, d] and [n, d'], got {base.shape} and {tuned.shape}")
    x, y = base - base.mean(axis=0), tuned - tuned.mean(axis=0)
    penalty = strength * max(float(np.mean(np.square(x))), _TINY) * len(x)
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)
    return np.concatenate([weights, (tuned.mean(axis=0) - base.mean(axis=0) @ weights)[None]])


def apply_map(matrix: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Returns the mapped embeddings [n, d'] of [n, d]."""
    return np.asarray(base, np.float64) @ matrix[:-1] + matrix[-1]


def log_evidence(features: np.ndarray, labels: np.ndarray) -> float:
    """Returns LogME: log evidence per example, averaged over the columns of labels; larger is better.

    Args:
      features: [n, d]. labels: [n, k]; a column without variation is left out.

    Raises:
      DataError: other numbers of rows, fewer than two, or labels that never vary.
    """
    features, labels = np.asarray(features, np.float64), np.asarray(labels, np.float64)
    if features.ndim != 2 or labels.ndim != 2 or len(features) != len(labels) or len(features) < 2:
        raise DataError(f"log_evidence: expected [n, d] and [n, k], n > 1, got {features.shape} and {labels.shape}")
    labels = varying(labels)
    if not labels.shape[1]:
        raise DataError("log_evidence: expected labels that vary, got the same for every example")
    left, singular, _ = np.linalg.svd(features, full_matrices=False)
    return float(np.mean([_evidence(left, singular, y) for y in (labels - labels.mean(axis=0)).T]))


def varying(labels: np.ndarray) -> np.ndarray:
    """Returns the columns of labels [n, k] that differ from example to example, all that evidence can come from."""
    return labels[:, labels.std(axis=0) > _TINY]


def _evidence(left: np.ndarray, singular: np.ndarray, y: np.ndarray) -> float:
    """Log evidence per example of one column, by the fixed point of MacKay 1992 in the basis of singular vectors."""
    count, squares = len(y), np.square(singular)
    inside = np.square(left.T @ y)
    outside = max(float(y @ y - inside.sum()), 0.0)  # what no weights explain
    alpha, beta = 1.0, 1.0
    for _ in range(ROUNDS):
        before = alpha, beta
        kept = beta * squares / (alpha + beta * squares)
        norm = float(np.sum(inside * squares * np.square(beta / (alpha + beta * squares))))
        residual = float(np.sum(inside * np.square(1.0 - kept))) + outside
        gamma = float(kept.sum())
        alpha = gamma / max(norm, _TINY)
        beta = max(count - gamma, _TINY) / max(residual, _TINY)
        if abs(math.log(alpha / before[0])) + abs(math.log(beta / before[1])) < 1e-6:
            break
    return evidence_at(squares, inside, outside, count, alpha, beta) / count


def evidence_at(
    squares: np.ndarray, inside: np.ndarray, outside: float, count: int, alpha: float, beta: float
) -> float:
    """Returns the log evidence at given alpha and beta.

    Args:
      squares: squared singular values of the features. inside: squared products of labels and left singular vectors.
      outside: squared length of the labels' part that the features do not span.
      count: examples. Weights in directions that no example has cancel out, so the features' width is not asked for.
    """
    ratio = alpha / (alpha + beta * squares)
    quadratic = beta * (float(np.sum(inside * ratio)) + outside)
    return 0.5 * (count * math.log(beta) + float(np.sum(np.log(ratio))) - count * math.log(2.0 * math.pi) - quadratic)


def rank(embeddings: np.ndarray, labels: np.ndarray, maps: Mapping[str, np.ndarray]) -> list[tuple[str, float]]:
    """Returns the sources with their evidence, best first, equals by name.

    Args:
      embeddings: [n, d] of the new inputs by the base model. labels: [n, k]. maps: a map for every source.
    """
    scores = {name: log_evidence(apply_map(matrix, embeddings), labels) for name, matrix in maps.items()}
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))
