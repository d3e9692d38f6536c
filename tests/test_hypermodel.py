"""A hypermodel whole: text in, adapter out, text out; on disk and back; wrong adapters and bad examples refused."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn

import hyperflax
from hyperflax import trees
from hyperflax.adapters.kinds import build_spec
from hyperflax.adapters.lora import LoRA
from hyperflax.checkpoints.artefacts import Adapter, AdapterMetadata, load_adapter
from hyperflax.data.episode_config import EpisodeConfig
from hyperflax.data.examples import Example, InMemorySource, tokenise
from hyperflax.data.jsonl import Line
from hyperflax.data.vocabularies import Bytes
from hyperflax.errors import AdapterError, CheckpointError, ConfigError, DataError
from hyperflax.evaluation import conditions
from hyperflax.evaluation.held_out import HeldOut
from hyperflax.evaluation.neighbours import Neighbours
from hyperflax.hypermodel import WINDOW, Hypermodel, HypermodelConfig, load
from hyperflax.hypernets.encoded_rows import EncodedRows
from hyperflax.hypernets.hart import HARTConfig
from hyperflax.hypernets.heads import HeadsConfig
from hyperflax.hypernets.hyper_t5 import HyperT5Config
from hyperflax.models import memory
from hyperflax.models.beam import Beam
from hyperflax.models.sampling import Greedy, Sample
from hyperflax.padding import trim
from hyperflax.training import refine
from hyperflax.types import T5Config

T5 = T5Config(
    vocab_size=384, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=2, num_decoder_layers=2
)
EXAMPLES = [("ab", "AB"), ("cd", "CD"), ("efg", "EFG")]


@pytest.fixture(scope="module")
def model() -> Hypermodel:
    config = HypermodelConfig(
        base=T5,
        spec=build_spec(LoRA(rank=2), T5),
        hypernetwork=HyperT5Config(t5=T5, heads=HeadsConfig(hidden=8)),
        episodes=EpisodeConfig(shots=2, examples=2, support_length=16, inputs_length=8, targets_length=8),
        vocabulary=Bytes(),
    )
    base, hypernetwork = config.build()
    tokens = np.ones((1, 4), np.int32)
    frozen = jax.jit(base.init)(jax.random.key(0), tokens, tokens)["params"]
    episode = {"support_tokens": np.ones((2, 8), np.int32)}
    params = nn.unbox(jax.jit(hypernetwork.init)(jax.random.key(1), episode)["params"])
    # Away from the start, where adapters do nothing that could be seen.
    noise = jax.tree.map(lambda x: 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    return Hypermodel(config, frozen, jax.tree.map(lambda a, b: a + b, params, noise), name="micro")


def fresh(model: Hypermodel) -> Hypermodel:
    """The same model with nothing read yet: a row that was encoded among others is theirs in the last bits."""
    return model.with_base(model.parts.base)


def variant(model: Hypermodel, **episodes: Any) -> Hypermodel:
    """The same parameters on episodes of another shape."""
    config = dataclasses.replace(model.config, episodes=model.config.episodes.replace(**episodes))
    return Hypermodel(config, model.parts.base, model.parts.hypernetwork_params, name="variant")


def own_examples(model: Hypermodel, supports):
    tokens = [[Example(tokenise(x, Bytes()), tokenise(y, Bytes())) for x, y in support] for support in supports]
    return model.own_examples(tokens)


def kept(examples) -> int:
    """Bytes that refining keeps of all of them."""
    (tasks, count, inputs), targets = examples["encoder_input_tokens"].shape, examples["decoder_input_tokens"].shape[2]
    return memory.kept_bytes(T5, tasks * count, inputs, targets)


def same(a, b) -> bool:
    a, b = trees.flatten(a), trees.flatten(b)
    return a.keys() == b.keys() and all(np.array_equal(a[path], b[path]) for path in a)


def test_an_adapter_fits_its_spec_and_says_where_it_comes_from(model: Hypermodel) -> None:
    adapter = model.adapt(EXAMPLES)
    model.config.spec.validate(adapter.tree)
    assert adapter.metadata.base_fingerprint == model.base_fingerprint
    assert adapter.metadata.hypermodel == model.parts.id
    assert adapter.metadata.refine_steps == 0
    assert same(adapter.tree, model.adapt([{"input": x, "target": y} for x, y in EXAMPLES]).tree)
    assert not same(adapter.tree, model.adapt(EXAMPLES[:2]).tree)


def test_adapters_change_predictions_and_each_input_is_answered_alone(model: Hypermodel) -> None:
    inputs = [f"x{i}" for i in range(70)]
    adapter = model.adapt(EXAMPLES, refine_steps=3, learning_rate=0.1)
    adapted = model.predict(inputs, adapter)
    assert len(adapted) == 70
    assert adapted != model.predict(inputs)
    assert model.predict(inputs[5:6], adapter) == adapted[5:6]
    assert model.predict([], adapter) == []


@pytest.mark.parametrize("method", [Greedy(), Sample(), Beam(num_decodes=2)], ids=lambda method: type(method).__name__)
def test_what_no_number_was_computed_for_is_no_answer(model: Hypermodel, method: Any) -> None:
    tree = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), model.adapt(EXAMPLES).tree)
    stacked = jax.tree.map(lambda sound, broken: np.stack([sound, broken]), model.adapt(EXAMPLES).tree, tree)
    inputs = np.full((2, 3, 4), 5, np.int32)
    with pytest.raises(AdapterError, match=r"not finite with these adapters, at 3 of 6 inputs, first at \[1, 0\]"):
        model.decode(inputs, stacked, method=method, rng=jax.random.key(0))


def test_refining_lowers_the_loss_on_the_examples(model: Hypermodel) -> None:
    arrays = model.episode([{"input": text, "target": target} for text, target in EXAMPLES], [])
    adapters = model.generate({"support_tokens": arrays["support_tokens"][None]})
    examples = own_examples(model, [EXAMPLES])
    losses = [model.refine(adapters, examples, steps, 1e-2)[1] for steps in (0, 1, 5, 20)]
    assert all(loss.shape == (1,) for loss in losses)
    assert sorted(losses, reverse=True) == losses
    assert np.isinf(losses[0])
    assert np.isfinite(losses[1])


def test_refining_by_another_number_of_steps_compiles_nothing(model: Hypermodel) -> None:
    adapters = model.generate({"support_tokens": model.episode(EXAMPLES, [])["support_tokens"][None]})
    examples = own_examples(model, [EXAMPLES])
    unrefined, _ = model.refine(adapters, examples, 0)
    assert same(unrefined, adapters)
    once, twice = (model.refine(adapters, examples, steps)[0] for steps in (1, 2))
    assert not same(once, twice)
    assert model._refine._cache_size() == 1


def test_short_texts_cost_no_more_in_a_model_with_room_for_long_ones(
    model: Hypermodel, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(
        model.config, episodes=model.config.episodes.replace(support_length=256, inputs_length=512)
    )
    model, roomy = fresh(model), Hypermodel(config, model.parts.base, model.parts.hypernetwork_params, name="roomy")
    examples = own_examples(roomy, [[*EXAMPLES, ("a" * 40, "b")]])
    assert {leaf.shape for leaf in examples.values()} == {(1, 4, 48), (1, 4, 8)}
    adapters = model.generate({"support_tokens": model.episode(EXAMPLES, [])["support_tokens"][None]})
    refined, losses = roomy.refine(adapters, own_examples(roomy, [EXAMPLES]), 2)
    expected, expected_losses = model.refine(adapters, own_examples(model, [EXAMPLES]), 2)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), refined, expected)
    seen = []

    def watched(method: Any) -> Any:
        return lambda arrays, *rest, **settings: seen.append(arrays) or method(arrays, *rest, **settings)

    monkeypatch.setattr(roomy, "decode", watched(roomy.decode))
    monkeypatch.setitem(vars(roomy), "_encoded", watched(roomy._encoded))
    inputs = [*("x" * (1 + number % 6) for number in range(64)), "y" * 100]
    assert roomy.predict(inputs)[:64] == model.predict(inputs[:64])
    assert [rows.shape for rows in seen] == [(1, 64, 32), (1, 1, 128)]
    blocks = roomy._blocks(inputs, inputs)
    assert all(rows.base is None for _, rows in blocks)  # nor does anything behind them hold 512 tokens of each
    made, expected = roomy.adapt(EXAMPLES), model.adapt(EXAMPLES)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), made.tree, expected.tree)
    assert seen[-1].shape == (1, 3, 32)


def test_a_long_input_makes_few_others_as_long(model: Hypermodel, monkeypatch: pytest.MonkeyPatch) -> None:
    """One in every batch of a file's order: 4 x 64 x 128 token positions would be encoded, 14,336 are."""
    roomy = Hypermodel(
        dataclasses.replace(model.config, episodes=model.config.episodes.replace(inputs_length=512)),
        model.parts.base,
        None,
    )
    inputs = ["y" * 100 if number % 64 == 9 else "x" * (1 + number % 6) for number in range(WINDOW + 10)]
    decode, seen = roomy.decode, []
    monkeypatch.setattr(roomy, "decode", lambda rows, *rest, **more: seen.append(rows) or decode(rows, *rest, **more))
    adapter = model.adapt(EXAMPLES)
    found = roomy.predict(inputs, adapter)
    assert [rows.shape for rows in seen] == [(1, 64, 32), (1, 64, 32), (1, 64, 32), (1, 64, 128), (1, 12, 128)]
    for number in (0, 5, 8, 9, 10, 64 + 9, WINDOW - 1, WINDOW + 9):
        assert found[number] == roomy.predict(inputs[number : number + 1], adapter)[0]


