"""Starts compared: the rate is chosen on the other data sets, and figures are those of runs worked out by hand."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import subprocess

import pytest

from benchmarks.initialisation import RATES, STARTS, draw, markdown, pipelines, report
from hyperflax.errors import DataError
from hyperflax.tuner.pipeline import FIDELITIES
from hyperflax.tuner.table import Run
from tests.tuner.test_table import RUN


def run(dataset: str, start: str, rate: float, end: float, losses: list[float]) -> Run:
    pipeline = dataclasses.replace(pipelines(start, "all", 8, 16)[0], learning_rate=rate)
    curve = (*[end / 2] * (FIDELITIES - 1), end)
    return dataclasses.replace(
        RUN, dataset=dataset, dataset_hash=f"{hash(dataset) % 16**16:016x}", pipeline=pipeline, curve=curve,
        losses=tuple(losses), start_score=0.1, test_score=end - 0.1,
    )  # fmt: skip


@pytest.fixture
def runs() -> list[Run]:
    """On `a` and `b` the rate 1e-3 is best for all starts, on `c` 1e-2 is: `c` gets 1e-3 all the same."""
    falling = [1.0 - 0.1 * part for part in range(FIDELITIES)]
    fast = [0.48 - 0.05 * part for part in range(FIDELITIES)]
    made = []
    for start in STARTS:
        more = 0.2 if start == "generated" else 0.0
        losses = fast if start == "generated" else falling
        for name in ("a", "b", "c"):
            good, bad = (1e-3, 1e-2) if name != "c" else (1e-2, 1e-3)
            made += [run(name, start, good, 0.6 + more, losses), run(name, start, bad, 0.4 + more, losses)]
    return made


def test_figures_by_hand(runs, tmp_path):
    told = report(runs)
    assert told["datasets"] == 3
    # For `c` both others speak for 1e-3. For `a`, `b` and `c` tie, and a tie goes to the lower rate.
    assert told["rates"] == {start: {"0.001": 3} for start in STARTS}
    generated = told["figures"]["generated"]
    assert generated["end"]["mean"] == pytest.approx((0.8 + 0.8 + 0.6) / 3)
    assert generated["test"]["mean"] == pytest.approx((0.8 + 0.8 + 0.6) / 3 - 0.1)
    # 0.48, 0.43 ... is at most 0.3, where the random start ends, after the fifth mark of eight.
    assert generated["steps"]["mean"] == pytest.approx(5 / 8)
    assert told["figures"]["random"]["steps"]["mean"] == 1.0
    assert told["never"] == {"generated": 0, "shared": 0, "random": 0}
    for other in ("shared", "random"):
        difference = told["differences"][other]
        assert difference["end"]["mean"] == pytest.approx(0.2)
        assert difference["end"]["low"] == pytest.approx(0.2)
        assert difference["steps"]["mean"] == pytest.approx(-3 / 8)
    curve = told["curves"]["generated"]
    assert [len(curve[name]) for name in ("score", "loss")] == [FIDELITIES + 1, FIDELITIES]
    assert curve["score"][0]["mean"] == pytest.approx(0.1)
    assert "| generated minus random | +0.200 [+0.200, +0.200]" in markdown(told)
    draw(told, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_a_start_that_never_gets_to_the_loss_is_later_than_the_random_one_that_does(runs):
    stuck = [dataclasses.replace(one, losses=(0.31,) * FIDELITIES) if one.dataset == "a" else one for one in runs]
    stuck = [now if now.pipeline.init == "generated" else was for was, now in zip(runs, stuck, strict=True)]
    told = report(stuck)
    assert told["figures"]["generated"]["steps"]["mean"] == pytest.approx((9 / 8 + 5 / 8 + 5 / 8) / 3)
    assert told["never"] == {"generated": 1, "shared": 0, "random": 0}
    assert "never got to that loss: generated on 1" in markdown(told)


def test_runs_that_broke_down_and_data_sets_without_all_starts_are_left_out(runs):
    broken = [
        dataclasses.replace(one, status="failed") if one.pipeline.learning_rate == 1e-2 and one.dataset == "c" else one
        for one in runs
        if not (one.dataset == "a" and one.pipeline.init == "shared")
    ]
    told = report(broken)
    assert told["datasets"] == 2
    assert told["figures"]["generated"]["end"]["mean"] == pytest.approx((0.8 + 0.6) / 2)


def test_one_data_set_has_no_others_to_choose_a_rate_on(runs):
    with pytest.raises(DataError, match=r"two data sets or more with completed runs from all of .*, got \['a'\]"):
        report([one for one in runs if one.dataset == "a"])
    with pytest.raises(DataError, match=r"got \[\]"):
        report([])


def test_every_start_trains_the_same_at_every_rate():
    for start in STARTS:
        made = pipelines(start, "all", 8, 16)
        assert [one.learning_rate for one in made] == list(RATES)
        assert {(one.sites, one.rank, one.epochs, one.init) for one in made} == {("all", 8, 16, start)}
        assert {one.alpha_per_rank for one in made} == {1.0 if start == "random" else None}


def test_the_data_sets_are_made_of_folders_as_the_caller_names_them(tmp_path):
    """The script works in its own folder; `hyperflax` tells where it is and what it would read."""
    script = pathlib.Path(__file__).parents[2] / "benchmarks" / "tuner_table.sh"
    commands = tmp_path / "bin"
    commands.mkdir()
    looks = 'ls -d "$HYPERFLAX_NATURAL_INSTRUCTIONS" "$HYPERFLAX_METAICL"'
    for name, text in {"hyperflax": looks, "taskset": ""}.items():
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(0o755)
    named = {"HYPERFLAX_NATURAL_INSTRUCTIONS": "natural-instructions", "HYPERFLAX_METAICL": "metaicl"}
    for folder in named.values():
        (tmp_path / folder).mkdir()
    environment = {**os.environ, **named, "PATH": f"{commands}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", script, "OUT"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(done.stdout.splitlines()) == {str(tmp_path / folder) for folder in named.values()}
