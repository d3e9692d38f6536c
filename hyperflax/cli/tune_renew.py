"""`hyperflax tune renew`: carries a table over to a hypermodel whose hypernetwork was trained further."""

from __future__ import annotations

import argparse

from hyperflax.cli.models import add_model_argument
from hyperflax.cli.tune import WHOLE, add_seed_argument, parse_shard

DESCRIPTION = """Make the table of a newer hypermodel out of an earlier one's, both with the same base.

  hyperflax tune renew --table runs --model newer --data data/strings/* --out runs_newer

Runs from the generated adapter are run anew; all others are kept, for they do not depend on the hypernetwork.
What rows say of their data sets (meta-features, the generated adapter's score) is the newer model's. Killed and called
again it goes on; --shard 0/4 ... 3/4 share it among four processes. `--compact` makes one file of the folder's.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--table", required=True, metavar="PATH", help="the earlier hypermodel's runs: folder or file")
    add_model_argument(parser)
    parser.add_argument("--data", required=True, nargs="+", metavar="DIR", help="data sets: folders or jsonl files")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the new table")
    parser.add_argument("--shard", default=WHOLE, metavar="I/N", help="do every N-th program from I on (default 0/1)")
    add_seed_argument(parser, "of what is held out of a jsonl file, as the `tune run` of the table had it (default 0)")
    parser.add_argument("--compact", action="store_true", help="make one file of the folder's at the end")


def run(arguments: argparse.Namespace) -> int:
    from hyperflax.hypermodel import load
    from hyperflax.tune.bench import Bench
    from hyperflax.tune.renew import renew
    from hyperflax.tuner import datasets, table

    shard = parse_shard(arguments.shard)
    data = [datasets.read(path, arguments.seed) for path in arguments.data]
    bench = Bench(load(arguments.model))
    written = renew(bench, table.read(arguments.table), data, out=arguments.out, shard=shard)
    if arguments.compact:
        table.compact(arguments.out)
    print(f"{written} runs written to {arguments.out}; hyperflax tune report {arguments.out} --out DIR sums them up")
    return 0