def test_refining_in_parts_is_refining_at_once(model: Hypermodel) -> None:
    adapters = model.generate({"support_tokens": model.episode(EXAMPLES, [])["support_tokens"][None]})
    examples = own_examples(model, [EXAMPLES])
    step = jax.jit(functools.partial(refine.advance, model.model, learning_rate=1e-2))
    state = refine.start(adapters)
    for steps in (0, 1, 3):
        state = step(model.base_params, state, examples, steps=steps)
    refined, losses = model.refine(adapters, examples, 4, 1e-2)
    assert same(state.adapters, refined)
    assert np.array_equal(state.losses, losses)


def test_many_long_examples_are_refined_a_few_tasks_at_once(model: Hypermodel, monkeypatch: pytest.MonkeyPatch) -> None:
    supports = [[(a, b), ("q", "r"), ("s", "t")] for a, b in zip("abcde", "vwxyz", strict=True)]
    tokens = np.stack([model.episode(support, [])["support_tokens"] for support in supports])
    adapters, examples = model.generate({"support_tokens": tokens}), own_examples(model, supports)
    together, losses = model.refine(adapters, examples, 3, 1e-2)
    for at_once in (2, 1):
        monkeypatch.setattr(memory, "AT_ONCE", at_once * kept(examples) // len(supports))
        sizes = []

        def watched(params, adapters, examples, *given, microbatches, whole=model._refine, sizes=sizes):
            sizes.append(len(examples["encoder_input_tokens"]))
            assert microbatches == 1
            return whole(params, adapters, examples, *given, microbatches=microbatches)

        with monkeypatch.context() as patch:
            patch.setitem(vars(model), "_refine", watched)
            found, found_losses = model.refine(adapters, examples, 3, 1e-2)
        assert set(sizes) == {at_once}
        np.testing.assert_allclose(found_losses, losses, rtol=1e-5)
        for path, leaf in trees.flatten(found).items():
            np.testing.assert_allclose(leaf, trees.flatten(together)[path], rtol=2e-3, atol=2e-4)


def test_a_task_of_many_examples_is_refined_a_few_at_once(model: Hypermodel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight examples in parts of two, of unlike lengths: the loss stays the mean over the tokens of all of them."""
    support = [(a, a * size) for a, size in zip("abcdefgh", (1, 2, 3, 4, 5, 1, 1, 1), strict=True)]
    adapters = model.generate({"support_tokens": model.episode(support, [])["support_tokens"][None]})
    examples = own_examples(model, [support])
    # Adam's first moment is a tenth of the gradient.
    step = functools.partial(refine.advance, model.model, model.base_params, refine.start(adapters), examples)
    parts = jax.jit(functools.partial(step, steps=1, learning_rate=0.0, microbatches=4))()
    with jax.disable_jit():  # compiled as one program, a leaf's gradient has been off by 1.3e-4 (XLA on an AMD EPYC)
        whole = step(steps=1, learning_rate=0.0, microbatches=1)
    np.testing.assert_allclose(parts.losses, whole.losses, rtol=1e-6)
    moments = [trees.flatten(state.moments[0].mu) for state in (whole, parts)]
    for path, leaf in moments[0].items():
        np.testing.assert_allclose(moments[1][path], leaf, rtol=1e-4, atol=1e-6, err_msg=path)
    taken = []
    monkeypatch.setitem(vars(model), "_refine", lambda *given, microbatches: taken.append(microbatches))
    whole = kept(examples)
    for most in (whole, whole - 1, whole // 4, 1):
        monkeypatch.setattr(memory, "AT_ONCE", most)
        model.refine(adapters, examples, 3)
    assert taken == [1, 2, 4, 8]  # and no more than there are examples


def test_sampling_takes_a_key(model: Hypermodel) -> None:
    inputs = ["a", "b", "c"]
    drawn = [model.predict(inputs, method=Sample(), max_length=4, rng=jax.random.key(seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    with pytest.raises(ConfigError, match="Sample needs a key"):
        model.predict(inputs, method=Sample())


def test_tasks_refined_together_are_refined_alone(model: Hypermodel) -> None:
    supports = [EXAMPLES, [("q", "r"), ("s", "t"), ("uv", "wx")]]
    tokens = np.stack([model.episode(support, [])["support_tokens"] for support in supports])
    adapters = model.generate({"support_tokens": tokens})
    together, _ = model.refine(adapters, own_examples(model, supports), 5, 1e-2)
    for index, support in enumerate(supports):
        alone, _ = model.refine(
            jax.tree.map(lambda x, i=index: x[i : i + 1], adapters), own_examples(model, [support]), 5, 1e-2
        )
        for path, leaf in trees.flatten(alone).items():
            np.testing.assert_allclose(leaf[0], trees.flatten(together)[path][index], rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_on_disk_and_back(model: Hypermodel, tmp_path, dtype) -> None:
    model.save(tmp_path / "model", dtype=dtype)
    loaded = hyperflax.load(tmp_path / "model")
    assert loaded.config == model.config
    assert loaded.parts.name == "micro"
    if dtype is None:
        assert loaded.base_fingerprint == model.base_fingerprint
        assert same(loaded.adapt(EXAMPLES).tree, fresh(model).adapt(EXAMPLES).tree)
    again = hyperflax.load(tmp_path / "model")
    adapter = loaded.adapt(EXAMPLES)
    adapter.save(tmp_path / "adapter")
    reread = load_adapter(tmp_path / "adapter")
    assert same(reread.tree, adapter.tree)
    assert again.predict(["ab"], reread) == loaded.predict(["ab"], adapter)


def test_loading_writes_nothing(model: Hypermodel, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of the vocabulary are in the directory already."""
    model.save(tmp_path / "model")
    monkeypatch.setattr(Bytes, "write_files", lambda *_: pytest.fail("the vocabulary is written"))
    assert load(tmp_path / "model").parts.versions == model.parts.versions


def test_a_model_without_its_hypernetwork_predicts_and_says_what_it_cannot(model: Hypermodel, tmp_path) -> None:
    model.save(tmp_path / "whole")
    adapter = model.adapt(EXAMPLES)
    (tmp_path / "whole" / "hypernetwork.safetensors").write_bytes(b"is not read")
    part = load(tmp_path / "whole", hypernetwork=False)
    assert part.predict(["ab"], adapter) == model.predict(["ab"], adapter)
    with pytest.raises(ConfigError, match="loaded without its hypernetwork and only predicts"):
        part.adapt(EXAMPLES)
    with pytest.raises(CheckpointError, match="expected a whole model, got 'micro' without its hypernetwork"):
        part.save(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"hypernetwork\.safetensors"):
        load(tmp_path / "whole")


@pytest.mark.parametrize("network", [HyperT5Config, HARTConfig])
@pytest.mark.parametrize("slot_bias", ["none", "bidirectional"])
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"relative_bias": "per_layer", "mlp_activations": ("relu",), "logits_via_embedding": False},
        {"emb_dim": 24, "num_encoder_layers": 1, "num_decoder_layers": 3},
    ],
)
def test_the_parameters_that_initialising_gives_fit_and_others_are_refused_leaf_by_leaf(
    model: Hypermodel, network, slot_bias, shape
) -> None:
    hypernetwork = network(t5=T5.replace(**shape), heads=HeadsConfig(hidden=8), slot_bias=slot_bias)
    config = dataclasses.replace(model.config, hypernetwork=hypernetwork)
    episode = {"support_tokens": np.ones((2, 8), np.int32)}
    params = trees.flatten(nn.unbox(config.build()[1].init(jax.random.key(1), episode)["params"]))
    Hypermodel(config, model.parts.base, trees.unflatten(params)).check_hypernetwork("here")
    del params["slots"]
    params |= {
        "t5/decoder/layers_9/mlp/wo/kernel": np.zeros((32, 16), np.float32),
        "t5/encoder/encoder_norm/scale": np.zeros(3, np.float32),
    }
    other = Hypermodel(config, model.parts.base, trees.unflatten(params), name="other")
    with pytest.raises(CheckpointError) as error:
        other.adapt(EXAMPLES)
    assert all(path in str(error.value) for path in ("'slots': ", "layers_9/mlp/wo/kernel': une", "encoder_norm/scale"))
    assert str(error.value).startswith("model 'other': the hypernetwork's parameters do not fit: ")
    assert str(error.value).count("; ") == 2


