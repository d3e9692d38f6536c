"""Figures of generated adapters: each task's own diagnostics, and distances by hand."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from hyperflax.adapters.diagnostics import diagnostics
from hyperflax.adapters.kinds import build_spec
from hyperflax.adapters.lora import LoRA
from hyperflax.hypernets.table import Table
from hyperflax.objectives import HypermodelObjective
from hyperflax.objectives.generated import adapter_metrics
from tests.adapters.micro import CONFIG, random_tree
from tests.objectives.test_episode import BATCH, MODEL, SPEC

LORA = build_spec(LoRA(rank=2, sites=("*/query",)), CONFIG)


def stacked(*adapters):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *adapters)


def flat(tree) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_figures_are_means_over_tasks() -> None:
    tasks = [random_tree(LORA, seed) for seed in range(3)]
    again = [random_tree(LORA, seed) for seed in range(10, 16)]
    others = stacked(*(stacked(*again[2 * i : 2 * i + 2]) for i in range(3)))
    found = {name: (float(a), float(b)) for name, (a, b) in adapter_metrics(stacked(*tasks), LORA, others).items()}
    alone = [diagnostics(task, LORA) for task in tasks]
    assert set(found) == {f"{name}/{layer}" for name in ("norm", "effective_rank") for layer in alone[0]} | {
        "between_task_distance",
        "within_task_distance",
    }
    for layer in alone[0]:
        assert found[f"norm/{layer}"] == pytest.approx((sum(float(task[layer].norm) for task in alone), 3), rel=1e-5)
        ranks = sum(float(task[layer].effective_rank) for task in alone)
        assert found[f"effective_rank/{layer}"] == pytest.approx((ranks, 3), rel=1e-5)
    values = np.stack([flat(task) for task in tasks])
    between = np.mean((values - np.roll(values, 1, axis=0)) ** 2)
    assert found["between_task_distance"] == pytest.approx((3 * between, 3), rel=1e-5)
    within = [np.mean((values[i // 2] - flat(other)) ** 2) for i, other in enumerate(again)]
    assert found["within_task_distance"] == pytest.approx((3 * np.mean(within), 3), rel=1e-5)


def test_one_task_has_no_distance_to_others() -> None:
    assert not [name for name in adapter_metrics(stacked(random_tree(LORA, 0)), LORA) if "distance" in name]


def test_validation_reports_what_the_hypernetwork_writes() -> None:
    """A table writes the same for every support of a task, and something else for every task."""
    objective = HypermodelObjective(MODEL, Table(SPEC, num_tasks=3))
    rows = objective.init(jax.random.key(0), BATCH)
    alone = objective.validation_metrics(rows, None, BATCH)
    wanted = adapter_metrics(objective.generate(rows, BATCH), SPEC)
    assert alone.keys() == {f"adapters/{name}" for name in wanted}
    for name, pair in wanted.items():
        np.testing.assert_allclose(alone[f"adapters/{name}"], pair, rtol=1e-6)
    two = objective.validation_metrics(rows, None, {**BATCH, "other_support_tokens": BATCH["support_tokens"][:, None]})
    assert float(two["adapters/within_task_distance"][0]) == 0.0
    assert float(two["adapters/between_task_distance"][0]) > 0.0
