"""Gin files; an `__init__.py` lets gin find them wherever hyperflax is installed."""