def test_an_adapter_of_another_base_is_refused(model: Hypermodel) -> None:
    other = Hypermodel(model.config, jax.tree.map(lambda x: x * 1.5, model.parts.base), model.parts.hypernetwork_params)
    with pytest.raises(AdapterError, match="sha256:"):
        other.predict(["ab"], model.adapt(EXAMPLES))


def test_leaves_that_no_layer_would_read_are_refused(model: Hypermodel) -> None:
    spec, metadata = model.config.spec, AdapterMetadata(model.base_fingerprint)
    whole = spec.identity()
    for tree in ({}, {"encoder": whole["encoder"]}, {**whole, "decodr": whole["decoder"]}):
        with pytest.raises(AdapterError, match="leaf"):
            model.predict(["ab"], Adapter(tree, spec, metadata))


def test_refining_cuts_what_is_longer_than_its_rows_and_says_so(
    model: Hypermodel, caplog: pytest.LogCaptureFixture
) -> None:
    """As the conditions of an evaluation do: the support holds it whole."""
    long = [("abcdefgh", "xy"), ("a", "b")]  # with end of sequence 9 tokens, of 8
    model.adapt([("abcdefg", "xy"), ("a", "b")], refine_steps=1)
    assert not caplog.messages
    refined = model.adapt(long, refine_steps=1)
    assert caplog.messages == ["1 of 2 examples are cut for refining, to 8 tokens of input and 8 of target"]
    assert refined.metadata.refine_steps == 1


