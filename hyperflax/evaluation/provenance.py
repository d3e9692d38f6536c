"""Where a report comes from: the command, the configuration, the versions, the device, the time it took.

>>> run_info({"seed": 0}, seconds=1.5)["config"]
{'seed': 0}
"""

from __future__ import annotations

import json
import os
import pathlib
import platform
import re
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from hyperflax.errors import ConfigError
from hyperflax.versions import versions

CPUINFO = pathlib.Path("/proc/cpuinfo")


def command_line() -> str:
    """The command that started this process, as one would type it again; only the program's folder is left out."""
    arguments = sys.orig_argv[1:]
    if not arguments:
        return "python"
    if arguments[0] == "-c":
        return "python -c ..."
    program = pathlib.PurePath(arguments[0])
    if program.parent.name == "bin" and program.suffix == "":
        return shlex.join([program.name, *arguments[1:]])
    return shlex.join(["python", *arguments])


def device() -> str:
    """The accelerators that JAX sees, `8 x TPU v5 lite`, or the processor, `cpu (AMD EPYC 7R13 Processor, 2 cores)`.

    JAX is asked only where something has imported it already.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processor = f"cpu ({_processor()}, {cores} cores)"
    jax = sys.modules.get("jax")
    if jax is None:
        return processor
    devices = jax.devices()
    return processor if devices[0].platform == "cpu" else f"{len(devices)} x {devices[0].device_kind}"


def _processor() -> str:
    """The processor's model as Linux tells it, or else its architecture, which many machines have in common."""
    try:
        told = re.search(r"^model name[ \t]*:[ \t]*(\S.*)$", CPUINFO.read_text("utf-8", "replace"), re.MULTILINE)
    except OSError:
        told = None
    return told[1].strip() if told else platform.machine()


def run_info(config: Mapping[str, Any], *, seconds: float, command: str | None = None) -> dict[str, Any]:
    """The `run` part of a report.

    Args:
      config: everything that decides the figures (model, task mixture, shots, seeds, refining steps ...), as json.
      seconds: wall time of the evaluation, that of earlier starts included where it went on from them.
      command: overrides the command line of this process, for reports made inside a larger one.

    Raises:
      ConfigError: `config` holds something that json cannot.
    """
    return {
        "command": command_line() if command is None else command,
        "config": plain_json(config, "config"),
        "versions": versions(),
        "device": device(),
        "seconds": round(float(seconds), 2),
    }


def plain_json(value: Any, where: str) -> Any:
    """`value` as json would read it back: tuples become lists. A ConfigError names `where` if that cannot be."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: expected what json can hold, without NaN: {error}") from error
