"""Plain text: shards of documents, a fixed validation share, bad lines named."""

from __future__ import annotations

import gzip
import json
import re
import shlex

import gin
import pytest

from hyperflax.cli.main import main
from hyperflax.data import registry
from hyperflax.data.examples import InMemorySource
from hyperflax.data.hyperpretraining import CACLM
from hyperflax.data.vocabularies import Bytes
from hyperflax.errors import ConfigError, DataError
from hyperflax_tasks import c4, corpus, metaicl, natural_instructions, p3, seqio_tasks
from tests.gin_runs import made, parse


@pytest.fixture
def shards(tmp_path):
    for shard in range(2):
        rows = [{"text": f"document {shard * 150 + i}"} for i in range(150)]
        (tmp_path / f"docs-{shard:05d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_every_hundredth_document_is_for_validation(shards) -> None:
    corpus.register(shards, Bytes())
    try:
        train, validation = (registry.load_source("text", split) for split in ("train", "validation"))
    finally:
        registry.unregister_source("text")
    decode = Bytes().decode
    texts = [decode(validation.example(0, i).targets) for i in range(int(validation.sizes[0]))]
    assert texts == ["document 99", "document 199", "document 299"]
    assert train.sizes.tolist() == [297]
    assert all(len(train.example(0, i).inputs) == 0 for i in range(297))


@pytest.mark.parametrize(("documents", "split"), [(99, "validation"), (0, "train")])
def test_too_few_documents_for_a_split_are_told_with_the_rule(tmp_path, documents, split) -> None:
    (tmp_path / "docs.jsonl").write_text(documents * '{"text": "a"}\n')
    told = rf"^{tmp_path}: expected documents for the split '{split}' \(every 100th is .*, found {documents} in all$"
    with pytest.raises(DataError, match=told):
        corpus.text_source(tmp_path, split, Bytes())


def test_shards_may_be_compressed_and_called_json(shards) -> None:
    whole = corpus.text_source(shards, "train", Bytes())
    first, second = sorted(shards.glob("*.jsonl"))
    with gzip.open(shards / f"{first.stem}.json.gz", "wb") as file:  # c4-train.00000-of-01024.json.gz
        file.write(first.read_bytes())
    first.unlink()
    second.rename(second.with_suffix(".json"))
    found = corpus.text_source(shards, "train", Bytes())
    assert found.sizes.tolist() == whole.sizes.tolist()
    for number in (0, 100, 296):
        assert found.example(0, number).targets.tolist() == whole.example(0, number).targets.tolist()


def test_a_run_trains_and_validates_on_the_caches_of_the_shown_commands(tmp_path, monkeypatch) -> None:
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps({"text": f"{i:0100}"}) + "\n" for i in range(200)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYPERFLAX_TEXT", str(tmp_path))
    monkeypatch.setattr(corpus, "find_vocabulary", lambda given: given or Bytes())
    monkeypatch.setattr(registry, "_REGISTERED", registry._REGISTERED - {"hyperflax_tasks.corpus"})
    monkeypatch.setattr(registry, "_SOURCES", dict(registry._SOURCES))
    monkeypatch.setattr(InMemorySource, "__init__", lambda *given, **more: pytest.fail("it is held in memory"))
    shown = re.findall(r"^hyperflax (cache .*)", corpus.__doc__, re.MULTILINE)
    assert [line.replace("corpus", "c4").replace("text", "c4") for line in shown] == re.findall(
        r"^hyperflax (cache .*)", c4.__doc__, re.MULTILINE
    )
    assert [main(shlex.split(command)) for command in shown] == [0, 0]
    parse("runs/hyperpretraining.gin")
    with gin.unlock_config():
        gin.parse_config("MIXTURE_OR_TASK_NAME = 'caches/text'\nMIXTURE_OR_TASK_MODULE = None")
        gin.bind_parameter("hyperflax.data.registry.load_source.vocabulary", None)
    job = gin.get_bindings("hyperflax.train.train", resolve_references=False)
    for part, documents in (("batches", 198), ("validation", 2)):
        batches = made(job[part])
        assert batches.source.sizes.tolist() == [documents]
        assert batches.batch(0)["support_tokens"].any()


@pytest.mark.usefixtures("seqio_registries")
def test_the_seqio_tasks_hold_the_same_documents(shards, monkeypatch) -> None:
    seqio = pytest.importorskip("seqio", reason="seqio is not installed: pip install 'hyperflax[seqio]'")
    from hyperflax.data.seqio_source import load_seqio

    for suite in (metaicl, natural_instructions, p3):
        monkeypatch.delenv(suite.ROOT_VARIABLE, raising=False)
    monkeypatch.setenv("HYPERFLAX_TEXT", str(shards))
    monkeypatch.delenv("HYPERFLAX_VOCABULARY", raising=False)
    monkeypatch.setattr(natural_instructions, "find_vocabulary", lambda given: given or Bytes())
    seqio_tasks.register()
    assert "text_train" not in seqio.TaskRegistry.names()  # nor is "strings" lost for want of a vocabulary
    assert "strings_train" in seqio.TaskRegistry.names()
    seqio_tasks.register_text()
    for split, number in (("train", 297), ("validation", 3)):
        found, expected = load_seqio(f"text_{split}", split), corpus.text_source(shards, split, Bytes())
        assert found.sizes.tolist() == expected.sizes.tolist() == [number]
        for index in range(number):
            inputs, targets, *_ = found.example(0, index)
            assert (inputs.tolist(), targets.tolist()) == ([], expected.example(0, index).targets.tolist())
        assert seqio.TaskRegistry.get(f"text_{split}").num_input_examples(split) is None  # it is not read to be listed
        lengths = {"length": 8, "shortest": 1, "support_length": 8, "inputs_length": 8, "targets_length": 8}
        assert CACLM(found, 2, **lengths).batch(0)["decoder_loss_weights"].any()


@pytest.mark.parametrize("kept", [slice(40), slice(-4), slice(200, None)], ids=["half", "no size", "no header"])
def test_a_broken_compressed_shard_is_named(tmp_path, kept) -> None:
    whole = gzip.compress("".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(300)).encode())
    (tmp_path / "docs.json.gz").write_bytes(whole[kept])
    with pytest.raises(DataError, match=r"docs\.json\.gz: expected a shard of documents, cannot read it \("):
        corpus.text_source(tmp_path, "train", Bytes())


def test_bad_text_is_named(shards, tmp_path, monkeypatch) -> None:
    with open(shards / "docs-00001.jsonl", "a") as file:
        file.write('{"txt": "misspelt"}\n')
    with pytest.raises(DataError, match=r"docs-00001\.jsonl:151: expected a string 'text'"):
        corpus.text_source(shards, "train", Bytes())
    (shards / "docs-00001.jsonl").write_text('{"text": "half a pair \\ud83d"}\n')
    with pytest.raises(DataError, match=r"docs-00001\.jsonl:1: expected Unicode text in 'text', got '.ud83d'"):
        corpus.text_source(shards, "train", Bytes())
    with pytest.raises(DataError, match="expected a split"):
        corpus.text_source(shards, "test", Bytes())
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found none"):
        corpus.text_source(tmp_path / "empty", "train", Bytes())
    monkeypatch.delenv("HYPERFLAX_TEXT", raising=False)
    with pytest.raises(ConfigError, match="HYPERFLAX_TEXT"):
        corpus.register()
