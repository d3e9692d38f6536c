"""Kills a training run again and again, at random, and compares how it ends with a run that nobody killed.

    python -m benchmarks.kills [--kills 50] [--steps 400] [--seed 0] [--folder DIR] [--out FILE.json]

Two thirds of the kills come at a step that is drawn, up to one and a half save periods behind the last checkpoint, a
third while the next checkpoint is written. The result says, kill by kill, from which step the run went on and how many
steps it had to compute again, and of the end whether all arrays of the last checkpoint and all rows of metrics.jsonl
(without the clock's figures) are the same bit for bit, and how many rows stand there twice. The command ends with code
1 unless they are, none does, and no kill cost more steps than a save period. Killed itself, it goes on in its folder.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.killed_run import run
from hyperflax import trees
from hyperflax.cli.exit_codes import exit_code
from hyperflax.errors import ConfigError
from hyperflax.files import append_lines
from hyperflax.json_files import write_json
from hyperflax.training.checkpointing import Checkpoints
from hyperflax.training.clock import CLOCK_FIGURES
from hyperflax.training.run_log import METRICS_FILE, read_rows
from hyperflax.versions import versions

SAVE_PERIOD, LOG_PERIOD, EVAL_PERIOD = 10, 1, 50
KILLS = "kills.jsonl"


def life(folder: pathlib.Path, steps: int, *kills: str) -> int:
    """Runs the training in a process of its own and returns how it ended, the negative number of a signal if killed.

    A fork of this process, in which everything is imported and JAX is not at work yet.
    """
    pid = os.fork()
    if not pid:
        code = 1
        try:
            run(
                str(folder),
                *kills,
                total_steps=steps,
                save_period=SAVE_PERIOD,
                log_period=LOG_PERIOD,
                eval_period=EVAL_PERIOD,
            )
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def draw(generator: random.Random, start: int, steps: int) -> str:
    """The next kill of a run that goes on from a checkpoint of step `start`; always before the run's end."""
    save = start + SAVE_PERIOD
    if generator.random() < 1 / 3 and save < steps:
        return f"save:{save}"
    return f"SIGKILL:{generator.randint(start + 1, min(start + SAVE_PERIOD * 3 // 2, steps - 1))}"


def saved(folder: pathlib.Path) -> int:
    """The step of the last complete checkpoint, 0 for none."""
    names = (path.name.removeprefix("checkpoint_") for path in (folder / "checkpoints").glob("checkpoint_*"))
    return max((int(name) for name in names if name.isdigit()), default=0)


def kill_again_and_again(
    folder: pathlib.Path, steps: int, count: int, seed: int, records: pathlib.Path
) -> list[dict[str, Any]]:
    """Kills the run in `folder` until it has been killed `count` times; returns one record a kill, in order."""
    while len(done := read_rows(records)) < count:
        start = saved(folder)
        kill = draw(random.Random(f"{seed} {len(done)}"), start, steps)
        ended = life(folder, steps, kill)
        if ended != -signal.SIGKILL:
            raise RuntimeError(f"{folder}: expected {kill} to end the run, it ended with {ended}")
        reached = max((row["step"] for row in read_rows(folder / METRICS_FILE)), default=0)
        record = {"kill": kill, "from": start, "reached": reached, "again": max(0, reached - saved(folder))}
        append_lines(records, [json.dumps(record)])
        print(f"{len(done) + 1} of {count}: {record}", file=sys.stderr)
    return done


def end_of(folder: pathlib.Path) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """All arrays of the last checkpoint, and the log without the clock's figures."""
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        arrays = trees.flatten(checkpoints.arrays())
    return arrays, rows_of(folder)


def rows_of(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The log without the clock's figures."""
    rows = read_rows(folder / METRICS_FILE)
    return [{name: row[name] for name in row if name not in CLOCK_FIGURES} for row in rows]


def compare(broken: pathlib.Path, unbroken: pathlib.Path) -> dict[str, Any]:
    """What is the same at the end of both runs."""
    (arrays, rows), (wanted, wanted_rows) = end_of(broken), end_of(unbroken)
    same = arrays.keys() == wanted.keys() and all(
        arrays[path].dtype == leaf.dtype and arrays[path].tobytes() == leaf.tobytes() for path, leaf in wanted.items()
    )
    keys = [(row["step"], row["kind"]) for row in rows]
    return {"state": same, "log": rows == wanted_rows, "rows": len(rows), "double_rows": len(keys) - len(set(keys))}


def measure(folder: pathlib.Path, steps: int, kills: int, seed: int) -> dict[str, Any]:
    """Runs everything in `folder`, or what is left of it, and returns the result.

    Raises:
      ConfigError: all of it has been run there, maybe by other code: nothing would be measured.
    """
    broken, unbroken, began = folder / "killed", folder / "unbroken", time.monotonic()
    if saved(unbroken) >= steps:
        raise ConfigError(f"{folder}: expected a folder to run in, or to go on in; this one is done, delete it")
    records = kill_again_and_again(broken, steps, kills, seed, folder / KILLS)
    for place in (broken, unbroken):
        if ended := life(place, steps):
            raise RuntimeError(f"{place}: expected the run to reach its end, it ended with {ended}")
    return {
        "steps": steps,
        "save_period": SAVE_PERIOD,
        "kills": len(records),
        "while_saving": sum(record["kill"].startswith("save") for record in records),
        "most_steps_again": max((record["again"] for record in records), default=0),
        "same": compare(broken, unbroken),
        "records": records,
        "seed": seed,
        "seconds_of_last_call": round(time.monotonic() - began, 1),
        "versions": versions(),
    }


def passed(result: dict[str, Any]) -> bool:
    same = result["same"]
    whole = same["state"] and same["log"] and not same["double_rows"]
    return whole and result["most_steps_again"] <= result["save_period"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, metavar="N")
    parser.add_argument("--steps", type=int, default=400, metavar="N", help="length of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/kills"), metavar="DIR")
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE", help="where the result goes as json")
    arguments = parser.parse_args(argv)
    # One compilation serves all lives.
    jax.config.update("jax_compilation_cache_dir", str((arguments.folder / "jax").absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    import orbax.checkpoint  # noqa: F401  # seconds that not every life shall take

    return exit_code("benchmarks.kills", lambda: report(arguments))


def report(arguments: argparse.Namespace) -> int:
    """Measures, writes and prints; returns 0 if the result passed."""
    result = measure(arguments.folder, arguments.steps, arguments.kills, arguments.seed)
    if arguments.out:
        write_json(arguments.out, result)
    print(json.dumps({name: value for name, value in result.items() if name != "records"}, indent=1))
    return 0 if passed(result) else 1


if __name__ == "__main__":
    sys.exit(main())
