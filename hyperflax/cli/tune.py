"""`hyperflax tune COMMAND ...`: the tuner's commands, one file each, `tune_COMMAND.py`."""

from __future__ import annotations

import argparse

DESCRIPTION = """Find the fine-tuning pipeline for a data set, learnt from earlier runs on other data sets.

  hyperflax tune datasets --model strings --mixture strings --split fine_tuning --tasks 30 --out data/strings
  hyperflax tune collect --model strings --data data/strings/* --structures 20 --out runs
"""

COMMANDS = {
    "datasets": "write the tasks of a mixture as data sets: training, held-out and test examples",
    "collect": "run many pipelines on many data sets and record them",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from hyperflax.cli.main import add_commands

    add_commands(parser, COMMANDS, of="tune")


def run(arguments: argparse.Namespace) -> int:
    raise AssertionError(f"the parser wants a subcommand, got {arguments}")  # pragma: no cover
