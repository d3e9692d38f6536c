"""Inference jobs: `python -m hyperflax.infer --gin_file=F`, or `hyperflax predict` for the common case.

On several hosts (`--multiprocess`) each answers a part of the file, in order, and writes `OUT-00000-of-00002` and so
on: one after the other they are what a single host writes.
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from hyperflax.checkpoints.artefacts import load_adapter
from hyperflax.data.jsonl import Input, read_inputs
from hyperflax.files import atomic_file
from hyperflax.hypermodel import Hypermodel
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
      DataError: a broken line or an input that is too long, with file and line; before any input is decoded.
      AdapterError: the adapter belongs to another base model.

    Returns:
      the file written by this process.
    """
    processes = Processes.running()
    lines, shard = read_inputs(inputs), processes.shard(out)
    part = lines[processes.part(len(lines))]
    with atomic_file(shard) as temporary, open(temporary, "w", encoding="utf-8") as file:
        rows = predictions(model, part, adapter, max_length)
        for row in tqdm(rows, total=len(part), unit="input", disable=not processes.first):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return shard


def predictions(
    model: Hypermodel, inputs: Sequence[Input], adapter: str | None = None, max_length: int | None = None
) -> Iterator[dict[str, str]]:
    """Yields `{"input", "prediction"}` for each input, in order, as batches are done; raises as `infer` does."""
    loaded = load_adapter(adapter) if adapter is not None else None
    texts, places = [line.input for line in inputs], [line.at for line in inputs]
    answers = model.answers(texts, loaded, names=places, max_length=max_length)
    for text, answer in zip(texts, answers, strict=True):
        yield {"input": text, "prediction": answer}


if __name__ == "__main__":
    from hyperflax.cli.gin_main import main

    sys.exit(main("hyperflax.infer.infer", sys.argv[1:]))
