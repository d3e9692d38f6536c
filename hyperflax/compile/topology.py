"""Devices of TPU slices that are not there: the real TPU compiler works for them on any machine.

It is part of the package `libtpu`, which Google publishes under its own terms; hyperflax depends on it in the extra
`tpu` and ships none of it.

>>> devices = topology_devices("v5e:16x16")    # 256 of them
"""

from __future__ import annotations

import importlib.util
import math
import os
import re

import jax

from hyperflax.compile.chips import Chip, chip_of
from hyperflax.errors import ConfigError, MissingExtraError


def parse_topology(name: str) -> tuple[Chip, tuple[int, ...]]:
    """Returns the chip and the shape of a slice.

    >>> parse_topology("v5e:16x16")[1]
    (16, 16)

    Raises:
      ConfigError: it is not of the form `v5e:16x16`, or no known chip.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if not match:
        raise ConfigError(f"topology: expected a chip and a shape such as 'v5e:16x16' or 'v5p:4x4x8', got '{name}'")
    return chip_of(match[1]), tuple(int(size) for size in match[2].split("x"))


def topology_devices(name: str) -> list[jax.Device]:
    """Returns the devices of a slice, to compile for. Nothing runs on them.

    Raises:
      ConfigError: no such slice.
      MissingExtraError: the package `libtpu` is absent.
    """
    chip, shape = parse_topology(name)
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise MissingExtraError("the TPU compiler (package libtpu)", "tpu")
    # Without a TPU there is no metadata server to ask.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # The library locks out a second process, for chips are one process's; no chip is touched here.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    try:
        devices = topologies.get_topology_desc(
            platform="tpu", topology_name=name, chip_config_name=chip.configuration
        ).devices
    except Exception as error:  # whatever the plugin raises
        raise ConfigError(f"topology '{name}': the TPU compiler knows no such slice ({error})") from error
    if len(devices) != math.prod(shape):
        raise ConfigError(f"topology '{name}': expected a device for each {chip.name} chip, got {len(devices)} devices")
    return list(devices)
