"""Run files of suites' reference systems, multi-task fine-tuning and the shared adapter, beside the hypermodel's."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import gin
import jax
import numpy as np
import pytest

from hyperflax.data import seqio_source
from hyperflax.data.examples import Example, InMemorySource, TaskExamples, TaskInfo
from hyperflax.data.vocabularies import SentencePiece
from tests.gin_runs import made, parse, without_sources


@pytest.mark.parametrize("system", ["mtf", "shared"])
@pytest.mark.parametrize("suite", ["natural_instructions", "p3", "metaicl"])
def test_a_suites_reference_system_is_built_beside_its_hypermodel(
    suite: str, system: str, monkeypatch: pytest.MonkeyPatch, data_dir: pathlib.Path
) -> None:
    """As many examples shown, or none; scored rows and draws of tasks of the hypermodel's training; the same base."""
    vocabulary = SentencePiece(data_dir / "vocab" / "spiece.model")
    examples = [Example.from_text(f"{i} and some more words", "yes", vocabulary) for i in range(40)]
    source = InMemorySource([TaskExamples("task", examples, TaskInfo())], vocabulary)
    without_sources(monkeypatch)
    monkeypatch.setitem(sys.modules, "seqio", seqio_source)  # only where it is imported is it asked
    monkeypatch.setattr(seqio_source, "load_seqio", lambda *_, **__: source)

    def described(run: str) -> tuple[Any, ...]:
        """Model, batches and their episodes' config, as training has them."""
        parse(f"runs/{suite}_{run}.gin")
        with gin.unlock_config():
            gin.parse_config(f"VOCABULARY_FILE = '{vocabulary.file}'")
        parts = gin.get_bindings("hyperflax.train.train", resolve_references=False)
        model, batches = made(parts["model"]), made(parts["batches"])
        return model, batches, batches.pairs.config if run == "mtf" else batches.config

    hypermodel, _, wanted = described("hypermodel")
    model, batches, config = described(system)
    assert config.task_cap == wanted.task_cap
    batch = batches.batch(0)
    if system == "mtf":
        assert (model.config, config.shots) == (hypermodel.config.base, wanted.shots)
        assert config.inputs_length == batch["encoder_input_tokens"].shape[1]  # a row has room for an example
        shown = np.sum(batch["encoder_input_tokens"] == vocabulary.sentinel(config.input_sentinel))
        assert shown % (config.shots + 1) == 0  # before every input all of its examples, which are short here
        assert shown > 0
    else:
        assert (model.base, model.spec) == (hypermodel.config.base, hypermodel.config.spec)
        scored = ("examples", "inputs_length", "targets_length")
        assert [getattr(config, name) for name in scored] == [getattr(wanted, name) for name in scored]
    params = jax.eval_shape(model.objective.init, jax.random.key(0), batch)
    loss, weights, _ = jax.eval_shape(model.objective.loss, params, model.abstract_frozen, batch, None)
    assert loss.shape == weights.shape == ()
