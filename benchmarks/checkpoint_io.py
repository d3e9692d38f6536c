"""Seconds and memory of reading and writing a T5 in every form, beside reading the same files as plain bytes.

    python benchmarks/checkpoint_io.py [--megabytes N] [--folder DIR]

Each measurement runs in a process of its own; the files are in the file cache. The bounds the project holds itself to:
80% of the rate of plain reading for safetensors and uncompressed arrays, 80% of what parallel inflation of the same
chunks reaches for compressed ones (`inflate`, T5X's gzip, a thread for each core), and a peak of 1.3 times the tree.
Other work on the machine adds to seconds; CPU seconds, of all threads, stand beside them.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
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
    "huggingface": ("write", "plain", "read"),
    "t5x": ("write", "plain", "inflate", "read"),
    "orbax": ("write", "plain", "read"),
}


def config(megabytes: int):
    """A T5 1.1 of about this many megabytes in float32: 88 * emb * emb values, and a small vocabulary."""
    from hyperflax.types import T5Config

    emb = max(64, round((megabytes * 2**20 / 4 / 88) ** 0.5) // 64 * 64)
    return T5Config(
        vocab_size=128, emb_dim=emb, num_heads=emb // 64, mlp_dim=2 * emb, num_encoder_layers=4, num_decoder_layers=4
    )


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
    from hyperflax.checkpoints.forms import Model, write_model
    from hyperflax.checkpoints.shapes import expected_shapes

    shapes = expected_shapes(config(megabytes))
    rng = np.random.default_rng(0)
    flat = {path: rng.standard_normal(shape, np.float32) for path, shape in shapes.items()}
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
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for form, actions in FORMS.items():
            reference = 0.0
            for action in actions:
                command = [sys.executable, __file__, "--one", action, form, "--folder", folder]
                command += ["--megabytes", str(arguments.megabytes)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                seconds, cpu, grown = json.loads(done.stdout)
                size = sum(path.stat().st_size for path in (pathlib.Path(folder) / form).rglob("*") if path.is_file())
                rate = size / 2**20 / seconds
                told = f"   {reference / seconds:4.0%} of the rate above" if action == "read" else ""
                reference = seconds
                print(
                    f"{form:12} {action:7} {seconds:7.2f} s (cpu {cpu:6.2f})  {rate:8.0f} MiB/s of files"
                    f"  memory grew by {grown / 2**20:8.0f} MiB{told}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
