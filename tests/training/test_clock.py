"""The clock of a run, on a clock that the test sets."""

from __future__ import annotations

import jax
import pytest

from hyperflax.training import clock as clock_module
from hyperflax.training import make_optimizer, train
from hyperflax.training.clock import CLOCK_FIGURES, Clock, memory_bytes, peak_flops
from hyperflax.training.partitioning import Partitioner, make_mesh
from hyperflax.training.run_log import read_rows


@pytest.fixture
def now(monkeypatch):
    """A list whose only number is the time."""
    seconds = [100.0]
    monkeypatch.setattr(clock_module.time, "monotonic", lambda: seconds[0])
    return seconds


def test_a_period_s_figures_are_per_second_of_its_steps(now, monkeypatch) -> None:
    monkeypatch.setattr(clock_module, "peak_flops", lambda kind: 1e4)
    monkeypatch.setattr(clock_module.jax, "devices", lambda: [type("Device", (), {"device_kind": "x"})] * 2)
    clock = Clock()
    now[0] += 7
    clock.lap("compiling")
    for _ in range(4):
        now[0] += 0.5
        clock.stepped(tokens=100, episodes=8, flops=2000)
        clock.lap("steps")
    clock.waited(0.5)
    now[0] += 3
    clock.lap("saving")
    figures = clock.period()
    assert figures.pop("memory_gib") > 0
    assert figures == {
        "tokens_per_second": 200.0,
        "episodes_per_second": 16.0,
        "model_flops_per_second": 4000.0,
        "mfu": 4000.0 / 2e4,
        "waiting_for_data": 0.25,
    }
    assert set(clock.period()) == {"memory_gib"}  # the next one is empty
    assert clock.total == 12.0
    assert clock.summary() == (
        "goodput 12.5% of 12.0 s: compiling 7.0 s, steps 1.5 s, evaluating 0.0 s, saving 3.0 s, "
        "waiting for data 0.5 s, other 0.0 s"
    )


def test_a_period_that_is_not_whole_goes_on(now) -> None:
    clock = Clock()
    for _ in range(2):
        now[0] += 1
        clock.stepped(tokens=10, episodes=0, flops=0)
        clock.lap("steps")
        figures = clock.period(whole=False)
    assert figures["tokens_per_second"] == 10.0
    assert not {"episodes_per_second", "model_flops_per_second", "mfu"} & set(figures)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("cpu", None),
    ],
)
def test_peaks_by_name(kind: str, peak: float | None) -> None:
    assert peak_flops(kind) == peak


def test_memory_is_what_this_process_had() -> None:
    assert 2**26 < memory_bytes() < 2**40


def test_a_run_logs_them_and_says_where_its_time_went(tmp_path, table, copy_batches, capsys) -> None:
    train(
        objective=table, optimizer=make_optimizer("adamw", 0.05), batches=copy_batches, model_dir=tmp_path,
        total_steps=6, log_period=3, save_period=0, progress=True,
    )  # fmt: skip
    row = read_rows(tmp_path / "metrics.jsonl")[-1]
    assert row["model_flops_per_second"] > 0
    assert 0 <= row["waiting_for_data"] <= 1
    assert {"tokens_per_second", "memory_gib", "seconds"} <= set(row) & set(CLOCK_FIGURES)
    assert "episodes_per_second" not in row
    assert "goodput " in capsys.readouterr().err


def test_a_run_on_some_of_the_devices_is_measured_by_their_peak(tmp_path, table, copy_batches, monkeypatch) -> None:
    """Fine-tuning trains on one of several."""
    partitioner = Partitioner(make_mesh(devices=jax.devices()[:1]))
    monkeypatch.setattr(clock_module, "peak_flops", lambda kind: 1e12)
    monkeypatch.setattr(jax, "devices", lambda *_: [*partitioner.mesh.devices.flat] * 8)
    train(
        objective=table, optimizer=make_optimizer("adamw", 0.05), batches=copy_batches, model_dir=tmp_path,
        total_steps=2, log_period=2, save_period=0, partitioner=partitioner,
    )  # fmt: skip
    row = read_rows(tmp_path / "metrics.jsonl")[-1]
    assert row["mfu"] == pytest.approx(row["model_flops_per_second"] / 1e12)
