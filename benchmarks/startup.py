"""Seconds until hyperflax answers: `import hyperflax` and `hyperflax --help`, each in a fresh process.

    python benchmarks/startup.py [--repeats N]

Prints the fastest and the median of N runs, after one that fills the file cache. The bounds the project holds itself
to, on two CPU cores: 1.5 s for the import, 2 s for the help.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "import hyperflax": ["-c", "import hyperflax"],
    "hyperflax --help": ["-m", "hyperflax", "--help"],
    "python, doing nothing": ["-c", ""],
}


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="measured runs per command (default 7)")
    arguments = parser.parse_args()
    for name, command in COMMANDS.items():
        seconds(command)
        runs = [seconds(command) for _ in range(arguments.repeats)]
        print(f"{name:24} fastest {min(runs):.2f} s, median {statistics.median(runs):.2f} s")


if __name__ == "__main__":
    main()
