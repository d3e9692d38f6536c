"""A curriculum asks the right stage for the run's own step, and trains through a change of shapes."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from hyperflax.data.curriculum import Curriculum
from hyperflax.data.text import PaddedBatches
from hyperflax.errors import ConfigError
from hyperflax.models.t5 import T5
from hyperflax.objectives.language_model import T5Objective
from hyperflax.training.loop import train
from hyperflax.training.optimizers import make_optimizer
from hyperflax.types import T5Config

CONFIG = T5Config(
    vocab_size=16, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=8, num_encoder_layers=1, num_decoder_layers=1
)


class Named:
    def __init__(self, name: str):
        self.name = name

    def batch(self, step: int):
        return {"stage": np.array([self.name]), "step": np.array([step])}


def test_every_step_belongs_to_one_stage() -> None:
    curriculum = Curriculum([Named("a"), Named("b"), Named("c")], boundaries=[2, 3])
    found = [curriculum.batch(step) for step in range(5)]
    assert [str(batch["stage"][0]) for batch in found] == ["a", "a", "b", "c", "c"]
    assert [int(batch["step"][0]) for batch in found] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("boundaries", [[], [1, 2], [0], [-1]])
def test_boundaries_must_fit(boundaries: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"Curriculum: expected 1 ascending boundaries above 0 for 2 stages"):
        Curriculum([Named("a"), Named("b")], boundaries)


def test_a_run_goes_through_stages_of_other_shapes_and_resumes_in_the_second(tmp_path) -> None:
    def pairs(rng):
        return [([3, int(rng.integers(4, 16))], [int(rng.integers(4, 16))])]

    def stage(size: int, length: int) -> PaddedBatches:
        return PaddedBatches(pairs, batch_size=size, inputs_length=length, targets_length=length)

    def run(folder: str, total: int):
        return train(
            objective=T5Objective(T5(CONFIG)),
            optimizer=make_optimizer("adamw", 1e-2),
            batches=Curriculum([stage(8, 4), stage(16, 6)], boundaries=[2]),
            model_dir=tmp_path / folder,
            total_steps=total,
            progress=False,
        )

    whole = run("whole", 4)
    run("parts", 3)
    parts = run("parts", 4)
    for a, b in zip(*map(leaves, (whole, parts)), strict=True):
        np.testing.assert_array_equal(a, b)


def leaves(state) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state.params)]
