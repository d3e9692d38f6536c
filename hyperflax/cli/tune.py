"""`hyperflax tune COMMAND ...`: the tuner's commands, one file each, `tune_COMMAND.py`."""

from __future__ import annotations

import argparse

DESCRIPTION = """Find the fine-tuning pipeline for a data set, learnt from earlier runs on other data sets.

  hyperflax tune datasets --model strings --mixture strings --split fine_tuning --tasks 30 --out data/strings
  hyperflax tune collect --model strings --data data/strings/* --structures 20 --out runs
  hyperflax tune fit --model strings --table runs --out tuner
  hyperflax tune run --model strings --tuner tuner --data mine.jsonl --budget 30m --out mine_tuned
"""

COMMANDS = {
    "datasets": "write the tasks of a mixture as data sets: training, held-out and test examples",
    "questions": "make a question-answer data set out of a text",
    "collect": "run many pipelines on many data sets and record them",
    "fit": "learn from recorded runs what a pipeline will score and cost",
    "recommend": "say which pipelines promise most for a data set, without running any",
    "run": "tune on a data set until the budget is spent, and keep the best adapter",
    "replay": "compare optimisers on recorded runs",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from hyperflax.cli.main import add_commands

    add_commands(parser, COMMANDS, of="tune")


def run(arguments: argparse.Namespace) -> int:
    raise AssertionError(f"the parser wants a subcommand, got {arguments}")  # pragma: no cover
