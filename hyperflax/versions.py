"""What a figure or a file was made with: versions of Python, hyperflax and the packages that can change it."""

from __future__ import annotations

import importlib.metadata
import platform

import hyperflax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "safetensors", "rouge-score", "seqio", "tensorflow")


def versions() -> dict[str, str]:
    """Returns package -> version; packages that are not installed are left out."""
    found = {"python": platform.python_version(), "hyperflax": hyperflax.__version__}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
