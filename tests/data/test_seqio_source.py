"""seqio Tasks and Mixtures as sources: same ids as seqio, same episodes as every other way."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Callable

import numpy as np
import pytest

from hyperflax.data import commands, registry
from hyperflax.data.cache_source import CachedSource
from hyperflax.data.episodes import EpisodeConfig, Episodes
from hyperflax.data.examples import ExampleSource
from hyperflax.data.seqio_source import convert_vocabulary, list_seqio, load_seqio
from hyperflax.data.vocabularies import Bytes, SentencePiece
from hyperflax.errors import DataError
from hyperflax_tasks import natural_instructions as ni
from hyperflax_tasks import seqio_tasks
from hyperflax_tasks.text_task import add_text_task

seqio = pytest.importorskip("seqio", reason="seqio is not installed: pip install 'hyperflax[seqio]'")
tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed: pip install 'hyperflax[seqio]'")

CONFIG = EpisodeConfig(tasks_per_batch=4, shots=2, examples=2, support_length=64)


@pytest.fixture
def model(data_dir: pathlib.Path) -> str:
    return str(data_dir / "vocab" / "spiece.model")


def add(
    name: str,
    rows: list[dict[str, object]],
    vocabulary: object,
    copy_pretokenized: bool = True,
    splits: tuple[str, ...] = ("train",),
    sized: bool = True,
    first: Callable[[tf.data.Dataset], tf.data.Dataset] = lambda dataset: dataset,
    **feature: object,
) -> None:
    """A Task as T5 users write it: strings from somewhere, tokenised by seqio, end of sequence appended."""

    def dataset_fn(split: str, shuffle_files: bool) -> tf.data.Dataset:
        del split, shuffle_files
        return tf.data.Dataset.from_tensor_slices({key: [row[key] for row in rows] for key in rows[0]})

    features = {key: seqio.Feature(vocabulary=vocabulary, **feature) for key in ("inputs", "targets")}
    sizes = dict.fromkeys(splits, len(rows)) if sized else None
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(dataset_fn, splits=splits, num_input_examples=sizes),
        preprocessors=[
            first,
            functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=copy_pretokenized),
            seqio.preprocessors.append_eos,
        ],
        output_features=features,
    )


def pairs(letter: str, count: int = 9) -> list[dict[str, object]]:
    return [{"inputs": f"{letter} {i} is small", "targets": f"{letter.upper()}{i}"} for i in range(count)]


TEXTS = [
    "The house is wonderful.",
    "",
    "Ünïcode — “quotes” ﬁ",
    "a  b\tc\nd",
    "<extra_id_0> x <extra_id_7>",
    "##",
    "1,234",
]


@pytest.mark.parametrize("extra_ids", [0, 100])
def test_sentencepiece_ids_are_seqios(model: str, extra_ids: int) -> None:
    theirs, ours = seqio.SentencePieceVocabulary(model, extra_ids=extra_ids), SentencePiece(model, extra_ids=extra_ids)
    assert ours.vocab_size == theirs.vocab_size
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == list(theirs.encode(text))
        assert ours.decode([*ids, 1, 5]) == theirs.decode([*ids, 1, 5])
    assert ours.decode([5, 99_999, 6]) == theirs.decode([5, 99_999, 6])
    if extra_ids:
        assert convert_vocabulary(theirs) == ours


def test_byte_ids_are_seqios() -> None:
    theirs, ours = seqio.ByteVocabulary(extra_ids=125), Bytes()
    assert ours.vocab_size == theirs.vocab_size == 384
    for text in TEXTS:
        assert ours.encode(text) == list(theirs.encode(text))
    for ids in ([100, 383, 101, 1, 102], [0, 2, 200], [0xC3 + 3]):
        assert ours.decode(ids) == theirs.decode(ids)
    assert convert_vocabulary(theirs) == ours


@pytest.mark.usefixtures("seqio_registries")
def test_an_existing_t5_task_is_one_task(model: str) -> None:
    add("plain_t5", pairs("a"), seqio.SentencePieceVocabulary(model, extra_ids=100))
    source, t5 = load_seqio("plain_t5"), SentencePiece(model)
    assert source.task_names == ("plain_t5",)
    assert source.example(0, 3).inputs.tolist() == t5.encode("a 3 is small")  # in file order, without end of sequence
    assert source.example(0, 3).targets.tolist() == t5.encode("A3")
    assert registry.load_source("plain_t5").sizes.tolist() == [9]
    assert ("plain_t5", "train", "seqio task", None, 9, "") in list_seqio()


@pytest.mark.usefixtures("seqio_registries")
def test_without_end_of_sequence_nothing_is_stripped() -> None:
    vocabulary = seqio.PassThroughVocabulary(size=99)
    with pytest.raises(DataError, match="expected a SentencePieceVocabulary or ByteVocabulary, got PassThrough"):
        convert_vocabulary(vocabulary)
    add("no_eos", pairs("a"), seqio.ByteVocabulary(extra_ids=125), add_eos=False)
    assert load_seqio("no_eos").example(0, 0).targets.tolist() == Bytes().encode("A0")


@pytest.mark.usefixtures("seqio_registries")
def test_a_task_feature_makes_many_tasks() -> None:
    rows = [{**row, "task": f"t{i % 2}", "definition": f"do {i % 2}"} for i, row in enumerate(pairs("a", 8))]
    add("many", rows, seqio.ByteVocabulary(extra_ids=125))
    source = load_seqio("many")
    assert source.task_names == ("t0", "t1")
    assert source.sizes.tolist() == [4, 4]
    assert Bytes().decode(source.info(1).definition) == "do 1"
    assert Bytes().decode(source.example(1, 1).inputs) == "a 3 is small"


@pytest.mark.usefixtures("seqio_registries")
@pytest.mark.parametrize("copied", [True, False])
def test_the_target_is_an_accepted_answer_beside_the_references(copied: bool) -> None:
    rows = [{**row, "references": ["A1", "one"]} for row in pairs("a", 3)]
    add("answers", rows, seqio.ByteVocabulary(extra_ids=125), copy_pretokenized=copied)
    source = load_seqio("answers")
    assert source.example(0, 0).references == ("A0", "A1", "one")
    assert source.example(0, 1).references == ("A1", "one")


@pytest.mark.usefixtures("seqio_registries")
def test_a_mixture_keeps_its_rates_and_its_tasks_their_names(tmp_path: pathlib.Path) -> None:
    vocabulary = seqio.ByteVocabulary(extra_ids=125)
    add("mix_a", pairs("a"), vocabulary)
    add("mix_b", [{**row, "task": "inner"} for row in pairs("b")], vocabulary)
    seqio.MixtureRegistry.add("mix", [("mix_a", 1.0), ("mix_b", 3)])
    source = load_seqio("mix")
    assert source.task_names == ("mix_a", "mix_b/inner")
    assert [source.info(task).own_name for task in (0, 1)] == ["", "inner"]
    commands.cache_mixture("mix", tmp_path / "cache")
    assert CachedSource(tmp_path / "cache").info(1).own_name == "inner"
    earlier = (tasks := tmp_path / "cache" / "tasks.jsonl").read_text().replace(', "own_name": "inner"', "")
    (manifest := tmp_path / "cache" / "manifest.json").write_text(
        manifest.read_text().replace(f'"bytes": {tasks.stat().st_size}', f'"bytes": {len(earlier)}')
    )
    tasks.write_text(earlier)
    assert [CachedSource(tmp_path / "cache").info(task).own_name for task in (0, 1)] == ["", "inner"]
    assert source.groups.tolist() == [0, 1]
    assert source.group_rates.tolist() == [1.0, 3.0]
    assert Episodes(source, CONFIG).plan.cumulative.tolist() == [0.25, 1.0]
    assert ("mix", "train", "seqio mixture", None, 18, "2 seqio Tasks") in list_seqio()


@pytest.mark.usefixtures("seqio_registries")
def test_rates_by_size_need_sizes() -> None:
    vocabulary = seqio.ByteVocabulary(extra_ids=125)
    add("told", pairs("a"), vocabulary)
    add("not_told", pairs("b"), vocabulary, sized=False)
    rate = functools.partial(seqio.mixing_rate_num_examples, scale=2.0)
    seqio.MixtureRegistry.add("by_size", ["told"], default_rate=rate)
    assert load_seqio("by_size").group_rates.tolist() == [18.0]
    seqio.MixtureRegistry.add("by_no_size", ["told", "not_told"], default_rate=rate)
    told = r"seqio Mixture 'by_no_size': expected the rate of Task 'not_told' .*needs num_input_examples"
    with pytest.raises(DataError, match=told):
        load_seqio("by_no_size")


@pytest.mark.usefixtures("seqio_registries")
def test_a_mixture_s_split_is_of_the_tasks_that_have_it(caplog: pytest.LogCaptureFixture) -> None:
    """As in seqio, and as it is listed."""
    vocabulary = seqio.ByteVocabulary(extra_ids=125)
    for name, splits in {"with_both": ("train", "validation"), "with_one": ("train",)}.items():
        add(name, pairs("a"), vocabulary, splits=splits)
    seqio.MixtureRegistry.add("uneven_splits", [("with_one", 1.0), ("with_both", 3.0)])
    assert ("uneven_splits", "validation", "seqio mixture", None, 9, "2 seqio Tasks") in list_seqio()
    assert load_seqio("uneven_splits").task_names == ("with_both", "with_one")
    assert not caplog.messages
    source = load_seqio("uneven_splits", "validation")
    assert (source.task_names, source.group_rates.tolist()) == (("with_both",), [3.0])
    assert caplog.messages == ["seqio Mixture 'uneven_splits': left out, without a split 'validation': with_one"]
    told = r"seqio Mixture 'uneven_splits': expected a split out of \['train', 'validation'\], got 'test'"
    with pytest.raises(DataError, match=told):
        load_seqio("uneven_splits", "test")


@pytest.mark.usefixtures("seqio_registries")
def test_a_task_whose_data_is_not_there_is_listed_without_a_number(tmp_path: pathlib.Path) -> None:
    features = {key: seqio.Feature(vocabulary=seqio.ByteVocabulary(extra_ids=125)) for key in ("inputs", "targets")}
    source = seqio.TfdsDataSource("c4/en:3.1.0", splits=["train"], tfds_data_dir=str(tmp_path))
    seqio.TaskRegistry.add("not_prepared", source=source, preprocessors=[], output_features=features)
    add("at_hand", pairs("a"), seqio.ByteVocabulary(extra_ids=125))
    seqio.MixtureRegistry.add("both", [("not_prepared", 1.0), ("at_hand", 1.0)])
    rows = list_seqio()
    assert ("not_prepared", "train", "seqio task", None, None, "") in rows
    assert ("at_hand", "train", "seqio task", None, 9, "") in rows
    assert ("both", "train", "seqio mixture", None, None, "2 seqio Tasks") in rows


@pytest.mark.usefixtures("seqio_registries")
def test_what_a_source_counts_itself_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """To count, a class of somebody's own may read everything; numbers that it was given are free."""

    class Counting(seqio.FunctionDataSource):
        def num_input_examples(self, split: str) -> int:
            return pytest.fail("a listing reads nothing")

    class Told(seqio.FunctionDataSource):
        pass

    features = {key: seqio.Feature(vocabulary=seqio.ByteVocabulary(extra_ids=125)) for key in ("inputs", "targets")}
    for kind in (Counting, Told):
        source = kind(lambda split, shuffle_files: None, splits=["train"], num_input_examples={"train": 7})
        name = f"counts_{kind.__name__}"
        seqio.TaskRegistry.add(name, source=source, preprocessors=[], output_features=features)
    rows = {name: examples for name, *_, examples, _ in list_seqio() if name.startswith("counts_")}
    assert rows == {"counts_Counting": None, "counts_Told": 7}


