"""`hyperflax tune bank`: adapters of source tasks to start from."""

from __future__ import annotations

import argparse

from hyperflax.cli.models import add_model_argument
from hyperflax.cli.tune import add_seed_argument, bench_of

DESCRIPTION = """Fine-tune an adapter on each of many data sets, for pipelines of other data sets to start from.

  hyperflax tune bank --model strings --data data/sources/* --out bank
  hyperflax tune run --model strings --bank bank --data mine.jsonl --budget 30m --out mine_tuned

Every source is fine-tuned by the default pipeline (LoRA on queries and values). Which source a new data set starts
from is decided by its examples, see hyperflax/tuner/sources.py. A killed call goes on when it is called again.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("--data", required=True, nargs="+", metavar="DIR", help="data sets: folders or jsonl files")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the bank")
    add_seed_argument(parser)
    parser.set_defaults(shared=None, bank=None)


def run(arguments: argparse.Namespace) -> int:
    from hyperflax.tune.bank import build
    from hyperflax.tuner import datasets

    build(bench_of(arguments), [datasets.read(path) for path in arguments.data], arguments.out, seed=arguments.seed)
    print(f"{len(arguments.data)} sources in {arguments.out}")
    return 0
