"""What `python -m hyperflax.train` and the other jobs run: gin flags, then one function."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from hyperflax.cli import gin_jobs
from hyperflax.cli.bindings import split_bindings
from hyperflax.cli.compiled_programs import keep_compiled_programs
from hyperflax.cli.exit_codes import exit_code
from hyperflax.cli.host_memory import keep_freed_memory


def main(function: str, argv: Sequence[str]) -> int:
    """Runs the gin-configured `function`, a dotted name; returns an exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m {function.rpartition('.')[0]}", allow_abbrev=False)
    gin_jobs.add_job_arguments(parser)

    def run() -> None:
        rest, bindings = split_bindings(argv)
        arguments = parser.parse_args(rest, argparse.Namespace(gin_bindings=bindings))
        keep_freed_memory()
        if not arguments.multiprocess:  # of several processes only the first keeps what it compiles
            keep_compiled_programs()
        gin_jobs.run_job(function, arguments)

    return exit_code(parser.prog, run)
