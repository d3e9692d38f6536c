"""Batches of the micro job, in which the second of two processes is told to stop, once."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import signal

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Batches:
    """Random tokens, pure in the step. The batch of step 3 sends SIGTERM to its own process.

    Attributes:
      flag: folder of the file that says that it was sent.
    """

    flag: str

    def batch(self, step: int) -> dict[str, np.ndarray]:
        sent = pathlib.Path(self.flag) / "sent"
        if step == 3 and jax.process_index() == 1 and not sent.exists():
            sent.touch()
            os.kill(os.getpid(), signal.SIGTERM)
        tokens = np.random.default_rng(step).integers(3, 250, (4, 6)).astype(np.int32)
        return {
            "encoder_input_tokens": tokens,
            "decoder_input_tokens": np.pad(tokens[:, :-1], ((0, 0), (1, 0))),
            "decoder_target_tokens": tokens,
            "decoder_loss_weights": np.ones((4, 6), np.float32),
        }