def test_bad_examples_are_named(model: Hypermodel) -> None:
    with pytest.raises(DataError, match="at least one"):
        model.adapt([])
    with pytest.raises(DataError, match="example 1: expected keys 'input' and 'target'"):
        model.adapt([{"input": "a", "target": "b"}, {"input": "a"}])
    for example in ("ab", 1):
        with pytest.raises(DataError, match=f"example 0: expected an .* pair of strings, got {example!r}"):
            model.adapt([example])
    with pytest.raises(DataError, match="inputs: expected a list of texts, got the one text 'grace'"):
        model.predict("grace")
    with pytest.raises(DataError, match="example 0: expected an"):
        model.adapt([("a", 3)])
    with pytest.raises(DataError, match=r"^example 1: expected at most 16 tokens.* got 24; .*never truncated"):
        model.adapt([("a", "b"), ("a" * 20, "b")])
    with pytest.raises(DataError, match=r"^names.jsonl:3: expected at most 16 tokens"):
        model.adapt([Line("names.jsonl:1", "a", "b"), Line("names.jsonl:3", "a" * 20, "b")])
    with pytest.raises(DataError, match="input 1: inputs: expected at most 8 tokens"):
        model.predict(["a", "b" * 20])
    with pytest.raises(DataError, match="input 1: expected a text, got nan"):
        model.predict(["a", float("nan")])
    for call in (lambda: model.predict(["a", "b\ud83d"]), lambda: model.adapt([("a", "b"), ("c", "b\ud83d")])):
        with pytest.raises(
            DataError, match=r"(input|example) 1: expected Unicode text in '(input|target)', got '\\ud83d'"
        ):
            call()
    for steps in (-1, 1.5):
        with pytest.raises(ConfigError, match=f"refine_steps: expected a whole number of at least 0, got {steps}"):
            model.adapt(EXAMPLES, refine_steps=steps)
    with pytest.raises(ConfigError, match="definition: expected none, which this model was trained with, got 'upper'"):
        model.adapt(EXAMPLES, definition="upper")


