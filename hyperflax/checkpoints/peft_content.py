"""What a directory of PEFT holds, whatever its method, and the two functions that a method's file has.

    export_METHOD(flat, spec, decoder_layers) -> Content         float32 leaves by path, and their spec
    import_METHOD(content, decoder_layers) -> (flat, spec)

`decoder_layers` are those of the base model, None if it is unknown. Both raise AdapterError where the other side cannot
express it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from hyperflax.adapters.checks import is_int
from hyperflax.errors import AdapterError

CONFIG = "adapter_config.json"
TASK = "SEQ_2_SEQ_LM"  # PEFT's name of what T5 is for


@dataclasses.dataclass(frozen=True, eq=False)
class Content:
    """Settings and weights.

    Attributes:
      settings: of adapter_config.json, those of the method.
      weights: float32, by PEFT's names.
    """

    settings: Mapping[str, Any]
    weights: Mapping[str, np.ndarray]

    def size(self, key: str) -> int:
        """A setting that counts something. Raises AdapterError if it is no positive int of a sane size."""
        value: Any = self.settings.get(key)
        if not is_int(value) or not 0 < value < 2**20:
            raise AdapterError(f"{CONFIG}: key '{key}': expected a positive int, got {value!r:.100}")
        return value

    def only(self, name: str) -> np.ndarray:
        """The one weight that there should be. Raises AdapterError if there is another one, or it is missing."""
        if set(self.weights) != {name}:
            raise AdapterError(f"expected the one weight '{name}', found {sorted(self.weights)[:5]}")
        return self.weights[name]
