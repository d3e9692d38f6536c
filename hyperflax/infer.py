"""Inference jobs: `python -m hyperflax.infer --gin_file=F`, or `hyperflax predict` for the common case.

On several hosts (`--multiprocess`) each answers a part of the file, in order, and writes `OUT-00000-of-00002` and so
on: one after the other they are what a single host writes.
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from hyperflax.checkpoints.artefacts import load_adapter
from hyperflax.data.jsonl import read_inputs
from hyperflax.files import atomic_file
from hyperflax.hypermodel import ROWS, Hypermodel
from hyperflax.processes import Processes


def infer(
    *, model: Hypermodel, inputs: str, out: str, adapter: str | None = None, max_length: int | None = None
) -> pathlib.Path:
    """Answers a file of inputs, `{"input"}` a line, with a file of `{"input", "prediction"}`.

    Args:
      model: with its base model.
      inputs: jsonl file.
      out: jsonl file; it appears when it is complete. One of several processes writes its shard of it.
      adapter: adapter directory; None runs the bare model.
      max_length: most tokens of a prediction.

    Raises:
      DataError: a broken line or an input that is too long, with file and line.
      AdapterError: the adapter belongs to another base model.

    Returns:
      the file written by this process.
    """
    processes = Processes.running()
    texts, shard = list(read_inputs(inputs)), processes.shard(out)
    shown = tqdm(texts[processes.part(len(texts))], unit="input", disable=not processes.first)
    with atomic_file(shard) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for row in predictions(model, shown, adapter, max_length):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return shard


def predictions(
    model: Hypermodel, texts: Iterable[str], adapter: str | None = None, max_length: int | None = None
) -> Iterator[dict[str, str]]:
    """Yields `{"input", "prediction"}` for each text, in order, as batches are done."""
    loaded = load_adapter(adapter) if adapter is not None else None
    batch: list[str] = []

    def answer() -> Iterator[dict[str, str]]:
        for text, prediction in zip(batch, model.predict(batch, loaded, max_length=max_length), strict=True):
            yield {"input": text, "prediction": prediction}

    for text in texts:
        batch.append(text)
        if len(batch) == ROWS:
            yield from answer()
            batch.clear()
    if batch:
        yield from answer()


if __name__ == "__main__":
    from hyperflax.cli.gin_main import main

    sys.exit(main("hyperflax.infer.infer", sys.argv[1:]))
