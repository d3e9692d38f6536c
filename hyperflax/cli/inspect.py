"""`hyperflax inspect`: what lies in a checkpoint, a model or an adapter."""

from __future__ import annotations

import argparse

DESCRIPTION = """Say what lies at PATH: its form, where it comes from, and every array with shape, dtype and size.

  hyperflax inspect names_adapter
  hyperflax inspect runs/t5/checkpoint_1000000

Takes transformers and PEFT directories, T5X checkpoints in both forms, also in a bucket, and hyperflax's own
directories. No array is read.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="a checkpoint, run, model or adapter; or a shipped model's name")


def run(arguments: argparse.Namespace) -> int:
    from hyperflax.checkpoints.inspection import inspect_path
    from hyperflax.hypermodel import shipped

    found = inspect_path(shipped(arguments.path))
    print(f"{arguments.path}: {found.form}")
    for key, value in found.origin.items():
        print(f"  {key}: {'unknown' if value in (None, '') else value}")
    width = max((len(leaf.path) for leaf in found.leaves), default=0)
    for leaf in found.leaves:
        print(f"  {leaf.path:<{width}}  {leaf.dtype:<8}  {leaf.nbytes:>14,}  {list(leaf.shape)}")
    print(f"  {len(found.leaves):,} arrays, {found.nbytes:,} bytes")
    return 0
