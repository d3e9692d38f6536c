"""Where a run's seconds go, how fast its steps are, and how much of the machine they use.

The figures of a log period, in metrics.jsonl and TensorBoard:

    tokens_per_second, episodes_per_second   real tokens; episodes where batches have them
    model_flops_per_second                   see `hyperflax.models.flops`
    mfu                                      that over the devices' peak in bfloat16, where the peak is known
    waiting_for_data                         share of the period's seconds in which no batch was ready
    memory_gib                               most that a device held; on a CPU, the process

>>> clock = Clock()
>>> clock.lap("compiling")
>>> clock.stepped(tokens=4096, episodes=16, flops=3 * 10**10)
>>> clock.period()
{'tokens_per_second': ..., ...}
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Literal

import jax

Activity = Literal["compiling", "steps", "evaluating", "saving"]

# Peak operations per second of one chip in bfloat16 without sparsity, from the vendors: cloud.google.com/tpu/docs has a
# page for each generation, NVIDIA data sheets of A100, H100 and H200; as cards (NVL, PCIe) the latter have less.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Returns the peak of the chip whose name `device_kind` starts with, the longest that matches; None if unknown."""
    known = [name for name in PEAK_FLOPS if device_kind.startswith(name)]
    return PEAK_FLOPS[max(known, key=len)] if known else None


class Clock:
    """Seconds of a run by activity, and the figures of the log period under way.

    Args:
      devices: those that the run computes on, which need not be all of a host; all by default.
    """

    def __init__(self, devices: Sequence[jax.Device] | None = None) -> None:
        self.seconds: dict[Activity, float] = {"compiling": 0.0, "steps": 0.0, "evaluating": 0.0, "saving": 0.0}
        self._mark = self._began = time.monotonic()
        self._waited = self._waited_before = 0.0
        devices = jax.devices() if devices is None else devices
        peak = peak_flops(devices[0].device_kind)
        self._peak = None if peak is None else peak * len(devices)
        self._start_period()

    def lap(self, activity: Activity) -> None:
        """Counts the seconds since the last lap as spent on `activity`."""
        now = time.monotonic()
        self.seconds[activity] += now - self._mark
        if activity == "steps":
            self._busy += now - self._mark
        self._mark = now

    def stepped(self, *, tokens: int, episodes: int, flops: int) -> None:
        """Counts a step."""
        self._tokens, self._episodes, self._flops = (
            self._tokens + tokens,
            self._episodes + episodes,
            self._flops + flops,
        )

    def waited(self, total: float) -> None:
        """Notes for how many seconds in all the loop has waited for batches, which is part of its steps' time."""
        self._waited = total

    @property
    def total(self) -> float:
        """Seconds since the clock was made."""
        return time.monotonic() - self._began

    def period(self, *, whole: bool = True) -> dict[str, float]:
        """Returns the period's figures, and starts the next one where it is `whole`."""
        out: dict[str, float] = {}
        if self._busy > 0:
            out["tokens_per_second"] = self._tokens / self._busy
            if self._episodes:
                out["episodes_per_second"] = self._episodes / self._busy
            if self._flops:
                out["model_flops_per_second"] = self._flops / self._busy
                if self._peak:
                    out["mfu"] = out["model_flops_per_second"] / self._peak
            out["waiting_for_data"] = min((self._waited - self._waited_before) / self._busy, 1.0)
        if memory := memory_bytes():
            out["memory_gib"] = memory / 2**30
        if whole:
            self._start_period()
        return out

    def summary(self) -> str:
        """Returns a line that says where the seconds went; goodput is the share of them spent on steps with data."""
        total = max(self.total, 1e-9)
        useful = max(self.seconds["steps"] - self._waited, 0.0)
        parts = {**self.seconds, "waiting for data": self._waited, "steps": useful}
        rest = total - sum(parts.values())
        listed = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in parts.items())
        return f"goodput {useful / total:.1%} of {total:.1f} s: {listed}, other {max(rest, 0.0):.1f} s"

    def _start_period(self) -> None:
        self._busy, self._tokens, self._episodes, self._flops = 0.0, 0, 0, 0
        self._waited_before = self._waited


# What differs between two runs that are otherwise equal.
CLOCK_FIGURES = (
    "seconds",
    "tokens_per_second",
    "episodes_per_second",
    "model_flops_per_second",
    "mfu",
    "waiting_for_data",
    "memory_gib",
)


def memory_bytes() -> int | None:
    """Returns the most bytes in use on this process's fullest device; on a CPU, those that the process had resident."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [stat["peak_bytes_in_use"] for stat in stats if stat and "peak_bytes_in_use" in stat]
    if peaks:
        return max(peaks)
    try:
        import resource
    except ImportError:  # Windows
        return None
    # Linux counts kibibytes, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
