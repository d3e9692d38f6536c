"""The meta-dataset: one row for every fine-tuning run, in Parquet.

A table is a file, or a folder of files that are read as one; every process of a collection writes files of its own, so
none waits for another and a kill leaves whole files. The columns are those of `Run` (`docs/tuner.md` describes them):
a row read back equals the row written, and a file with other columns or types is refused by name.

>>> write(folder / "part-0.parquet", [run])
>>> [row.pipeline.kind for row in read(folder)]
['lora']
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hyperflax.errors import DataError, MissingExtraError
from hyperflax.files import atomic_file
from hyperflax.tuner.pipeline import FIDELITIES, Pipeline

FORMAT = "hyperflax-meta-dataset-1"
COMPLETED, STOPPED, FAILED, OUT_OF_MEMORY = "completed", "stopped", "failed", "out_of_memory"
STATUSES = (COMPLETED, STOPPED, FAILED, OUT_OF_MEMORY)


@dataclasses.dataclass(frozen=True)
class Run:
    """One fine-tuning run.

    Attributes:
      dataset: name of the data set. corpus, category: where it is from; whole corpora or categories are left out in
        evaluation. dataset_hash: of its examples.
      pipeline: what was run. seed: of the run.
      model: id of the hypermodel, which also names the base model.
      status: one of `STATUSES`; what is not `completed` may have a part of its curve. Nothing went wrong in a `stopped`
        run, others promised more.
      curve: held-out exact match, 0 to 1, after each of `FIDELITIES` parts of the run; shorter if it ended early.
      losses: held-out loss per token, in nats, at the same points.
      seconds: of each part, training and scoring, compilation not counted.
      seconds_per_epoch: of training alone. amortised: the seconds are a share of several runs done at once.
      start_score: held-out exact match before the first step.
      test_score: exact match on the test split, of the part with the best held-out score, the start included (ties:
        the lower loss).
      bare_score, generated_score: test scores without an adapter and with the generated one; NaN where there is none.
      meta: meta-features of the data set, name -> value, NaN where unknown.
      device: what it ran on. versions: of packages. created: ISO 8601, UTC.
      error: what went wrong, empty if nothing did.
    """

    dataset: str
    corpus: str
    category: str
    dataset_hash: str
    pipeline: Pipeline
    seed: int
    model: str
    status: str
    curve: tuple[float, ...]
    losses: tuple[float, ...]
    seconds: tuple[float, ...]
    seconds_per_epoch: float
    amortised: bool
    start_score: float
    test_score: float
    bare_score: float
    generated_score: float
    meta: Mapping[str, float]
    device: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    created: str = ""
    error: str = ""

    def __post_init__(self) -> None:
        for name in ("curve", "losses", "seconds"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        if self.status not in STATUSES:
            raise DataError(
                f"run of '{self.dataset}': status: expected one of {', '.join(STATUSES)}, got '{self.status}'"
            )
        if not len(self.curve) == len(self.losses) == len(self.seconds) <= FIDELITIES:
            raise DataError(
                f"run of '{self.dataset}': expected curve, losses and seconds of one length, at most {FIDELITIES}, got "
                f"{len(self.curve)}, {len(self.losses)} and {len(self.seconds)}"
            )
        if self.status == COMPLETED and len(self.curve) != FIDELITIES:
            raise DataError(f"run of '{self.dataset}': a completed run has {FIDELITIES} parts, got {len(self.curve)}")
        if bad := [value for value in self.curve if not 0.0 <= value <= 1.0]:
            raise DataError(f"run of '{self.dataset}': curve: expected scores in [0, 1], got {bad[0]}")
        if bad := [value for value in self.seconds if not 0.0 < value < math.inf]:
            raise DataError(f"run of '{self.dataset}': seconds: expected positive numbers, got {bad[0]}")

    @property
    def id(self) -> str:
        """Tells this run from every other: data set, pipeline, seed and model."""
        return run_id(self.dataset_hash, self.pipeline, self.seed, self.model)


def run_id(dataset_hash: str, pipeline: Pipeline, seed: int, model: str) -> str:
    """Returns the id that a run of these will have, 16 hexadecimal digits."""
    return hashlib.sha256("\n".join((dataset_hash, pipeline.id, str(seed), model)).encode()).hexdigest()[:16]


def write(path: pathlib.Path | str, runs: Sequence[Run]) -> None:
    """Writes a Parquet file; whoever reads sees it whole or not at all."""
    parquet = _parquet()
    import pyarrow

    table = pyarrow.Table.from_pylist([_to_row(run) for run in runs], schema=_schema())
    with atomic_file(pathlib.Path(path)) as temporary:
        parquet.write_table(table, temporary, compression="zstd")


def add(folder: pathlib.Path | str, runs: Sequence[Run]) -> pathlib.Path:
    """Writes runs as a file of a folder, named by their ids, and returns it."""
    path = pathlib.Path(folder) / f"group-{_digest(runs)}.parquet"
    write(path, runs)
    return path


def read(path: pathlib.Path | str) -> list[Run]:
    """Returns the runs of a file, or of all files of a folder, ordered by id; a run that stands twice is given once.

    Raises:
      DataError: no file, a file that is no table of runs, or a row that cannot be one; names the file and the row.
    """
    path = pathlib.Path(path)
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: expected Parquet files, found none")
    runs: dict[str, Run] = {}
    for file in files:
        for number, row in enumerate(_read_table(file).to_pylist()):
            run = _from_row(row, f"{file}: row {number}")
            runs[run.id] = run
    return [runs[key] for key in sorted(runs)]


def compact(folder: pathlib.Path | str) -> pathlib.Path:
    """Makes one file of many and returns it. Killed in between, some runs stand twice, which reading mends."""
    folder = pathlib.Path(folder)
    files, runs = sorted(folder.glob("*.parquet")), read(folder)
    whole = folder / f"runs-{_digest(runs)}.parquet"
    write(whole, runs)
    for file in files:
        if file != whole:
            file.unlink()
    return whole


def ids(folder: pathlib.Path | str) -> set[str]:
    """Returns the ids of all runs in a folder, which need not be run again; none where there is no folder yet.

    Raises:
      DataError: a file that is no table of runs.
    """
    parquet, found = _parquet(), set()
    for file in pathlib.Path(folder).glob("*.parquet"):
        try:
            with _parquet_errors(file), parquet.ParquetFile(file) as opened:
                if "id" not in opened.schema_arrow.names:
                    raise DataError(f"{file}: column 'id': expected string, got none")
                found |= set(opened.read(columns=["id"]).column("id").to_pylist())
        except DataError:
            if file.exists():
                raise
            return ids(folder)  # another process has made one file of all
    return found


def _digest(runs: Sequence[Run]) -> str:
    return hashlib.sha256("".join(run.id for run in runs).encode()).hexdigest()[:16]


_JSON = ("versions",)
_TEXT = ("dataset", "corpus", "category", "dataset_hash", "model", "status", "device", "created", "error")
_NUMBERS = ("seconds_per_epoch", "start_score", "test_score", "bare_score", "generated_score")
_LISTS = ("curve", "losses", "seconds")


def _to_row(run: Run) -> dict[str, Any]:
    row = {name: getattr(run, name) for name in (*_TEXT, *_NUMBERS, "seed", "amortised")}
    row |= {name: list(getattr(run, name)) for name in _LISTS}
    row |= {name: json.dumps(dict(getattr(run, name)), sort_keys=True) for name in _JSON}
    return {**row, "id": run.id, "pipeline": dataclasses.asdict(run.pipeline), "meta": list(run.meta.items())}


def _from_row(row: dict[str, Any], where: str) -> Run:
    try:
        values = {name: row[name] for name in (*_TEXT, *_NUMBERS, *_LISTS, "seed", "amortised")}
        values |= {name: json.loads(row[name]) for name in _JSON}
        given = {name: value for name, value in row["pipeline"].items() if value is not None}
        run = Run(**values, pipeline=Pipeline.from_json(given, where), meta=dict(row["meta"]))
    except (DataError, TypeError, ValueError) as error:
        raise DataError(f"{where}: {error}") from error
    if run.id != row["id"]:
        raise DataError(f"{where}: expected the id {run.id} of its values, got '{row['id']}'")
    return run


def _read_table(file: pathlib.Path) -> Any:
    parquet = _parquet()
    with _parquet_errors(file):
        table = parquet.read_table(file)
    schema = _schema()
    if not table.schema.equals(schema, check_metadata=False):
        for field in schema:
            there = table.schema.field(field.name).type if field.name in table.schema.names else None
            if there != field.type:
                raise DataError(f"{file}: column '{field.name}': expected {field.type}, got {there or 'none'}")
        raise DataError(f"{file}: expected the columns {schema.names}, got {table.schema.names}")
    for name in schema.names:
        if missing := table.column(name).null_count:
            raise DataError(f"{file}: column '{name}': expected a value in every row, got {missing} rows without one")
    return table


@contextlib.contextmanager
def _parquet_errors(file: pathlib.Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{file}: expected a Parquet file ({error})") from error


def _schema() -> Any:
    """Columns of a table: one per field of `Run`, the pipeline a struct of its fields."""
    import pyarrow as pa

    kinds = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
    pipeline = [
        pa.field(field.name, kinds[str(field.type).removesuffix(" | None")]) for field in dataclasses.fields(Pipeline)
    ]
    types = {
        **dict.fromkeys((*_TEXT, *_JSON, "id"), pa.string()),
        **dict.fromkeys(_NUMBERS, pa.float64()),
        **dict.fromkeys(_LISTS, pa.list_(pa.float64())),
        "seed": pa.int64(),
        "amortised": pa.bool_(),
        "pipeline": pa.struct(pipeline),
        "meta": pa.map_(pa.string(), pa.float64()),
    }
    names = ["id", *(field.name for field in dataclasses.fields(Run))]
    return pa.schema([pa.field(name, types[name]) for name in names], metadata={"format": FORMAT})


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "tuner") from error
    return pyarrow.parquet
