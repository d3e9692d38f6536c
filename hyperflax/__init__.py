"""hyperflax: adapt a frozen T5 to a new task in one forward pass."""

__version__ = "0.1.0"
