"""What a kind of adapter is: a frozen dataclass of settings with the methods below.

A new kind is one file that defines such a class and the pure function that a layer calls, one entry in `kinds.KINDS`,
one row in the conformance test and one gin file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from hyperflax.types import Array, T5Config

if TYPE_CHECKING:
    from hyperflax.adapters.spec import AdapterSpec


class KindConfig(Protocol):
    """Settings of one kind; fields are plain json values or tuples of them."""

    kind: ClassVar[str]
    """The name, `lora`, as json and errors give it."""
    readers: ClassVar[tuple[str, ...]]
    """The keys by which layers find this kind's slots; no two kinds share one."""
    size: ClassVar[str]
    """The field that counts slots: `rank`, `length`."""

    def spec(self, t5: T5Config) -> AdapterSpec:
        """Returns the leaves that these settings have on that base model."""
        ...

    def resized(self, slots: int) -> KindConfig:
        """The same settings with another rank or length; the leaves' scale stays what it was."""
        ...

    @classmethod
    def catalogue(cls) -> tuple[KindConfig, ...]:
        """Settings that together reach every place where the kind can stand."""
        ...

    @staticmethod
    def merge_slot(path: str, kernel: Array, slot: Mapping[str, Any]) -> Array:
        """Returns the kernel that does what kernel and slot did. Raises AdapterError where there is none."""
        ...

    @staticmethod
    def mix_slots(path: str, slots: Sequence[Mapping[str, Any]], weights: Sequence[Any]) -> dict[str, Array]:
        """Returns one larger slot whose effect is the weighted sum. Raises AdapterError where there is none."""
        ...