def test_examples_that_a_joint_row_has_no_room_for_are_told_of(model: Hypermodel, caplog) -> None:
    joint = variant(model, support_layout="joint", support_length=16)
    pairs = [("ab", "AB"), ("cd", "CD"), ("ef", "EF")]  # 6 tokens each
    joint.adapt(pairs)
    assert "2 of 3 examples are read, a row of 16 tokens has no room for more" in caplog.text
    caplog.clear()
    joint.adapt(pairs, supports=2)
    assert not caplog.text


@pytest.mark.parametrize(
    ("layout", "length", "supports", "read"),
    [
        ("separate", 15, 1, None),  # and its end fill a row
        ("separate", 16, 1, 15),
        ("separate", 400, 2, 15),
        ("joint", 9, 1, None),  # what one example of 6 tokens leaves it
        ("joint", 10, 1, 9),
        ("joint", 400, 2, 8),  # half of the row of two examples, and 9 tokens of the other one
    ],
)
def test_a_definition_that_is_too_long_is_told_of(
    model: Hypermodel, caplog: pytest.LogCaptureFixture, layout: Any, length: int, supports: int, read: int | None
) -> None:
    reader = variant(model, support_layout=layout, definition="support", too_long="truncate")
    pairs = [("ab", "AB"), ("cd", "CD"), ("ef", "EF")][: 2 * supports - 1]
    adapter = reader.adapt(pairs, definition="d" * length, supports=supports)
    told = [f"{read} of {length} tokens of the definition are read, a row of 16 tokens has no room for more"]
    expected = (
        []
        if read is None
        else told
        if layout == "separate" or supports == 1
        else ["2 of 3 examples are read, a row of 16 tokens has no room for more; `supports` deals them out", *told]
    )
    assert caplog.messages == expected
    assert adapter.metadata.provenance == ({"warnings": expected} if expected else {})


