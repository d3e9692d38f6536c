"""Every error that hyperflax raises on purpose.

An error names the place, what was expected there and what came. All derive from `HyperflaxError`, itself a
`ValueError`, so `except ValueError` keeps working for callers who know nothing of hyperflax.
"""

from __future__ import annotations


class HyperflaxError(ValueError):
    """Base class of all deliberate errors."""


class ConfigError(HyperflaxError):
    """A configuration value, or a combination of values, that cannot work."""


class AdapterError(HyperflaxError):
    """An adapter tree that does not fit its spec, its model or the requested operation."""


class CheckpointError(HyperflaxError):
    """A checkpoint, model directory or adapter directory that is broken, foreign or of the wrong shape."""


class BusyError(HyperflaxError):
    """A folder that another process is working in."""


class DataError(HyperflaxError):
    """Bad examples: a missing file, a broken line, a task with too few examples, an over-long example."""


class SurrogateError(HyperflaxError):
    """A tuner's surrogate whose numbers broke down: training that diverged, a covariance that cannot be decomposed."""


class MissingExtraError(HyperflaxError, ImportError):
    """An optional dependency is absent; the message holds the pip command that brings it, or other advice."""

    def __init__(self, module: str, extra: str, advice: str = ""):
        advice = advice or f"Install it with: pip install 'hyperflax[{extra}]'"
        super().__init__(f"{module} is needed here and is not installed. {advice}")
        self.module = module
        self.extra = extra
