"""Token caches: equal arrays, whatever the sharding; and every kind of damage named by file and record."""

from __future__ import annotations

import json
import pathlib
import resource

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflax.data.cache import write_cache
from hyperflax.data.cache_format import decode_record, encode_record
from hyperflax.data.cache_source import CachedSource
from hyperflax.data.episodes import EpisodeConfig, Episodes, evaluation_episode
from hyperflax.data.examples import Example, InMemorySource, StreamedExample, TaskExamples, TaskInfo, stream_of
from hyperflax.data.vocabularies import Bytes, SentencePiece
from hyperflax.errors import CheckpointError, DataError
from hyperflax.training.prefetch import Prefetcher

CONFIG = EpisodeConfig(tasks_per_batch=3, shots=2, examples=3, definition="support", positives="support")


def ids(*values: int) -> np.ndarray:
    return np.asarray(values, np.int32)


@pytest.fixture(scope="module")
def source() -> InMemorySource:
    """Three tasks of 10, 11, 12 examples in two mixture components, with everything that an example can carry."""
    tasks = []
    for task in range(3):
        examples = [
            Example(ids(*range(3, 5 + i)), ids(100 + task, 100 + i), (ids(7), ids(8, 9)), ("é", "b" * i))
            for i in range(10 + task)
        ]
        positives = (Example(ids(60), ids(61), (), ("r",)),)
        info = TaskInfo(ids(50, 51, task + 3), positives, f"category {task}", (f"mine/set {task}", "mine/all"))
        tasks.append(TaskExamples(f"task {task}", examples, info, group=min(task, 1)))
    return InMemorySource(tasks, Bytes(), group_rates=[0.25, 0.75])


