"""Files of inputs, answered in order; what is wrong with one is told by file and line before the work begins."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import pathlib
import re
import types
from typing import Any

import pytest

from hyperflax.data.jsonl import read_inputs
from hyperflax.errors import BusyError, CheckpointError, ConfigError, DataError
from hyperflax.hypermodel import WINDOW, Hypermodel
from hyperflax.hypermodel.text import ROWS
from hyperflax.infer import infer, predictions
from hyperflax.processes import Processes
from tests.evaluation.micro import hypermodel


def write(path: pathlib.Path, texts: list[str]) -> str:
    path.write_text("\n".join(json.dumps({"input": text}) for text in texts))
    return str(path)


def test_answers_are_those_of_predict_over_several_batches(tmp_path: pathlib.Path) -> None:
    texts = [f"x{number}" for number in range(ROWS + 7)]
    inputs = write(tmp_path / "in.jsonl", texts)
    expected = [{"input": text, "prediction": hypermodel().predict([text])[0]} for text in texts[:2] + texts[-2:]]
    rows = [
        json.loads(line)
        for line in infer(model=hypermodel(), inputs=inputs, out=str(tmp_path / "o")).read_text().splitlines()
    ]
    assert [row["input"] for row in rows] == texts
    assert rows[:2] + rows[-2:] == expected
    assert list(predictions(hypermodel(), read_inputs(inputs))) == rows


def test_the_shards_of_a_job_are_together_what_one_process_writes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = write(tmp_path / "in.jsonl", [f"x{number}" for number in range(7)])
    alone = infer(model=hypermodel(), inputs=inputs, out=str(tmp_path / "alone"))
    shards = []
    for index in range(3):
        monkeypatch.setattr(Processes, "running", lambda index=index: Processes(index, 3))
        shards.append(infer(model=hypermodel(), inputs=inputs, out=str(tmp_path / "out")))
    assert [shard.name for shard in shards] == [f"out-{index:05d}-of-00003" for index in range(3)]
    assert [len(shard.read_text().splitlines()) for shard in shards] == [2, 2, 3]
    assert b"".join(shard.read_bytes() for shard in shards) == alone.read_bytes()


def test_a_killed_job_goes_on_behind_its_last_whole_window(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, out = [f"x{number}" for number in range(3 * WINDOW + 7)], tmp_path / "out.jsonl"
    inputs = write(tmp_path / "in.jsonl", texts)
    whole = infer(model=hypermodel(), inputs=inputs, out=str(tmp_path / "whole.jsonl")).read_bytes()
    decode, batches = Hypermodel.decode, []

    def dies(self: Hypermodel, tokens, *arguments, **options):
        if len(batches) == 8:  # two windows
            raise KeyboardInterrupt
        batches.append(len(tokens[0]))
        return decode(self, tokens, *arguments, **options)

    monkeypatch.setattr("hyperflax.infer.KEEP_EVERY", -1.0)
    monkeypatch.setattr(Hypermodel, "decode", dies)
    with pytest.raises(KeyboardInterrupt):
        infer(model=hypermodel(), inputs=inputs, out=str(out))
    (partial,) = tmp_path.glob("out.jsonl.*.partial")
    assert partial.read_bytes() == b"".join(whole.splitlines(keepends=True)[: 2 * WINDOW])
    partial.write_bytes(b"".join(whole.splitlines(keepends=True)[: WINDOW + 5]) + b'{"input": "x')  # in a line's middle
    batches.clear()
    with pytest.raises(KeyboardInterrupt):  # another question, so all anew
        infer(model=hypermodel(), inputs=inputs, out=str(out), max_length=3)
    assert len(list(tmp_path.glob("out.jsonl.*.partial"))) == 2
    batches[:] = 4 * [0]
    with pytest.raises(KeyboardInterrupt):
        infer(model=hypermodel(), inputs=inputs, out=str(out))
    assert partial.read_bytes() == b"".join(whole.splitlines(keepends=True)[: 2 * WINDOW])
    assert not out.exists()
    monkeypatch.setattr(Hypermodel, "decode", decode)
    assert infer(model=hypermodel(), inputs=inputs, out=str(out)).read_bytes() == whole
    assert not partial.exists()


def test_what_is_kept_of_a_long_job_are_whole_windows(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch takes a minute: the one window that is done when the job dies must not be half a window to resume."""
    inputs, out = write(tmp_path / "in.jsonl", [f"x{number}" for number in range(WINDOW + 7)]), tmp_path / "out.jsonl"
    decode, minutes = Hypermodel.decode, []

    def dies(self: Hypermodel, tokens, *arguments, **options):
        if len(minutes) == WINDOW // ROWS:
            raise KeyboardInterrupt
        minutes.append(60.0)
        return decode(self, tokens, *arguments, **options)

    monkeypatch.setattr("hyperflax.infer.time", types.SimpleNamespace(monotonic=lambda: sum(minutes)))
    monkeypatch.setattr(Hypermodel, "decode", dies)
    with pytest.raises(KeyboardInterrupt):
        infer(model=hypermodel(), inputs=inputs, out=str(out))
    (partial,) = tmp_path.glob("out.jsonl.*.partial")
    assert len(partial.read_text().splitlines()) == WINDOW


