"""Summaries of tables: counts and shares worked out by hand."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from hyperflax.tuner.summary import summary, write
from tests.tuner.test_table import AS_GENERATED, FAILED, RUN

# On `initials` (generated 0.25) one of two runs is better, on `dates` none of one.
WORSE = dataclasses.replace(RUN, seed=3, test_score=0.25)
OTHER = dataclasses.replace(RUN, dataset="dates", corpus="other", dataset_hash="f" * 16, test_score=0.1)
OTHER = dataclasses.replace(OTHER, pipeline=dataclasses.replace(RUN.pipeline, init="generated"))
UNKNOWN = dataclasses.replace(RUN, dataset="long", dataset_hash="e" * 16, generated_score=math.nan)
TABLE = [RUN, AS_GENERATED, FAILED, WORSE, OTHER, UNKNOWN]


def test_counts_and_shares_by_hand():
    told = summary(TABLE)
    assert (told["runs"], told["datasets"], told["pipelines"]) == (6, 3, 3)
    assert told["corpora"] == {"other": {"datasets": 1, "runs": 1}, "strings": {"datasets": 2, "runs": 5}}
    assert told["status"] == {"completed": 5, "stopped": 0, "failed": 1, "out_of_memory": 0}
    assert told["seconds"] == pytest.approx(5 * 4.0 + 0.1)
    assert told["compared"] == 3
    # Two data sets with shares 0 and 1/2: the mean of two draws is 0, 1/4 or 1/2.
    assert told["better_than_generated"] == {"mean": 0.25, "low": 0.0, "high": 0.5}
    # A single data set says nothing of others.
    assert told["by_start"]["random"] == {"runs": 2, "mean": 0.5, "low": 0.0, "high": 1.0}
    assert [(one["dataset"], one["share"], one["best"]) for one in told["per_dataset"]] == [
        ("dates", 0.0, pytest.approx(-0.15)),
        ("initials", 0.5, 0.25),
    ]


def test_the_report_says_what_the_summary_holds(tmp_path):
    write(tmp_path, summary(TABLE))
    assert json.loads((tmp_path / "report.json").read_text()) == summary(TABLE)
    text = (tmp_path / "report.md").read_text()
    for row in (
        "| strings | 2 | 5 |",
        "| failed | 1 |",
        "0.25 [0.00, 0.50]",
        "| initials | strings | 2 | 0.50 | +0.250 |",
    ):
        assert row in text
    assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"


def test_a_table_without_anything_to_compare_has_a_report(tmp_path):
    write(tmp_path, summary([FAILED]))
    assert "nothing compared" in (tmp_path / "report.md").read_text()
