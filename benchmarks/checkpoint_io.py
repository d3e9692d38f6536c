"""Seconds and memory of reading and writing a T5 in every form, beside reading the same files as plain bytes.

    python benchmarks/checkpoint_io.py [--megabytes N] [--folder DIR]

Each measurement runs in a process of its own, twice, and the better one counts; the files are in the file cache. The
bounds the project holds itself to: 80% of the rate of plain reading for safetensors and uncompressed arrays, 80% of
what parallel inflation of the same chunks reaches for compressed ones (`inflate`, T5X's gzip, a thread for each core),
and a peak of 1.3 times the tree; Orbax's zstd stands beside plain reading, without a bound. Other work on the machine
adds to seconds; CPU seconds, of all threads, stand beside them. Two quiet cores take about two minutes.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import math
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hyperflax.checkpoints.forms import Target

FORMS = {
    "huggingface": ("plain",),
    "t5x": ("plain", "inflate"),
    "t5x_raw": ("plain",),
    "orbax": ("plain",),
}
"""What each form is read beside; the last one is its measure. `t5x_raw` is T5X's legacy form without compression."""

RATE, MEMORY = 0.8, 1.3
REPEATS = 2


def config(megabytes: int):
    """A T5 1.1 of about this many megabytes in float32: 88 * emb * emb values, and a small vocabulary."""
    from hyperflax.types import T5Config

    emb = max(64, round((megabytes * 2**20 / 4 / 88) ** 0.5) // 64 * 64)
    return T5Config(
        vocab_size=128, emb_dim=emb, num_heads=emb // 64, mlp_dim=2 * emb, num_encoder_layers=4, num_decoder_layers=4
    )


def shapes(megabytes: int) -> dict[str, tuple[int, ...]]:
    from hyperflax.checkpoints.shapes import expected_shapes

    return expected_shapes(config(megabytes))


def plain(folder: pathlib.Path) -> int:
    """Reads every file, keeping one at a time; returns the bytes."""
    return sum(len(path.read_bytes()) for path in folder.rglob("*") if path.is_file())


def inflate(folder: pathlib.Path) -> int:
    """Inflates every chunk, keeping as many at a time as there are cores; returns the bytes."""
    chunks = [path for path in folder.rglob("*") if path.is_file() and path.name not in (".zarray", "checkpoint")]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(lambda path: len(zlib.decompress(path.read_bytes(), wbits=31)), chunks))


def measured(action: Callable[[], object]) -> tuple[float, float, int]:
    """Seconds, CPU seconds, and by how many bytes the largest memory grew."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu = time.perf_counter(), time.process_time()
    action()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return seconds, cpu, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def write(form: Target, folder: pathlib.Path, megabytes: int) -> tuple[float, float, int]:
    import numpy as np

    from hyperflax import trees
    from hyperflax.checkpoints import t5x_writer
    from hyperflax.checkpoints.forms import Model, write_model

    if form == "t5x_raw":
        setattr(t5x_writer, "_COMPRESSOR", None)  # noqa: B010 # hyperflax writes gzip, as T5X does by default
        form = "t5x"
    rng = np.random.default_rng(0)
    flat = {path: rng.standard_normal(shape, np.float32) for path, shape in shapes(megabytes).items()}
    model = Model("t5", trees.unflatten(flat), config(megabytes))
    return measured(lambda: write_model(folder, model, form))


def read(folder: pathlib.Path) -> tuple[float, float, int]:
    from hyperflax.checkpoints.forms import read_model

    return measured(lambda: read_model(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--folder", help="where to write; default a temporary folder")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        action, form = arguments.one
        folder = pathlib.Path(arguments.folder) / form
        actions = {
            "write": lambda: write(form, folder, arguments.megabytes),
            "read": lambda: read(folder),
            "plain": lambda: measured(lambda: plain(folder)),
            "inflate": lambda: measured(lambda: inflate(folder)),
        }
        print(json.dumps(actions[action]()))
        return
    tree = 4 * sum(math.prod(shape) for shape in shapes(arguments.megabytes).values())
    print(f"a tree of {tree / 2**20:,.0f} MiB, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for form, beside in FORMS.items():
            report(form, "write", one("write", form, folder, arguments.megabytes), folder)
            best: dict[str, tuple[float, float, int]] = {}
            for _ in range(REPEATS):
                for action in (*beside, "read"):
                    found = one(action, form, folder, arguments.megabytes)
                    best[action] = min(best.get(action, found), found)
            for action, found in best.items():
                report(form, action, found, folder)
            rate, memory = best[beside[-1]][0] / best["read"][0], best["read"][2] / tree
            bound = "" if form == "orbax" else f" ({'reaches' if rate >= RATE else 'MISSES'} {RATE:.0%})"
            held = "under" if memory < MEMORY else "NOT UNDER"
            print(f"{form:12} reads at {rate:.0%} of {beside[-1]}{bound}; peak {memory:.2f} trees ({held} {MEMORY})")


def one(action: str, form: str, folder: str, megabytes: int) -> tuple[float, float, int]:
    """Measures in a process of its own."""
    command = [sys.executable, __file__, "--one", action, form, "--folder", folder, "--megabytes", str(megabytes)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def report(form: str, action: str, found: tuple[float, float, int], folder: str) -> None:
    seconds, cpu, grown = found
    size = sum(path.stat().st_size for path in (pathlib.Path(folder) / form).rglob("*") if path.is_file())
    print(
        f"{form:12} {action:7} {seconds:7.2f} s (cpu {cpu:6.2f})  {size / 2**20 / seconds:8.0f} MiB/s of files"
        f"  memory grew by {grown / 2**20:8.0f} MiB",
        flush=True,
    )


if __name__ == "__main__":
    main()
