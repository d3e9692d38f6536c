"""Large runs compiled for TPU slices: what each chip needs, and how fast a step can be. See docs/compile.md."""
