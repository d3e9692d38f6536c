"""The host loop: rows, curve, stops and restarts within one process."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from hyperflax import trees
from hyperflax.errors import CheckpointError, ConfigError, DataError, HyperflaxError
from hyperflax.processes import Processes
from hyperflax.training import loss_evaluator, make_optimizer, train
from hyperflax.training.base_model import Origin
from hyperflax.training.checkpointing import Checkpoints
from hyperflax.training.clock import CLOCK_FIGURES
from hyperflax.training.run_log import RunLog, Sums, plot_curve, read_rows
from hyperflax.training.stopping import RESUME_EXIT_CODE

OPTIMIZER = make_optimizer("adamw", 0.05)


def rows_of(directory):
    """The rows without what the clock says."""
    return [{k: v for k, v in row.items() if k not in CLOCK_FIGURES} for row in read_rows(directory / "metrics.jsonl")]


def run(table, batches, directory, **options):
    options = {"total_steps": 10, "log_period": 4, "save_period": 5, "progress": False} | options
    return train(objective=table, optimizer=OPTIMIZER, batches=batches, model_dir=directory, **options)


@dataclasses.dataclass(frozen=True)
class Failing:
    """Batches that do something at one step."""

    inner: object
    at: int
    action: object

    def batch(self, step):
        if step == self.at:
            self.action()
        return self.inner.batch(step)


@dataclasses.dataclass(frozen=True)
class Spoilt:
    """Batches whose gradient is not finite before some steps."""

    inner: object
    steps: tuple[int, ...] | range

    def batch(self, step):
        batch = self.inner.batch(step)
        if step in self.steps:
            batch["decoder_loss_weights"] = np.where(batch["decoder_loss_weights"] > 0, np.inf, 0)
        return batch


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, table, copy_batches):
    directory = tmp_path_factory.mktemp("unbroken")
    evaluator = loss_evaluator(table, copy_batches, num_batches=2, first_batch=1000)
    return run(table, copy_batches, directory, evaluator=evaluator, eval_period=5), directory


def assert_same_end(state, wanted):
    assert int(state.step) == int(wanted.step)
    for found, leaf in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(found, leaf)


def test_a_run_learns_and_leaves_its_files(unbroken):
    state, directory = unbroken
    assert int(state.step) == 10
    rows = rows_of(directory)
    assert [(row["step"], row["kind"]) for row in rows] == [
        (0, "initial"), (4, "train"), (5, "eval"), (8, "train"), (10, "train"), (10, "eval")
    ]  # fmt: skip
    assert rows[-1]["loss"] < rows[2]["loss"] < rows[0]["loss"]
    assert all(row["skipped_steps"] == 0 for row in rows if row["kind"] == "train")
    assert sorted(path.name for path in (directory / "checkpoints").iterdir()) == ["checkpoint_10", "checkpoint_5"]
    assert (directory / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((directory / "tensorboard").glob("events.out.tfevents.*"))


def test_a_row_is_the_weighted_mean_of_its_steps(unbroken, table, copy_batches):
    """Over steps 1 to 4: the sum of the losses over the sum of the weights, each at its own step's parameters."""
    from hyperflax.training.state import create_state
    from hyperflax.training.step import make_train_step

    step = jax.jit(make_train_step(table, OPTIMIZER))
    init_key, key = jax.random.split(jax.random.key(0))
    state = create_state(table.init(init_key, {}), OPTIMIZER)
    total = weight = 0.0
    for i in range(4):
        state, metrics = step(state, None, copy_batches.batch(i), key)
        total, weight = total + float(metrics["loss"][0]), weight + float(metrics["loss"][1])
    row = rows_of(unbroken[1])[1]
    assert row["step"] == 4
    np.testing.assert_allclose(row["loss"], total / weight, rtol=1e-6)


def test_time_limit_saves_and_the_next_call_goes_on(tmp_path, unbroken, table, copy_batches):
    evaluator = loss_evaluator(table, copy_batches, num_batches=2, first_batch=1000)
    options = {"evaluator": evaluator, "eval_period": 5}
    for expected in (1, 2):
        assert int(run(table, copy_batches, tmp_path, max_seconds=0.0, **options).step) == expected
    state = run(table, copy_batches, tmp_path, **options)
    assert_same_end(state, unbroken[0])
    assert rows_of(tmp_path) == rows_of(unbroken[1])
    assert_same_end(run(table, copy_batches, tmp_path, **options), unbroken[0])
    assert rows_of(tmp_path) == rows_of(unbroken[1])


