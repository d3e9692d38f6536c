"""Seconds and memory of reading and writing a T5 in every form, beside its files read, or its chunks inflated, alone.

    python -m benchmarks.checkpoint_io [--megabytes N] [--rounds N] [--forms NAME ...] [--folder DIR] [--out FILE]

Every reading has a process of its own and takes turns with its reference; files are in the file cache. Medians of the
rounds count. The bounds that the project holds itself to, and by which the command ends with 0 or 1:

    form                        reference                                                                bound
    huggingface                 `plain`: reads every file, and keeps the bytes                           80% of its rate
    uncompressed                `plain`; T5X's legacy form, arrays not compressed                        80%
    t5x, t5x_scalable           `inflate`: reads and inflates every chunk on all cores, keeps the values 80%
    orbax, orbax_scalable       `inflate`, of the zstd chunks in Orbax's files (pyarrow inflates)        80%
    each, reading and writing   the tree's own bytes                                                    a peak of 1.3 x

The peak of writing is that of a process which holds the tree, unrolled, and writes it once.

About two minutes at the default size on two cores that do nothing else; other work on the machine spoils the seconds,
so CPU seconds of all threads stand beside them.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import functools
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from typing import Any, Literal

RATE, PEAK = 0.8, 1.3


@dataclasses.dataclass(frozen=True)
class Form:
    """How a model is written, and what its reading is compared with."""

    target: Literal["huggingface", "t5x", "orbax"]
    reference: Literal["plain", "inflate"]
    scalable: bool = False
    compressed: bool = True


FORMS = {
    "huggingface": Form("huggingface", "plain"),
    "uncompressed": Form("t5x", "plain", compressed=False),
    "t5x": Form("t5x", "inflate"),
    "t5x_scalable": Form("t5x", "inflate", scalable=True),
    "orbax": Form("orbax", "inflate"),
    "orbax_scalable": Form("orbax", "inflate", scalable=True),
}


def config(megabytes: int):
    """A T5 1.1 of about this many megabytes in float32: 88 * emb * emb values, and a small vocabulary."""
    from hyperflax.types import T5Config

    emb = max(64, round((megabytes * 2**20 / 4 / 88) ** 0.5) // 64 * 64)
    return T5Config(
        vocab_size=128, emb_dim=emb, num_heads=emb // 64, mlp_dim=2 * emb, num_encoder_layers=4, num_decoder_layers=4
    )


def write(form: Form, folder: pathlib.Path, megabytes: int) -> tuple[int, Callable[[], object]]:
    """Returns the bytes of the model's arrays, and what writes them."""
    import numpy as np

    from hyperflax import trees
    from hyperflax.checkpoints import t5x_writer
    from hyperflax.checkpoints.forms import Model, write_model
    from hyperflax.checkpoints.shapes import expected_shapes

    if not form.compressed:
        setattr(t5x_writer, "_COMPRESSOR", None)  # noqa: B010 # T5X writes and reads such files too
    rng = np.random.default_rng(0)
    shapes = expected_shapes(config(megabytes))
    flat = {path: rng.standard_normal(shape, np.float32) for path, shape in shapes.items()}
    model = Model("t5", trees.unflatten(flat), config(megabytes))
    size = sum(array.nbytes for array in flat.values())
    return size, lambda: write_model(folder, model, form.target, scalable=form.scalable)


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
    from hyperflax.checkpoints.forms import read_model

    return lambda: read_model(folder)


def measured(action: Callable[[], object]) -> dict[str, float]:
    """Seconds, CPU seconds, and by how many bytes memory grew at its peak."""

    def memory(line: str) -> int:
        return int(pathlib.Path("/proc/self/status").read_text().split(f"{line}:")[1].split()[0]) * 1024

    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = memory("VmRSS")
    start, cpu = time.perf_counter(), time.process_time()
    kept = action()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    del kept
    return {"seconds": seconds, "cpu": cpu, "grown": memory("VmHWM") - before}


def one(action: str, name: str, folder: pathlib.Path, megabytes: int) -> dict[str, float]:
    """What a process of its own does; memory is kept and given back as in every command."""
    from hyperflax.cli.host_memory import keep_freed_memory

    keep_freed_memory()
    if action in ("write", "read"):  # what the libraries take to begin with is no part of either
        with tempfile.TemporaryDirectory(dir=folder) as small:
            write(FORMS[name], pathlib.Path(small) / name, 1)[1]()
            read(pathlib.Path(small) / name)()
    if action == "write":
        size, run = write(FORMS[name], folder / name, megabytes)
        return {**measured(run), "tree": size}
    return measured({"plain": plain, "inflate": inflate, "read": read}[action](folder / name))


def in_a_process(action: str, name: str, folder: str, megabytes: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.checkpoint_io", "--one", action, name]
    command += ["--folder", folder, "--megabytes", str(megabytes)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def compared(name: str, folder: str, megabytes: int, rounds: int) -> dict[str, Any]:
    """Measures one form; prints and returns what came out."""
    reference = FORMS[name].reference
    written = in_a_process("write", name, folder, megabytes)
    tree = written["tree"]
    found: dict[str, list[dict[str, float]]] = {reference: [], "read": []}
    for _ in range(rounds):
        for action, runs in found.items():
            runs.append(in_a_process(action, name, folder, megabytes))

    def median(action: str, key: str) -> float:
        return statistics.median(run[key] for run in found[action])

    report: dict[str, Any] = {
        "tree_bytes": tree,
        "reference": reference,
        "rate": median(reference, "seconds") / median("read", "seconds"),
        "read_peak": max(run["grown"] for run in found["read"]) / tree,
        "write_peak": 1 + written["grown"] / tree,
        **{f"{action}_{key}": median(action, key) for action in found for key in ("seconds", "cpu")},
        "write_seconds": written["seconds"],
        "write_cpu": written["cpu"],
    }
    report["kept"] = report["rate"] >= RATE and max(report["read_peak"], report["write_peak"]) <= PEAK
    for action in (reference, "read", "write"):
        seconds, cpu = report[f"{action}_seconds"], report[f"{action}_cpu"]
        print(f"{name:15} {action:8} {seconds:6.2f} s (cpu {cpu:6.2f})  {tree / 2**20 / seconds:6.0f} MiB/s of values")
    print(
        f"{name:15} {report['rate']:.0%} of the rate of {reference}; peak {report['read_peak']:.2f} reading, "
        f"{report['write_peak']:.2f} writing: {'kept' if report['kept'] else 'MISSED'}",
        flush=True,
    )
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=400, help="of the model (default 400)")
    parser.add_argument("--rounds", type=int, default=5, help="readings of each kind (default 5)")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="some of them; default all")
    parser.add_argument("--folder", help="where to write; default: a temporary folder")
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE", help="also write the figures, as json")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        action, name = arguments.one
        print(json.dumps(one(action, name, pathlib.Path(arguments.folder), arguments.megabytes)))
        return 0
    from hyperflax.json_files import write_json
    from hyperflax.versions import versions

    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        forms = {name: compared(name, folder, arguments.megabytes, arguments.rounds) for name in arguments.forms}
    if arguments.out:
        settings = {"megabytes": arguments.megabytes, "rounds": arguments.rounds, "cores": os.cpu_count()}
        write_json(
            arguments.out, {**settings, "bounds": {"rate": RATE, "peak": PEAK}, "forms": forms, "versions": versions()}
        )
    return 0 if all(report["kept"] for report in forms.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