def add_cached(name: str, rows: list[dict[str, object]]) -> None:
    """A Task that seqio reads from its cache alone, as those have it whose preprocessing takes long."""

    def never(dataset: tf.data.Dataset) -> tf.data.Dataset:
        return dataset.map(lambda row: {**row, "targets": "not from the cache"})

    features = {key: seqio.Feature(vocabulary=seqio.ByteVocabulary(extra_ids=125)) for key in ("inputs", "targets")}
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files: tf.data.Dataset.from_tensor_slices({k: [r[k] for r in rows] for k in rows[0]}),
        splits=["train"],
    )
    preprocessors = [never, seqio.preprocessors.tokenize, seqio.CacheDatasetPlaceholder(required=True)]
    seqio.TaskRegistry.add(
        name, source=source, preprocessors=[*preprocessors, seqio.preprocessors.append_eos], output_features=features
    )


@pytest.mark.usefixtures("seqio_registries")
def test_a_task_that_must_be_cached_is_read_from_its_cache(tmp_path: pathlib.Path) -> None:
    add_cached("must_be_cached", pairs("a", 2))
    folder = tmp_path / "caches" / "must_be_cached"
    before = list(seqio.utils.get_global_cache_dirs())
    seqio.set_global_cache_dirs([str(tmp_path / "caches")])
    try:
        told = rf"seqio Task 'must_be_cached': expected its cache, which it requires, in one of \['{folder.parent}'\]"
        with pytest.raises(DataError, match=told):
            load_seqio("must_be_cached")
        folder.mkdir(parents=True)
        with tf.io.TFRecordWriter(str(folder / "train.tfrecord-00000-of-00001")) as writer:
            for row in pairs("b", 2):
                ids = {key: Bytes().encode(str(row[key])) for key in ("inputs", "targets")}
                lists = {key: tf.train.Feature(int64_list=tf.train.Int64List(value=ids[key])) for key in ids}
                writer.write(tf.train.Example(features=tf.train.Features(feature=lists)).SerializeToString())
        kinds = {key: {"dtype": "int32", "shape": [None]} for key in ("inputs", "targets")}
        (folder / "info.train.json").write_text(json.dumps({"num_shards": 1, "features": kinds, "seqio_version": "0"}))
        (folder / "stats.train.json").write_text(json.dumps({"examples": 2}))
        (folder / "COMPLETED").write_text("")
        source = load_seqio("must_be_cached")
    finally:
        seqio.set_global_cache_dirs(before)
    assert [Bytes().decode(e.targets.tolist()) for e in source.examples(0, range(2))] == ["B0", "B1"]