def test_examples_that_a_model_never_reads_are_not_missed(model: Hypermodel, caplog: pytest.LogCaptureFixture) -> None:
    reader = variant(model, support_layout="joint", definition="support", demonstrations="none")
    reader.adapt(EXAMPLES, definition="upper")
    assert not caplog.messages


def test_an_adapter_without_numbers_is_not_blamed_on_refining(
    model: Hypermodel, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda given: jax.tree.map(lambda leaf: leaf * np.nan, generate(given)))
    with pytest.raises(AdapterError, match=r"^adapt: the adapter is not finite as the hypernetwork wrote it; "):
        model.adapt(EXAMPLES)


def test_an_unknown_model_is_named(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="model 'no_such_model': expected a model directory"):
        hyperflax.load("no_such_model")
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    with pytest.raises(
        CheckpointError, match=r"run': expected a hypermodel, with hypermodel\.json; `hyperflax inspect`"
    ):
        hyperflax.load(run)
    (run / "model" / "hypermodel.json").touch()
    with pytest.raises(CheckpointError, match=rf"hypermodel\.json; one is {run}/model$"):
        hyperflax.load(run)


def test_the_nearest_task_has_the_lowest_loss_on_the_support(model: Hypermodel, monkeypatch) -> None:
    monkeypatch.setattr("hyperflax.evaluation.neighbours.BLOCK", 2)  # three blocks, the last with one adapter
    rules = {"upper": str.upper, "double": lambda w: w + w, "first": lambda w: w[0], "last": lambda w: w[-1:] * 3}
    rules |= {"same": str.lower}
    words = [a + b + c for a in "abc" for b in "de" for c in "fg"]

    def source(names):
        return InMemorySource.from_strings({n: [(w, rules[n](w)) for w in words] for n in names}, Bytes())

    held_out = HeldOut.from_source(source(["upper", "first", "double"]), model.config.episodes, examples=2, seed=1)
    stored = HeldOut.from_source(source(rules), model.config.episodes, examples=1)
    adapters = [model.adapt(task.support).tree for task in stored.tasks]

    def loss(adapter, support) -> float:
        arrays = {name: leaf[0] for name, leaf in own_examples(model, [support]).items()}
        tokens = [arrays[name] for name in ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")]
        logits = model.model.apply({"params": model.base_params, "adapters": adapter}, *tokens)
        chosen = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), tokens[2][..., None], axis=-1)[..., 0]
        return -float((chosen * arrays["decoder_loss_weights"]).sum() / arrays["decoder_loss_weights"].sum())

    expected, picked = [], set()
    for task in held_out.tasks:
        losses = [loss(adapter, task.support) for adapter in adapters]
        picked.add(int(np.argmin(losses)))
        arrays = model.episode(task.support, [(x, "") for x in task.inputs])
        tree = jax.tree.map(lambda leaf: leaf[None], adapters[int(np.argmin(losses))])
        out = model.decode(trim(arrays["encoder_input_tokens"])[None], tree)[0]
        expected.append([model.config.vocabulary.decode(row.tolist()) for row in out])
    found = conditions.Conditions(model, held_out, neighbours=source(rules)).nearest_task(held_out.tasks)
    assert found == expected
    assert len(picked) > 1


