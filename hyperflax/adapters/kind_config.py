"""What a kind of adapter is: a frozen dataclass of settings with the members below.

A new kind is one file that defines such a class and the pure function that a layer calls, one entry in `kinds.KINDS`,
one row in the conformance test and one gin file.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hyperflax.types import Array, T5Config

if TYPE_CHECKING:
    from hyperflax.adapters.spec import AdapterSpec, Leaf


class KindConfig(abc.ABC):
    """Settings of one kind; fields are plain json values or tuples of them."""

    kind: ClassVar[str]
    """The name, `lora`, as json and errors give it."""
    readers: ClassVar[tuple[str, ...]]
    """The keys by which layers find this kind's slots; no two kinds share one."""
    size: ClassVar[str]
    """The field that counts slots: `rank`, `length`."""
    refuses: ClassVar[Mapping[str, str]] = {}
    """Why an operation, `merge`, `interpolate` or `export to PEFT`, is impossible for this kind."""
    starts_at_identity: ClassVar[bool] = True
    """Whether `AdapterSpec.init` changes nothing, so that a place more can start without a loss."""

    @abc.abstractmethod
    def spec(self, t5: T5Config) -> AdapterSpec:
        """Returns the leaves that these settings have on that base model."""

    @abc.abstractmethod
    def resized(self, slots: int) -> KindConfig:
        """The same settings with another rank or length; the leaves' scale stays what it was."""

    @classmethod
    @abc.abstractmethod
    def catalogue(cls) -> tuple[KindConfig, ...]:
        """Settings of size 1 that together reach every place where the kind can stand."""

    @staticmethod
    @abc.abstractmethod
    def gram(slot: Mapping[str, Any]) -> Array:
        """Returns [n, n] whose eigenvalues are the squared singular values of the matrix that the slot stands for."""

    @staticmethod
    def parameter(leaf: Leaf) -> str:
        """Returns the path of the base model's parameter into which the leaf's slot can be merged."""
        return f"{leaf.module}/kernel"

    @staticmethod
    def merge_slot(kernel: Array, slot: Mapping[str, Any]) -> Array:
        """Returns the kernel that alone does what `kernel` and `slot` did."""
        raise NotImplementedError

    @staticmethod
    def mix_slots(slots: Sequence[Mapping[str, Any]], weights: Sequence[Any]) -> dict[str, Array]:
        """Returns one slot, larger by their number, whose effect is the weighted sum of theirs."""
        raise NotImplementedError

    @staticmethod
    def fit_slot(slot: Mapping[str, np.ndarray], fresh: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
        """Returns a start of training from `slot` in the shapes of `fresh`, a start of another size: the same effect if
        that is larger, the nearest one if it is smaller. None where the kind has no such thing."""
        return None
