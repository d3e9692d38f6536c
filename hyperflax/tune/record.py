"""What `tune.json` in the folder of a tuning run holds: all that a killed run goes on from and that its report tells.

>>> record = read("mine_tuned")
>>> record.history.incumbent
Incumbent(pipeline=17, fidelity=5, score=0.84)
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping

from hyperflax import configs
from hyperflax.json_files import read_schema, write_json
from hyperflax.tuner.history import History
from hyperflax.tuner.pipeline import Pipeline

FILE = "tune.json"
FORMAT, VERSION = "hyperflax-tuning-run", 3


@dataclasses.dataclass(frozen=True)
class Expected:
    """What the recommender expects of a whole run before any: held-out score, its standard deviation, seconds."""

    score: float
    std: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Record:
    """A tuning run as it stands.

    Attributes:
      name, dataset: of the data set, and the hash of its examples. model: id of the hypermodel. seed: of the run.
      pool: the pipelines to choose from. expected: of each of them; empty where they are tried at random.
      optimiser: what chooses. tuner: fingerprint of what it has learnt, empty where that is nothing. starts: of the
        adapters to start from, by start. The last two are None in a record of version 1, which did not note them.
      budget: seconds of everything.
      history: what was run.
      choosing, elapsed: seconds that choosing and everything took so far, all calls together.
      test: test scores by condition, once the run has ended.
    """

    name: str
    dataset: str
    model: str
    seed: int
    pool: tuple[Pipeline, ...]
    optimiser: str
    budget: float
    history: History
    expected: tuple[Expected, ...] = ()
    choosing: float = 0.0
    elapsed: float = 0.0
    test: Mapping[str, float] = dataclasses.field(default_factory=dict)
    tuner: str | None = None
    starts: Mapping[str, str] | None = None
    format: str = FORMAT
    schema_version: int = VERSION

    def write(self, folder: pathlib.Path) -> None:
        """Writes the record into the run's folder."""
        write_json(folder / FILE, configs.to_json(self))


def read(folder: pathlib.Path | str) -> Record:
    """Returns the record in a run's folder. Raises CheckpointError where there is none, or a damaged one."""
    return read_schema(pathlib.Path(folder) / FILE, Record, file_format=FORMAT, version=VERSION)