@pytest.mark.usefixtures("seqio_registries")
def test_what_cannot_be_read_is_named(model: str) -> None:
    add("bytes_task", pairs("a"), seqio.ByteVocabulary())
    with pytest.raises(DataError, match=r"seqio Task 'bytes_task': expected a split out of \['train'\], got 'test'"):
        load_seqio("bytes_task", "test")
    add("filtered", pairs("a"), seqio.ByteVocabulary(extra_ids=125), first=lambda dataset: dataset.take(0))
    with pytest.raises(DataError, match="'filtered', split 'train': expected at least one example, seqio gives none"):
        load_seqio("filtered")
    more = {"positive_inputs": ["x", "y"], "positive_targets": ["X"]}
    add("uneven", [{**row, **more} for row in pairs("a")], seqio.ByteVocabulary(extra_ids=125))
    told = r"seqio Task 'uneven', example 0: expected as many positive_targets as positive_inputs, 2, got 1"
    with pytest.raises(DataError, match=told):
        load_seqio("uneven")
    for feature, value, kind in (("references", "one", "a list of strings, got b'one'"),
                                 ("options", "one", "a list of strings, got b'one'"),
                                 ("data_sets", "p3/rte", "a list of strings, got b'p3/rte'"),
                                 ("positive_inputs", "x", "a list of strings, got b'x'"),
                                 ("definition", ["a", "b"], r"a string, got an array of shape \(2,\)"),
                                 ("task", ["a"], r"a string, got an array of shape \(1,\)")):  # fmt: skip
        add(f"bad_{feature}", [{**row, feature: value} for row in pairs("a")], seqio.ByteVocabulary(extra_ids=125))
        with pytest.raises(
            DataError, match=f"seqio Task 'bad_{feature}', example 0: expected '{feature}' to be {kind}"
        ):
            load_seqio(f"bad_{feature}")
    told = r"'no_such_task': expected a token cache's folder, one of \[.*\] or a registered seqio Task"
    with pytest.raises(DataError, match=told):
        load_seqio("no_such_task")
    features = {
        "inputs": seqio.Feature(vocabulary=seqio.ByteVocabulary()),
        "targets": seqio.Feature(vocabulary=seqio.SentencePieceVocabulary(model)),
    }
    task = seqio.TaskRegistry.get("bytes_task")
    seqio.TaskRegistry.add("two", source=task.source, preprocessors=task.preprocessors, output_features=features)
    with pytest.raises(DataError, match=r"seqio Tasks \['two'\]: expected one vocabulary"):
        load_seqio("two")


