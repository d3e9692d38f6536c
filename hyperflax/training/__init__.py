"""Training: a pure step, and a host loop around it that can be killed at any time."""

from hyperflax.training.evaluate import loss_evaluator
from hyperflax.training.loop import train
from hyperflax.training.optimizers import make_optimizer
from hyperflax.training.schedules import learning_rate_schedule, warmup_cosine
from hyperflax.training.state import TrainState
from hyperflax.training.step import make_train_step

__all__ = [
    "TrainState",
    "learning_rate_schedule",
    "loss_evaluator",
    "make_optimizer",
    "make_train_step",
    "train",
    "warmup_cosine",
]
