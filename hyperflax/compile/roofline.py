"""How long a step takes at least: the roofline of a chip, with the communication that nothing hides.

    step = max(executed operations / peak, memory bytes / memory bandwidth) + communication that is not overlapped

A collective takes the bytes that a chip receives over the bandwidth of the links that its group uses: those along every
axis of the slice on which the chips of a group differ, two for each if the axis is a ring, one if it is a line.
Products that the program runs between its start and its end hide it, at their own time. The estimate is optimistic
where products reach less than the peak, and pessimistic where the hardware overlaps more than the program says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hyperflax.compile.chips import Chip
from hyperflax.compile.collectives import Collective
from hyperflax.compile.walk import Work


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of one step.

    Attributes:
      compute: executed operations at the chip's peak.
      memory: bytes at the memory's bandwidth.
      communication: of all collectives, one after the other.
      exposed: the part of it under which no product runs.
    """

    compute: float
    memory: float
    communication: float
    exposed: float

    @property
    def step(self) -> float:
        return max(self.compute, self.memory) + self.exposed


def estimate(work: Work, chip: Chip, shape: Sequence[int], coordinates: Sequence[Sequence[int]]) -> Estimate:
    """Returns the estimate for one chip's work.

    Args:
      work: see `walk`.
      chip: the generation.
      shape: of the slice, chips along each axis.
      coordinates: of every device in the program's order.
    """
    seconds = [
        (one, one.times * one.received / bandwidth(one.group, chip, shape, coordinates)) for one in work.collectives
    ]
    exposed = sum(_exposed(one, all_of_it, chip) for one, all_of_it in seconds)
    return Estimate(
        compute=work.flops / chip.peak,
        memory=work.nbytes / chip.hbm_bandwidth,
        communication=sum(all_of_it for _, all_of_it in seconds),
        exposed=exposed,
    )


def _exposed(one: Collective, seconds: float, chip: Chip) -> float:
    return max(0.0, seconds - one.times * one.overlapped_flops / chip.peak)


def bandwidth(group: Sequence[int], chip: Chip, shape: Sequence[int], coordinates: Sequence[Sequence[int]]) -> float:
    """Returns bytes a second that a chip of a group can receive."""
    places = [coordinates[number] for number in group]
    links = 0
    for axis, size in enumerate(shape):
        if len({place[axis] for place in places}) > 1:
            links += 2 if size % chip.ring == 0 else 1
    return max(links, 1) * chip.link_bandwidth
