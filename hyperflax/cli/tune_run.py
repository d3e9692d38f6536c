"""`hyperflax tune run`: tunes on a data set until the budget is spent."""

from __future__ import annotations

import argparse
import re

from hyperflax.cli.models import add_model_argument
from hyperflax.cli.tune import add_seed_argument, add_start_arguments, add_tuner_argument, bench_of, tuner_of
from hyperflax.errors import ConfigError

DESCRIPTION = """Find a fine-tuning pipeline for a data set and keep the best adapter.

  hyperflax tune run --model strings --tuner tuner --data mine.jsonl --budget 30m --out mine_tuned
  hyperflax predict --model strings --adapter mine_tuned --inputs new.jsonl

Pipelines run part by part; the next part goes where the expected improvement per second is largest. Without a tuner
pipelines are tried at random; --mode condition and refit need one. A jsonl file is split into training, held-out and
test examples; a folder of train.jsonl, validation.jsonl and test.jsonl has its own. A killed run goes on when it is
called again.
"""

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    add_tuner_argument(parser)
    parser.add_argument("--data", required=True, metavar="PATH", help="jsonl file, or a folder of three")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the run, and the adapter directory")
    parser.add_argument("--budget", required=True, metavar="TIME", help="of everything: 90s, 30m, 2h")
    parser.add_argument(
        "--mode",
        default="transfer",
        choices=("transfer", "condition", "refit", "random"),
        help="whether the tuner learns from this run (default: no), or pipelines are tried at random",
    )
    add_start_arguments(parser)
    add_seed_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    from hyperflax.tune.run import run as tune
    from hyperflax.tuner import datasets

    budget, at_random = parse_time(arguments.budget), arguments.mode == "random"
    if at_random and arguments.tuner is not None:
        raise ConfigError(f"--tuner: expected none beside --mode random, which asks no tuner, got '{arguments.tuner}'")
    bench = bench_of(arguments)
    recommender = None if at_random else tuner_of(arguments)
    if recommender is None and arguments.mode in ("condition", "refit"):
        raise ConfigError(f"--mode {arguments.mode}: expected --tuner, for none ships with '{arguments.model}'")
    report = tune(
        bench,
        datasets.read(arguments.data, arguments.seed),
        recommender,
        out=arguments.out,
        budget=budget,
        mode="transfer" if at_random else arguments.mode,
        seed=arguments.seed,
        say=lambda text: print(text, flush=True),
    )
    told = ", ".join(f"{name} {score:.3f}" for name, score in report["test"].items())
    print(f"\nexact match on the test split: {told}")
    print(f"written: {arguments.out}/adapter.json, adapter.safetensors, report.md, report.png")
    return 0


def parse_time(text: str) -> float:
    """Returns the seconds of `90s`, `30m`, `1.5h`. Raises ConfigError on anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not found or float(found[1]) == 0:
        raise ConfigError(f"--budget: expected a number with s, m or h, such as 30m, got '{text}'")
    return float(found[1]) * UNITS[found[2]]
