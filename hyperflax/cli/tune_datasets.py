"""`hyperflax tune datasets`: the tasks of a mixture as data sets."""

from __future__ import annotations

import argparse

from hyperflax.cli.models import add_model_argument, add_module_argument
from hyperflax.cli.tune import add_seed_argument

DESCRIPTION = """Write tasks of a mixture as folders of train.jsonl, validation.jsonl and test.jsonl.

  hyperflax tune datasets --model strings --mixture strings --split fine_tuning --tasks 30 --out data/strings

Tasks with too few examples that the model can read are passed over. What is there already is kept.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("--mixture", required=True, metavar="NAME", help="what `hyperflax tasks` lists, or a cache")
    parser.add_argument("--split", required=True, metavar="SPLIT", help="of the mixture")
    parser.add_argument("--out", required=True, metavar="DIR", help="parent of the folders; its name is the corpus")
    parser.add_argument("--tasks", type=int, metavar="N", help="how many at most; default all")
    for name, size in (("train", 64), ("validation", 32), ("test", 32)):
        parser.add_argument(f"--{name}", type=int, default=size, metavar="N", help=f"examples (default {size})")
    parser.add_argument(
        "--longest",
        nargs=2,
        type=int,
        metavar=("INPUTS", "TARGETS"),
        help="tokens, end of sequence included; longer examples are left out (default: what the model reads)",
    )
    add_seed_argument(parser, of="of tasks and examples")
    add_module_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    import pathlib

    from hyperflax.data import registry
    from hyperflax.hypermodel import load
    from hyperflax.tune.datasets import write_datasets

    model = load(arguments.model)
    registry.register_modules(arguments.module)
    source = registry.load_source(arguments.mixture, arguments.split, vocabulary=model.config.vocabulary)
    limits = (model.config.episodes.inputs_length, model.config.episodes.targets_length)
    inputs, targets = map(min, arguments.longest or limits, limits)
    out = pathlib.Path(arguments.out)
    folders = write_datasets(
        source,
        out,
        corpus=out.resolve().name,
        train=arguments.train,
        validation=arguments.validation,
        test=arguments.test,
        tasks=arguments.tasks,
        longest=(inputs - 1, targets - 1),
        seed=arguments.seed,
    )
    print(f"{len(folders)} data sets in {out}")
    return 0
