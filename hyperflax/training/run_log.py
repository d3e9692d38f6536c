"""What a run writes while it trains: metrics.jsonl, TensorBoard events and the curve.

    {"step": 50, "kind": "train", "loss": 2.31, "accuracy": 0.44, ..., "tokens_per_second": 9100.0, "seconds": 21.3}
    {"step": 500, "kind": "eval", "loss": 2.05, ...}

Rows of steps that a resumed run will repeat are cut off when it starts, so that every step is reported once.

>>> with RunLog("runs/first") as log:
...     log.start(500)
...     log.write(550, "train", {"loss": 2.2})
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hyperflax.buckets import Location, locate
from hyperflax.files import append_lines, atomic_file, read_if_there
from hyperflax.objectives.protocol import Metrics

METRICS_FILE = "metrics.jsonl"
CURVE_FILE = "loss.png"
# Reported as totals of a period, not as means.
COUNTED = ("skipped_steps",)


class Sums:
    """Running (sum, weight) pairs of a log period, in Python floats: saved as json they come back bit for bit."""

    def __init__(self, pairs: Mapping[str, Sequence[float | str]] | None = None) -> None:
        self.pairs = {name: (float(total), float(weight)) for name, (total, weight) in (pairs or {}).items()}

    def add(self, metrics: Metrics) -> None:
        """Adds one step's pairs; waits for the device where they are not ready."""
        for name, (total, weight) in metrics.items():
            old_total, old_weight = self.pairs.get(name, (0.0, 0.0))
            self.pairs[name] = (old_total + float(total), old_weight + float(weight))

    def as_json(self) -> dict[str, list[float | str]]:
        """Returns the pairs, to make `Sums` of again; what json cannot hold (NaN, infinity) as a word."""
        return {name: [x if math.isfinite(x) else str(x) for x in pair] for name, pair in self.pairs.items()}

    def means(self) -> dict[str, float]:
        """Returns what a row reports; a metric without weight is left out."""
        out = {name: total / weight for name, (total, weight) in self.pairs.items() if weight and name not in COUNTED}
        return out | {name: self.pairs[name][0] for name in COUNTED if name in self.pairs}


class RunLog:
    """Appends rows to `metrics.jsonl` and scalars to TensorBoard, once it has been started.

    Args:
      directory: the run's folder, made if it does not exist.
      enabled: False writes nothing (all processes but the first).
    """

    def __init__(self, directory: str | os.PathLike[str], *, enabled: bool = True) -> None:
        self._folder, self._enabled = locate(os.fspath(directory)), enabled
        self.path = self._folder / METRICS_FILE
        self._events: Any = None  # an EventsWriter wherever there is something to write

    def start(self, resume_step: int | None) -> None:
        """Removes the rows of steps after `resume_step`, of all steps if it is None."""
        if not self._enabled:
            return
        from tensorboardX.event_file_writer import EventsWriter

        rows = [] if resume_step is None else [row for row in read_rows(self.path) if row["step"] <= resume_step]
        with atomic_file(self.path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        # An event file grows, which nothing in a bucket does: it is made here, and put there whenever it is flushed.
        self._place, self._made = self._folder / "tensorboard", tempfile.TemporaryDirectory(prefix="hyperflax-")
        local = self._place if isinstance(self._place, pathlib.Path) else pathlib.Path(self._made.name)
        local.mkdir(parents=True, exist_ok=True)
        # Not through a SummaryWriter: its thread dies of a full disk, and who writes then waits for it for ever.
        self._events = EventsWriter(str(local / "events"))
        # Of what a run that was killed has left, TensorBoard shows nothing from this step on.
        self._add(0 if resume_step is None else resume_step + 1, session_log={"status": "START"})
        self._events.flush()

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Appends one row; numbers that json cannot hold (NaN, infinity) are left out."""
        if self._events is None:
            return
        from tensorboardX.summary import scalar

        numbers = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        append_lines(self.path, [json.dumps({"step": step, "kind": kind, **numbers})])
        for name, value in numbers.items():
            self._add(step, summary=scalar(f"{kind}/{name}", value))
        self._events.flush()

    def _add(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event  # pyrefly: ignore[missing-module-attribute]  # made by protobuf

        self._events.write_event(Event(step=step, wall_time=time.time(), **content))

    def flush(self) -> None:
        """Sees to it that TensorBoard finds all rows in a bucket, too; on a disk it finds each when it is written."""
        if self._events is None:
            return
        for made in pathlib.Path(self._made.name).iterdir():
            with atomic_file(self._place / made.name) as temporary:
                shutil.copyfile(made, temporary)

    def close(self) -> None:
        """Flushes, and writes no more."""
        if self._events is not None:
            with self._made:
                self.flush()
                self._events.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_rows(path: Location | str) -> list[dict]:
    """Returns the rows of a metrics.jsonl, up to the first line that is not whole (a run killed while writing it)."""
    rows = []
    for line in (read_if_there(path) or b"").decode("utf-8").split("\n"):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def plot_curve(directory: str | os.PathLike[str]) -> Location | None:
    """Draws the loss of training and evaluation over steps into `loss.png`; returns its path, None without rows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder = locate(os.fspath(directory))
    rows = read_rows(folder / METRICS_FILE)
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    drawn = False
    for kind, style in (("train", "-"), ("eval", "o-")):
        points = np.array([(row["step"], row["loss"]) for row in rows if row["kind"] == kind and "loss" in row])
        if len(points):
            axes.plot(points[:, 0], points[:, 1], style, label=kind, markersize=4)
            drawn = True
    for row in rows:
        if row["kind"] == "initial" and "bare/loss" in row:
            axes.axhline(row["bare/loss"], color="grey", linestyle=":", label="bare model, first batch")
    if not drawn:
        return None
    axes.set(xlabel="step", ylabel="loss")
    axes.legend()
    axes.grid(alpha=0.3)
    with atomic_file(folder / CURVE_FILE) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))
    return folder / CURVE_FILE
