"""The process of one side: it prepares entries and times one call of one of them when it is told to.

    python -m benchmarks.peers.worker SIDE FOLDER

A line of json comes in, a line goes out. While another side is timed this one waits for its next line, and so keeps no
core busy. It ends with its input.

    {"do": "prepare", "name": N, "entry": ..., "shape": ...}  ->  {"made": what its first calls gave, or null}
    {"do": "time", "name": N}                                 ->  {"seconds": 1.25}
    {"do": "forget"}                                          ->  {}
    {"do": "about"}                                           ->  {"device": "cpu (AMD EPYC 7R13 Processor, 2 cores)"}
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.peers.case import Entry
from hyperflax import configs
from hyperflax.evaluation.provenance import device
from hyperflax.types import T5Config

MODULES = {
    "hyperflax": "benchmarks.peers.hyperflax_side",
    "transformers": "benchmarks.peers.transformers_side",
    "t5x": "benchmarks.peers.t5x_side",
    "t5x_gather": "benchmarks.peers.t5x_side",
}


def main(side: str, folder: pathlib.Path) -> None:
    """Answers until the input ends."""
    # Replies alone go where standard output went; what a library prints goes to the log.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    calls: dict[str, Callable[[], Any]] = {}
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), side, folder, calls)), file=replies, flush=True)


def answer(request: dict[str, Any], side: str, folder: pathlib.Path, calls: dict[str, Callable[[], Any]]) -> dict:
    """Returns the reply to one request; `calls` holds what has been prepared."""
    if request["do"] == "forget":
        calls.clear()
        gc.collect()
        return {}
    if request["do"] == "about":
        return {"device": device()}
    name = request["name"]
    if request["do"] == "prepare":
        entry = configs.from_json(Entry, request["entry"], name)
        shape = configs.from_json(T5Config, request["shape"], name)
        build = getattr(importlib.import_module(MODULES[side]), entry.program)
        calls[name] = build(entry, shape, folder)
        return {"made": first(calls[name], entry)}
    began = time.perf_counter()
    calls[name]()
    return {"seconds": time.perf_counter() - began}


def first(call: Callable[[], Any], entry: Entry) -> list | None:
    """Makes the calls that compile, and returns what they gave.

    Of training those are two: the second loss shows that the optimizers took the same step.
    """
    if entry.program.startswith("train"):
        return [*call(), *call()]
    made = call()
    return made.tolist() if entry.program.startswith("decode") else None


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]))
