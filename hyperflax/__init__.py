"""hyperflax: adapt a frozen T5 to a new task in one forward pass.

>>> model = hyperflax.load("strings")
>>> adapter = model.adapt([("ada lovelace", "Lovelace, A."), ("alan turing", "Turing, A.")])
>>> model.predict(["grace hopper"], adapter)

Importing hyperflax imports nothing heavy; JAX comes with the first name that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyperflax.checkpoints.artefacts import load_adapter
    from hyperflax.hypermodel import Hypermodel, load
    from hyperflax.types import T5Config

__version__ = "0.1.0"

_HOMES = {
    "Hypermodel": "hyperflax.hypermodel",
    "T5Config": "hyperflax.types",
    "load": "hyperflax.hypermodel",
    "load_adapter": "hyperflax.checkpoints.artefacts",
}
__all__ = ["Hypermodel", "T5Config", "__version__", "load", "load_adapter"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'hyperflax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
