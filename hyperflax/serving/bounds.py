"""How much a service takes on, and what those are told who ask for more."""

from __future__ import annotations

import dataclasses

from hyperflax.configs import check_sizes
from hyperflax.errors import ConfigError, HyperflaxError


class Overloaded(HyperflaxError):
    """As much is waiting as may wait; try again later."""


class Full(HyperflaxError):
    """As many adapters are kept as may be kept; none goes by itself."""


class Closing(HyperflaxError):
    """The service is about to end, and takes nothing more."""

    def __init__(self, told: str = "the service is ending"):
        super().__init__(told)


class Failed(Closing):
    """The service has failed: it takes nothing more until somebody starts it again."""

    def __init__(self) -> None:
        super().__init__("the service has failed; its log says why")


@dataclasses.dataclass(frozen=True)
class ServiceConfig:
    """Bounds.

    Attributes:
      rows: inputs decoded at once, for each of up to three input lengths, see `lane_lengths`.
      resident: adapters on the device at once.
      hosted: adapters in host memory at once; the others are read from disk when a row is free for who asks for them.
      waiting: inputs that may wait or be decoded at once; as many callers may wait for adapters.
      adapting: adapters that may wait to be made.
      kept: adapters on disk, at most. None is ever deleted to make room.
    """

    rows: int = 16
    resident: int = 64
    hosted: int = 1024
    waiting: int = 1024
    adapting: int = 16
    kept: int = 100_000

    def __post_init__(self) -> None:
        check_sizes(self, **{field.name: 1 for field in dataclasses.fields(self)})
        if self.hosted < self.resident:
            raise ConfigError(f"ServiceConfig.hosted: expected at least resident={self.resident}, got {self.hosted}")


DEFAULT_CONFIG = ServiceConfig()


def lane_lengths(longest: int) -> tuple[int, ...]:
    """Returns the lengths that inputs are served at: the longest, half of it and, of 32 tokens or more, an eighth.

    Every lane is compiled before the service is ready and has rows of its own, so they are few.

    >>> lane_lengths(512), lane_lengths(40)
    ((64, 256, 512), (20, 40))
    """
    eighth = longest // 8
    return (*([eighth] if eighth >= 32 else []), *sorted({max(longest // 2, 1), longest}))
