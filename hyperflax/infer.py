"""Inference jobs: `python -m hyperflax.infer --gin_file=F`, or `hyperflax predict` for the common case.

On several hosts (`--multiprocess`) each answers a part of the file, in order, and writes `OUT-00000-of-00002` and so
on: one after the other they are what a single host writes. A job that was killed goes on when it is called again: what
it had answered stands in `OUT.HASH.partial`, the hash being of all that decides about the answers.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from hyperflax.buckets import locate_file
from hyperflax.checkpoints.artefacts import Adapter, load_adapter
from hyperflax.checkpoints.fingerprint import fingerprint
from hyperflax.data.jsonl import Input, read_inputs
from hyperflax.errors import CheckpointError, ConfigError
from hyperflax.files import append_lines, atomic_file, read_if_there, require_file_place
from hyperflax.hypermodel import WINDOW, Hypermodel
from hyperflax.locks import alone_at
from hyperflax.processes import Processes

KEEP_EVERY = 30.0  # seconds of work that a kill may cost, beside the window that it breaks off


def infer(
    *, model: Hypermodel, inputs: str, out: str, adapter: str | None = None, max_length: int | None = None
) -> pathlib.Path:
    """Answers a file of inputs, `{"input"}` a line, with a file of `{"input", "prediction"}`.

    Args:
      model: with its base model.
      inputs: jsonl file.
      out: jsonl file; it appears when it is complete. One of several processes writes its shard of it. The answers of
        a killed job stand beside it.
      adapter: adapter directory; None runs the bare model.
      max_length: most tokens of a prediction.

    Raises:
      ConfigError: `out` is the file of inputs.
      DataError: a broken line or an input that is too long, with file and line; before any input is decoded.
      AdapterError: the adapter belongs to another base model.
      BusyError: another process is at work on that file.
      CheckpointError: nothing can be written at `out`; before any input is read.

    Returns:
      the file written by this process, once all processes have written theirs.
    """
    require_file_place(out)
    lines, loaded = given(inputs, adapter, out=out)
    return write_answers(model, lines, loaded, out=out, max_length=max_length)


def given(inputs: str, adapter: str | None, *, out: str | None = None) -> tuple[list[Input], Adapter | None]:
    """Reads what is to be answered and the adapter to do it with: before the model, which takes longer.

    Args:
      inputs, adapter, out: as of `infer`; None writes no file.

    Raises:
      ConfigError: `out` is the file of inputs.
      DataError: a broken line, with file and line.
      CheckpointError: no adapter, or a damaged one.
    """
    if out is not None and inputs != "-" and _is_same(inputs, out):
        raise ConfigError(f"{out}: expected another file than the inputs', which it would replace")
    lines = read_inputs(inputs)
    return lines, load_adapter(adapter) if adapter is not None else None


def write_answers(
    model: Hypermodel, lines: Sequence[Input], adapter: Adapter | None, *, out: str, max_length: int | None = None
) -> pathlib.Path:
    """Writes the file of `infer`, or this process's shard, for what `given` has read.

    Raises:
      DataError, AdapterError: as `infer`.
      BusyError: another process is at work on that file.
    """
    processes = Processes.running()
    shard, part = processes.shard(out), lines[processes.part(len(lines))]
    kept = shard.with_name(f"{shard.name}.{_digest(model, part, adapter, max_length)}.partial")
    with alone_at(shard):
        rows = _resume(kept, part)
        with tqdm(total=len(part), initial=len(rows), unit="input", disable=not processes.first) as bar:
            saved, at = len(rows), time.monotonic()
            for row in predictions(model, part[len(rows) :], adapter, max_length):
                rows.append(json.dumps(row, ensure_ascii=False))
                bar.update()
                # Part of a window is not gone on with.
                if len(rows) % WINDOW == 0 and time.monotonic() - at > KEEP_EVERY:
                    append_lines(kept, rows[saved:])
                    saved, at = len(rows), time.monotonic()
        if processes.count > 1:  # started again before all are done, this one has nothing left to do
            append_lines(kept, rows[saved:])
        with atomic_file(shard) as temporary:
            temporary.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
        processes.wait("answered")  # whose process ends earlier takes the others down, five minutes later
        if (place := locate_file(kept)).exists():
            with contextlib.suppress(CheckpointError):  # not everybody who may write may remove
                place.unlink()
    return shard


def predictions(
    model: Hypermodel, inputs: Sequence[Input], adapter: Adapter | None = None, max_length: int | None = None
) -> Iterator[dict[str, str]]:
    """Yields `{"input", "prediction"}` for each input, in order, window by window; raises as `infer` does."""
    texts, places = [line.input for line in inputs], [line.at for line in inputs]
    answers = model.answers(texts, adapter, names=places, max_length=max_length)
    for text, answer in zip(texts, answers, strict=True):
        yield {"input": text, "prediction": answer}


def _is_same(one: str, other: str) -> bool:
    a, b = locate_file(one), locate_file(other)
    if isinstance(a, pathlib.Path) and isinstance(b, pathlib.Path) and a.exists() and b.exists():
        return a.samefile(b)
    return str(a) == str(b)


def _digest(model: Hypermodel, inputs: Sequence[Input], adapter: Adapter | None, max_length: int | None) -> str:
    """Of all that decides about the answers."""
    made = fingerprint(adapter.tree) if adapter is not None else None
    length = model.config.episodes.targets_length if max_length is None else max_length
    t5, vocabulary = model.parts.t5, model.parts.vocabulary
    content = [model.base_fingerprint, t5, vocabulary, made, length, [line.input for line in inputs]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def _resume(kept: pathlib.Path, part: Sequence[Input]) -> list[str]:
    """Returns the answers to `part` that a killed job has left: all of them, or those of whole windows, so that the
    others are what they were.

    They end where a row answers another input than its own: in a bucket, and where nothing can be locked, two jobs may
    have written at once. The file has no others then: it goes on from there.
    """
    content = read_if_there(kept) or b""
    whole = content[: content.rfind(b"\n") + 1].decode("utf-8").split("\n")[:-1]  # no line may end in the middle
    right = len(list(itertools.takewhile(lambda pair: _answers(*pair), zip(whole, part, strict=False))))
    rows = whole[: right if right == len(part) else right // WINDOW * WINDOW]
    if content:
        with atomic_file(kept) as temporary:
            temporary.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return rows


def _answers(row: str, line: Input) -> bool:
    try:
        return json.loads(row)["input"] == line.input
    except (ValueError, TypeError, KeyError):
        return False


if __name__ == "__main__":
    from hyperflax.cli.gin_main import main

    sys.exit(main("hyperflax.infer.infer", sys.argv[1:]))