def test_checkpoints_written_in_the_background_are_the_same(tmp_path, unbroken, table, copy_batches):
    assert_same_end(run(table, copy_batches, tmp_path, async_checkpoints=True), unbroken[0])
    for step in (5, 10):
        found, wanted = (
            trees.flatten(Checkpoints(path / "checkpoints", read_only=True).arrays(step))
            for path in (tmp_path, unbroken[1])
        )
        for path, leaf in wanted.items():
            np.testing.assert_array_equal(found[path], leaf, err_msg=f"{step} {path}")


def test_sigterm_saves_and_exits_with_the_code_that_asks_for_more(tmp_path, unbroken, table, copy_batches):
    killing = Failing(copy_batches, 6, lambda: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as exit_info:
        run(table, killing, tmp_path, save_period=0)
    assert exit_info.value.code == RESUME_EXIT_CODE == os.EX_TEMPFAIL
    assert signal.getsignal(signal.SIGTERM) is before
    (saved,) = (tmp_path / "checkpoints").iterdir()
    assert 3 <= int(saved.name.removeprefix("checkpoint_")) <= 9
    assert_same_end(run(table, copy_batches, tmp_path), unbroken[0])


def test_an_error_of_the_data_surfaces(tmp_path, table, copy_batches):
    def fail():
        raise DataError("corpus.jsonl line 12: broken json")

    with pytest.raises(DataError, match="line 12"):
        run(table, Failing(copy_batches, 3, fail), tmp_path)


def test_a_run_of_another_seed_is_refused(tmp_path, table, copy_batches):
    run(table, copy_batches, tmp_path, total_steps=1)
    with pytest.raises(CheckpointError, match="holds a run of seed 0, got seed 1"):
        run(table, copy_batches, tmp_path, seed=1)


def test_a_run_that_is_refused_keeps_its_log(tmp_path, table, copy_batches):
    """With the rows of steps after its latest checkpoint: the call was a mistake."""
    run(table, copy_batches, tmp_path, total_steps=2, log_period=1, save_period=1)
    shutil.rmtree(tmp_path / "checkpoints" / "checkpoint_2")
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="holds a run of seed 0, got seed 1"):
        run(table, copy_batches, tmp_path, seed=1)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == kept


def test_a_run_goes_on_with_the_frozen_parameters_that_it_began_with(tmp_path, table, copy_batches):
    run(table, copy_batches, tmp_path, total_steps=1)  # has none, or is of a version that did not save it
    run(table, copy_batches, tmp_path, total_steps=2, origin=Origin("a", "11"))
    run(table, copy_batches, tmp_path, total_steps=3, origin=Origin("moved", "11"))
    with pytest.raises(CheckpointError, match=r"checkpoints: expected .*11 from moved, got 22 from b; "):
        run(table, copy_batches, tmp_path, total_steps=4, origin=Origin("b", "22"))


def test_a_run_goes_on_with_what_its_parameters_meant(tmp_path, table, copy_batches):
    run(table, copy_batches, tmp_path, total_steps=1)  # is of a version that did not save it
    for steps in (2, 3):
        run(
            table, copy_batches, tmp_path, total_steps=steps, meaning={"scales": {"a": 1.0, "b": 0.1}, "of": ("x", "y")}
        )
    run(table, copy_batches, tmp_path, total_steps=4, meaning={"scales": {"a": 1.0, "b": 0.1}, "new": 1})
    with pytest.raises(CheckpointError, match=r"holds a run with other scales\.b: expected 0\.1, got 0\.2; choose"):
        run(table, copy_batches, tmp_path, total_steps=5, meaning={"scales": {"a": 1.0, "b": 0.2}})


@pytest.mark.parametrize(("log_period", "save_period"), [(4, 0), (4, 5), (1, 0)])
def test_a_skipped_step_ends_no_run(tmp_path, table, copy_batches, log_period, save_period):
    """Not even the last one, alone in its log period: the run ends as it would have a step earlier."""
    options = {"log_period": log_period, "save_period": save_period}
    state = run(table, Spoilt(copy_batches, (8,)), tmp_path / "spoilt", total_steps=9, **options)
    wanted = run(table, copy_batches, tmp_path / "whole", total_steps=8, **options)
    assert_same_end(state, wanted.replace(step=wanted.step + 1))
    assert (tmp_path / "spoilt" / "checkpoints" / "checkpoint_9").is_dir()
    last = rows_of(tmp_path / "spoilt")[-1]
    assert (last["step"], last["skipped_steps"]) == (9, 1)


