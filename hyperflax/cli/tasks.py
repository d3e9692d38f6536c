"""`hyperflax tasks`: what is registered, with sizes."""

from __future__ import annotations

import argparse

from hyperflax.cli.models import add_module_argument

DESCRIPTION = """List the registered tasks and mixtures with their splits and, where that takes no reading, their sizes.

  hyperflax tasks
  HYPERFLAX_NATURAL_INSTRUCTIONS=natural-instructions hyperflax tasks --module hyperflax_tasks.natural_instructions
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_module_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    from hyperflax.data.commands import format_listing, list_tasks

    print(format_listing(list_tasks(arguments.module)))
    return 0