def test_an_adapter_whose_loss_is_no_number_is_nobodys_nearest(model: Hypermodel) -> None:
    """Of three the first overflows; the best of the others is what is found, as without it."""
    pairs = {name: [(word, rule(word)) for word in ("ad", "be", "cf")] for name, rule in RULES.items()}
    tasks = HeldOut.from_source(InMemorySource.from_strings(pairs, Bytes()), model.config.episodes, examples=1)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *[model.adapt(task.support).tree for task in tasks.tasks])
    broken = jax.tree.map(lambda leaf: np.concatenate([np.full_like(leaf[:1], np.nan), leaf[1:]]), stacked)
    whole = jax.tree.map(lambda leaf: leaf[1:], stacked)
    for task in tasks.tasks:
        found, wanted = (
            Neighbours(model, tasks, lambda _, adapters=adapters: adapters).nearest(own_examples(model, [task.support]))
            for adapters in (broken, whole)
        )
        assert same(found, wanted)


RULES = {"upper": str.upper, "double": lambda word: word + word, "last": lambda word: word[-1]}


def told(model: Hypermodel) -> HeldOut:
    """Held-out tasks with definitions, two support and two scored examples each."""
    words = [a + b for a in "abc" for b in "def"]
    source = InMemorySource.from_strings(
        {name: [(word, rule(word)) for word in words] for name, rule in RULES.items()},
        Bytes(),
        definitions={name: name for name in RULES},
    )
    return HeldOut.from_source(source, model.config.episodes, examples=2, seed=1)


def watch_decoding(monkeypatch: pytest.MonkeyPatch, model: Hypermodel) -> list[tuple]:
    """Notes what `model` is asked to decode, without decoding."""
    asked: list[tuple] = []

    def decode(inputs, adapters=None):
        asked.append((np.asarray(inputs), adapters))
        return np.ones((*inputs.shape[:2], 1), np.int32)

    monkeypatch.setattr(model, "decode", decode)
    return asked


@pytest.mark.parametrize(("definition", "zero_shot"), [("none", False), ("support", False), ("support", True)])
def test_the_fine_tuned_base_reads_the_support_before_the_input(
    model: Hypermodel, monkeypatch: pytest.MonkeyPatch, definition: str, zero_shot: bool
) -> None:
    config = dataclasses.replace(model.config, episodes=model.config.episodes.replace(definition=definition))
    other = Hypermodel(config, jax.tree.map(lambda x: x * 1.5, model.parts.base), model.parts.hypernetwork_params)
    held_out = told(other)
    name = "mtf_zero_shot" if zero_shot else "mtf"
    runnable = conditions.Conditions(other, held_out, **{name: other})
    asked = watch_decoding(monkeypatch, other)
    answers = runnable.pick(name)[name](held_out.tasks)
    assert [len(rows) for rows in answers] == [2, 2, 2]
    ((inputs, adapters),) = asked
    assert adapters is None
    rows = iter(inputs.reshape(-1, inputs.shape[-1]))
    encode, x, y = Bytes().encode, Bytes().sentinel(0), Bytes().sentinel(1)
    for task in held_out.tasks:
        expected = encode(task.instruction) if definition == "support" else []
        for source, target in () if zero_shot else task.support:
            expected += [x, *encode(source), y, *encode(target)]
        for text in task.inputs:
            wanted = [*expected, x, *encode(text), y, 1]
            assert next(rows)[: len(wanted) + 1].tolist() == [*wanted, 0]


def test_a_shared_adapter_serves_every_task(model: Hypermodel, monkeypatch: pytest.MonkeyPatch) -> None:
    held_out, adapter = told(model), model.adapt(EXAMPLES)
    runnable = conditions.Conditions(model, held_out, shared=adapter)
    asked = watch_decoding(monkeypatch, model)
    runnable.pick("shared")["shared"](held_out.tasks)
    ((inputs, adapters),) = asked
    assert inputs.shape[:2] == (3, 2)
    for path, leaf in trees.flatten(adapters).items():
        for row in leaf:
            np.testing.assert_array_equal(row, trees.flatten(adapter.tree)[path])
    with pytest.raises(AdapterError, match="sha256:"):
        conditions.Conditions(
            model.with_base(jax.tree.map(lambda x: x * 2, model.parts.base)), held_out, shared=adapter
        )