@pytest.mark.usefixtures("seqio_registries")
def test_a_vocabulary_without_sentinels_is_refused(model: str) -> None:
    for vocabulary in (seqio.ByteVocabulary(), seqio.SentencePieceVocabulary(model)):
        kind = type(vocabulary).__name__
        add(f"bare_{kind}", pairs("a"), vocabulary)
        message = rf"seqio Task 'bare_{kind}': expected at least 2 extra ids.* got 0; .*{kind}\(\.\.\., extra_ids=100\)"
        with pytest.raises(DataError, match=message):
            load_seqio(f"bare_{kind}")


def add_noisy(name: str, source: object) -> None:
    """A Task with a preprocessor that draws: every target is a random number."""

    @seqio.map_over_dataset(num_seeds=1)
    def noise(example: dict[str, tf.Tensor], seed: tf.Tensor) -> dict[str, tf.Tensor]:
        number = tf.random.stateless_uniform([], seed, 0, 10**9, tf.int32)
        return {"inputs": example["inputs"], "targets": tf.strings.as_string(number)}

    features = {key: seqio.Feature(vocabulary=seqio.ByteVocabulary(extra_ids=125)) for key in ("inputs", "targets")}
    preprocessors = [noise, seqio.preprocessors.tokenize, seqio.preprocessors.append_eos]
    seqio.TaskRegistry.add(name, source=source, preprocessors=preprocessors, output_features=features)