@pytest.mark.parametrize(("kept", "right"), [((0, 1, 1), 2), ((0, 2, 2), 1), ((1, 2), 0)], ids=str)
def test_a_job_goes_on_where_the_answers_are_no_longer_those_of_its_inputs(
    kept: tuple[int, ...], right: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two jobs wrote at once, where nothing keeps them apart: windows are there twice, or missing."""
    inputs = write(tmp_path / "in.jsonl", [f"x{number}" for number in range(3 * WINDOW + 7)])
    out, decode = tmp_path / "out.jsonl", Hypermodel.decode
    expected = infer(model=hypermodel(), inputs=inputs, out=str(out)).read_bytes()
    lines = expected.splitlines(keepends=True)
    monkeypatch.setattr("hyperflax.infer.KEEP_EVERY", -1.0)
    monkeypatch.setattr("hyperflax.infer.atomic_file", None)  # the partial one stays
    with pytest.raises(TypeError):
        infer(model=hypermodel(), inputs=inputs, out=str(out))
    monkeypatch.undo()
    (partial,) = tmp_path.glob("out.jsonl.*.partial")
    partial.write_bytes(b"".join(line for window in kept for line in lines[window * WINDOW : (window + 1) * WINDOW]))
    batches = []
    monkeypatch.setattr(Hypermodel, "decode", lambda *given, **options: batches.append(1) or decode(*given, **options))
    assert infer(model=hypermodel(), inputs=inputs, out=str(out)).read_bytes() == expected
    assert len(batches) == (3 - right) * WINDOW // ROWS + 1


def test_a_second_job_for_the_same_file_is_refused_before_it_decodes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, lock = write(tmp_path / "in.jsonl", ["a"]), tmp_path / ".out.jsonl.lock"
    with lock.open("w") as first, monkeypatch.context() as patch:
        fcntl.flock(first, fcntl.LOCK_EX)
        first.write("123 elsewhere 4567")
        first.flush()
        patch.setattr(Hypermodel, "decode", lambda *arguments, **options: pytest.fail("decoded"))
        told = (
            f"{tmp_path}/out.jsonl: process 123 on elsewhere is at work on it (if that host is gone, delete {lock}); "
        )
        with pytest.raises(BusyError, match=re.escape(told)):
            infer(model=hypermodel(), inputs=inputs, out=str(tmp_path / "out.jsonl"))
    infer(model=hypermodel(), inputs=inputs, out=str(tmp_path / "out.jsonl"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_model_that_answers_at_other_lengths_does_not_go_on_with_anothers_answers(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = hypermodel()
    episodes = short.config.episodes.replace(targets_length=2)
    short = Hypermodel(dataclasses.replace(short.config, episodes=episodes), short.parts.base, None)
    inputs = write(tmp_path / "in.jsonl", [f"x{number}" for number in range(WINDOW + 7)])
    expected = infer(model=hypermodel(), inputs=inputs, out=str(tmp_path / "whole.jsonl")).read_bytes()
    decode, batches = Hypermodel.decode, []

    def dies(*given, **options):
        if len(batches) == 4:
            raise KeyboardInterrupt
        batches.append(given)
        return decode(*given, **options)

    monkeypatch.setattr("hyperflax.infer.KEEP_EVERY", -1.0)
    monkeypatch.setattr(Hypermodel, "decode", dies)
    with pytest.raises(KeyboardInterrupt):
        infer(model=short, inputs=inputs, out=str(tmp_path / "out.jsonl"))
    monkeypatch.setattr(Hypermodel, "decode", decode)
    assert infer(model=hypermodel(), inputs=inputs, out=str(tmp_path / "out.jsonl")).read_bytes() == expected


def test_a_late_input_that_is_too_long_is_named_by_file_and_line_before_anything_is_decoded(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hypermodel, "decode", lambda *arguments, **options: pytest.fail("decoded"))
    inputs = write(tmp_path / "in.jsonl", [*["a"] * (ROWS + 5), "b" * 16, "c"])
    told = rf"^{tmp_path}/in\.jsonl:{ROWS + 6}: inputs: expected at most 16 tokens, end of sequence included, got 17"
    with pytest.raises(DataError, match=told):
        infer(model=hypermodel(), inputs=inputs, out=str(tmp_path / "out.jsonl"))
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    with pytest.raises(DataError, match=f"^input {ROWS}: inputs: expected at most 16"):
        hypermodel().predict([*["a"] * ROWS, "b" * 16])


def test_a_place_where_no_answers_can_be_written_is_told_before_the_work(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    for out, told in ((tmp_path / "file" / "out.jsonl", "nothing can be written there"), (tmp_path, "expected a file")):
        with pytest.raises(CheckpointError, match=f"^{out}: {told}"):
            infer(model=hypermodel(), inputs=str(tmp_path / "not there.jsonl"), out=str(out))


def test_answers_do_not_take_the_place_of_their_inputs(tmp_path: pathlib.Path) -> None:
    inputs = write(tmp_path / "in.jsonl", ["a"])
    (tmp_path / "link.jsonl").symlink_to("in.jsonl")
    for out in (inputs, str(tmp_path / "link.jsonl")):
        with pytest.raises(ConfigError, match="expected another file than the inputs'"):
            infer(model=hypermodel(), inputs=inputs, out=out)
    assert [line.input for line in read_inputs(inputs)] == ["a"]


@pytest.mark.parametrize(
    "files",
    [
        {"inputs": 20241130, "out": "out.jsonl"},
        {"inputs": "in.jsonl", "out": 20241130},
        {"inputs": "-", "out": 20241130},
    ],
)
def test_a_number_is_no_file(files: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Gin takes a name of digits for one; nothing is read before that is found."""
    monkeypatch.setattr("hyperflax.infer.read_inputs", lambda path: pytest.fail(f"{path} was read"))
    with pytest.raises(ConfigError, match=r"^20241130: expected a path, which is a string"):
        infer(model=hypermodel(), **files)
