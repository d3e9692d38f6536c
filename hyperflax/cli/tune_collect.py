"""`hyperflax tune collect`: fills the tuner's meta-dataset."""

from __future__ import annotations

import argparse

from hyperflax.cli.models import add_model_argument
from hyperflax.cli.tune import add_start_arguments, bench_of
from hyperflax.errors import ConfigError

DESCRIPTION = """Run many fine-tuning pipelines on many data sets and record scores and seconds.

  hyperflax tune collect --model strings --data data/strings/* --structures 20 --variants 4 --out runs

Of every structure (kind, size, optimizer, batch size, epochs ...) the variants differ in learning rate, schedule,
warm-up, weight decay and alpha; they share a program and run side by side. A killed collection goes on when it is
called again, and --shard 0/4 ... 3/4 share one among four machines that see the same folder. `--compact` makes one file
of the folder's. docs/tuner.md describes the table.
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
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="do every N-th structure from I on (default 0/1)")
    parser.add_argument("--compact", action="store_true", help="make one file of the folder's at the end")
    parser.add_argument("--seed", type=int, default=0)


def run(arguments: argparse.Namespace) -> int:
    from hyperflax.tune.collect import collect
    from hyperflax.tuner import datasets, table

    written = collect(
        bench_of(arguments),
        [datasets.read(path) for path in arguments.data],
        out=arguments.out,
        structures=arguments.structures,
        variants=arguments.variants,
        solo=arguments.solo,
        seed=arguments.seed,
        shard=parse_shard(arguments.shard),
    )
    if arguments.compact:
        table.compact(arguments.out)
    print(f"{written} runs written to {arguments.out}; hyperflax tune report {arguments.out} --out DIR sums them up")
    return 0


def parse_shard(text: str) -> tuple[int, int]:
    """Returns (i, n) of `i/n`. Raises ConfigError on anything else."""
    place, slash, of = text.partition("/")
    if not (slash and place.isdigit() and of.isdigit() and int(place) < int(of)):
        raise ConfigError(f"--shard: expected I/N with I < N, such as 0/4, got '{text}'")
    return int(place), int(of)
