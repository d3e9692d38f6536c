"""Times the entries of a case in turns, each side in a process of its own.

Thread pools of several libraries in one process disturb each other; of several processes only one is ever told to work.

>>> with Workers(pathlib.Path("materials")) as workers:
...     result = measure(CASES["train_lora"], ("hyperflax", "transformers"), workers)
>>> result["entries"]["hyperflax"]["seconds"]
[1.21, 1.2, 1.22, 1.21, 1.2]
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Collection
from typing import Any

from benchmarks.peers.agreement import agreement
from benchmarks.peers.case import SIDES, Case, Side
from benchmarks.peers.materials import write_materials
from hyperflax import configs
from hyperflax.errors import ConfigError, HyperflaxError

LOG_LINES = 15


def available() -> tuple[Side, ...]:
    """Returns the sides that can be measured here. Raises ConfigError where `HYPERFLAX_T5X` names no checkout."""
    sides: list[Side] = ["hyperflax"]
    if all(importlib.util.find_spec(package) for package in ("torch", "transformers", "peft")):
        sides.append("transformers")
    if checkout := os.environ.get("HYPERFLAX_T5X"):
        if not (pathlib.Path(checkout) / "t5x" / "decoding.py").is_file():
            raise ConfigError(f"HYPERFLAX_T5X={checkout}: expected T5X's repository, found no t5x/decoding.py")
        sides.extend(("t5x_gather", "t5x"))
    return tuple(side for side in SIDES if side in sides)


def cores() -> int:
    """Returns how many processors this process, and what it starts, may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """The processes, started when first asked; all of them end with the `with`.

    Args:
      folder: for what is written once and read by all, and for their logs.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self._running: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        while self._running:
            self._end(next(iter(self._running)))

    def ask(self, side: Side, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for the reply. Raises HyperflaxError, with its last words, if the process ends."""
        process = self._running.get(side) or self._start(side)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            print(json.dumps(request), file=process.stdin, flush=True)
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._end(side)
            log = self._log(side).read_text("utf-8", errors="replace").splitlines()[-LOG_LINES:]
            raise HyperflaxError("\n".join([f"{side}, {request.get('name', '')}: the process ended", *log]))
        return json.loads(line)

    def forget(self) -> None:
        """Frees what has been prepared."""
        for side in SIDES:
            if side in self._running:
                self.ask(side, do="forget")

    def _start(self, side: Side) -> subprocess.Popen[str]:
        # The tests' and a user's own choice of a device stands; the comparison is one of processors.
        defaults = {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(cores()))
        with self._log(side).open("w", encoding="utf-8") as log:
            self._running[side] = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.peers.worker", side, str(self.folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=pathlib.Path(__file__).resolve().parents[2],
                env={**defaults, **os.environ, **threads},
            )
        return self._running[side]

    def _end(self, side: str) -> None:
        process = self._running.pop(side)
        process.kill()
        process.communicate()  # closes the pipes and waits

    def _log(self, side: str) -> pathlib.Path:
        return self.folder / f"{side}.log"


def measure(
    case: Case, sides: Collection[Side], workers: Workers, tick: Callable[[str], None] = lambda done: None
) -> dict[str, Any]:
    """Prepares the entries of the sides that take part, then times them in turns.

    Args:
      case: what is measured.
      sides: those that take part.
      workers: their processes.
      tick: called with a name after each of `steps`.

    Returns:
      `{"device", "entries": {name: {"side", "seconds": [round], "work", "unit"}}, "agreement": [...]}`.

    Raises:
      HyperflaxError: a process ended, or two sides did not compute the same.
    """
    workers.forget()  # the case before
    entries = {name: entry for name, entry in case.entries.items() if entry.side in sides}
    made: dict[str, Any] = {}
    for name, entry in entries.items():
        write_materials(entry, case.shape, workers.folder)
        settings = {"entry": configs.to_json(entry), "shape": configs.to_json(case.shape)}
        made[name] = workers.ask(entry.side, do="prepare", name=name, **settings)["made"]
        tick(name)
    agreed = agreement(entries, made)
    seconds: dict[str, list[float]] = {name: [] for name in entries}
    for number in range(case.rounds):
        # There and back, so that what drifts during a round falls on both ends alike.
        for name in list(entries)[:: 1 if number % 2 == 0 else -1]:
            seconds[name].append(workers.ask(entries[name].side, do="time", name=name)["seconds"])
            tick(name)
    timed = {}
    for name, entry in entries.items():
        work, unit = entry.work(case.shape)
        timed[name] = {"side": entry.side, "seconds": seconds[name], "work": work, "unit": unit}
    return {**workers.ask("hyperflax", do="about"), "entries": timed, "agreement": agreed}


def steps(case: Case, sides: Collection[Side]) -> int:
    """Returns how often `measure` ticks."""
    return (1 + case.rounds) * sum(entry.side in sides for entry in case.entries.values())
