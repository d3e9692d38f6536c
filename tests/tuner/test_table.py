"""The meta-dataset on disk: what is read is what was written, and nothing else is taken for it."""

from __future__ import annotations

import dataclasses
import math

import pytest

from hyperflax.errors import DataError
from hyperflax.tuner import table
from hyperflax.tuner.pipeline import Pipeline, default_pipeline

RUN = table.Run(
    dataset="initials",
    corpus="strings",
    category="names",
    dataset_hash="0123456789abcdef",
    pipeline=default_pipeline(),
    seed=1,
    model="strings-1",
    status="completed",
    curve=(0.0, 0.125, 0.25, 0.25, 0.5, 0.5, 0.625, 0.5),
    losses=(2.0, 1.5, 1.0, 0.9, 0.8, 0.7, 0.6, 0.65),
    seconds=(0.5,) * 8,
    seconds_per_epoch=0.2,
    amortised=False,
    start_score=0.0,
    test_score=0.5,
    bare_score=0.0,
    generated_score=0.25,
    meta={"log_train": 4.158, "task_0": -1.5},
    device="cpu",
    versions={"jax": "0.10.2"},
    created="2026-11-26T00:00:00+00:00",
)
AS_GENERATED = dataclasses.replace(RUN, pipeline=Pipeline(method="as_generated"), test_score=0.25)
FAILED = dataclasses.replace(
    RUN, seed=2, status="failed", curve=(0.5,), losses=(1.0,), seconds=(0.1,), error="the loss was not finite"
)


def test_a_row_that_is_read_equals_the_row_that_was_written(tmp_path):
    runs = sorted((RUN, AS_GENERATED, FAILED), key=lambda run: run.id)
    table.write(tmp_path / "a.parquet", runs)
    assert table.read(tmp_path / "a.parquet") == runs


def test_files_of_a_folder_are_one_table_and_a_run_counts_once(tmp_path):
    table.write(tmp_path / "a.parquet", [RUN, FAILED])
    table.write(tmp_path / "b.parquet", [RUN, AS_GENERATED])
    assert {run.id for run in table.read(tmp_path)} == {RUN.id, FAILED.id, AS_GENERATED.id}
    before = table.read(tmp_path)
    whole = table.compact(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [whole.name]
    assert table.read(tmp_path) == before
    assert table.compact(tmp_path) == whole
    assert table.read(tmp_path) == before
    assert table.ids(tmp_path) == {run.id for run in before}
    assert table.ids(tmp_path / "none") == set()


def test_files_added_to_a_folder_are_named_by_their_runs(tmp_path):
    first, second = table.add(tmp_path, [RUN]), table.add(tmp_path, [RUN, FAILED])
    assert first != second
    assert table.add(tmp_path, [dataclasses.replace(RUN, test_score=0.75)]) == first
    assert len(list(tmp_path.iterdir())) == 2


def test_ids_tell_data_pipeline_seed_and_model_apart():
    others = [
        dataclasses.replace(RUN, dataset_hash="f" * 16),
        dataclasses.replace(RUN, pipeline=dataclasses.replace(RUN.pipeline, rank=4)),
        dataclasses.replace(RUN, seed=2),
        dataclasses.replace(RUN, model="strings-2"),
    ]
    assert len({run.id for run in (RUN, *others)}) == 5
    assert dataclasses.replace(RUN, test_score=0.9).id == RUN.id


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"status": "lost"}, "status: expected one of completed"),
        ({"curve": (0.5,)}, "of one length"),
        ({"curve": (2.0,) * 8}, r"expected scores in \[0, 1\], got 2.0"),
        ({"seconds": (0.0,) * 8}, "expected positive numbers"),
        ({"curve": (), "losses": (), "seconds": ()}, "a completed run has 8 parts, got 0"),
    ],
)
def test_impossible_rows_are_refused(change, complaint):
    with pytest.raises(DataError, match=complaint):
        dataclasses.replace(RUN, **change)


def test_foreign_files_are_refused_by_name(tmp_path):
    import pyarrow
    import pyarrow.parquet

    with pytest.raises(DataError, match="found none"):
        table.read(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"a\.parquet: expected a Parquet file"):
        table.read(tmp_path)
    pyarrow.parquet.write_table(pyarrow.table({"id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="column 'id': expected string, got int64"):
        table.read(tmp_path)
    pyarrow.parquet.write_table(pyarrow.table({"name": ["x"]}), tmp_path / "a.parquet")
    for reads in (table.read, table.ids):
        with pytest.raises(DataError, match=r"a\.parquet: column 'id': expected string, got none"):
            reads(tmp_path)


@pytest.mark.parametrize("column", ["dataset", "pipeline", "meta", "bare_score"])
def test_a_row_without_a_value_is_refused(column, tmp_path):
    import pyarrow
    import pyarrow.parquet

    table.write(tmp_path / "a.parquet", [RUN, FAILED])
    rows = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    place = rows.schema.get_field_index(column)
    values = pyarrow.array([rows.column(place)[0].as_py(), None], rows.schema.field(place).type)
    pyarrow.parquet.write_table(rows.set_column(place, rows.schema.field(place), values), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=rf"a\.parquet: column '{column}': expected a value in every row, got 1 rows"):
        table.read(tmp_path)


def test_a_row_whose_values_do_not_make_its_id_is_refused(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table.write(tmp_path / "a.parquet", [RUN])
    rows = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    place = rows.schema.get_field_index("seed")
    forged = rows.set_column(place, "seed", pyarrow.array([7], pyarrow.int64()))
    pyarrow.parquet.write_table(forged, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=f"row 0: expected the id .* of its values, got '{RUN.id}'"):
        table.read(tmp_path)


def test_nan_survives(tmp_path):
    table.write(tmp_path / "a.parquet", [dataclasses.replace(RUN, generated_score=math.nan, meta={"x": math.nan})])
    (run,) = table.read(tmp_path)
    assert math.isnan(run.generated_score)
    assert math.isnan(run.meta["x"])
