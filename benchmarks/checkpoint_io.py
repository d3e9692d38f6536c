"""Seconds and memory of reading a T5 in every form, beside the same files read, or their chunks inflated, and no more.

    python benchmarks/checkpoint_io.py [--megabytes N] [--rounds N] [--folder DIR]

Every reading has a process of its own; it takes turns with its reference, and the best of some rounds counts. Files are
in the file cache. The bounds that the project holds itself to, and by which the command ends with 0 or 1:

    form           reference                                                                     bound
    huggingface    `plain`: reads every file, and keeps the bytes                                80% of its rate
    uncompressed   `plain`; T5X's legacy form, arrays not compressed                             80%
    t5x            `inflate`: reads and inflates every chunk on all cores, and keeps the values    80%
    orbax          `inflate`, of the zstd chunks in Orbax's files (pyarrow inflates)             80%
    all            the tree's own bytes                                                          a peak of 1.3 times

About two minutes at the default size on two cores that do nothing else; other work on the machine spoils the seconds,
so CPU seconds of all threads stand beside them.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
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
from typing import Any

REFERENCES = {"huggingface": "plain", "uncompressed": "plain", "t5x": "inflate", "orbax": "inflate"}
RATE, PEAK = 0.8, 1.3


def config(megabytes: int):
    """A T5 1.1 of about this many megabytes in float32: 88 * emb * emb values, and a small vocabulary."""
    from hyperflax.types import T5Config

    emb = max(64, round((megabytes * 2**20 / 4 / 88) ** 0.5) // 64 * 64)
    return T5Config(
        vocab_size=128, emb_dim=emb, num_heads=emb // 64, mlp_dim=2 * emb, num_encoder_layers=4, num_decoder_layers=4
    )


def write(form: str, folder: pathlib.Path, megabytes: int) -> int:
    """Writes the model; returns the bytes of its arrays."""
    import numpy as np

    from hyperflax import trees
    from hyperflax.checkpoints import t5x_writer
    from hyperflax.checkpoints.forms import Model, Target, write_model
    from hyperflax.checkpoints.shapes import expected_shapes

    if form == "uncompressed":
        setattr(t5x_writer, "_COMPRESSOR", None)  # noqa: B010 # T5X writes and reads such files too
    rng = np.random.default_rng(0)
    shapes = expected_shapes(config(megabytes))
    flat = {path: rng.standard_normal(shape, np.float32) for path, shape in shapes.items()}
    target: Target = "huggingface" if form == "huggingface" else "orbax" if form == "orbax" else "t5x"
    write_model(folder, Model("t5", trees.unflatten(flat), config(megabytes)), target)
    return sum(array.nbytes for array in flat.values())


def plain(folder: pathlib.Path) -> Callable[[], object]:
    """Reads every file."""
    return lambda: [path.read_bytes() for path in folder.rglob("*") if path.is_file()]


def inflate(folder: pathlib.Path) -> Callable[[], object]:
    """Reads and inflates every chunk, as many at a time as there are cores."""
    chunks = _zstd_chunks(folder) if list(folder.rglob("manifest.ocdbt")) else _gzip_chunks(folder)

    def run() -> list[Any]:
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(lambda chunk: chunk(), chunks))

    return run


def _gzip_chunks(folder: pathlib.Path) -> list[Callable[[], bytes]]:
    def inflated(path: pathlib.Path) -> bytes:
        data = path.read_bytes()
        return zlib.decompress(data, 31, int.from_bytes(data[-4:], "little"))  # gzip ends with the size

    files = [path for path in folder.rglob("target.*/*") if path.name != ".zarray"]
    return [lambda path=path: inflated(path) for path in files]


def _zstd_chunks(folder: pathlib.Path) -> list[Callable[[], Any]]:
    """Where the chunks lie in Orbax's files only TensorStore can tell; it hands over their bytes."""
    import pyarrow
    import tensorstore as ts

    (manifest,) = (path for path in folder.rglob("state/manifest.ocdbt"))
    base = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{manifest.parent}/"}}
    store, codec = ts.KvStore.open(base).result(), pyarrow.Codec("zstd")
    keys = [key.decode() for key in store.list().result()]

    def inflated(key: str, size: int) -> Any:
        return codec.decompress(store.read(key).result().value, size)

    found: list[Callable[[], Any]] = []
    for key in keys:
        name, _, chunk = key.rpartition("/")
        if not name.startswith("target.") or chunk == ".zarray":
            continue
        metadata = json.loads(store.read(f"{name}/.zarray").result().value)
        size = math.prod(metadata["chunks"]) * int(metadata["dtype"][2:])
        found.append(functools.partial(inflated, key, size))
    return found


def read(folder: pathlib.Path) -> Callable[[], object]:
    """Reads the model as hyperflax does."""
    import tensorstore  # noqa: F401 (what it takes is no part of the reading)

    from hyperflax.checkpoints.forms import read_model

    return lambda: read_model(folder)


def measured(action: Callable[[], object]) -> tuple[float, float, int]:
    """Seconds, CPU seconds, and by how many bytes memory grew at its peak."""
    before = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    start, cpu = time.perf_counter(), time.process_time()
    kept = action()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    del kept
    return seconds, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def in_a_process(action: str, form: str, folder: str, megabytes: int) -> Any:
    command = [sys.executable, __file__, "--one", action, form, "--folder", folder, "--megabytes", str(megabytes)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def compared(form: str, folder: str, megabytes: int, rounds: int) -> bool:
    """Measures one form, prints what came out, and returns whether both bounds are kept."""
    tree = in_a_process("write", form, folder, megabytes)
    best: dict[str, list[float]] = {}
    for _ in range(rounds):
        for action in (REFERENCES[form], "read"):
            found = in_a_process(action, form, folder, megabytes)
            best[action] = min(best.get(action, found), found)
    for action, (seconds, cpu, grown) in best.items():
        print(
            f"{form:12} {action:7} {seconds:6.2f} s (cpu {cpu:6.2f})  {tree / 2**20 / seconds:6.0f} MiB/s of values"
            f"  memory grew by {grown / tree:4.2f} x the tree"
        )
    rate, peak = best[REFERENCES[form]][0] / best["read"][0], best["read"][2] / tree
    kept = rate >= RATE and peak <= PEAK
    print(
        f"{form:12} {rate:.0%} of the rate of {REFERENCES[form]}, peak {peak:.2f}: {'kept' if kept else 'MISSED'}",
        flush=True,
    )
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=400, help="of the model (default 400)")
    parser.add_argument("--rounds", type=int, default=3, help="readings of each kind (default 3)")
    parser.add_argument("--folder", help="where to write; default: a temporary folder")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        action, form = arguments.one
        folder = pathlib.Path(arguments.folder) / form
        if action == "write":
            print(json.dumps(write(form, folder, arguments.megabytes)))
        else:
            prepared = {"plain": plain, "inflate": inflate, "read": read}[action](folder)
            print(json.dumps(measured(prepared)))
        return 0
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        kept = [compared(form, folder, arguments.megabytes, arguments.rounds) for form in REFERENCES]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
