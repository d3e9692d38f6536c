"""A real copy of T5X, named by HYPERFLAX_T5X, trains the shipped gin file with a tiny model."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from hyperflax import trees
from hyperflax.checkpoints.orbax_form import read_orbax, read_orbax_state
from tests.integrations import run_t5x, t5x_model
from tests.integrations.t5x_model import CONFIG, STEPS


@pytest.fixture(scope="module")
def trained(t5x_copy: pathlib.Path, tmp_path_factory) -> tuple[pathlib.Path, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("t5x")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(t5x_copy))
        return folder / "run", run_t5x.run(folder)


@pytest.fixture
def model(t5x_copy: pathlib.Path, monkeypatch):
    monkeypatch.syspath_prepend(str(t5x_copy))
    from t5x import adafactor

    from hyperflax.integrations.t5x import HypermodelForT5X, hypernetwork_only

    return HypermodelForT5X(
        CONFIG, hypernetwork_only(adafactor.Adafactor(), CONFIG), loss_normalizing_factor=None, z_loss=0.0
    )


def test_t5x_and_our_loop_have_the_same_losses(trained, tmp_path):
    _, found = trained
    state, rows = t5x_model.train_ourselves(found, tmp_path)
    np.testing.assert_allclose([row["loss"] for row in rows], found["loss"], rtol=2e-6)
    end = trees.flatten(t5x_model.branch(found, "end/hypernetwork"))
    for path, leaf in trees.flatten(state.params).items():
        np.testing.assert_allclose(leaf, end[path], rtol=0, atol=1e-4, err_msg=path)
    for path, leaf in trees.flatten(t5x_model.branch(found, "end/base")).items():
        np.testing.assert_array_equal(leaf, found[f"checkpoint/{path}"], err_msg=path)


def test_the_goldens_are_what_t5x_still_does(trained):
    _, found = trained
    goldens = t5x_model.goldens()
    assert found.keys() == goldens.keys()
    np.testing.assert_allclose(found["loss"], goldens["loss"], rtol=1e-5)


def test_two_devices_have_the_losses_of_one(trained, t5x_copy, tmp_path):
    """Parameters lie on both, by T5X's rules and those of the gin file; T5X gives all devices of one CPU to `model`."""
    _, found = trained
    run, (_, checkpoint) = tmp_path / "run", run_t5x.t5(tmp_path)
    run_t5x.train(run, checkpoint, devices=2)
    losses = run_t5x.scalars(run / "train")["loss"]
    np.testing.assert_allclose(losses, found["loss"], rtol=1e-5)
    one, two = (trees.flatten(read_orbax(folder, step=STEPS)) for folder in (trained[0], run))
    assert one.keys() == two.keys()
    for path, leaf in one.items():
        np.testing.assert_allclose(two[path], leaf, rtol=0, atol=1e-4, err_msg=path)


def test_a_run_that_was_killed_goes_on(t5x_copy, tmp_path):
    run, (_, checkpoint) = tmp_path / "run", run_t5x.t5(tmp_path)
    every = ("EVAL_PERIOD=600", "CHECKPOINT_PERIOD=3")
    run_t5x.train(run, checkpoint, "TRAIN_STEPS=600", *every, killed_at=run / "checkpoint_3")
    names = (path.name.removeprefix("checkpoint_") for path in run.iterdir())
    reached = max(int(name) for name in names if name.isdigit())
    assert reached < 600
    run_t5x.train(run, checkpoint, f"TRAIN_STEPS={reached + 3}", *every)
    # T5X restores parameters, optimizer and step. Its stream begins anew unless it saves that too (`save_dataset`),
    # which it cannot where a Task reads from a Python generator.
    order = [*range(reached), 0, 1, 2]
    arrays = {f"batch/{i}/{name}": x for i, batch in enumerate(run_t5x.batches(reached)) for name, x in batch.items()}
    arrays |= {f"start/{path}": leaf for path, leaf in trees.flatten(read_orbax(run, step=0)).items()}
    state, _ = t5x_model.train_ourselves(arrays, tmp_path / "ours", order)
    end = trees.flatten(read_orbax(run, step=reached + 3))
    assert read_orbax_state(run, step=reached + 3)["step"] == reached + 3
    for path, leaf in trees.flatten(state.params).items():
        np.testing.assert_allclose(leaf, end[f"hypernetwork/{path}"], rtol=0, atol=1e-4, err_msg=path)


def test_what_t5x_trained_becomes_a_model(trained, model, tmp_path):
    import hyperflax
    from hyperflax.integrations.t5x_export import export

    run, found = trained
    export(run, CONFIG, tmp_path / "model")
    loaded = hyperflax.load(tmp_path / "model")
    batch = t5x_model.branch(found, f"batch/{STEPS - 1}")
    expected = loaded.decode(batch["encoder_input_tokens"], loaded.generate(batch))
    predicted, aux = model.predict_batch_with_aux(t5x_model.branch(found, "end"), batch)
    np.testing.assert_array_equal(predicted, expected)
    assert aux["scores"].shape == predicted.shape[:2]


def test_scores_add_up_to_the_loss(trained, model):
    _, found = trained
    params, batch = t5x_model.branch(found, "end"), t5x_model.branch(found, "batch/0")
    loss, metrics = model.loss_fn(params, batch, None)
    scores = model.score_batch(params, batch)
    assert scores.shape == batch["decoder_target_tokens"].shape[:2]
    np.testing.assert_allclose(-scores.sum(), loss, rtol=1e-5)
    weight = batch["decoder_loss_weights"].sum()
    np.testing.assert_allclose(metrics["loss"].compute(), loss / weight, rtol=1e-6)
