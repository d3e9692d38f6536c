"""The tiny hypermodel of t5x_letters.gin, and hyperflax's own loop on what T5X recorded."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hyperflax import trees
from hyperflax.adapters import LoRA, build_spec
from hyperflax.data.episode_config import EpisodeConfig
from hyperflax.hypermodel import HypermodelConfig
from hyperflax.hypernets.heads import HeadsConfig
from hyperflax.hypernets.hyper_t5 import HyperT5Config
from hyperflax.objectives.episode import HypermodelObjective
from hyperflax.training import loop
from hyperflax.training.optimizers import make_optimizer
from hyperflax.types import T5Config
from tests.integrations.t5x_task import VOCABULARY

GOLDENS = pathlib.Path(__file__).resolve().parent / "goldens" / "t5x_train.npz"
STEPS, TASKS, SEED, LEARNING_RATE = 6, 4, 7, 0.05
BASE = T5Config(
    vocab_size=264, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=12, num_encoder_layers=1, num_decoder_layers=1
)
CONFIG = HypermodelConfig(
    base=BASE,
    spec=build_spec((LoRA(rank=2, alpha=4.0),), BASE),
    hypernetwork=HyperT5Config(BASE, HeadsConfig(hidden=8)),
    episodes=EpisodeConfig(
        shots=2, examples=3, definition="support", support_length=16, inputs_length=8, targets_length=8
    ),
    vocabulary=VOCABULARY,
)


def goldens() -> dict[str, np.ndarray]:
    with np.load(GOLDENS) as arrays:
        return dict(arrays)


def branch(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, Any]:
    """The arrays whose names start with `prefix/`, as a tree."""
    return trees.unflatten({n[len(prefix) + 1 :]: a for n, a in arrays.items() if n.startswith(f"{prefix}/")})


class Recorded:
    """The batches that T5X trained on, in some order, as `loop.train` wants them."""

    def __init__(self, arrays: Mapping[str, np.ndarray], order: Sequence[int]):
        self._batches = branch(arrays, "batch")
        self._order = order

    def batch(self, step: int) -> dict[str, np.ndarray]:
        return self._batches[str(self._order[min(step, len(self._order) - 1)])]


def train_ourselves(
    arrays: Mapping[str, np.ndarray], model_dir: pathlib.Path, order: Sequence[int] = range(STEPS)
) -> tuple[Any, list[dict[str, float]]]:
    """Runs hyperflax's loop on the recorded batches from T5X's start: its last state and a row for every step."""
    state = loop.train(
        objective=HypermodelObjective(*CONFIG.build()),
        optimizer=make_optimizer("adafactor", LEARNING_RATE),
        batches=Recorded(arrays, order),
        model_dir=model_dir,
        total_steps=len(order),
        frozen=branch(arrays, "start/base"),
        initial_params=branch(arrays, "start/hypernetwork"),
        log_period=1,
        save_period=0,
        progress=False,
    )
    rows = [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().splitlines()]
    return state, [row for row in rows if row["kind"] == "train"]