def test_a_run_that_diverged_says_so_and_is_saved(tmp_path, table, copy_batches):
    """The steps from the third on fail: the tenth of them is in the third log period, which ends at step 12."""
    spoilt = Spoilt(copy_batches, range(2, 100))
    with pytest.raises(HyperflaxError, match="none of the last 10 steps, up to step 12, had a finite loss, gradient"):
        run(table, spoilt, tmp_path, total_steps=20, save_period=0)
    assert [row["skipped_steps"] for row in rows_of(tmp_path) if row["kind"] == "train"] == [2, 4, 4]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint_12"]
    state = run(table, copy_batches, tmp_path, total_steps=20)
    assert int(state.step) == 20
    assert rows_of(tmp_path)[-1]["skipped_steps"] == 0


def test_nothing_takes_the_whole_batch_where_steps_take_parts(tmp_path, table, copy_batches):
    """Not the row before the first step either; it says the same as that of a run in one part."""
    seen = set()

    class Watched(type(table)):
        def loss(self, params, frozen, batch, rng):
            seen.add(len(batch["decoder_target_tokens"]))
            return super().loss(params, frozen, batch, rng)

        def initial_metrics(self, params, frozen, batch):
            return {"bare/loss": self.loss(jax.tree.map(jnp.zeros_like, params), frozen, batch, None)[2]["loss"]}

    run(Watched(), copy_batches, tmp_path / "parts", total_steps=1, microbatches=4)
    assert seen == {2}
    run(Watched(), copy_batches, tmp_path / "whole", total_steps=1)
    assert seen == {2, 8}
    parts, whole = (rows_of(tmp_path / name)[0] for name in ("parts", "whole"))
    assert parts.pop("kind") == whole.pop("kind") == "initial"
    assert parts == pytest.approx(whole, rel=1e-6)
    assert parts["bare/loss"] == pytest.approx(math.log(32), rel=1e-3)


def test_all_rows_of_a_run_are_means_over_sequences_where_its_steps_are(tmp_path, table, copy_batches, table_params):
    """Targets differ in length, and nothing is learnt: one loss in all rows, the mean of each sequence's own mean."""
    batch, factor = copy_batches.batch(0), "average_per_sequence"
    evaluator = loss_evaluator(table, copy_batches, num_batches=1, loss_normalizing_factor=factor)
    options = {"total_steps": 1, "microbatches": 2, "initial_params": table_params, "progress": False}
    options |= {"optimizer": make_optimizer("adamw", 0.0), "evaluator": evaluator, "loss_normalizing_factor": factor}
    train(objective=table, batches=copy_batches, model_dir=tmp_path, **options)
    rows = [{name: feature[i : i + 1] for name, feature in batch.items()} for i in range(8)]
    losses = [loss / weight for loss, weight, _ in (table.loss(table_params, None, row, None) for row in rows)]
    assert [row["kind"] for row in rows_of(tmp_path)] == ["initial", "train", "eval"]
    np.testing.assert_allclose([row["loss"] for row in rows_of(tmp_path)], np.mean(losses), rtol=1e-5)


def test_initial_parameters_survive_the_run(tmp_path, table, copy_batches, table_params):
    before = jax.tree.map(np.array, table_params)
    run(table, copy_batches, tmp_path, total_steps=2, initial_params=table_params)
    for path, leaf in trees.flatten(before).items():
        np.testing.assert_array_equal(trees.flatten(table_params)[path], leaf)


def test_settings_are_checked(tmp_path, table, copy_batches):
    wrong = [("total_steps", 0), ("log_period", 0), ("save_period", -1), ("keep", 0), ("keep", -1)]
    wrong += [("total_steps", "two"), ("total_steps", 3.0), ("eval_period", None)]
    for name, value in wrong:
        with pytest.raises(ConfigError, match=f"train.{name}: expected .*at least .*, got {value!r}"):
            run(table, copy_batches, tmp_path, **{name: value})
    assert not list(tmp_path.iterdir())


def events_of(directory):
    (file,) = (directory / "tensorboard").iterdir()
    content, events = file.read_bytes(), []
    while content:  # length, its checksum, the event, its checksum
        end = 12 + int.from_bytes(content[:8], "little")
        events.append(event_pb2.Event.FromString(content[12:end]))
        content = content[end + 4 :]
    return events


