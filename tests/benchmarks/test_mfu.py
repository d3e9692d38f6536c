"""The benchmark of MFU: it times the step that training runs, and counts its operations in closed form."""

from __future__ import annotations

import json
import pathlib
import re

import jax
import pytest

from benchmarks import mfu
from hyperflax.models import flops

CASE = mfu.Case("t5", "tiny", rows=2, inputs=16, targets=8)


def test_a_t5_is_timed_and_its_figures_follow_from_the_seconds(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mfu, "peak_flops", lambda kind: 1e12)
    file = tmp_path / "mfu.json"
    small = ["--size", "tiny", "tiny", "--rows", "64", "2", "--inputs", "16", "--targets", "8"]
    assert mfu.main([*small, "--rounds", "3", "--steps", "2", "--matmul", "64", "--out", str(file)]) == 0
    larger, found = json.loads(file.read_text())["cases"]
    operations = flops.t5(CASE.shape, rows=2, inputs=16, targets=8).trained
    rate = operations / (sorted(found["milliseconds"])[1] / 1e3)
    assert found["model_tflop"] == pytest.approx(operations / 1e12, rel=1e-3)
    assert found["tflop_per_second"] == pytest.approx(rate / 1e12, rel=2e-3)
    assert found["mfu"] == pytest.approx(rate / len(jax.devices()) / 1e12, rel=2e-3)
    # 62 more rows have 62 x 8 x 32,128 more logits in float32, at least once; what a device held before does not count.
    assert larger["memory_gib"] - found["memory_gib"] > 62 * 8 * 32128 * 4 / len(jax.devices()) / 2**30


@pytest.mark.parametrize("size", [name for name in mfu.SIZES if name != "tiny"])
def test_sizes_are_those_of_the_gin_files(size: str) -> None:
    text = pathlib.Path(f"gin_configs/models/t5_1_1_{size}.gin").read_text()
    given = {name: int(value) for name, value in re.findall(r"^  (\w+) = (\d+)$", text, re.MULTILINE)}
    shape = mfu.Case("t5", size, rows=1, inputs=1, targets=1).shape
    assert len(given) == 7
    assert given == {name: getattr(shape, name) for name in given}


def test_a_hypernetwork_costs_its_own_step_and_the_frozen_t5s() -> None:
    hyper = mfu.Case("hyper_t5", "tiny", rows=2, inputs=16, targets=8)
    costs = [case.trainable().objective.flops(case.batch()) for case in (CASE, hyper)]
    assert costs[0] < costs[1] < 3 * costs[0]
