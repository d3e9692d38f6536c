"""`hyperflax cache`: a task or mixture as tokenised ArrayRecord shards."""

from __future__ import annotations

import argparse

from hyperflax.cli.models import add_module_argument

DESCRIPTION = """Write a task or mixture as tokenised ArrayRecord shards with a manifest.

  hyperflax cache --module my_pkg.my_tasks --mixture my_mixture --out caches/my_mixture

Training from a cache needs neither TensorFlow nor seqio and sees, for equal seed and step, the same arrays.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mixture", required=True, metavar="NAME", help="what `hyperflax tasks` lists")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; must not exist yet, or be empty")
    parser.add_argument("--split", default="train", metavar="SPLIT", help="default: train")
    parser.add_argument("--seed", type=int, default=0, help="of a seqio Task's preprocessors that draw (default 0)")
    add_module_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    from hyperflax.data.commands import cache_mixture

    manifest = cache_mixture(
        arguments.mixture, arguments.out, split=arguments.split, modules=arguments.module, seed=arguments.seed
    )
    size = sum(entry["bytes"] for entry in manifest["files"]) / 2**20
    print(
        f"{arguments.out}: {arguments.mixture}/{arguments.split}, {manifest['num_tasks']:,} tasks, "
        f"{manifest['num_examples']:,} examples, {size:.1f} MiB"
    )
    return 0
