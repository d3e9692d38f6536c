"""`hyperflax tune fit`: learns the surrogates from a recorded table."""

from __future__ import annotations

import argparse

from hyperflax.cli.tune import add_seed_argument

DESCRIPTION = """Learn from a table of fine-tuning runs what a pipeline will score and cost on a new data set.

  hyperflax tune fit --table runs --out tuner

The result is a folder that `hyperflax tune recommend` and `run` take. Costs are learnt from the runs that ran alone, if
there are any. --leave_out keeps data sets of a corpus out, for whoever wants to measure on them.
"""

POOL = 48


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--table", required=True, metavar="PATH", help="Parquet file, or folder of them")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the tuner")
    parser.add_argument("--leave_out", action="append", default=[], metavar="CORPUS", help="repeatable")
    add_seed_argument(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier tuner")


def run(arguments: argparse.Namespace) -> int:
    import numpy as np

    from hyperflax.errors import DataError
    from hyperflax.files import require_directory_place
    from hyperflax.tuner import table
    from hyperflax.tuner.recommender import COST, FILE, PERFORMANCE, Recommender, best_pipelines
    from hyperflax.tuner.recorded import from_runs

    require_directory_place(arguments.out, overwrite=arguments.overwrite, owned=(FILE, PERFORMANCE, COST))
    whole = [run for run in table.read(arguments.table) if run.curve]
    corpora = {run.corpus for run in whole}
    if unknown := sorted(set(arguments.leave_out) - corpora):
        raise DataError(f"--leave_out: expected some of {', '.join(sorted(corpora))}, got '{unknown[0]}'")
    runs = [run for run in whole if run.corpus not in arguments.leave_out]
    if not runs:
        raise DataError(f"{arguments.table}: expected runs of other corpora than {arguments.leave_out}, found none")
    if len(models := sorted({run.model for run in runs})) > 1:
        raise DataError(f"{arguments.table}: expected runs of one hypermodel, got some of {', '.join(models)}")
    recorded = from_runs(runs)
    solo = np.array([not run.amortised for run in runs])
    pool = best_pipelines([run.pipeline for run in runs], recorded, POOL)
    solo = solo if solo.any() else None
    recommender = Recommender.fit(recorded, pool, solo=solo, model=models[0], seed=arguments.seed)
    recommender.save(arguments.out, overwrite=arguments.overwrite)
    print(f"learnt from {len(runs)} runs on {len(recorded.datasets)} data sets: {arguments.out}")
    return 0
