"""The space of pipelines: what can be drawn can be run, what cannot is refused with the reason."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from hyperflax.adapters.full import Full
from hyperflax.adapters.kinds import build_spec
from hyperflax.adapters.lora import LoRA
from hyperflax.adapters.parallel_mlp import ParallelMLP
from hyperflax.adapters.prefix import Prefix
from hyperflax.adapters.soft_prompt import SoftPrompt
from hyperflax.adapters.start import start_from
from hyperflax.errors import ConfigError
from hyperflax.tuner.encoding import columns, encode
from hyperflax.tuner.pipeline import SITES, Pipeline, default_pipeline
from hyperflax.tuner.space import PipelineSpace, possible_starts
from hyperflax.types import T5Config

T5 = T5Config(vocab_size=32, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=16, num_encoder_layers=1, num_decoder_layers=1)
STARTS = {
    "generated": build_spec(LoRA(rank=2, alpha=6.0, sites=("*",)), T5),
    "shared": build_spec(Prefix(length=3), T5),
    "source": build_spec(LoRA(rank=4, sites=SITES["query_value"]), T5),
}


@pytest.fixture(scope="module")
def space() -> PipelineSpace:
    return PipelineSpace(T5, {name: (spec,) for name, spec in STARTS.items()})


def test_every_pipeline_that_is_drawn_can_start_where_it_says(space):
    drawn = space.sample(120, seed=0)
    assert len({pipeline.id for pipeline in drawn}) == 120
    for pipeline in drawn:
        space.check(pipeline)
        assert Pipeline.from_json(pipeline.to_json(), "here") == pipeline
        if pipeline.method == "as_generated":
            continue
        start = STARTS.get(pipeline.init)
        target = build_spec(pipeline.kinds(start), T5)
        if start is not None:
            start_from(start.init(jax.random.key(0)), start, target, jax.random.key(1))
    starts = {name: sum(pipeline.init == name for pipeline in drawn) for name in ("random", *STARTS)}
    assert all(count >= 29 for count in starts.values()), starts
    assert sum(pipeline.method == "as_generated" for pipeline in drawn) == 1


def test_the_seed_decides_what_is_drawn(space):
    assert space.sample(20, seed=3) == space.sample(20, seed=3) != space.sample(20, seed=4)
    assert space.sample(150, seed=3)[:20] == space.sample(20, seed=3)
    assert len(space.sample(20, seed=2**63 - 1)) == 20  # ConfigSpace itself takes no seed of more than 32 bits


def test_what_a_start_fits_is_what_the_adapters_rules_say():
    """By hand: LoRA everywhere fits LoRA everywhere; on queries and values also attention; a prefix fits a prefix."""
    assert possible_starts(T5, STARTS["generated"]) == {("lora", "all", False)}
    assert possible_starts(T5, STARTS["source"]) == {("lora", sites, False) for sites in SITES}
    assert possible_starts(T5, STARTS["shared"]) == {
        ("prefix", None, False),
        ("prefix+parallel_mlp", None, False),
        *(("lora+prefix", sites, False) for sites in SITES),
    }


def test_of_several_adapters_that_of_the_pipelines_own_kind_is_the_start():
    kinds = {
        "lora": (LoRA(rank=4, sites=SITES["query_value"]),),
        "prefix": (Prefix(length=3),),
        "soft_prompt": (SoftPrompt(length=2),),
        "parallel_mlp": (ParallelMLP(bottleneck=4),),
        "prefix+parallel_mlp": (Prefix(length=5), ParallelMLP(bottleneck=8)),
        "full": (Full(),),
    }
    shared = {kind: build_spec(settings, T5) for kind, settings in kinds.items()}
    assert possible_starts(T5, *shared.values()) == {
        *(("lora", sites, False) for sites in SITES),
        *((kind, None, False) for kind in kinds if kind != "lora"),
    }
    space = PipelineSpace(T5, {"shared": tuple(shared.values())})
    drawn = [pipeline for pipeline in space.sample(120, seed=0) if pipeline.init == "shared"]
    assert {pipeline.kind for pipeline in drawn} == kinds.keys()
    for pipeline in drawn:
        space.check(pipeline)
        start = shared[pipeline.kind]
        target = build_spec(pipeline.kinds(start), T5)
        start_from(start.init(jax.random.key(0)), start, target, jax.random.key(1))
        assert (pipeline.length, pipeline.bottleneck, pipeline.alpha_per_rank) == (None, None, None)


# What can be trained from each kind alone and from each pair, by hand: all that the start has must stand in what is
# trained, and a prefix or soft prompt that it lacks would change its effect.
FROM = {
    (LoRA(rank=2, sites=("*",)),): {"lora"},
    (Prefix(length=2),): {"prefix", "lora+prefix", "prefix+parallel_mlp"},
    (Prefix(length=2, sites=("encoder/attention",)),): {"prefix", "lora+prefix", "prefix+parallel_mlp"},
    (Prefix(length=2, position_bias="preceding"),): {"prefix", "lora+prefix", "prefix+parallel_mlp"},
    (SoftPrompt(length=2),): {"soft_prompt", "lora", "parallel_mlp", "full"},
    (ParallelMLP(bottleneck=4),): {"parallel_mlp"},
    (Full(),): {"full"},
    (LoRA(rank=2), Prefix(length=2)): {"lora+prefix"},
    (LoRA(rank=2), SoftPrompt(length=2)): {"lora"},
    (LoRA(rank=2), ParallelMLP(bottleneck=4)): set(),
    (LoRA(rank=2), Full()): set(),
    (Prefix(length=2), SoftPrompt(length=2)): {"lora+prefix", "prefix+parallel_mlp"},
    (Prefix(length=2), ParallelMLP(bottleneck=4)): {"prefix+parallel_mlp"},
    (Prefix(length=2), Full()): set(),
    (SoftPrompt(length=2), ParallelMLP(bottleneck=4)): {"parallel_mlp"},
    (SoftPrompt(length=2), Full()): {"full"},
    (ParallelMLP(bottleneck=4), Full()): set(),
}


@pytest.mark.parametrize("kinds", FROM, ids=lambda kinds: "+".join(type(kind).__name__ for kind in kinds))
def test_a_start_of_every_kind_and_pair_has_the_pipelines_that_it_fits(kinds):
    start = build_spec(kinds, T5)
    space = PipelineSpace(T5, {"generated": (start,)})
    drawn = space.sample(100, seed=0)
    assert sum(pipeline.method == "as_generated" for pipeline in drawn) == 1
    trained = [pipeline for pipeline in drawn if pipeline.init == "generated"]
    assert {pipeline.kind for pipeline in trained} == FROM[kinds]
    assert len(trained) == (49 if FROM[kinds] else 0)
    for pipeline in drawn:
        space.check(pipeline)
    for pipeline in {pipeline.kind: pipeline for pipeline in trained}.values():
        target = build_spec(pipeline.kinds(start), T5)
        start_from(start.init(jax.random.key(0)), start, target, jax.random.key(1))


def test_a_prompt_first_is_refused_where_the_start_has_none(space):
    """Beside another kind as well: the start `shared` is a prefix."""
    given = {"init": "shared", "kind": "lora+prefix", "alpha_per_rank": 1.0, "prompt_first": 0.25}
    pipeline = dataclasses.replace(default_pipeline(), **given)
    space.check(dataclasses.replace(pipeline, prompt_first=0.0))
    with pytest.raises(ConfigError, match="no start of this kind"):
        space.check(pipeline)


def test_a_start_brings_its_settings_but_for_rank_and_sites():
    pipeline = Pipeline(init="source", kind="lora", sites="all", rank=8)
    (kind,) = pipeline.kinds(STARTS["source"])
    assert (kind.rank, kind.alpha, kind.sites) == (8, 16.0, SITES["all"])  # alpha / rank was 8 / 4
    (kind,) = Pipeline(init="shared", kind="prefix").kinds(STARTS["shared"])
    assert kind == Prefix(length=3)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"rank": 1000}, r"rank: expected a value in \[1, 32\], got 1000"),
        ({"kind": "ia3"}, "kind: expected one of lora, prefix"),
        ({"epochs": 5}, "epochs: expected one of 4, 8, 16, 32, got 5"),
        ({"learning_rate": None}, "'learning_rate' applies and is not given"),
        ({"bottleneck": 8}, "'bottleneck' does not apply and is given"),
        ({"init": "generated", "alpha_per_rank": None}, "no start of this kind: .*query_value"),
    ],
)
def test_a_bad_value_is_refused_with_its_range(space, change, complaint):
    with pytest.raises(ConfigError, match=complaint):
        space.check(dataclasses.replace(default_pipeline(), **change))


def test_the_default_is_in_every_space(space):
    space.check(default_pipeline())
    PipelineSpace(T5).check(default_pipeline())


def test_an_unknown_start_is_refused():
    with pytest.raises(ConfigError, match="got 'lucky'"):
        PipelineSpace(T5, {"lucky": (STARTS["shared"],)})


def test_the_encoding():
    low = dataclasses.replace(default_pipeline(), rank=1, learning_rate=1e-5, epochs=4)
    high = dataclasses.replace(low, rank=32, learning_rate=1e-1, epochs=32)
    half = dataclasses.replace(low, learning_rate=1e-3)
    rows = dict(zip(columns(), encode([low, high, half, Pipeline(method="as_generated")]).T, strict=True))
    np.testing.assert_allclose(rows["learning_rate"], [0, 1, 0.5, 0], atol=1e-6)
    np.testing.assert_allclose(rows["epochs"], [0, 1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(rows["rank"][:2], [0, 1], atol=0.02)
    np.testing.assert_array_equal(rows["rank?"], [1, 1, 1, 0])
    np.testing.assert_array_equal(rows["kind=lora"], [1, 1, 1, 0])
    np.testing.assert_array_equal(rows["method=as_generated"], [0, 0, 0, 1])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kind": "ia3"}, "kind: expected one of lora, .* got 'ia3'"),
        ({"batch_size": 64}, "batch_size: expected one of 4, 8, 16, 32, got 64"),
        ({"rank": 64}, r"rank: expected a value in \[1, 32\], got 64"),
    ],
)
def test_a_pipeline_of_no_space_is_not_encoded(change, told):
    with pytest.raises(ConfigError, match=rf"pipeline [0-9a-f]{{16}}: {told}"):
        encode([dataclasses.replace(default_pipeline(), **change)])


def test_encodings_lie_in_the_unit_cube_and_tell_pipelines_apart(space):
    drawn = space.sample(80, seed=1)
    rows = encode(drawn)
    assert rows.min() >= 0
    assert rows.max() <= 1
    assert len(np.unique(rows, axis=0)) == len(drawn)