@pytest.mark.parametrize(("resume_step", "purged_from"), [(None, 0), (3, 4)])
def test_tensorboard_forgets_the_steps_that_come_again(tmp_path, resume_step, purged_from):
    """Those of a run, too, that was killed before its first checkpoint."""
    with RunLog(tmp_path) as log:
        log.start(resume_step)
    starts = [event.step for event in events_of(tmp_path) if event.session_log.status == event_pb2.SessionLog.START]
    assert starts == [purged_from]


def test_tensorboard_finds_every_row_at_once(tmp_path):
    rows = [(step, "train", {"loss": step / 8, "bare/loss": math.nan}) for step in range(1, 9)] + [
        (8, "eval", {"z": 3})
    ]
    with RunLog(tmp_path) as log:
        log.start(None)
        for row in rows:
            log.write(*row)
        told = [(event.step, value.tag, value.simple_value)
                for event in events_of(tmp_path) for value in event.summary.value]  # fmt: skip
        assert told == [*[(step, "train/loss", step / 8) for step in range(1, 9)], (8, "eval/z", 3.0)]


def test_a_full_disk_is_told_of_tensorboards_file_too(tmp_path, monkeypatch):
    """What waited for a thread that had died of it would wait for ever."""

    def full(writer, event):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with RunLog(tmp_path) as log:
        log.start(None)
        monkeypatch.setattr("tensorboardX.event_file_writer.EventsWriter.write_event", full)
        with pytest.raises(OSError, match="No space left"):
            log.write(1, "train", {"loss": 1.0})


def test_a_run_is_not_taken_for_a_shorter_one(tmp_path, table, copy_batches):
    run(table, copy_batches, tmp_path, total_steps=3)
    with pytest.raises(ConfigError, match=f"train.total_steps: expected at least 3, .*{tmp_path}, got 2"):
        run(table, copy_batches, tmp_path, total_steps=2)
    assert int(run(table, copy_batches, tmp_path, total_steps=3).step) == 3


def test_hosts_that_see_other_checkpoints_do_not_go_on(tmp_path, table, copy_batches, monkeypatch):
    """Each would go on from its own, and say nothing; what the first one sees too late is cut off no log."""
    run(table, copy_batches, tmp_path, total_steps=3, log_period=1, save_period=1)
    logged = (tmp_path / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(Processes, "told_by_first", lambda processes, text: text and "3")
    monkeypatch.setattr(Checkpoints, "latest_step", lambda checkpoints: 1)
    with pytest.raises(CheckpointError, match=r"hosts to see the same checkpoints, .* than step 1 on one"):
        run(table, copy_batches, tmp_path, total_steps=3)
    assert (tmp_path / "metrics.jsonl").read_bytes() == logged


def test_rows_after_the_resume_step_and_a_torn_line_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "kind": "train"}\n{"step": 4, "kind": "train"}\n{"step": 6, "ki')
    with RunLog(tmp_path) as log:
        log.start(3)
        log.write(4, "train", {"loss": 1.5, "bad": float("nan")})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 2, "kind": "train"}, {"step": 4, "kind": "train", "loss": 1.5}
    ]  # fmt: skip
    with RunLog(tmp_path) as log:
        log.start(None)
    assert path.read_text() == ""
    assert plot_curve(tmp_path) is None


def test_sums_survive_json():
    sums = Sums()
    sums.add({"loss": (np.float32(0.1), np.float32(3.0)), "skipped_steps": (1.0, 1.0), "empty": (0.0, 0.0)})
    copy = Sums(json.loads(json.dumps(sums.as_json())))
    for one in (sums, copy):
        one.add({"loss": (np.float32(0.7), np.float32(5.0)), "skipped_steps": (1.0, 1.0), "empty": (0.0, 0.0)})
    assert sums.means() == copy.means() == {"loss": (float(np.float32(0.1)) + float(np.float32(0.7))) / 8,
                                            "skipped_steps": 2.0}  # fmt: skip


def test_a_period_with_a_loss_that_is_not_finite_survives_json():
    """A step whose gradient is not finite is skipped, its loss counted; json itself has no NaN."""
    sums = Sums()
    sums.add({"loss": (math.nan, 3.0), "z_loss": (-math.inf, math.inf)})
    copy = Sums(json.loads(json.dumps(sums.as_json(), allow_nan=False)))
    assert repr(copy.pairs) == repr(sums.pairs) == "{'loss': (nan, 3.0), 'z_loss': (-inf, inf)}"
