"""The training step of every shipped run is built under eval_shape, on batches of data that stand in for the run's."""

from __future__ import annotations

import dataclasses

import gin
import jax
import pytest

from hyperflax.compile.programs import training_program
from hyperflax.training.partitioning import Partitioner
from hyperflax_tasks.strings import episodes as strings
from tests.gin_runs import TRAINING_RUNS, described, made, value_of

PAPERS = [f"runs/natural_instructions_{system}.gin" for system in ("hart", "hyper_t5_lora", "hyper_t5_prefix")]


@pytest.mark.parametrize("run", TRAINING_RUNS)
def test_a_runs_step_is_built(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loss, gradients and update, all of its microbatches: the function that training jits."""
    programs = strings._source.__wrapped__  # 36,000, of which a few have the shapes of all
    monkeypatch.setattr(strings, "_source", lambda split, examples, _, *which: programs(split, examples, 64, *which))
    model, batches = described(run)
    if run in PAPERS:  # of 24 layers a stack: as loops, which their mesh files make of them
        model = dataclasses.replace(model, scan_layers=True)
    job = gin.get_bindings("hyperflax.train.train", resolve_references=False)
    options = {name: made(job[name]) for name in ("microbatches", "loss_normalizing_factor") if name in job}
    program = training_program(model, batches.batch(0), value_of("OPTIMIZER"), partitioner=Partitioner(), **options)
    before = program.arguments[0]
    with jax.set_mesh(program.mesh):
        after, metrics = jax.eval_shape(program.function, *program.arguments)
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(after)] == [
        (leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(before)
    ]
    assert {leaf.shape for leaf in jax.tree.leaves(metrics)} == {()}


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large", "xl", "xxl"])
@pytest.mark.parametrize("run", PAPERS)
def test_the_papers_losses_are_built_in_every_size(run: str, size: str) -> None:
    """Of all that they train on: HART's on two supports of each task."""
    model, batches = described(run, f"models/t5_1_1_{size}.gin")
    model, batch = dataclasses.replace(model, scan_layers=True), batches.batch(0)
    params = jax.eval_shape(model.objective.init, jax.random.key(0), batch)
    loss, weights, metrics = jax.eval_shape(model.objective.loss, params, model.abstract_frozen, batch, None)
    assert loss.shape == weights.shape == ()
    assert ("within_task_distance" in metrics) == run.endswith("hart.gin")
