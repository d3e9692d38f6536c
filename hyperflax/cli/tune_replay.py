"""`hyperflax tune replay`: optimisers on recorded runs."""

from __future__ import annotations

import argparse
import pathlib
from typing import TYPE_CHECKING

from hyperflax.cli.tune import WHOLE, add_seed_argument, parse_shard
from hyperflax.errors import DataError

if TYPE_CHECKING:
    import numpy as np

    from hyperflax.tuner.recorded import Recorded

DESCRIPTION = """Compare optimisers on recorded runs: what each would have found, at what cost.

  hyperflax tune replay --table runs --out reports/tuner
  hyperflax tune replay --table mtlbm/micro --out reports/quick_tune

A table is the project's own (Parquet), a folder of config.csv,
curve.csv, cost.csv and meta.csv as Quick-Tune keeps them, the folder of the scaling law's csv files, or PEFT's method
comparison (jsonl). Surrogates know nothing of what is played: corpora are left out one at a time, pipelines where there
is one corpus only. It writes report.json, report.md and report.png. A killed replay goes on when it is called again;
--shard 0/2 and 1/2 share one among two processes.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--table", required=True, metavar="PATH")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the report")
    parser.add_argument(
        "--group", default="corpus", choices=("corpus", "category"), help="what is left out at a time (default corpus)"
    )
    parser.add_argument("--budget", type=float, default=20.0, metavar="N", help="in whole runs of average cost (20)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="surrogates and plays of each (default 5)")
    parser.add_argument("--optimisers", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--shard", default=WHOLE, metavar="I/N", help="play every N-th part from I on (default 0/1)")
    add_seed_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    from hyperflax.tuner.comparison import compare, default_optimisers, draw, table
    from hyperflax.tuner.reporting import write_report

    recorded, solo, default = read_table(arguments)
    optimisers = default_optimisers(default)
    if arguments.optimisers:
        if unknown := sorted(set(arguments.optimisers) - optimisers.keys()):
            raise DataError(f"--optimisers: expected some of {', '.join(optimisers)}, got '{unknown[0]}'")
        optimisers = {name: optimisers[name] for name in arguments.optimisers}
    out = pathlib.Path(arguments.out)
    settings = {"budget": arguments.budget, "seeds": arguments.seeds, "solo": solo, "seed": arguments.seed}
    result = compare(recorded, optimisers, out, shard=parse_shard(arguments.shard), **settings)
    if result is None:
        print(f"{out}: parts of other shards are still to be played; who comes last writes the report")
        return 0
    groups = result["groups"] if len(result["groups"]) > 1 else ()
    parts = "".join(f"Of {group}:\n\n{table(result, group)}\n\n" for group in groups)
    told = (
        f"# Optimisers on {len(recorded.dataset)} recorded runs of {len(recorded.datasets)} data sets\n\n"
        f"Normalised regret, mean over data sets with 95% intervals, {arguments.seeds} seeds, {result['left_out']} "
        f"left out. The whole budget is {arguments.budget:g} runs of average cost ({recorded.unit}).\n\n"
        f"{table(result)}\n\n"
        f"{parts}"
        "![Regret over the budget](report.png)\n"
    )
    write_report(out, result, told, draw)
    print(table(result))
    print(f"\nwritten: {out}/report.json, report.md, report.png")
    return 0


def read_table(arguments: argparse.Namespace) -> tuple[Recorded, np.ndarray | None, np.ndarray | None]:
    """Returns the table, which of its runs ran alone, and the encoded default pipeline; None where there is none.

    Raises:
      DataError: a path that is no known table.
    """
    import numpy as np

    from hyperflax.tuner import foreign, table
    from hyperflax.tuner.encoding import encode
    from hyperflax.tuner.pipeline import default_pipeline
    from hyperflax.tuner.recorded import from_runs

    path = pathlib.Path(arguments.table)
    if path.suffix == ".jsonl":
        return foreign.peft_comparison(path), None, None
    if (path / "curve.csv").is_file():
        return foreign.quick_tune(path), None, None
    if (path / "wmt19.csv").is_file():
        return foreign.scaling_law(path), None, None
    if path.suffix != ".parquet" and not any(path.glob("*.parquet")):
        raise DataError(f"--table: expected Parquet files, Quick-Tune's csv files, or a jsonl file, got '{path}'")
    runs = [run for run in table.read(path) if run.curve]
    solo = np.array([not run.amortised for run in runs])
    return from_runs(runs, group=arguments.group), solo, encode([default_pipeline()])[0]
