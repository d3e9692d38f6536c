"""Joining the processes of a job that runs on several hosts, by T5X's flags.

On a TPU slice and under Slurm JAX finds the others by itself: `--multiprocess`. Plain hosts are told where they are:

    --multiprocess --coordinator_address=host0:12321 --process_count=2 --process_index=1
"""

from __future__ import annotations

import argparse
import re

from hyperflax.errors import ConfigError

WHERE = ("coordinator_address", "process_count", "process_index")


def add_multiprocess_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--multiprocess` and where to find the others."""
    parser.add_argument(
        "--multiprocess",
        "--multiprocess_gpu",
        action="store_true",
        help="join the other hosts first (jax.distributed.initialize); a TPU slice or Slurm tells where they are, "
        "other hosts need the next three",
    )
    parser.add_argument("--coordinator_address", metavar="HOST:PORT", help="of the first process, a free port there")
    parser.add_argument("--process_count", type=int, metavar="N", help="processes of the job")
    parser.add_argument("--process_index", type=int, metavar="I", help="number of this one, 0 to N - 1")


def join(arguments: argparse.Namespace) -> None:
    """Joins the other processes if `--multiprocess` says so; returns when all are there.

    Raises:
      ConfigError: some of the three flags without the others or without --multiprocess, or a value that cannot be.
    """
    given = [name for name in WHERE if getattr(arguments, name) is not None]
    if given and (not arguments.multiprocess or len(given) < len(WHERE)):
        missing = [name for name in ("multiprocess", *WHERE) if name not in given and not getattr(arguments, name)]
        raise ConfigError(f"--{given[0]}: expected beside it {', '.join(f'--{name}' for name in missing)}")
    if not arguments.multiprocess:
        return
    if given:
        if not re.fullmatch(r".+:\d+", arguments.coordinator_address):
            raise ConfigError(f"--coordinator_address: expected HOST:PORT, got {arguments.coordinator_address!r}")
        if arguments.process_count < 1:
            raise ConfigError(f"--process_count: expected a positive number, got {arguments.process_count}")
        if not 0 <= arguments.process_index < arguments.process_count:
            raise ConfigError(
                f"--process_index: expected 0 to {arguments.process_count - 1} (--process_count "
                f"{arguments.process_count}), got {arguments.process_index}"
            )
    import jax

    # JAX's own service catches SIGTERM and only notes it; here it ends a process, and what is to be saved catches it
    # itself (`training/stopping.py`).
    jax.config.update("jax_enable_preemption_service", False)
    # No device is left out: under Slurm JAX would take one GPU for each process, where this is the node's only one.
    jax.distributed.initialize(
        arguments.coordinator_address, arguments.process_count, arguments.process_index, local_device_ids=[]
    )
