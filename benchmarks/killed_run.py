"""A micro T5 with dropout and validation, trained by a process that shall be killed.

    python -m benchmarks.killed_run MODEL_DIR [KILL]...

KILL is `SIGKILL:N`, or another signal, sent when the batch of step N is asked for, or `save:N`, SIGKILL while
checkpoint N is written to a disk. `benchmarks.kills` and the tests of interrupted runs kill it in many ways.
"""

from __future__ import annotations

import os
import pathlib
import signal
import sys
import threading
import time
from typing import Any

import numpy as np

from hyperflax.models.t5 import T5
from hyperflax.objectives import T5Objective
from hyperflax.training import loss_evaluator, make_optimizer, train, warmup_cosine
from hyperflax.types import T5Config

CONFIG = T5Config(
    vocab_size=32,
    emb_dim=8,
    num_heads=1,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=8,
    mlp_dim=16,
    dropout_rate=0.2,
)


class Batches:
    """Random tokens, pure in the step; the batch of a step in `signals` sends the signal of that name first."""

    def __init__(self, signals: dict[int, str] | None = None):
        self.signals = signals or {}

    def batch(self, step: int) -> dict[str, np.ndarray]:
        if step in self.signals:
            os.kill(os.getpid(), signal.Signals[self.signals[step]])
        rng = np.random.default_rng([5, step])
        tokens = rng.integers(2, 32, (4, 6)).astype(np.int32)
        return {
            "encoder_input_tokens": tokens,
            "decoder_input_tokens": np.pad(tokens[:, :-1], ((0, 0), (1, 0))),
            "decoder_target_tokens": tokens,
            "decoder_loss_weights": rng.integers(0, 2, (4, 6)).astype(np.float32),
        }


def kill_while_saving(directory: pathlib.Path, step: int) -> None:
    """Waits for the temporary folder of a checkpoint, and kills this process."""
    while not any("tmp" in path.name for path in directory.glob(f"checkpoint_{step}*")):
        time.sleep(0.0005)
    os.kill(os.getpid(), signal.SIGKILL)


def run(directory: str, *kills: str, total_steps: int = 20, schedule_steps: int | None = None, **options: Any) -> None:
    """Trains, or goes on training, in `directory`, a folder or an address.

    Args:
      directory: of the run.
      kills: see the module.
      total_steps: of the run.
      schedule_steps: of the learning rate, where the run is a part of a longer one.
      options: further ones of `train`.
    """
    signals = {int(step): how for how, step in (kill.split(":") for kill in kills)}
    for step in [step for step, how in signals.items() if how == "save"]:
        del signals[step]
        watched = pathlib.Path(directory) / "checkpoints"
        threading.Thread(target=kill_while_saving, args=(watched, step), daemon=True).start()
    objective = T5Objective(T5(CONFIG))
    settings: dict[str, Any] = {"log_period": 3, "save_period": 5, "eval_period": 10, "progress": False} | options
    train(
        objective=objective,
        optimizer=make_optimizer("adamw", warmup_cosine(0.01, 3, schedule_steps or total_steps)),
        batches=Batches(signals),
        model_dir=directory,
        total_steps=total_steps,
        evaluator=loss_evaluator(objective, Batches(), num_batches=2, first_batch=100),
        **settings,
    )


if __name__ == "__main__":
    run(*sys.argv[1:])
