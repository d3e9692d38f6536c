"""What stands behind `hyperflax cache` and `hyperflax tasks`, as plain functions."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from hyperflax.data import registry
from hyperflax.data.cache import write_cache
from hyperflax.data.vocabularies import Vocabulary
from hyperflax.files import require_directory_place


def cache_mixture(
    name: str,
    out_dir: pathlib.Path | str,
    *,
    split: str = "train",
    modules: Sequence[str] = (),
    vocabulary: Vocabulary | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Writes a registered source, seqio Task or Mixture as a token cache.

    Args:
      name, split: what to cache, as in `registry.load_source`. A seqio Task, and a source whose loader returns a
        stream, is written as it comes and never held in memory.
      out_dir: where; must not exist yet, or be empty.
      modules: to register first.
      vocabulary: for sources that tokenise with the one they are given.
      seed: for a seqio Task's preprocessors that draw; kept in the manifest with name and split.

    Returns:
      The manifest.

    Raises:
      CheckpointError: `out_dir` may not be written; before anything is read.
      DataError, ConfigError, MissingExtraError: see `registry.load_source`, `registry.register_modules`, `write_cache`.
    """
    require_directory_place(out_dir, in_bucket=True)
    registry.register_modules(modules)
    origin: dict[str, Any] = {"mixture": name, "split": split, "modules": list(modules)}
    if name not in registry.sources():
        origin["seed"] = seed
    stream = registry.stream_source(name, split, vocabulary=vocabulary, seed=seed)
    return write_cache(stream.examples, out_dir, stream.vocabulary, group_rates=stream.group_rates, origin=origin)


class Listing(NamedTuple):
    """One line of `hyperflax tasks`: a split of something registered.

    Attributes:
      name, split: as `--mixture` and `--split` take them.
      kind: `source`, `seqio task` or `seqio mixture`.
      tasks, examples: how many, or None if only reading would tell.
      description: one line.
    """

    name: str
    split: str
    kind: str
    tasks: int | None
    examples: int | None
    description: str


def list_tasks(modules: Iterable[str] = ()) -> list[Listing]:
    """Everything registered, by name; seqio's Tasks and Mixtures too, if a module has imported seqio.

    Raises:
      DataError, ConfigError, MissingExtraError: see `registry.register_modules`, and what counting raises.
    """
    registry.register_modules(modules)
    rows = []
    for name, entry in registry.sources().items():
        sizes = entry.sizes() if entry.sizes else {}
        for split in entry.splits:
            rows.append(Listing(name, split, "source", *sizes.get(split, (None, None)), entry.description))
    if "seqio" in sys.modules:
        from hyperflax.data import seqio_source

        rows += [Listing(*row) for row in seqio_source.list_seqio()]
    return rows


def format_listing(rows: Sequence[Listing]) -> str:
    """The rows as a table with aligned columns; `?` where a number is not known without reading the data."""
    cells: list[tuple[str, ...]] = [("name", "split", "kind", "tasks", "examples", "description")]
    for row in rows:
        numbers = ("?" if n is None else f"{n:,}" for n in (row.tasks, row.examples))
        cells.append((row.name, row.split, row.kind, *numbers, row.description))
    widths = [max(len(line[column]) for line in cells) for column in range(6)]
    lines = []
    for line in cells:
        padded = [
            cell.rjust(width) if column in (3, 4) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)
