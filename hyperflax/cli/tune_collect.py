"""`hyperflax tune collect`: fills the tuner's meta-dataset."""

from __future__ import annotations

import argparse
import functools
import os

from hyperflax.cli.models import add_model_argument
from hyperflax.cli.tune import WHOLE, add_seed_argument, add_start_arguments, bench_of, parse_shard
from hyperflax.errors import ConfigError
from hyperflax.files import local_folder

DESCRIPTION = """Run many fine-tuning pipelines on many data sets and record scores and seconds.

  hyperflax tune collect --model strings --data data/strings/* --structures 20 --variants 4 --out runs

Of every structure (kind, size, optimizer, batch size, epochs ...) the variants differ in learning rate, schedule,
warm-up and weight decay; they share a program and run side by side. A killed collection goes on when it is
called again. --workers 4 gives it to four processes through Ray, on this machine or on those of --ray_address; --shard
0/4 ... 3/4 share one among four machines without Ray. All of them see the same folders. `--compact` makes one file of
the folder's. docs/tuner.md describes the table.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("--data", required=True, nargs="+", metavar="DIR", help="data sets: folders or jsonl files")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the table")
    parser.add_argument("--structures", type=int, required=True, metavar="N", help="programs to draw")
    parser.add_argument("--variants", type=int, default=4, metavar="N", help="of each, on each data set (default 4)")
    parser.add_argument(
        "--solo", type=int, default=1, metavar="N", help="data sets on which a structure's runs run alone (default 1)"
    )
    add_start_arguments(parser)
    parser.add_argument("--shard", default=WHOLE, metavar="I/N", help="do every N-th structure from I on (default 0/1)")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes, through Ray (pip install 'hyperflax[ray]'); where there are GPUs, one for each at most",
    )
    parser.add_argument("--ray_address", metavar="ADDRESS", help="a Ray cluster that runs; default: a new one here")
    parser.add_argument("--compact", action="store_true", help="make one file of the folder's at the end")
    add_seed_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    from hyperflax.tune.collect import Collection, collect
    from hyperflax.tune.workers import collect_on_ray
    from hyperflax.tuner import datasets, table

    shard = parse_shard(arguments.shard)
    data = [datasets.read(path) for path in arguments.data]
    names = ("structures", "variants", "solo", "seed")
    given = {name: getattr(arguments, name) for name in names} | {"out": str(local_folder(arguments.out).absolute())}
    if arguments.workers is None:
        if arguments.ray_address is not None:
            raise ConfigError("--ray_address: expected --workers beside it, got none")
        written = collect(Collection(bench_of(arguments), data, **given), shard=shard)
    else:
        if arguments.shard != WHOLE:
            raise ConfigError("--shard: expected none beside --workers, for Ray hands out the structures")
        made = functools.partial(bench_of, _anywhere(arguments))
        written = collect_on_ray(made, data, workers=arguments.workers, address=arguments.ray_address, **given)
    if arguments.compact:
        table.compact(arguments.out)
    print(f"{written} runs written to {arguments.out}; hyperflax tune report {arguments.out} --out DIR sums them up")
    return 0


def _anywhere(arguments: argparse.Namespace) -> argparse.Namespace:
    """The names of model and starts as a process in another directory, or on another machine, needs them."""
    given = {name: getattr(arguments, name) for name in ("model", "shared", "bank")}
    paths = {name: os.path.abspath(path) if path and os.path.exists(path) else path for name, path in given.items()}
    return argparse.Namespace(**paths)