def test_estimating_encodes_no_example_twice(model: Hypermodel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving out one of five examples after the other shows every example four times."""
    assert model.config.episodes.support_layout == "separate"
    counted: list[np.ndarray] = []
    encode = model._encoded._encode
    monkeypatch.setattr(model, "_encoded", EncodedRows(lambda rows: counted.append(rows) or encode(rows)))
    pairs = [*EXAMPLES, ("hi", "HI"), ("jk", "JK")]
    model.adapt(pairs)
    assert [len(rows) for rows in counted] == [6]  # five, and the row of padding that fills up to six
    for number in range(5):
        model.adapt(pairs[:number] + pairs[number + 1 :])
    assert len(counted) == 1
    rows = model.episode(pairs[1:], [])["support_tokens"]
    whole = model.hypernetwork.apply({"params": model.hypernetwork_params}, {"support_tokens": rows})
    expected = trees.flatten(whole)
    # Rows are encoded among others here, and sums are rounded in another order: the difference as a vector is what is
    # bounded, since one value in thousands may be far from its kin.
    for path, leaf in trees.flatten(model.adapt(pairs[1:]).tree).items():
        assert np.linalg.norm(leaf - expected[path]) <= 1e-5 * np.linalg.norm(expected[path]), path


def test_adapting_tokenises_no_text_twice(model: Hypermodel, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, texts = Bytes.encode, []
    monkeypatch.setattr(Bytes, "encode", lambda self, text: texts.append(text) or encode(self, text))
    model.adapt(EXAMPLES, supports=2, refine_steps=1)
    assert sorted(texts) == sorted(text for pair in EXAMPLES for text in pair)


def test_several_supports_are_averaged_in_slot_states(model: Hypermodel) -> None:
    pairs = [*EXAMPLES, ("hi", "HI"), ("jk", "JK")]
    parts = [pairs[0::2], pairs[1::2]]
    # Three examples in the first support, two in the second, whose last row is padding.
    supports = [model.episode(part, [], shots=3)["support_tokens"] for part in parts]
    assert [(rows != 0).any(axis=1).sum() for rows in supports] == [3, 2]
    adapter = model.adapt(pairs, supports=2)
    first, second = (model.slot_states({"support_tokens": rows[None]})[0] for rows in supports)
    params = {"params": model.hypernetwork_params}
    expected = trees.flatten(model.hypernetwork.apply(params, (first + second) / 2, method="write"))
    for path, leaf in trees.flatten(adapter.tree).items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match="supports: expected 1 to 3, the number of examples, got 4"):
        model.adapt(EXAMPLES, supports=4)
    for wrong in ("2", 2.0, True, 0):
        with pytest.raises(ConfigError, match=r"^supports: expected a whole number of at least 1, got"):
            model.adapt(EXAMPLES, supports=wrong)  # type: ignore[arg-type]


def test_figures_of_adapters_are_means_over_all_evaluated_tasks(
    model: Hypermodel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditions, "BLOCK", 2)  # two tasks, then the third alone
    held_out = told(model)
    spec, shapes = model.config.spec, []

    def generate(episodes):
        """Adapters whose every value is the mean token of the support."""
        tokens = episodes["support_tokens"]
        shapes.append(tokens.shape)
        means = tokens.reshape(len(tokens), -1).mean(axis=1)
        flat = {leaf.path: np.stack([np.full(leaf.shape, m, np.float32) for m in means]) for leaf in spec.leaves}
        return trees.unflatten(flat)

    monkeypatch.setattr(model, "generate", generate)
    runnable = conditions.Conditions(model, held_out, supports=2)
    figures = runnable.adapter_figures(held_out)
    assert [shape[:3] for shape in shapes[::2]] == [
        (2, 2, 1),
        (1, 2, 1),
    ]  # two supports with a row for one example each
    assert figures["within_task_distance"] == 0.0
    tokens = [runnable._generate([task], False) for task in held_out.tasks]
    values = [float(next(iter(trees.flatten(tree).values())).flat[0]) for tree in tokens]
    assert figures["between_task_distance"] == pytest.approx((values[0] - values[1]) ** 2, rel=1e-4)
    # a b with equal entries v has one singular value: rank v^2 sqrt(inputs * outputs), here 2 * 16 v^2 for each of the
    # four projections of two decoder attentions.
    norms = [2 * 16 * value**2 * np.sqrt(4) for value in values]
    assert figures["norm/decoder_1"] == pytest.approx(np.mean(norms), rel=1e-4)
    assert figures["effective_rank/decoder_1"] == pytest.approx(1.0, abs=1e-3)
