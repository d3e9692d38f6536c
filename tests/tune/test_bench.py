"""What a bench says of a data set before any training, for models whose adapters start with and without effect."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from hyperflax.adapters import LoRA, Prefix
from hyperflax.data.jsonl import Line
from hyperflax.hypermodel import Hypermodel
from hyperflax.tune.bench import Bench
from hyperflax.tuner.datasets import SPLITS, DataSet, task_embedding
from tests.finetuning.micro_model import LORA, micro_model
from tests.tune.test_collect import data_set


@pytest.mark.parametrize("kind", [LORA, Prefix(length=2)], ids=["lora", "prefix"])
def test_bare_and_generated_scored_together_are_what_each_is_alone(kind: LoRA | Prefix) -> None:
    bench, data = Bench(micro_model(kind)), data_set("first")
    meta, generated = bench.facts(data).meta, bench.facts(data).generated
    for name, adapter in (("bare", None), ("generated", generated)):
        exact, loss = bench.score(data, "validation", adapter)
        assert (meta[f"{name}_exact"], meta[f"{name}_loss"]) == (exact, pytest.approx(loss, rel=1e-5))
        assert bench.test_scores(data)[name] == bench.score(data, "test", adapter)[0]
    assert abs(meta["bare_loss"] - meta["generated_loss"]) > 0.01  # so that one could not stand for the other


def test_the_task_embedding_is_that_of_the_first_support() -> None:
    bench, data = Bench(micro_model()), data_set("first")
    model = bench.model
    first = [(line.input, line.target) for line in data.train[: model.config.episodes.shots]]
    # By the model's own compiled steps: in one piece, float32's last bits are others, on some processors beyond 1e-6.
    support = model.episode(first, [])["support_tokens"]
    (states,) = model.slot_states({"support_tokens": support[None]})
    meta = bench.facts(data).meta
    assert task_embedding(np.asarray(states)) == pytest.approx({k: v for k, v in meta.items() if k[:5] == "task_"})


def test_a_model_that_was_trained_with_a_definition_alone_is_shown_an_example_for_its_task_embedding() -> None:
    """As it is for its adapter; without one, all data sets would look the same to it."""
    micro = micro_model()

    def told(shots: int) -> dict[str, float]:
        config = dataclasses.replace(micro.config, episodes=micro.config.episodes.replace(shots=shots))
        bench = Bench(Hypermodel(config, micro.parts.base, micro.parts.hypernetwork_params))
        return bench.facts(data_set("first")).meta

    none, one = told(0), told(1)
    assert none == pytest.approx(one, rel=1e-4, abs=1e-6)


def test_a_data_set_is_tokenised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, data, asked = Bench(micro_model()), data_set("first"), []
    arrays = DataSet.arrays
    monkeypatch.setattr(DataSet, "arrays", lambda self, *given: asked.append(given[0]) or arrays(self, *given))
    for _ in range(2):  # as often as a run goes from one pipeline to another
        for split in SPLITS:
            bench.arrays(data, split)
    assert asked == list(SPLITS)


def test_nothing_is_generated_from_examples_that_no_support_holds() -> None:
    micro = micro_model()
    episodes = micro.config.episodes.replace(inputs_length=20)  # of the base model; a row of a support holds 16
    config = dataclasses.replace(micro.config, episodes=episodes)
    bench = Bench(Hypermodel(config, micro.parts.base, micro.parts.hypernetwork_params))
    long = [Line("here", f"{number}" + "a" * 15, "b") for number in range(9)]
    data = DataSet("long", long[:3], long[3:6], long[6:])
    facts = bench.facts(data)
    assert facts.generated is None
    assert math.isnan(facts.meta["generated_exact"])
    assert math.isnan(bench.test_scores(data)["generated"])
    assert facts.meta["bare_loss"] == bench.score(data, "validation", None)[1]
