"""`hyperflax tune report`: the report of a tuning run, or the summary of a table of runs."""

from __future__ import annotations

import argparse

DESCRIPTION = """Write the report of a tuning run, or of a table of runs, as report.json, report.md and report.png.

  hyperflax tune report mine_tuned --out reports/mine      # a folder of `hyperflax tune run`
  hyperflax tune report runs --out reports/table           # Parquet files of `hyperflax tune collect`

Of a run: the best score over time, what is neither beaten nor cheaper, and why this pipeline; `hyperflax tune run`
writes the same at its end, and a run that was killed or goes on has one, too. Of a table: rows, data sets by corpus,
statuses, and the share of runs that beat the generated adapter, with its interval over data sets.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="folder of a run; or a Parquet file, or folder of them")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the report")


def run(arguments: argparse.Namespace) -> int:
    import pathlib

    from hyperflax.tune import record, report
    from hyperflax.tuner import summary, table

    if (pathlib.Path(arguments.path) / record.FILE).is_file():
        told = report.of(record.read(arguments.path))
        report.write(arguments.out, told)
        best = told["over_time"][-1]
        print(f"{best['pipeline']}: {best['score']:.3f} on held-out examples after {best['seconds']:.0f} seconds")
    else:
        told = summary.summary(table.read(arguments.path))
        summary.write(arguments.out, told)
        print(f"{told['runs']} runs on {told['datasets']} data sets, {told['compared']} compared with as generated")
    print(f"written: {arguments.out}/report.json, report.md, report.png")
    return 0
