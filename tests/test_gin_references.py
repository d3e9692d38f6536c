"""Run files of suites' reference systems, multi-task fine-tuning and the shared adapter, beside the hypermodel's."""

from __future__ import annotations

import numpy as np
import pytest

from hyperflax.data.examples import Example, InMemorySource, TaskExamples, TaskInfo
from hyperflax.data.vocabularies import Bytes
from tests.gin_runs import described


@pytest.mark.parametrize("system", ["mtf", "shared"])
@pytest.mark.parametrize("suite", ["natural_instructions", "p3", "metaicl"])
def test_a_suites_reference_system_is_built_beside_its_hypermodel(suite: str, system: str) -> None:
    """As many examples shown, or none; scored rows and draws of tasks of the hypermodel's training; the same base."""
    vocabulary = Bytes()
    examples = [Example.from_text(f"{i} a b", "yes", vocabulary) for i in range(40)]
    source = InMemorySource([TaskExamples("task", examples, TaskInfo())], vocabulary)
    hypermodel, trained_on = described(f"runs/{suite}_hypermodel.gin", load=lambda _: source)
    model, batches = described(f"runs/{suite}_{system}.gin", load=lambda _: source)
    wanted, config = trained_on.config, batches.pairs.config if system == "mtf" else batches.config
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
