"""Inference jobs: `python -m hyperflax.infer --gin_file=F`, or `hyperflax predict` for the common case."""

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


def infer(
    *, model: Hypermodel, inputs: str, out: str, adapter: str | None = None, max_length: int | None = None
) -> pathlib.Path:
    """Answers a file of inputs, `{"input"}` a line, with a file of `{"input", "prediction"}`.

    Args:
      model: with its base model.
      inputs: jsonl file.
      out: jsonl file; it appears when it is complete.
      adapter: adapter directory; None runs the bare model.
      max_length: most tokens of a prediction.

    Raises:
      DataError: a broken line or an input that is too long, with file and line.
      AdapterError: the adapter belongs to another base model.
    """
    texts = list(read_inputs(inputs))
    with atomic_file(out) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for row in predictions(model, tqdm(texts, unit="input"), adapter, max_length):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return pathlib.Path(out)


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
