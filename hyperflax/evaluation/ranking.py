"""Rank classification: every answer choice is scored, the likeliest one is the answer.

A choice's score is the sum of its tokens' log-probabilities, end of sequence included, as in T0's evaluation (Sanh et
al. 2022, `run_eval.py`), or their mean, as in MetaICL's (Min et al. 2022, `model.py`): sums favour short choices.
Choices are never cut. Scored in slices of examples, so that neither the logits `[task, example, choice, length,
vocabulary]` nor the encoder's attention stand in memory whole.

>>> chosen = rank(model, inputs, choices, adapters)    # doctest: +SKIP
>>> chosen[0][3]                                       # of task 0, example 3 # doctest: +SKIP
1
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from hyperflax.data.vocabularies import EOS_ID
from hyperflax.evaluation.metrics import best_options
from hyperflax.models.scoring import score_options
from hyperflax.padding import rounded_up
from hyperflax.types import PyTree

if TYPE_CHECKING:
    from hyperflax.hypermodel import Hypermodel

Choices = Sequence[Sequence[np.ndarray]]
Rule = Literal["sum", "mean"]

TOKENS = 1 << 16  # of the encoder's inputs at once
ROWS = 256  # decoder rows (task x example x choice) at once
STEP = 8  # choices are padded to a multiple of so many tokens, so that few shapes are compiled


def rank(
    model: Hypermodel,
    inputs: np.ndarray,
    choices: Sequence[Choices],
    adapters: PyTree | None = None,
    *,
    rule: Rule = "sum",
) -> list[list[int]]:
    """The index of the likeliest choice of every example.

    Args:
      model: its base model scores.
      inputs: int32 [task, example, source], the encoder's inputs; rows behind a task's last example are padding.
      choices: for every task, for every example, the tokens of each choice, without end of sequence.
      adapters: leaves [task, ...]; None scores with the bare base model.
      rule: what of a choice's log-probabilities counts.

    Returns:
      one list per task, one index per example; of equally likely choices the first.
    """
    tokens, exists = choice_tokens(choices, inputs.shape[1])
    scores = [
        np.asarray(score_options(model.model, model.base_params, part, tokens_of_part, adapters))[:, :kept]
        for kept, part, tokens_of_part in slices(inputs, tokens, rows=ROWS // tokens.shape[2])
    ]
    table = np.concatenate(scores, axis=1)
    if rule == "mean":
        table = table / np.maximum(1, np.count_nonzero(tokens, axis=-1))
    table = best_options(table, exists)
    return [row[: len(task)].tolist() for row, task in zip(table, choices, strict=True)]


def slices(inputs: np.ndarray, *others: np.ndarray, rows: int | None = None) -> Iterator[tuple]:
    """Slices along the example axis that hold at most `TOKENS` encoder tokens (and `rows` rows), but one example.

    All are of one size; what fits into a single slice has one of few, so that few shapes are compiled.

    Args:
      inputs: [task, example, source].
      others: [task, example, ...], sliced alike.

    Yields:
      (number of examples, inputs, *others); the last slice is padded with zeros to that size.
    """
    tasks, examples, source = inputs.shape
    most = TOKENS // source if rows is None else min(rows, TOKENS // source)
    size = min(max(1, most // tasks), rounded_up(examples))
    for start in range(0, examples, size):
        parts = [array[:, start : start + size] for array in (inputs, *others)]
        kept = parts[0].shape[1]
        yield kept, *(np.pad(part, [(0, 0), (0, size - kept), *[(0, 0)] * (part.ndim - 2)]) for part in parts)


def choice_tokens(choices: Sequence[Choices], examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Every choice with its end of sequence as int32 [task, example, choice, length], and bool [task, example, choice]:
    which of them exist. In rows without an example the first one does, so that every row has something to choose."""
    most = max(len(options) for task in choices for options in task)
    longest = max(len(tokens) for task in choices for options in task for tokens in options) + 1
    out = np.zeros((len(choices), examples, most, -(-longest // STEP) * STEP), np.int32)
    exists = np.zeros(out.shape[:3], bool)
    exists[..., 0] = True
    for at, task in enumerate(choices):
        for row, options in enumerate(task):
            for number, tokens in enumerate(options):
                out[at, row, number, : len(tokens)] = tokens
                out[at, row, number, len(tokens)] = EOS_ID
            exists[at, row, : len(options)] = True
    return out, exists
