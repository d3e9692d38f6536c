"""The seqio Task over a data set that TFDS itself has written: three documents in the shape of C4's."""

from __future__ import annotations

import itertools

import pytest

pytest.importorskip("seqio", reason="seqio is not installed: pip install 'hyperflax[seqio]'")
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from hyperflax.data import registry
from hyperflax.data.hyperpretraining import CACLM
from hyperflax.data.seqio_source import list_seqio, load_seqio, read_seqio
from hyperflax.data.vocabularies import Bytes
from hyperflax.errors import ConfigError, DataError
from hyperflax_tasks import c4

TEXTS = {"train": [f"document {i}: ### Ünïcode\nand a second line" for i in range(200)], "validation": ["held out"]}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its name; seqio looks for it where T5X's --tfds_data_dir would have it look."""
    folder = tmp_path_factory.mktemp("tfds")
    place = folder / "tiny_c4" / "1.0.0"
    place.mkdir(parents=True)
    other = dict.fromkeys(("timestamp", "url", "content-length", "content-type"), "")
    features = tfds.features.FeaturesDict({name: tfds.features.Text() for name in ("text", *other)})
    for split, texts in TEXTS.items():
        with tf.io.TFRecordWriter(str(place / f"tiny_c4-{split}.tfrecord-00000-of-00001")) as file:
            for text in texts:
                file.write(features.serialize_example({"text": text, **other}))
    tfds.folder_dataset.write_metadata(
        data_dir=place,
        features=features,
        split_infos=[
            tfds.core.SplitInfo(name=n, shard_lengths=[len(texts)], num_bytes=1) for n, texts in TEXTS.items()
        ],
        filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    )
    seqio.set_tfds_data_dir_override(str(folder))
    yield "tiny_c4:1.0.0"
    seqio.set_tfds_data_dir_override(None)
    if c4.NAME in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(c4.NAME)


def test_documents_are_the_targets_of_one_task(tiny: str) -> None:
    c4.register(tiny, "train", Bytes())
    rows = list(read_seqio("c4", "train").examples)
    assert {row.task for row in rows} == {"c4"}
    assert all(len(row.example.inputs) == 0 for row in rows)
    assert sorted(Bytes().decode(row.example.targets) for row in rows) == sorted(TEXTS["train"])
    (held,) = read_seqio("c4", "validation").examples
    assert Bytes().decode(held.example.targets) == "held out"
    counts = {split: count for name, split, _, _, count, _ in list_seqio() if name == "c4"}
    assert counts == {"train": 200, "validation": 1}


def test_a_part_of_the_training_split_in_order_and_shuffled(tiny: str) -> None:
    c4.register(tiny, "train[:10%]", Bytes())
    first = [Bytes().decode(row.example.targets) for row in read_seqio("c4", "train").examples]
    assert len(first) == 20
    task = seqio.TaskRegistry.get("c4")
    rows = task.get_dataset({"inputs": 4, "targets": 200}, "train", shuffle=True, seed=0).as_numpy_iterator()
    shuffled = [row["targets_pretokenized"].decode() for row in itertools.islice(rows, 20)]
    assert sorted(shuffled) == sorted(first)
    assert shuffled != first


def test_a_run_names_it_as_any_other_mixture(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERFLAX_C4", tiny)
    monkeypatch.setenv("HYPERFLAX_C4_TRAIN", "train[50%:]")
    monkeypatch.setattr(c4, "find_vocabulary", lambda given: given or Bytes())
    monkeypatch.setattr(registry, "_REGISTERED", registry._REGISTERED - {"hyperflax_tasks.c4"})
    source = registry.load_source("c4", "train", module="hyperflax_tasks.c4", vocabulary=Bytes())
    assert source.sizes.tolist() == [100]
    batch = CACLM(source, 2, length=32, shortest=4, support_length=26, inputs_length=16, targets_length=12).batch(0)
    assert batch["support_tokens"].any()
    monkeypatch.undo()
    monkeypatch.delenv("HYPERFLAX_VOCABULARY", raising=False)
    with pytest.raises(ConfigError, match="HYPERFLAX_VOCABULARY"):
        c4.register(tiny)
    with pytest.raises(DataError, match="expected a split out of"):
        load_seqio("c4", "test")
