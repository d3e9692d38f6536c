"""`hyperflax tune shared`: adapters trained on many tasks at once, to start from."""

from __future__ import annotations

import argparse

from hyperflax.cli.models import add_model_argument
from hyperflax.cli.tune import add_seed_argument, bench_of

DESCRIPTION = """Train adapters uniformly on many data sets, one for each kind, for pipelines to start from.

  hyperflax tune shared --model strings --data data/sources/* --out shared
  hyperflax tune run --model strings --shared shared --data mine.jsonl --budget 30m --out mine_tuned

Every source gives equally many examples. A data set that was a source cannot start from them. A killed call goes on
with the kinds that are missing when it is called again.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("--data", required=True, nargs="+", metavar="DIR", help="data sets: folders or jsonl files")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the adapters")
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help="such as lora or prefix+parallel_mlp; default: five")
    parser.add_argument("--epochs", type=int, default=16, metavar="N", help="4, 8, 16 (default) or 32")
    add_seed_argument(parser)
    parser.set_defaults(shared=None, bank=None)


def run(arguments: argparse.Namespace) -> int:
    from hyperflax.tune.shared import BUILT, build
    from hyperflax.tuner import datasets

    kinds = arguments.kinds or BUILT
    sources = [datasets.read(path) for path in arguments.data]
    build(bench_of(arguments), sources, arguments.out, kinds=kinds, epochs=arguments.epochs, seed=arguments.seed)
    print(f"{', '.join(kinds)}, trained on {len(sources)} data sets, in {arguments.out}")
    return 0
