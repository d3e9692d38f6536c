"""`hyperflax tune recommend`: which pipelines promise most for a data set, without running any."""

from __future__ import annotations

import argparse

from hyperflax.cli.models import add_model_argument
from hyperflax.cli.tune import add_seed_argument, add_start_arguments, add_tuner_argument, bench_of, tuner_of

DESCRIPTION = """Say which fine-tuning pipelines promise most for a data set, without running any.

  hyperflax tune recommend --model strings --tuner tuner --data mine.jsonl

The scores are predictions of held-out exact match after a whole run, with their standard deviations; `hyperflax tune
run` tries them.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    add_start_arguments(parser)
    add_tuner_argument(parser)
    parser.add_argument("--data", required=True, metavar="PATH", help="jsonl file, or a folder of three")
    parser.add_argument("--count", type=int, default=5, metavar="N", help="how many pipelines to show (default 5)")
    parser.add_argument("--json", action="store_true", help="print json")
    add_seed_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    import json
    import time

    from hyperflax.errors import ConfigError
    from hyperflax.tune.report import name
    from hyperflax.tune.run import recommend
    from hyperflax.tuner import datasets
    from hyperflax.tuner.pipeline import Pipeline

    bench, data = bench_of(arguments), datasets.read(arguments.data, arguments.seed)
    if (recommender := tuner_of(arguments)) is None:
        raise ConfigError(f"--tuner: expected what `hyperflax tune fit` wrote, for none ships with '{arguments.model}'")
    begin = time.perf_counter()
    found = recommend(bench, data, recommender, count=arguments.count, seed=arguments.seed)
    seconds = time.perf_counter() - begin
    if arguments.json:
        print(json.dumps(found, indent=1))
        return 0
    print(f"{'score':>5} {'+-':>5} {'seconds':>8}  pipeline")
    for one in found:
        pipeline = Pipeline.from_json(one["pipeline"], "recommendation")
        print(f"{one['score']:5.2f} {one['std']:5.2f} {one['seconds']:8.1f}  {name(pipeline)}")
    print(f"predicted for {len(data.train)} training examples, in {seconds:.1f} s; nothing was run")
    return 0