def targets(source: ExampleSource) -> list[str]:
    return [source.vocabulary.decode(example.targets.tolist()) for example in source.examples(0, range(3))]


@pytest.mark.usefixtures("seqio_registries")
def test_a_seed_fixes_what_preprocessors_draw(tmp_path: pathlib.Path) -> None:
    """Two loads are one, and so is a cache, which says with which seed it was written."""
    lines = tmp_path / "lines.txt"
    lines.write_text("a\nb\nc\n")

    def read(path: str) -> tf.data.Dataset:
        return tf.data.TextLineDataset(path).map(lambda line: {"inputs": line})

    add_noisy("noisy", seqio.FileDataSource(read, {"train": str(lines)}))
    first = targets(registry.load_source("noisy"))
    assert len(set(first)) == 3
    assert first == targets(registry.load_source("noisy"))
    assert first != targets(registry.load_source("noisy", seed=1))
    manifest = commands.cache_mixture("noisy", tmp_path / "cache", seed=1)
    assert manifest["origin"] == {"mixture": "noisy", "split": "train", "modules": [], "seed": 1}
    assert targets(CachedSource(tmp_path / "cache")) == targets(registry.load_source("noisy", seed=1))


@pytest.mark.usefixtures("seqio_registries")
@pytest.mark.parametrize("takes", [False, True])
def test_a_function_is_given_a_seed_if_it_takes_one(takes: bool) -> None:
    given = []

    def plain(split: str, shuffle_files: bool) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices({"inputs": ["a", "b", "c"]})

    def seeded(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        given.append(seed)
        return plain(split, shuffle_files)

    add_noisy("function", seqio.FunctionDataSource(seeded if takes else plain, splits=["train"]))
    found = [targets(registry.load_source("function", seed=seed)) for seed in (3, 3)]
    assert given == ([3, 3] if takes else [])
    assert (found[0] == found[1]) is takes


def assert_same_episodes(*sources: ExampleSource, config: EpisodeConfig) -> None:
    for step in (0, 5):
        first, *others = [Episodes(source, config, seed=2).batch(step) for source in sources]
        for other in others:
            for key, value in first.items():
                np.testing.assert_array_equal(value, other[key])


@pytest.mark.usefixtures("seqio_registries")
def test_seqio_and_its_cache_give_the_same_episodes(tmp_path: pathlib.Path) -> None:
    rows = [{**row, "task": f"t{i % 3}", "category": "c"} for i, row in enumerate(pairs("a", 30))]
    add("to_cache", rows, seqio.ByteVocabulary(extra_ids=125))
    manifest = commands.cache_mixture("to_cache", tmp_path / "cache")
    assert (manifest["num_tasks"], manifest["num_examples"]) == (3, 30)
    cached = CachedSource(tmp_path / "cache", verify=True)
    assert cached.info(2).category == "c"
    assert_same_episodes(load_seqio("to_cache"), cached, config=CONFIG)


@pytest.mark.usefixtures("seqio_registries")
def test_natural_instructions_as_seqio_tasks_and_without_seqio_agree(materialised: pathlib.Path, tmp_path) -> None:
    """Some real tasks, definition and positives included; "##" is what sentencepiece releases disagree about."""
    real, root = materialised / "natural-instructions", tmp_path / "ni"
    (root / "splits" / "default").mkdir(parents=True)
    (root / "tasks").mkdir()
    names = [path.stem for path in ni.task_files(real, "train")[::90]]
    for split in ni.SPLITS:
        (root / f"splits/default/{split}_tasks.txt").write_text("\n".join(names))
    for name in names:
        row = json.loads((real / "tasks" / f"{name}.json").read_text())
        row["Instances"] = row["Instances"][:30]
        row["Instances"][0]["input"] += " ### !!!!!!"
        (root / "tasks" / f"{name}.json").write_text(json.dumps(row))
    t5 = SentencePiece(materialised / "vocab" / "spiece.model")
    seqio_tasks.register_natural_instructions(root, t5)
    assert seqio.TaskRegistry.get("natural_instructions_train").num_input_examples("train") == 30 * len(names)
    ours = ni.natural_instructions_source(root, "train", t5)
    theirs = load_seqio("natural_instructions_train")
    config = EpisodeConfig(
        tasks_per_batch=8,
        shots=2,
        examples=2,
        support_length=1024,
        inputs_length=768,
        targets_length=128,
        support_layout="joint",
        definition="both",
        positives="support",
        too_long="truncate",
    )
    assert_same_episodes(ours, theirs, config=config)
    for task in range(len(names)):
        assert [e.references for e in ours.examples(task, range(30))] == [
            e.references for e in theirs.examples(task, range(30))
        ]
        assert (theirs.info(task).category, len(theirs.info(task).positives)) == (
            ours.info(task).category,
            len(ours.info(task).positives),
        )
        assert theirs.info(task).data_sets == ours.info(task).data_sets
    assert sum(len(ours.info(task).data_sets) for task in range(len(names))) > 0


@pytest.mark.usefixtures("seqio_registries")
def test_a_registered_text_task_feeds_t5x_as_any_other() -> None:
    """seqio's own converter accepts it: token ids with end of sequence, the features that T5X expects."""
    rows = [{"inputs": "ab", "targets": "c", "task": "t"}]
    add_text_task("texts", "train", lambda: iter(rows), lambda: 1, Bytes(), ("task",))
    lengths = {"inputs": 4, "targets": 3}
    dataset = seqio.get_mixture_or_task("texts").get_dataset(lengths, split="train", shuffle=False)
    batch = next(seqio.EncDecFeatureConverter(pack=False)(dataset, task_feature_lengths=lengths).as_numpy_iterator())
    assert batch["encoder_input_tokens"].tolist() == [100, 101, 1, 0]
    assert batch["decoder_target_tokens"].tolist() == [102, 1, 0]
