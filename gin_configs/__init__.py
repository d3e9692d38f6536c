"""Gin files: models, adapters, hypernets and runs. A run includes one of each, never deeper."""