@pytest.fixture(params=[4, 100])
def cache(source: InMemorySource, tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> pathlib.Path:
    write_cache(
        stream_of(source), tmp_path / "cache", Bytes(), group_rates=[0.25, 0.75], records_per_shard=request.param
    )
    return tmp_path / "cache"


def assert_equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert value.dtype == b[key].dtype
        np.testing.assert_array_equal(value, b[key])


def test_a_line_ends_at_a_newline_alone(tmp_path: pathlib.Path) -> None:
    """Unicode has further separators of lines, which JSON leaves inside its strings as they are."""
    name = "one\u2028task\x85with\x1cbreaks"
    examples = InMemorySource.from_strings({name: [("a", "b")]}, Bytes())
    write_cache(stream_of(examples), tmp_path / "cache", Bytes())
    assert CachedSource(tmp_path / "cache").task_names == (name,)


arrays = st.lists(st.integers(0, 2**31 - 1), max_size=5).map(lambda values: ids(*values))


@given(st.builds(Example, arrays, arrays, st.lists(arrays, max_size=3).map(tuple), st.lists(st.text()).map(tuple)))
def test_records_round_trip(example: Example) -> None:
    again = decode_record(encode_record(example))
    assert encode_record(again) == encode_record(example)
    assert again.references == example.references
    np.testing.assert_array_equal(again.inputs, example.inputs)
    assert again.inputs.dtype == np.int32


@given(st.binary(max_size=80))
def test_foreign_bytes_are_refused_or_read_consistently(data: bytes) -> None:
    try:
        example = decode_record(data)
    except DataError:
        return
    assert encode_record(example) == data


def test_record_layout_is_as_documented() -> None:
    data = encode_record(Example(ids(5), ids(6, 7), (ids(8),), ("é",)))
    words = np.frombuffer(data[:36], "<u4").tolist()
    assert words == [1, 2, 1, 1, 5, 6, 7, 1, 8]
    assert data[36:] == b"\x02\x00\x00\x00\xc3\xa9"


def test_a_cache_gives_the_arrays_of_its_source(source: InMemorySource, cache: pathlib.Path) -> None:
    cached = CachedSource(cache, verify=True)
    assert cached.task_names == source.task_names
    assert cached.sizes.tolist() == source.sizes.tolist() == [10, 11, 12]
    assert cached.vocabulary == Bytes()
    direct, read = Episodes(source, CONFIG, seed=4), Episodes(cached, CONFIG, seed=4)
    for step in (0, 1, 17):
        assert_equal(direct.batch(step), read.batch(step))
    a = evaluation_episode(source, 1, CONFIG, seed=0, draw=2)
    b = evaluation_episode(cached, 1, CONFIG, seed=0, draw=2)
    assert_equal(a.arrays, b.arrays)
    assert (a.references, a.support, a.scored) == (b.references, b.support, b.scored)
    assert cached.info(2).category == "category 2"
    assert cached.info(2).data_sets == ("mine/set 2", "mine/all")
    assert [option.tolist() for option in cached.example(0, 3).options] == [[7], [8, 9]]


def test_prefetching_changes_nothing(cache: pathlib.Path) -> None:
    episodes = Episodes(CachedSource(cache), CONFIG, seed=1)
    for start in (0, 900, 2, 10**12):
        with Prefetcher(episodes, start=start, stop=start + 4, place=dict) as ahead:
            for step, batch, _ in ahead:
                assert_equal(batch, episodes.batch(step))


def test_interleaved_streams_are_grouped_by_task(tmp_path: pathlib.Path) -> None:
    stream = [StreamedExample("ab"[i % 2], Example(ids(3 + i), ids(4))) for i in range(6)]
    write_cache(stream, tmp_path / "cache", Bytes(), records_per_shard=2)
    cached, direct = CachedSource(tmp_path / "cache"), InMemorySource.from_stream(stream, Bytes())
    for task in range(2):
        expected = [3 + task, 5 + task, 7 + task]
        assert [int(e.inputs[0]) for e in cached.examples(task, range(3))] == expected
        assert [int(e.inputs[0]) for e in direct.examples(task, range(3))] == expected


def test_the_same_examples_make_the_same_manifest(source: InMemorySource, tmp_path: pathlib.Path) -> None:
    first = write_cache(stream_of(source), tmp_path / "a", Bytes(), origin={"mixture": "m"})
    second = write_cache(stream_of(source), tmp_path / "b", Bytes(), origin={"mixture": "m"})
    assert first == second
    assert json.loads((tmp_path / "a" / "manifest.json").read_text()) == first
    assert (first["num_tasks"], first["num_examples"]) == (3, 33)


def test_a_cache_carries_its_sentencepiece_model(data_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    t5 = SentencePiece(data_dir / "vocab" / "spiece.model")
    source = InMemorySource.from_strings({"a": [("The house", "is wonderful.")]}, t5)
    write_cache(stream_of(source), tmp_path / "cache", t5)
    cached = CachedSource(tmp_path / "cache")
    assert cached.vocabulary == t5
    assert cached.vocabulary.decode(cached.example(0, 0).targets) == "is wonderful."


def test_a_failed_write_leaves_nothing(source: InMemorySource, tmp_path: pathlib.Path) -> None:
    def broken():
        yield from stream_of(source)
        raise RuntimeError("the disk of the source is gone")

    with pytest.raises(RuntimeError, match="gone"):
        write_cache(broken(), tmp_path / "cache", Bytes())
    with pytest.raises(DataError, match=f"^{tmp_path / 'cache'}: expected at least one example"):
        write_cache([], tmp_path / "cache", Bytes())
    with pytest.raises(DataError, match=r"task 'a': expected token ids in \[0, 384\), got -2 to 5"):
        write_cache([StreamedExample("a", Example(ids(5, -2), ids(4)))], tmp_path / "cache", Bytes())
    assert list(tmp_path.iterdir()) == []


def test_what_the_system_refuses_is_told_and_nothing_stays(source: InMemorySource, tmp_path: pathlib.Path) -> None:
    """A limit on the size of files stands for a full disk; Python ignores the signal that goes with it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, limits[1]))
    try:
        with pytest.raises(DataError, match=f"^{tmp_path / 'cache'}: not written, .*File too large"):
            write_cache(stream_of(source), tmp_path / "cache", Bytes())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_overwritten(source: InMemorySource, cache: pathlib.Path) -> None:
    with pytest.raises(CheckpointError, match="already exists and is not empty"):
        write_cache(stream_of(source), cache, Bytes())


def damage(path: pathlib.Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(bytes(data))


def test_a_damaged_record_is_named(source: InMemorySource, tmp_path: pathlib.Path) -> None:
    write_cache(stream_of(source), tmp_path / "cache", Bytes())
    path = tmp_path / "cache" / "examples-00000.array_record"
    damage(path, 2000)  # 33 records of about 80 bytes, each behind a header of 40, start at byte 64
    cached = CachedSource(tmp_path / "cache")  # sizes still agree
    everything = [(task, range(int(cached.sizes[task]))) for task in range(3)]
    with pytest.raises(DataError, match=r"examples-00000\.array_record, record \d+: cannot be read"):
        cached.gather(everything)
    damage(path, 2000)
    assert len(CachedSource(tmp_path / "cache").gather(everything)) == 3
    damage(path, 2000)
    with pytest.raises(DataError, match=r"examples-00000\.array_record: expected sha256"):
        CachedSource(tmp_path / "cache", verify=True)


def test_damaged_files_are_named(cache: pathlib.Path) -> None:
    shard = cache / "examples-00000.array_record"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"examples-00000\.array_record: expected \d+ bytes, got \d+"):
        CachedSource(cache)
    shard.unlink()
    with pytest.raises(
        DataError, match=r"examples-00000\.array_record: listed in manifest.json, there is no such file"
    ):
        CachedSource(cache)


def test_wrong_descriptions_are_named(cache: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r"manifest\.json: expected the manifest of a token cache"):
        CachedSource(tmp_path)
    manifest = json.loads((cache / "manifest.json").read_text())
    (cache / "manifest.json").write_text(json.dumps({**manifest, "schema": 99}))
    with pytest.raises(DataError, match=r"expected format 'hyperflax token cache' schema 1, got .* 99"):
        CachedSource(cache)
    (cache / "manifest.json").write_text(json.dumps({**manifest, "num_examples": 3}))
    with pytest.raises(DataError, match=r"index\.npy: expected int32 \(3, 3\), got int32 \(33, 3\)"):
        CachedSource(cache)
    (cache / "manifest.json").write_text(json.dumps(manifest))
    lines = (cache / "tasks.jsonl").read_text()
    (cache / "tasks.jsonl").write_text(lines.replace('"group"', '"grOup"', 2).replace('"grOup"', '"group"', 1))
    with pytest.raises(DataError, match=r"tasks\.jsonl:2: expected a task with name, group"):
        CachedSource(cache)


def test_an_index_outside_the_task_is_named(cache: pathlib.Path) -> None:
    with pytest.raises(DataError, match="task 'task 1': expected indices below 11, got 11"):
        CachedSource(cache).examples(1, [0, 11])
