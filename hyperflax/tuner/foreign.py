"""Readers of fine-tuning runs that others recorded.

| reader | table |
|---|---|
| `quick_tune` | a folder of `config.csv`, `curve.csv`, `cost.csv` and perhaps `meta.csv` (Arango et al. 2024) |
| `scaling_law` | losses of 30 language models on growing parts of three data sets (Lin et al. 2024) |
| `peft_comparison` | PEFT's method comparison: a json object for every run, with its settings, accuracies and seconds |

Numbers are scaled to [0, 1] by their smallest and largest value, logarithmically where all are positive and span a
factor of 100; texts become one column each. A value that a run lacks is 0 beside an indicator column `NAME?`.

>>> recorded = quick_tune("mtlbm/micro")
>>> recorded.columns[:2]
('lr?', 'lr')
"""

from __future__ import annotations

import csv
import dataclasses
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hyperflax.data.jsonl import read_rows
from hyperflax.errors import DataError
from hyperflax.tuner.recorded import Recorded
from hyperflax.tuner.surrogates.queries import number_equal_rows

DATASET = "dataset"
_VERSIONS = ("peft_version",)
_CHOICES = 32  # texts with more values than this tell nothing: they are names


def quick_tune(folder: pathlib.Path | str) -> Recorded:
    """Reads a folder as Quick-Tune keeps it: rows are runs, in the same order in all files.

    `config.csv` has a column per hyper-parameter, `curve.csv` and `cost.csv` one per epoch; `cost.csv` may have a
    single column, the seconds of an epoch. The data set of a run stands in a column `dataset` of one of them.
    `meta.csv` has a row for every data set, named in its first column or in `dataset`; without data sets there is one.
    Empty cells of a curve are epochs that were not run.

    Raises:
      DataError: a missing file, other numbers of rows, a cell that is no number; names file, line and column.
    """
    folder = pathlib.Path(folder)
    config, curve, cost = (_table(folder / f"{name}.csv") for name in ("config", "curve", "cost"))
    for name, other in (("curve", curve), ("cost", cost)):
        if len(other) != len(config):
            raise DataError(f"{folder}/{name}.csv: expected {len(config)} rows as config.csv has, got {len(other)}")
    names = next((_column(rows, DATASET) for rows in (config, curve, cost) if DATASET in rows[0]), None)
    names = names or [folder.name] * len(config)
    scores = _numbers(curve, folder / "curve.csv")
    seconds = _numbers(cost, folder / "cost.csv")
    if seconds.shape[1] == 1:
        seconds = np.repeat(seconds, scores.shape[1], axis=1)
    if seconds.shape != scores.shape:
        raise DataError(f"{folder}/cost.csv: expected 1 or {scores.shape[1]} columns, got {seconds.shape[1]}")
    meta = _table(folder / "meta.csv") if (folder / "meta.csv").is_file() else []
    return _recorded(names, config, scores, seconds, meta, folder)


def scaling_law(folder: pathlib.Path | str) -> Recorded:
    """Reads `flan.csv`, `gigaword.csv`, `wmt19.csv`: the score is the negative loss, a part a doubling of the data.

    There are no seconds; the cost of a part is parameters times further examples, in units of 1e15. The loss without
    any fine-tuning is not a part.

    Raises:
      DataError: a missing file or a cell that is no number.
    """
    folder = pathlib.Path(folder)
    names, config, scores, cost = [], [], [], []
    for name in ("flan", "gigaword", "wmt19"):
        for number, row in enumerate(_table(folder / f"{name}.csv"), start=2):
            where = f"{folder}/{name}.csv:{number}"
            sizes = sorted(int(key) for key in row if key.isdigit() and int(key) > 0)
            examples = np.diff([0, *sizes])
            parameters = _number(row.get("size", ""), where, "size")
            names.append(name)
            config.append({"model": row.get("config name", ""), "family": row.get("family", ""), "size": row["size"]})
            scores.append([-_number(row[str(size)], where, str(size)) for size in sizes])
            cost.append(examples * parameters / 1e15)
    recorded = _recorded(names, config, np.array(scores, np.float32), np.array(cost, np.float32), [], folder)
    return dataclasses.replace(recorded, unit="1e15 parameters x examples")


def peft_comparison(path: pathlib.Path | str, task: str = "MetaMathQA") -> Recorded:
    """Reads a file of json objects, one a line: a validation score at every evaluation with its seconds, a test score.

    A part is an evaluation; a run with fewer of them than another one ends with its last.

    Args:
      path: of the file. task: `MetaMathQA` or `image-gen`, the folder of the runs to read.

    Raises:
      DataError: a line that is no such object, or no run of the task.
    """
    path, rows = pathlib.Path(path), []
    with path.open("rb") as lines:
        for number, run in read_rows(lines, str(path)):
            try:
                if f"/{task}/" in run["path"] and run["train_info"]["status"] == "success":
                    rows.append(_peft_run(run))
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                raise DataError(f"{path}:{number}: expected a run of PEFT's method comparison ({error!r})") from error
    if not rows:
        raise DataError(f"{path}: expected at least one successful run of '{task}', got none")
    parts = max(len(row["scores"]) for row in rows)
    scores, cost = (
        np.array([row[name] + [math.nan] * (parts - len(row[name])) for row in rows], np.float32)
        for name in ("scores", "seconds")
    )
    recorded = _recorded([task] * len(rows), [row["config"] for row in rows], scores, cost, [], path)
    return dataclasses.replace(recorded, final=np.array([row["test"] for row in rows], np.float32))


