"""`python -m benchmarks.peers`: times hyperflax beside its peers, every case that has no current result.

    make peers                                            all of it, in the environment that has torch (.venv-interop)
    HYPERFLAX_T5X=/path/to/t5x make peers                 with T5X beside it
    python -m benchmarks.peers --only train_lora          one case; repeatable
    python -m benchmarks.peers --quick                    every case so small that it takes seconds; nothing is kept
    python -m benchmarks.peers --table                    nothing; writes docs/peers.md anew from the results

Case by case: a run that is stopped goes on where it was. Delete a result to measure it again. Results go to
benchmarks/peers/results and are committed.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import tempfile
from collections.abc import Sequence

from tqdm import tqdm

from benchmarks.peers.case import SIDES, Side, quick
from benchmarks.peers.cases import CASES
from benchmarks.peers.docs import write_docs
from benchmarks.peers.measure import Workers, available, cores, measure, steps
from benchmarks.peers.results import FOLDER, current, write_result
from hyperflax.cli.exit_codes import exit_code
from hyperflax.errors import ConfigError, HyperflaxError


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=CASES, metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--sides", nargs="+", choices=SIDES, metavar="SIDE", help="leave out the others")
    parser.add_argument("--threads", type=int, help="processors that every side may use (default: all)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, nothing is kept")
    parser.add_argument("--table", action="store_true", help="write docs/peers.md anew and measure nothing")
    arguments = parser.parse_args(argv)
    return exit_code("benchmarks.peers", lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Measures, keeps, and shows. Raises HyperflaxError for cases that failed, when all others are done."""
    failed: list[str] = []
    if not arguments.table:
        sides = taking_part(arguments.sides)
        limit_threads(arguments.threads)
        names = arguments.only or CASES
        there = [name for name in names if not arguments.quick and current(FOLDER, name, sides)]
        for name in there:
            print(f"{name}: not measured again, {FOLDER / name}.json is current", file=sys.stderr)
        failed = run_cases([name for name in names if name not in there], sides, arguments.quick)
    if not arguments.quick:
        write_docs()
    if failed:
        raise HyperflaxError("\n".join(failed))


def taking_part(wanted: Sequence[Side] | None) -> tuple[Side, ...]:
    """Returns the sides to measure, and says which cannot be. Raises ConfigError where one was asked for by name."""
    found = available()
    lacking = {
        "transformers": "torch, transformers and peft are not installed here (make peers brings them)",
        "t5x_gather": "HYPERFLAX_T5X names no checkout",
        "t5x": "HYPERFLAX_T5X names no checkout",
    }
    for side in wanted or SIDES:
        if side not in found:
            if wanted:
                raise ConfigError(f"--sides {side}: {lacking[side]}")
            print(f"without {side}: {lacking[side]}", file=sys.stderr)
    return tuple(side for side in found if not wanted or side in wanted)


def limit_threads(threads: int | None) -> None:
    """Leaves this process, and so all sides, so many processors. Raises ConfigError where there are fewer."""
    if threads is None:
        return
    if not 1 <= threads <= cores():
        raise ConfigError(f"--threads: expected 1 to {cores()}, got {threads}")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def run_cases(names: Sequence[str], sides: Sequence[Side], small: bool) -> list[str]:
    """Measures the cases, and keeps results that are not small ones; returns what went wrong, a line for each case."""
    cases = {name: quick(CASES[name]) if small else CASES[name] for name in names}
    failed: list[str] = []
    with (
        tqdm(total=sum(steps(case, sides) for case in cases.values()), unit="call") as bar,
        tempfile.TemporaryDirectory() as folder,
        Workers(pathlib.Path(folder)) as workers,
    ):
        for name, case in cases.items():

            def tick(done: str, name: str = name) -> None:
                bar.set_postfix_str(f"{name}: {done}")
                bar.update()

            try:
                measured = measure(case, sides, workers, tick)
            except HyperflaxError as error:
                failed.append(f"{name}: {error}")  # the others are worth having
                continue
            if not small:
                write_result(FOLDER, name, measured)
    return failed


if __name__ == "__main__":
    sys.exit(main())
