"""An array that is made when it is asked for: what is written leaf by leaf is never there as a whole.

>>> stacked = LazyArray((512, 8, 2048), np.dtype("float32"), lambda: np.stack(layers, axis=1))
>>> np.asarray(stacked).shape                                 # made now, and once more the next time
(512, 8, 2048)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class LazyArray:
    """A leaf of known shape and dtype.

    Attributes:
      shape, dtype: of what `make` returns.
      make: called whenever the values are asked for; nothing of it is kept.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.make()
        return array if dtype is None else array.astype(dtype, copy=False)
