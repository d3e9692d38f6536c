"""The embedded data by name, and as seqio Tasks."""

from __future__ import annotations

import itertools
import json

import pytest

from hyperflax.data import registry
from hyperflax.data.vocabularies import Bytes
from hyperflax.errors import DataError
from hyperflax_tasks import seqio_tasks, strings_tasks
from hyperflax_tasks.strings import load_handwritten, load_split, make_examples


@pytest.fixture
def registered():
    registry.register_modules()  # or the first lookup would, and put the installed one in place of ours
    before = registry.sources().get("strings")
    strings_tasks.register(examples=5)
    yield
    registry.unregister_source("strings")
    if before:
        registry.register_source("strings", before.splits, description=before.description, sizes=before.sizes)


def test_a_handwritten_line_ends_at_a_newline_alone(tmp_path):
    pair = {"input": "a\u2028b", "target": "c\x85d"}
    row = {"name": "lines", "intent": "join", "support": [pair], "test": [pair]}
    (tmp_path / "mine.jsonl").write_text(2 * (json.dumps(row, ensure_ascii=False) + "\n"), encoding="utf-8")
    tasks = load_handwritten(tmp_path / "mine.jsonl")
    assert [task.test for task in tasks] == 2 * [(("a\u2028b", "c\x85d"),)]


@pytest.mark.usefixtures("registered")
def test_the_source_holds_every_held_out_program():
    source = registry.load_source("strings", "held_out")
    programs = load_split().held_out
    assert source.task_names == tuple(program.instruction for program in programs)
    assert set(source.sizes.tolist()) == {5}
    expected = make_examples(programs[7], 0, 5, "eval")
    found = [(Bytes().decode(e.inputs), Bytes().decode(e.targets)) for e in source.examples(7, range(5))]
    assert found == expected
    assert registry.sources()["strings"].sizes()["held_out"] == (len(programs), 5 * len(programs))
    with pytest.raises(DataError, match=r"source 'strings': expected Bytes\(extra_ids=125\), got Bytes\(extra_ids=0\)"):
        registry.load_source("strings", "held_out", vocabulary=Bytes(extra_ids=0))


@pytest.mark.usefixtures("seqio_registries")
def test_the_seqio_tasks_hold_the_same_examples():
    seqio = pytest.importorskip("seqio", reason="seqio is not installed: pip install 'hyperflax[seqio]'")
    from hyperflax.data.seqio_source import read_seqio

    seqio_tasks.register_strings(examples=3)
    stream = read_seqio("strings_held_out", "held_out")
    rows = list(itertools.islice(stream.examples, 7))
    programs = load_split().held_out[:3]
    assert [row.task for row in rows] == [programs[i // 3].instruction for i in range(7)]
    pairs = [pair for program in programs for pair in make_examples(program, 0, 3, "eval")][:7]
    decode = stream.vocabulary.decode
    assert [(decode(row.example.inputs), decode(row.example.targets)) for row in rows] == pairs
    assert decode(rows[0].info.definition) == programs[0].instruction
    task = seqio.TaskRegistry.get("strings_held_out")
    assert task.num_input_examples("held_out") == 3 * len(load_split().held_out)


@pytest.mark.usefixtures("seqio_registries")
def test_a_shuffled_seqio_task_mixes_all_its_tasks():
    """In its files' order seqio's shuffle buffer of 1,000 examples would hold 50 tasks of 20 examples each."""
    seqio = pytest.importorskip("seqio", reason="seqio is not installed: pip install 'hyperflax[seqio]'")
    seqio_tasks.register_strings(examples=20)
    source = seqio.TaskRegistry.get("strings_held_out").source
    rows = len(load_split().held_out) * 20

    def read(seed: int, epochs: int = 1) -> list[bytes]:
        dataset = source.get_dataset("held_out", shuffle=True, seed=seed).repeat(epochs)
        return [row["task"] + row["inputs_pretokenized"] for row in dataset.as_numpy_iterator()]

    first = read(0, epochs=2)
    names = {program.instruction.encode() for program in load_split().held_out}
    met = {name for name in names if any(row.startswith(name) for row in first[:256])}
    assert len(met) > 150  # of 600; 256 draws meet 208
    once, again = first[:rows], first[rows:]
    assert sorted(once) == sorted(again) == sorted(read(1))
    assert once != again
    assert once == read(0)


@pytest.mark.usefixtures("registered")
def test_hand_written_tasks_keep_their_support_apart():
    source = registry.load_source("strings_handwritten", "test")
    assert len(source.task_names) == 30
    decode = Bytes().decode
    for number, task in enumerate(load_handwritten()):
        info = source.info(number)
        assert tuple((decode(e.inputs), decode(e.targets)) for e in info.positives) == task.support
        scored = source.examples(number, range(int(source.sizes[number])))
        assert tuple((decode(e.inputs), decode(e.targets)) for e in scored) == task.test
        assert not {x for x, _ in task.support} & {x for x, _ in task.test}
