"""TPU chips as their vendor describes them: what a compiled program is measured against.

All figures are from the pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" of Google Cloud's TPU documentation
(cloud.google.com/tpu/docs), section "System architecture". Operations per second are those that training reports MFU by
(`hyperflax.training.clock.PEAK_FLOPS`). A chip has a pair of links for each axis of its torus, one to either neighbour;
the pages give the sum of all links in both directions, here stands one link in one direction: 400 GB/s of v5e are 4
links of 50 GB/s each way.

>>> chip_of("v5e").hbm_bytes
16000000000
"""

from __future__ import annotations

import dataclasses

from hyperflax.errors import ConfigError
from hyperflax.training.clock import peak_flops


@dataclasses.dataclass(frozen=True)
class Chip:
    """One generation of chips.

    Attributes:
      name: as topologies are named, `v5e`.
      kind: as JAX names the device.
      hbm_bytes: capacity of the memory, as published; the compiler has a limit of its own.
      hbm_bandwidth: of the memory, bytes a second.
      link_bandwidth: of one link in one direction, bytes a second.
      ring: an axis of a slice is closed to a ring where its length is a multiple of this; else it is a line.
      configuration: the TPU compiler's name for a chip whose cores are one device; of most chips the only one.
    """

    name: str
    kind: str
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float
    ring: int
    configuration: str = "default"

    @property
    def peak(self) -> float:
        """Operations a second in bfloat16."""
        peak = peak_flops(self.kind)
        if peak is None:
            raise ConfigError(f"chip '{self.kind}': its peak is not known")
        return peak


CHIPS = (
    Chip("v4", "TPU v4", 32_000_000_000, 1228e9, 50e9, 4, "megacore"),
    Chip("v5e", "TPU v5 lite", 16_000_000_000, 819e9, 50e9, 16),
    Chip("v5p", "TPU v5", 95_000_000_000, 2765e9, 100e9, 4),
    Chip("v6e", "TPU v6 lite", 32_000_000_000, 1600e9, 100e9, 16),
)


def chip_of(name: str) -> Chip:
    """Returns a chip by its name. Raises ConfigError for one that is not in the table."""
    for chip in CHIPS:
        if chip.name == name:
            return chip
    raise ConfigError(f"chip: expected one of {[chip.name for chip in CHIPS]}, got '{name}'")
