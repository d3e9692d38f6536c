"""The documentation says what is there: its links lead somewhere, its files exist, its code runs."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import pathlib
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyperflax import trees
from hyperflax.adapters import AdapterSpec, build_spec, check_spec, interpolate, merge
from hyperflax.adapters.diagnostics import diagnostics
from hyperflax.adapters.kinds import KINDS
from hyperflax.adapters.lora import LoRA
from hyperflax.checkpoints.artefacts import Adapter, AdapterMetadata
from hyperflax.checkpoints.peft import write_peft
from hyperflax.checkpoints.t5_directory import save_t5
from hyperflax.data import registry
from hyperflax.data.episodes import EpisodeConfig, Episodes
from hyperflax.data.examples import InMemorySource
from hyperflax.data.vocabularies import Bytes
from hyperflax.errors import AdapterError, CheckpointError, ConfigError, DataError
from hyperflax.hypermodel import HYPERNETWORKS, Hypermodel, HypermodelConfig, load
from hyperflax.hypernets.heads import HeadsConfig
from hyperflax.hypernets.hyper_t5 import initialise_from_t5
from hyperflax.hypernets.protocol import Hypernetwork, SupportReader
from hyperflax.models.t5 import T5
from hyperflax.train import HypernetworkOf, train
from hyperflax.trainables import Trained
from hyperflax.training.optimizers import adamw
from hyperflax.training.partitioning import LOGICAL_RULES, Partitioner
from hyperflax.types import T5Config

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])
BASE = T5Config(
    vocab_size=16, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=12, num_encoder_layers=1, num_decoder_layers=2
)


def blocks(page: str, language: str) -> list[str]:
    text = (REPOSITORY / "docs" / page).read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def guide(request: pytest.FixtureRequest, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The page that the test's parameter names, followed word for word, and of it the last module.

    Each block of Python is one, or the block alone whose number follows a colon, and the first one that of the page's
    "One file", from which the others may import.
    """
    page, *numbers = request.param.split(":")
    text, code = (REPOSITORY / "docs" / page).read_text("utf-8"), blocks(page, "python")
    file = re.search(r"^## .*One file, `(.*)\.py`$", text, re.MULTILINE)
    for number, block in enumerate([code[int(number)] for number in numbers] or code):
        name = file[1].replace("/", ".") if file and number == 0 else f"{page.removesuffix('.md')}_{number}"
        path = tmp_path / f"{name}.py"
        path.write_text(block, "utf-8")
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: pathlib.Path):
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target) and not target.startswith("#"):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_named_files_exist(page: pathlib.Path):
    """`folder/file.ext` in backticks is a file of this repository; the guides' new files are the exception."""
    new = {line for line in page.read_text("utf-8").splitlines() if "One file" in line or "One gin file" in line}
    for path in re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|gin|md|sh|lock))`", page.read_text("utf-8")):
        is_new = any(path in line for line in new) or (page.stem.startswith("add_") and "gin_configs" in path)
        rooms = (REPOSITORY, REPOSITORY / "hyperflax", REPOSITORY / "gin_configs", page.parent)
        assert is_new or any((room / path).exists() for room in rooms), f"{page.name} names {path}"


@pytest.mark.parametrize(
    ("page", "file", "number"),
    [
        ("add_an_adapter_kind.md", "hyperflax/adapters/kinds.py", 0),
        ("add_an_adapter_kind.md", "hyperflax/models/layers.py", 1),
        ("add_a_hypernetwork.md", "hyperflax/hypermodel/config.py", 0),
    ],
)
def test_shown_changes_start_from_the_code(page: str, file: str, number: int):
    source = (REPOSITORY / file).read_text("utf-8").splitlines()
    added = []
    for line in blocks(page, "diff")[number].splitlines():
        if line.startswith("+"):
            added.append(line[1:])
        else:
            assert line[1:] in source, f"{page} expects in {file}: {line[1:]}"
    defined = set(re.findall(r"^(?:class|def) (\w+)", blocks(page, "python")[0], re.MULTILINE))
    used = set(re.findall(r"\w+", " ".join(line for line in added if not line.startswith("from "))))
    imported = [line.partition(" import ")[2].split(", ") for line in added if line.startswith("from ")]
    assert imported == [sorted(used & defined)]


@pytest.mark.parametrize("guide", ["add_an_adapter_kind.md"], indirect=True)
def test_the_guide_s_adapter_kind_works(
    guide: types.ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
):
    monkeypatch.setitem(KINDS, "scaling", guide.Scaling)
    spec = build_spec(guide.Scaling(vectors=2), BASE)
    check_spec(spec, BASE)
    assert AdapterSpec.from_json(spec.to_json()) == spec
    path = "encoder/layers_0/mlp/wi_0"
    assert spec.leaves_of("encoder", 0)[-1].path == f"{path}/scaling/l"
    rng = np.random.default_rng(0)
    adapters = [
        trees.unflatten({leaf.path: rng.normal(size=leaf.shape).astype(np.float32) for leaf in spec.leaves})
        for _ in range(2)
    ]
    kernels = {f"{leaf.module}/kernel": rng.normal(size=(8, leaf.shape[1])) for leaf in spec.leaves}
    merged = trees.flatten(merge(trees.unflatten(kernels), adapters[0], spec))[f"{path}/kernel"]
    factors = [trees.flatten(tree)[f"{path}/scaling/l"].sum(0) for tree in adapters]
    np.testing.assert_allclose(merged, kernels[f"{path}/kernel"] * (1 + factors[0]), rtol=1e-6)
    mixed, wide = interpolate(adapters, [0.25, 0.75], spec)
    wide.validate(mixed)
    x = jnp.ones((3, 12))
    expected = x * (1 + 0.25 * factors[0] + 0.75 * factors[1])
    slot = {"l": trees.flatten(mixed)[f"{path}/scaling/l"]}
    np.testing.assert_allclose(guide.scaled(x, slot), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(guide.scaled(x, {"l": jnp.zeros((2, 12))}), x)
    of_layer = [leaf for leaf in trees.flatten(adapters[0]).items() if leaf[0].startswith("encoder/layers_0")]
    norm = sum(np.sum(value**2) for _, value in of_layer) ** 0.5
    np.testing.assert_allclose(diagnostics(adapters[0], spec)["encoder_0"].norm, norm, rtol=1e-4)
    with pytest.raises(AdapterError, match="PEFT: expected one of lora, prefix, soft_prompt, got scaling"):
        write_peft(tmp_path / "peft", Adapter(adapters[0], spec, AdapterMetadata(None)))


def test_logical_axes_are_those_that_rules_cover():
    page = (REPOSITORY / "docs/notation.md").read_text("utf-8")
    told = page.partition("Logical axes:")[2].partition("Mesh axes:")[0]
    assert set(re.findall(r"`(\w+)`", told)) == {axis for axis, _ in LOGICAL_RULES}


@pytest.mark.parametrize("guide", ["add_a_hypernetwork.md"], indirect=True)
def test_the_guide_s_hypernetwork_works(guide: types.ModuleType):
    episodes = {"support_tokens": jnp.asarray([[[5, 6, 0]], [[6, 5, 0]], [[7, 7, 7]]])}
    many = jax.vmap(lambda episode: guide.hypernetwork.apply({"params": guide.params}, episode))(episodes)
    for array in trees.flatten(many).values():
        np.testing.assert_allclose(array[0], array[1], rtol=1e-5, atol=1e-6)  # a bag has no order
    assert any(np.abs(array[0] - array[2]).max() > 1e-3 for array in trees.flatten(many).values())


@pytest.mark.parametrize("guide", ["add_a_hypernetwork.md"], indirect=True)
def test_the_guide_s_hypernetwork_is_trained_saved_loaded_and_used(
    guide: types.ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
):
    """With its one entry, and nothing else, it goes every way that the others go."""
    vocabulary, t5 = Bytes(), BASE.replace(vocab_size=384)
    tokens = np.ones((1, 4), np.int32)
    save_t5(tmp_path / "t5", jax.jit(T5(t5).init)(jax.random.key(0), tokens, tokens)["params"], t5, vocabulary)
    config = HypermodelConfig(
        base=t5,
        spec=build_spec(LoRA(rank=2), t5),
        hypernetwork=guide.BagOfTokensConfig(t5, HeadsConfig(hidden=8)),
        episodes=EpisodeConfig(
            tasks_per_batch=2, shots=2, examples=2, support_length=64, inputs_length=8, targets_length=8
        ),
        vocabulary=vocabulary,
    )
    with pytest.raises(ConfigError, match="one of HyperT5, HART, got a BagOfTokensConfig; a new one gets an entry"):
        config.build()
    monkeypatch.setitem(HYPERNETWORKS, "BagOfTokens", (guide.BagOfTokensConfig, guide.BagOfTokens))
    network = config.build()[1]
    assert isinstance(network, Hypernetwork)
    assert not isinstance(network, SupportReader)

    words = [a + b for a in "abcd" for b in "efgh"]
    source = InMemorySource.from_strings({"upper": [(word, word.upper()) for word in words]}, vocabulary)
    model = HypernetworkOf(config, str(tmp_path / "t5"), start="random")
    directory = train(
        model=model,
        batches=Episodes(source, config.episodes),
        optimizer=adamw(1e-2),
        total_steps=2,  # from the second on, operations are counted
        model_dir=str(tmp_path / "run"),
        progress=False,
    )
    loaded = load(directory)
    read, whole = [], loaded._whole
    monkeypatch.setitem(vars(loaded), "_whole", lambda params, given: read.append(given) or whole(params, given))
    adapter = loaded.adapt([("ae", "AE"), ("bf", "BF")])
    config.spec.validate(adapter.tree)
    assert [given["support_tokens"].shape for given in read] == [(1, 2, 32)]  # of 64
    assert len(loaded.predict(["cg"], adapter)) == 1
    with pytest.raises(ConfigError, match=r"support_tokens: expected \[rows, length\] of one task, got \(2, "):
        loaded.adapt([("ae", "AE"), ("bf", "BF")], supports=2)
    with pytest.raises(ConfigError, match=r"no T5 .* got \['embedding', 'slots', 'writer'\]; start it at random"):
        initialise_from_t5(loaded.hypernetwork_params, loaded.base_params)
    scanned = dataclasses.replace(model, start=str(directory), scan_layers=True)
    params = scanned.initial_params(loaded.hypernetwork_params, Partitioner())
    scanned.export(tmp_path / "scanned", Trained(params, {}, {}))
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "scanned").parts.hypernetwork_params, params)
    with pytest.raises(CheckpointError, match=r"fresh_heads: expected a hypernetwork with a T5, .* got \['embedding'"):
        dataclasses.replace(scanned, fresh_heads=True).initial_params(params, Partitioner())
    others = {**loaded.hypernetwork_params, "slots": np.zeros((3, 8), np.float32)}
    with pytest.raises(CheckpointError, match=r"'slots': expected shape \(6, 8\), found \(3, 8\)"):
        Hypermodel(config, loaded.base_params, others).check_hypernetwork("here")


@pytest.mark.parametrize("guide", ["add_a_task.md:0"], indirect=True)
def test_the_guide_s_own_jsonl_becomes_trainable(guide: types.ModuleType):
    folder = pathlib.Path(guide.__file__).parent
    shown = blocks("add_a_task.md", "json")[0].splitlines()
    more = [
        json.dumps({"task": task, "input": f"{x} {y}", "target": target})
        for x, y in zip("abcdef", "uvwxyz", strict=True)
        for task, target in (("initials", f"{x.upper()}. {y.upper()}."), ("surname", y))
    ]
    (folder / "train.jsonl").write_text("\n".join([*shown, *more]), "utf-8")
    (folder / "test.jsonl").write_text("\n".join([*shown, "{broken"]), "utf-8")
    registry.register_modules([guide], entry_points=False)
    try:
        source = registry.load_source("my_tasks")
        assert source.task_names == ("initials", "surname")
        assert source.sizes.tolist() == [7, 7]
        assert Bytes().decode(source.info(0).definition) == "Write the initials."
        batch = Episodes(source, EpisodeConfig(tasks_per_batch=3, shots=2, examples=4), seed=0).batch(0)
        assert batch["support_tokens"].shape == (3, 2, 128)
        assert batch["decoder_target_tokens"].shape == (3, 4, 64)
        with pytest.raises(DataError, match=r"test\.jsonl:3: expected a JSON object"):
            registry.load_source("my_tasks", "test")
    finally:
        registry.unregister_source("my_tasks")


@pytest.mark.usefixtures("seqio_registries")
@pytest.mark.parametrize("guide", ["add_a_task.md:1"], indirect=True)
def test_the_guide_s_seqio_task_is_read_task_by_task(guide: types.ModuleType):
    folder = pathlib.Path(guide.__file__).parent
    (folder / "train.jsonl").write_text(blocks("add_a_task.md", "json")[0], "utf-8")
    guide.register()
    source = registry.load_source("my_seqio_task", vocabulary=Bytes())
    assert source.task_names == ("initials", "surname")
    assert Bytes().decode(source.example(1, 0).targets) == "Lee"
