"""`hyperflax tune COMMAND ...`: the tuner's commands, one file each, `tune_COMMAND.py`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hyperflax.errors import ConfigError

if TYPE_CHECKING:
    from hyperflax.tune.bench import Bench
    from hyperflax.tuner.recommender import Recommender

WHOLE = "0/1"  # the one shard of what is not shared out

DESCRIPTION = """Find the fine-tuning pipeline for a data set, learnt from earlier runs on other data sets.

  hyperflax tune datasets --model strings --mixture strings --split fine_tuning --tasks 30 --out data/strings
  hyperflax tune collect --model strings --data data/strings/* --structures 20 --out runs
  hyperflax tune fit --table runs --out tuner
  hyperflax tune run --model strings --tuner tuner --data mine.jsonl --budget 30m --out mine_tuned
"""

COMMANDS = {
    "datasets": "write the tasks of a mixture as data sets: training, held-out and test examples",
    "questions": "make a question-answer data set out of a text",
    "collect": "run many pipelines on many data sets and record them",
    "renew": "carry a table over to a hypermodel whose hypernetwork was trained further",
    "bank": "fine-tune adapters on source tasks, for pipelines to start from",
    "shared": "train adapters uniformly on many data sets, for pipelines to start from",
    "fit": "learn from recorded runs what a pipeline will score and cost",
    "recommend": "say which pipelines promise most for a data set, without running any",
    "run": "tune on a data set until the budget is spent, and keep the best adapter",
    "report": "write the report of a tuning run, or of a table of runs",
    "replay": "compare optimisers on recorded runs",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from hyperflax.cli.main import add_commands

    add_commands(parser, COMMANDS, of="tune")


def run(arguments: argparse.Namespace) -> int:
    raise AssertionError(f"the parser wants a subcommand, got {arguments}")  # pragma: no cover


def parse_shard(text: str) -> tuple[int, int]:
    """Returns (i, n) of `i/n`. Raises ConfigError on anything else."""
    place, slash, of = text.partition("/")
    if not (text.isascii() and slash and place.isdigit() and of.isdigit() and int(place) < int(of)):
        raise ConfigError(f"--shard: expected I/N with I < N, such as 0/4, got '{text}'")
    return int(place), int(of)


def add_seed_argument(parser: argparse.ArgumentParser, of: str | None = None) -> None:
    """Adds `--seed`; `of` is what it is of. Runs keep it in 32 bits with a sign, and numpy takes none below 0."""
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help=of)


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"expected 0 to {2**31 - 1}, got '{text}'")
    return int(text)


def add_tuner_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--tuner`, for `tuner_of`."""
    parser.add_argument(
        "--tuner",
        metavar="DIR",
        help="what `hyperflax tune fit` wrote; default: what ships with the model, if anything",
    )


def tuner_of(arguments: argparse.Namespace) -> Recommender | None:
    """Returns the tuner that `--tuner` names, or else the one in the model's own folder; None if there is none."""
    from hyperflax.errors import CheckpointError
    from hyperflax.hypermodel import find
    from hyperflax.tuner.recommender import FILE, Recommender

    if arguments.tuner is not None:
        return Recommender.load(arguments.tuner)
    try:
        folder = find(arguments.model) / "tuner"
    except CheckpointError:  # in a bucket, where no tuner is looked for
        return None
    return Recommender.load(folder) if (folder / FILE).is_file() else None


def add_start_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the starts that pipelines may have beside `random` and `generated`."""
    parser.add_argument("--shared", metavar="DIR", help="of `hyperflax tune shared`, or one adapter: start `shared`")
    parser.add_argument("--bank", metavar="DIR", help="adapters of `hyperflax tune bank`, the start `source`")


def bench_of(arguments: argparse.Namespace) -> Bench:
    """Returns the bench that `--model`, `--shared` and `--bank` name."""
    from hyperflax.hypermodel import load
    from hyperflax.tune.bank import Bank
    from hyperflax.tune.bench import Adapters, Bench
    from hyperflax.tune.shared import Shared

    model = load(arguments.model)
    starts: dict[str, Adapters] = {}
    if arguments.shared:
        starts["shared"] = Shared.load(arguments.shared, model)
    if arguments.bank:
        starts["source"] = Bank.load(arguments.bank, model)
    return Bench(model, starts)
