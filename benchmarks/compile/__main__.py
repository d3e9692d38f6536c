"""`python -m benchmarks.compile`: compiles the large runs that have no current result; needs `hyperflax[tpu]`.

    python -m benchmarks.compile                          all that are missing or stale
    python -m benchmarks.compile --only xl_hart_lora_v5e  one of them
    python -m benchmarks.compile --table                  nothing; prints the table of docs/compile.md

Minutes each on two cores. Results go to benchmarks/compile/results and are committed.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile
from collections.abc import Sequence

from benchmarks.compile.configs import CONFIGS
from benchmarks.compile.results import FOLDER, current, rendered, write_result
from hyperflax.cli.exit_codes import exit_code
from hyperflax.cli.main import load_command
from hyperflax.json_files import read_json


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile", description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=CONFIGS, metavar="NAME", help="repeatable; see configs.py")
    parser.add_argument("--table", action="store_true", help="print the table of the results that are there")
    arguments = parser.parse_args(argv)
    if not arguments.table:
        for name in arguments.only or CONFIGS:
            if code := exit_code("benchmarks.compile", lambda name=name: compile_one(name)):
                return code
    print(rendered(FOLDER), end="")
    return 0


def compile_one(name: str) -> int:
    """Compiles a configuration unless its result is current; what does not fit is a result, too."""
    config = CONFIGS[name]
    if current(FOLDER, name):
        print(f"{name}: current", file=sys.stderr)
        return 0
    print(name, file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "reports.json"
        arguments = config.arguments()
        arguments.out = out
        load_command("compile").run(arguments)
        write_result(FOLDER, name, read_json(out)["reports"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