def _peft_run(run: Mapping[str, Any]) -> dict[str, Any]:
    settings, metrics = run["run_info"]["train_config"], run["train_info"]["metrics"]
    optimizer = {f"optimizer_{name}": value for name, value in settings["optimizer_kwargs"].items()}
    config = {**settings, **(run["run_info"]["peft_config"] or {"peft_type": "FULL"}), **optimizer}
    score = next(name for name in metrics[0] if name.startswith("valid "))
    points = [point for point in metrics if score in point]
    return {
        "config": {
            name: str(value)
            for name, value in config.items()
            if name not in _VERSIONS and isinstance(value, str | int | float)
        },
        "scores": [float(point[score]) for point in points],
        "seconds": [float(point["train time"] + point["eval time"]) for point in points],
        "test": float(metrics[-1].get(score.replace("valid ", "test "), math.nan)),
    }


def _recorded(
    names: Sequence[str],
    config: Sequence[Mapping[str, str]],
    scores: np.ndarray,
    cost: np.ndarray,
    meta: Sequence[Mapping[str, str]],
    where: pathlib.Path,
) -> Recorded:
    datasets = tuple(sorted(set(names)))
    columns, pipelines = _encode(config)
    features, values = _meta(meta, datasets, where)
    if len(set(number_equal_rows(values).tolist())) < len(datasets):
        # Surrogates take rows of equal meta-features for one data set.
        features = (*features, DATASET)
        values = np.concatenate([values, np.arange(len(datasets), dtype=np.float32)[:, None]], axis=1)
    return Recorded(
        datasets=datasets,
        groups=datasets,
        dataset=np.array([datasets.index(name) for name in names]),
        columns=columns,
        pipelines=pipelines,
        scores=scores,
        cost=cost,
        final=np.full(len(names), np.nan, np.float32),
        features=features,
        meta=values,
        start=np.full(len(datasets), np.nan, np.float32),
    )


def _encode(config: Sequence[Mapping[str, str]]) -> tuple[tuple[str, ...], np.ndarray]:
    """Columns of all settings; those with one value, and texts of which nearly every run has its own, tell nothing."""
    columns: list[str] = []
    arrays: list[np.ndarray] = []
    for name in dict.fromkeys(key for row in config for key in row if key not in (DATASET, "")):
        texts = [row.get(name, "") for row in config]
        numbers = [_as_number(text) for text in texts]
        given = np.array([text != "" for text in texts])
        if len(set(texts)) < 2:
            continue
        if all(number is not None for number, there in zip(numbers, given, strict=True) if there):
            values = np.array([number or 0.0 for number in numbers])
            columns += [f"{name}?", name]
            arrays += [given, np.where(given, _scaled(values, given), 0.0)]
        elif len(set(texts)) <= _CHOICES:
            choices = sorted(set(texts) - {""})
            columns += [f"{name}={choice}" for choice in choices]
            arrays += [np.array([text == choice for text in texts]) for choice in choices]
    if not arrays:
        return ("constant",), np.zeros((len(config), 1), np.float32)
    return tuple(columns), np.stack(arrays, axis=1).astype(np.float32)


def _scaled(values: np.ndarray, given: np.ndarray) -> np.ndarray:
    low, high = values[given].min(), values[given].max()
    if low > 0 and high / low >= 100:
        values = np.log(np.where(given, values, low))
        low, high = math.log(low), math.log(high)
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def _meta(
    rows: Sequence[Mapping[str, str]], datasets: Sequence[str], where: pathlib.Path
) -> tuple[tuple[str, ...], np.ndarray]:
    if not rows:
        return (), np.zeros((len(datasets), 0), np.float32)
    key = DATASET if DATASET in rows[0] else next(iter(rows[0]))
    by_name = {row[key]: row for row in rows} if len(rows) > 1 or len(datasets) > 1 else {datasets[0]: rows[0]}
    if missing := [name for name in datasets if name not in by_name]:
        raise DataError(f"{where}/meta.csv: expected a row for data set '{missing[0]}', found none")
    features = tuple(name for name in rows[0] if name != key and _all_numbers(row[name] for row in rows))
    values = [[_as_number(by_name[name][feature]) for feature in features] for name in datasets]
    return features, np.array([[np.nan if x is None else x for x in row] for row in values], np.float32).reshape(
        len(datasets), len(features)
    )


def _all_numbers(cells: Iterable[str]) -> bool:
    """Whether all cells but the empty ones hold a number, and one does."""
    given = [cell for cell in cells if cell.strip()]
    return bool(given) and all(_as_number(cell) is not None for cell in given)


def _table(path: pathlib.Path) -> list[dict[str, str]]:
    """Rows of a csv file; an unnamed first column is a row's number and is left out."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # Excel puts a byte order mark before the first name
            read = list(csv.DictReader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: expected a csv file ({error})") from error
    if not read:
        raise DataError(f"{path}: expected at least one row after the first line, got none")
    for line, row in enumerate(read, start=2):
        # DictReader's signs of too many cells, and of too few.
        if None in row or None in row.values():
            raise DataError(f"{path}:{line}: expected as many cells as the first line has, got another number")
    return [{name: value for name, value in row.items() if name} for row in read]


def _numbers(rows: Sequence[Mapping[str, str]], where: pathlib.Path) -> np.ndarray:
    names = [name for name in rows[0] if name != DATASET]
    return np.array(
        [
            [_number(row[name], f"{where}:{line}", name) if row[name] != "" else math.nan for name in names]
            for line, row in enumerate(rows, start=2)
        ],
        np.float32,
    )


def _number(text: str, where: str, column: str) -> float:
    value = _as_number(text)
    if value is None or not math.isfinite(value):
        raise DataError(f"{where}: column '{column}': expected a finite number, got '{text}'")
    return value


def _as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return {"True": 1.0, "False": 0.0}.get(text)


def _column(rows: Iterable[Mapping[str, str]], name: str) -> list[str]:
    return [row[name] for row in rows]
