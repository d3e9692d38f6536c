"""Arguments that several commands share."""

from __future__ import annotations

import argparse


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--model`."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="NAME_OR_DIR",
        help="a shipped hypermodel by name (strings, strings_prefix), or a model directory, such as MODEL_DIR/model of "
        "a training run",
    )


def add_module_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--module`."""
    parser.add_argument(
        "--module",
        action="append",
        default=[],
        metavar="MODULE",
        help="a Python module whose register() makes tasks known (or that registers seqio tasks on import); repeatable",
    )
