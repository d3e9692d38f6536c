"""Early stopping: which losses end a run, what is kept, and that a run which ended stays so."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflax.errors import ConfigError
from hyperflax.training import make_optimizer, train
from hyperflax.training.run_log import read_rows
from hyperflax.training.stopping import EarlyStopping


def stopping(patience, kept=None):
    return EarlyStopping(patience, lambda params, step: None if kept is None else kept.append((step, params)))


@given(st.lists(st.integers(0, 4).map(float) | st.just(math.inf), min_size=1, max_size=12), st.integers(1, 4))
def test_a_run_ends_after_so_many_losses_that_are_no_lower_than_the_lowest(losses, patience):
    since, lowest, wanted = -1, math.inf, []
    for loss in losses:
        better = loss < lowest
        since, lowest = (0, loss) if better else (since + 1, lowest)
        wanted.append((better, since >= patience))
    found = [
        (stopping(patience).improved(losses[: n + 1]), stopping(patience).exhausted(losses[: n + 1]))
        for n in range(len(losses))
    ]
    # Before any finite loss nothing is lowest: the first one then counts as it.
    first = next((n for n, loss in enumerate(losses) if loss < math.inf), len(losses))
    assert found[first:] == wanted[first:]
    assert not any(improved for improved, _ in found[:first])


def run(table, batches, directory, losses, patience, kept, **options):
    """A run whose evaluations have the given losses, at steps 0, 2, 4 ..."""
    return train(
        objective=table,
        optimizer=make_optimizer("adamw", 0.05),
        batches=batches,
        model_dir=directory,
        total_steps=12,
        log_period=2,
        save_period=4,
        eval_period=2,
        evaluator=lambda params, frozen, step: {"loss": losses[step // 2]},
        early_stopping=stopping(patience, kept),
        progress=False,
        **options,
    )


def test_the_best_is_kept_and_the_run_ends_and_stays_ended(tmp_path, table, copy_batches):
    losses, kept = [5.0, 4.0, 4.5, 3.0, 3.0, 3.1, 1.0], []
    state = run(table, copy_batches, tmp_path, losses, 2, kept)
    assert int(state.step) == 10
    assert [step for step, _ in kept] == [0, 2, 6]
    evaluated = [(row["step"], row["loss"]) for row in read_rows(tmp_path / "metrics.jsonl") if row["kind"] == "eval"]
    assert evaluated == [(2 * n, loss) for n, loss in enumerate(losses[:6])]
    again = run(table, copy_batches, tmp_path, losses, 2, kept)
    assert int(again.step) == 10
    assert len(kept) == 3
    for first, second in zip(jax.tree.leaves(state.params), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_array_equal(first, second)


def test_a_restart_counts_the_evaluations_before_it(tmp_path, table, copy_batches):
    losses, kept = [5.0, 4.0, 4.5, 4.5, 4.5, 4.5, 1.0], []
    for _ in range(3):
        run(table, copy_batches, tmp_path, losses, 3, kept, max_seconds=0.0)  # a step at a time
    assert int(run(table, copy_batches, tmp_path, losses, 3, kept).step) == 8
    assert [step for step, _ in kept] == [0, 2]


def test_patience_is_checked_and_needs_an_evaluator(tmp_path, table, copy_batches):
    with pytest.raises(ConfigError, match="patience: expected a whole number of at least 1, got 0"):
        stopping(0)
    with pytest.raises(ConfigError, match=r"train\.early_stopping: expected an evaluator"):
        train(objective=table, optimizer=make_optimizer("adamw", 0.05), batches=copy_batches, model_dir=tmp_path,
              total_steps=1, early_stopping=stopping(1))  # fmt: skip
