"""One json for every experiment and seed: `FOLDER/SCALE/FAMILY/NAME-seedN.json`.

```
{"experiment": "hyper_t5", "family": "strings_demo", "scale": "cpu", "seed": 0, "hash": "3f0c...", "config": {...},
 "base": {"name": "strings_4", "fingerprint": "..."}, "flops_per_step": 12345, "steps": 600,
 "measures": {"generated": {"email | upper": [0.5, 0.375, 0.5], ...}, ...},
 "figures": {"loss_spikes": 1.0, ...}, "validation": [[60, 1.9], ...],
 "run": {"device": "...", "versions": {...}, "seconds": 812.0}}
```

`seconds` are those of the last call, with what it had to train first and without what an earlier one had done.

A result is *current* if its hash is that of the experiment of that name in the table. The results that are committed
lie in `results/` beside this file, and a test refuses one that is not current.
"""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.claims.evaluation import Measures, evaluate, validation_curve
from benchmarks.claims.experiments import Experiment, Tuning, described, digest
from benchmarks.claims.training import Workspace, base_fingerprint, trained
from benchmarks.claims.tuning import run_tuning
from hyperflax.errors import DataError
from hyperflax.evaluation.provenance import device, plain_json
from hyperflax.files import atomic_file
from hyperflax.training.run_log import METRICS_FILE, read_rows
from hyperflax.versions import versions

COMMITTED = pathlib.Path(__file__).parent / "results"
DIGITS = 4

Result = dict[str, Any]
# {(experiment, seed): result} of one family at one scale
Results = Mapping[tuple[str, int], Result]


def result_path(folder: pathlib.Path, scale: str, family: str, name: str, seed: int) -> pathlib.Path:
    """Where a result lies."""
    return folder / scale / family / f"{name}-seed{seed}.json"


def run(experiment: Experiment | Tuning, seed: int, workspace: Workspace, scale: str) -> Result:
    """Returns the result of an experiment for a seed: what its file holds, if that is current; else it is run.

    What a run depends on (its base, the systems that are tuned) is trained first where it is not there.

    Raises:
      DataError: the result is of another base than the one that is named for it: so are the models beside it.
    """
    base = experiment.base
    path = result_path(workspace.out / "results", scale, base.family, experiment.name, seed)
    if path.is_file():
        found = read_result(path)
        if found["hash"] == digest(experiment):
            named = workspace.bases.get(base.name)
            if named is not None and found["base"]["fingerprint"] != base_fingerprint(base, workspace):
                raise DataError(f"{path}: expected a result on the base in {named}, got another's; take another --out")
            return found
    began = time.monotonic()
    more: dict[str, Any] = {}
    if isinstance(experiment, Tuning):
        measures, figures = run_tuning(experiment, seed, workspace)
    else:
        directory = trained(experiment, seed, workspace)
        measures, figures = evaluate(experiment, directory, seed, workspace)
        more["steps"] = experiment.steps
        more["validation"] = validation_curve(read_rows(directory.parent / METRICS_FILE))
        if experiment.flops_per_step is not None:
            more["flops_per_step"] = experiment.flops_per_step
    result = {
        "experiment": experiment.name,
        "family": base.family,
        "scale": scale,
        "seed": seed,
        "hash": digest(experiment),
        "config": described(experiment),
        "base": {"name": base.name, "fingerprint": base_fingerprint(base, workspace)},
        **more,
        "measures": _rounded(measures),
        "figures": {name: float(f"{value:.6g}") for name, value in figures.items()},
        "run": {"device": device(), "versions": versions(), "seconds": round(time.monotonic() - began, 1)},
    }
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(plain_json(result, str(path)), ensure_ascii=False) + "\n", encoding="utf-8")
    return result


def read_result(path: pathlib.Path) -> Result:
    """Reads one result.

    Raises:
      DataError: it is no json, or lacks a key.
    """
    try:
        result = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected the json of a result, cannot read it ({error})") from error
    keys = ("experiment", "family", "scale", "seed", "hash", "config", "base", "measures", "figures", "run")
    if not isinstance(result, dict) or (missing := [key for key in keys if key not in result]):
        raise DataError(f"{path}: expected a result with the keys {keys}, {missing} are missing")
    return result


def read_results(folder: pathlib.Path, scale: str, family: str, known: Mapping[str, Experiment | Tuning]) -> Results:
    """Returns the current results of a family at a scale; those of changed configurations are left out."""
    found = {}
    for name, experiment in known.items():
        for seed in experiment.seeds:
            path = result_path(folder, scale, family, name, seed)
            if path.is_file() and (result := read_result(path))["hash"] == digest(experiment):
                found[name, seed] = result
    return found


def stale(folder: pathlib.Path, tables: Mapping[tuple[str, str], Mapping[str, Experiment | Tuning]]) -> list[str]:
    """Returns what is wrong with the results in a folder, one line each; nothing if all are current.

    Args:
      folder: with any number of results, none included.
      tables: the experiments by (family, scale) and name.
    """
    wrong = []
    for path in sorted(folder.glob("*/*/*.json")):
        result = read_result(path)
        scale, family = path.parent.parent.name, path.parent.name
        experiment = tables.get((family, scale), {}).get(result["experiment"])
        if experiment is None:
            wrong.append(f"{path}: the table has no experiment '{result['experiment']}' for {family} at scale {scale}")
        elif path != result_path(folder, scale, family, result["experiment"], result["seed"]):
            wrong.append(f"{path}: holds '{result['experiment']}', seed {result['seed']}")
        elif result["seed"] not in experiment.seeds:
            wrong.append(f"{path}: expected a seed out of {experiment.seeds}, got {result['seed']}")
        elif result["hash"] != digest(experiment):
            wrong.append(f"{path}: stale, expected the hash {digest(experiment)}, got {result['hash']}")
    return wrong


def _rounded(measures: Measures) -> Measures:
    return {
        name: {task: [round(value, DIGITS) for value in values] for task, values in tasks.items()}
        for name, tasks in measures.items()
    }
